"""Backbones of stock configs with an attention."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmccd.models import AttentionResNet
from mmccd.models.layers import AttentionLayer
from mmccd.models.stock import attended_backbone, fitting_groups


def build(cfg, scope='mmdet'):
    device = 'meta' if scope == 'mmdet' else 'cpu'  # MMPretrain's cannot be on meta
    with DefaultScope.overwrite_default_scope(scope), torch.device(device):
        return MODELS.build(cfg)


INIT = dict(type='Pretrained', checkpoint='torchvision://resnet50')
CCD = dict(type='mmccd.CCD', identity_init=True)
STRICT = dict(type='mmccd.PretrainedBackbone', checkpoint='torchvision://resnet50', allow_missing='ccd')


def test_what_becomes_of_a_resnet():
    stock = dict(type='ResNet', depth=50, frozen_stages=1, style='pytorch', init_cfg=INIT)
    assert attended_backbone(stock) == dict(
        type='mmccd.AttentionResNet',
        depth=50,
        frozen_stages=1,
        style='pytorch',
        attention=CCD,
        init_cfg=STRICT,
        out_indices=(0, 1, 2, 3),
        norm_eval=True,
        zero_init_residual=True,
    )
    assert stock['init_cfg'] is INIT
    assert attended_backbone(stock, dict(type='mmccd.GE'))['attention'] == dict(type='mmccd.GE')
    prefixed = attended_backbone(dict(stock, init_cfg=dict(INIT, prefix='backbone.')))
    assert prefixed['init_cfg'] == STRICT
    other = dict(INIT, prefix='encoder.')  # a part of another name stays with who knows it
    assert attended_backbone(dict(stock, init_cfg=other))['init_cfg'] == other


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
@pytest.mark.parametrize(
    'stock',
    [
        dict(type='ResNet', depth=18),
        dict(type='ResNetV1d', depth=50),
        dict(type='ResNeXt', depth=50),
        dict(type='ResNeXt', depth=101, groups=64),
        dict(type='Res2Net', depth=50),
        dict(type='RegNet', arch='regnetx_400mf'),
    ],
)
def test_tensors_keep_their_names(stock, scope):
    """All of theirs, and beside them the attention's alone; the outputs are as many."""
    pytest.importorskip(f'{scope}.models')
    if stock['type'] == 'Res2Net' and scope == 'mmdet':
        stock = dict(stock, scales=4, base_width=26)
    plain, ours = build(dict(stock), scope), build(attended_backbone(dict(stock), scope=scope), scope)
    assert isinstance(ours, AttentionResNet) == (stock['type'] in ('ResNet', 'ResNetV1d', 'ResNeXt'))
    assert tuple(ours.out_indices) == tuple(plain.out_indices)
    assert ours.norm_eval is plain.norm_eval
    keys = set(plain.state_dict())
    if isinstance(ours, AttentionResNet):
        keys = {ours.renamed_keys(keys).get(k, k) for k in keys}
    added = set(ours.state_dict()) - keys
    assert keys <= set(ours.state_dict())
    assert {k.split('.')[-2] for k in added} == {'ccd'}
    layers = [m for m in ours.modules() if isinstance(m, AttentionLayer)]
    assert len(added) == 2 * len(layers) > 0


def test_groups_that_fit():
    assert fitting_groups(dict(type='RegNet', arch='regnetx_400mf')) == 32  # 32, 64, 160, 384
    assert fitting_groups(dict(type='ResNet', depth=18)) == 64
    cfg = attended_backbone(dict(type='RegNet', arch='regnetx_400mf'), where='layer?')
    assert (cfg['where'], cfg['attention']['groups']) == ('layer?', 32)
    assert 'groups' not in attended_backbone(dict(type='RegNet', arch='regnetx_400mf'), 'mmccd.SE')['attention']


def test_what_there_is_not():
    with pytest.raises(ValueError, match=r"there is no 'mmccd\.CDC'"):
        attended_backbone(dict(type='ResNet', depth=18), 'mmccd.CDC')
    with pytest.raises(ValueError, match="there is no 'ResNot' in the registry of mmdet"):
        attended_backbone(dict(type='ResNot', depth=18))
