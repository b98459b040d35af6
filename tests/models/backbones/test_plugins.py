"""What a config says about attentions and plugins: parsed, refused, handed on."""

import copy
import dataclasses

import pytest
import torch
from mmcv.cnn.bricks import ContextBlock
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmccd.models import CBAM, CCD, GE, SE, SK, AttentionResNet
from mmccd.models.backbones.plugins import Plugin, parse_plugins

ALL = (True,) * 4


def test_attention_and_plugins_by_hand():
    plugins = [
        dict(cfg=dict(type='mmccd.SE', ratio=8, postfix='_in'), position='after_conv1', stages=[True, False, 1, 0]),
        dict(cfg=dict(type='ContextBlock', ratio=1 / 4), position='after_conv3'),
    ]
    attention = dict(type='CCD', groups=8, stages=(False, True, True, True))
    given = copy.deepcopy((attention, plugins))
    assert parse_plugins(attention, plugins, depth=50) == (
        Plugin(SE, dict(ratio=8), 'after_conv1', (True, False, True, False), 'se_layer_in'),
        Plugin(ContextBlock, dict(ratio=1 / 4), 'after_conv3', ALL, 'context_block'),
        Plugin(CCD, dict(groups=8), 'after_conv3', (False, True, True, True), 'ccd'),
    )
    assert (attention, plugins) == given
    assert parse_plugins(dict(type=SK), None, depth=18) == (Plugin(SK, {}, 'replace_conv3x3', ALL, 'sk'),)
    assert parse_plugins(dict(type=SE), None, depth=18)[0].position == 'after_conv2'
    assert parse_plugins(None, None) == parse_plugins(None, []) == ()


def test_a_plugin_cannot_be_changed():
    (plugin,) = parse_plugins(dict(type='mmccd.SE'), None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plugin.position = 'after_conv1'


def test_name_without_an_abbreviation_is_mmcvs():
    class FancyBlock(nn.Module):
        def __init__(self, in_channels: int) -> None:
            super().__init__()

        def forward(self, x):
            return x

    assert parse_plugins(dict(type=FancyBlock), None)[0].name == 'fancy_block'
    assert isinstance(AttentionResNet(18, attention=dict(type=FancyBlock)).layer1[0].fancy_block, FancyBlock)


def test_convolutions_and_norms_of_the_backbone():
    """For mmccd's attentions that take them, as attention and as plugin; what the config sets there stays."""
    norm, conv, own = dict(type='GN', num_groups=32), dict(type='ConvWS'), dict(type='IN')
    backbone = dict(norm_cfg=norm, conv_cfg=conv, style='pytorch')
    inside = [dict(cfg=dict(type='mmccd.GE', norm_cfg=own), position='after_conv1')]
    ge, cbam = parse_plugins(dict(type='mmccd.CBAM'), inside, backbone=backbone)
    assert cbam.options == dict(norm_cfg=norm, conv_cfg=conv)
    assert ge.options == dict(norm_cfg=own, conv_cfg=conv)
    assert parse_plugins(dict(type='mmccd.SE'), None, backbone=backbone)[0].options == {}
    # Stock layers as in mmdet's ResNet: a norm more would change what is in their checkpoints.
    stock = dict(type='NonLocal2d', sub_sample=False)
    assert parse_plugins(stock, None, backbone=backbone)[0].options == dict(sub_sample=False)
    net = AttentionResNet(18, attention=dict(type='mmccd.CBAM'), plugins=inside, norm_cfg=norm)
    assert isinstance(net.layer1[0].cbam, CBAM)
    assert isinstance(net.layer1[0].cbam.spatial_gate.bn, nn.GroupNorm)
    assert isinstance(net.layer1[0].ge, GE)


@pytest.mark.parametrize(
    'attention', [dict(type='mmccd.CCD', scales=(1, 2)), dict(type='mmccd.SK', stages=ALL), dict(type='mmccd.CBAM')]
)
def test_a_config_survives_being_built_and_written(attention):
    text = Config(
        dict(
            model=dict(
                type='mmccd.AttentionResNet',
                depth=18,
                attention=attention,
                plugins=[dict(cfg=dict(type='mmccd.SE'), position='after_conv1', stages=(True, False, False, True))],
                norm_cfg=dict(type='BN', requires_grad=True),
            )
        )
    ).pretty_text
    cfg = Config.fromstring(text, '.py')
    torch.manual_seed(0)
    net = MODELS.build(cfg.model)
    assert cfg.pretty_text == text
    torch.manual_seed(0)
    twin = MODELS.build(Config.fromstring(cfg.pretty_text, '.py').model)
    assert repr(twin) == repr(net)
    assert net.attention == attention
    for other in (twin, copy.deepcopy(net)):
        assert list(other.state_dict()) == list(net.state_dict())
        assert all(map(torch.equal, other.state_dict().values(), net.state_dict().values()))


@pytest.mark.parametrize(
    ('attention', 'plugins', 'error', 'message'),
    [
        (dict(type='mmccd.ccd'), None, ValueError, "did you mean 'mmccd.CCD'"),
        (dict(type='CBMA'), None, ValueError, "got 'CBMA'; did you mean 'mmccd.CBAM'"),
        (dict(type='mmdet.SEE'), None, ValueError, "did you mean 'mmccd.SE'"),
        (dict(type='mmccd.Nothing'), None, ValueError, "got 'mmccd.Nothing'$"),
        (dict(type=3), None, ValueError, 'got 3$'),
        (dict(type='mmccd.SE', stages='1111'), None, TypeError, "stages must be a sequence of bools.*'1111'"),
        (dict(type='mmccd.SE', stages=('False',) * 4), None, TypeError, "stages must be a sequence of bools.*'False'"),
        (None, ['mmccd.SE'], TypeError, "every plugin must have a dict 'cfg' with the key 'type', got 'mmccd.SE'"),
        (
            None,
            [dict(cfg=dict(type='mmccd.SE'), position='after_conv1', stage=ALL)],
            TypeError,
            "got 'stage'; did you mean 'stages'",
        ),
        (
            None,
            [dict(cfg=dict(type='mmccd.SE', ration=8), position='after_conv1')],
            TypeError,
            "'ration' that SE does not know; did you mean 'ratio'",
        ),
        (None, [dict(cfg=dict(type='mmccd.SE'), position='replace_conv3x3')], ValueError, "got 'replace_conv3x3'"),
        (
            None,
            [dict(cfg=dict(type='mmccd.SE'), position=p) for p in ('after_conv1', 'after_conv2')],
            ValueError,
            "'se_layer' twice in a block",
        ),
    ],
)
def test_refused(attention, plugins, error, message):
    with pytest.raises(error, match=message):
        parse_plugins(attention, plugins)
