"""What all attention layers have in common: every file of mmccd/models/layers is tested here, a new one too."""

import copy
import inspect
import pkgutil

import pytest
import torch
from mmcv.cnn.bricks import build_plugin_layer
from mmdet.models import ResNet
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import load_state_dict

import mmccd.models.layers
from mmccd.models import (
    BAM,
    CBAM,
    CCD,
    ECA,
    FCA,
    GC,
    GE,
    LSK,
    NAM,
    SE,
    SGE,
    SK,
    CoordAttention,
    EMAttention,
    ShuffleAttention,
    SimAM,
    TripletAttention,
)
from mmccd.models.layers import AttentionLayer, attention_types

LAYERS = list(attention_types().values())
PLUGINS = [layer for layer in LAYERS if not layer.replaces_conv]
WITH_IDENTITY = [layer for layer in LAYERS if 'identity_init' in inspect.signature(layer).parameters]
# Names in blocks and in checkpoints, which are for ever.
ABBREVIATIONS = {
    CCD: 'ccd',
    SE: 'se_layer',
    GE: 'ge',
    CBAM: 'cbam',
    ECA: 'eca',
    GC: 'context_block',
    SGE: 'ccd',
    SimAM: 'simam',
    CoordAttention: 'coord_attention',
    EMAttention: 'em_attention',
    TripletAttention: 'triplet_attention',
    BAM: 'bam',
    ShuffleAttention: 'shuffle_attention',
    NAM: 'nam',
    LSK: 'lsk',
    FCA: 'fca',
}
ABOVE = (CCD, SE, GE, CBAM, ECA, GC)  # what takes a whole network is run every time for these alone
PAPERS_OWN = {(CoordAttention, 'ratio'): 32, (BAM, 'dilation'): 4}  # defaults that differ from the other layers'


def test_every_file_has_an_attention():
    files = {f'mmccd.models.layers.{m.name}' for m in pkgutil.iter_modules(mmccd.models.layers.__path__)}
    assert {layer.__module__ for layer in LAYERS} == files - {'mmccd.models.layers.base'}
    assert {SK, *ABBREVIATIONS} <= set(LAYERS)


@pytest.mark.parametrize('layer', LAYERS)
def test_constructors_are_alike(layer):
    """The same word means the same, and has the same default, in every layer."""
    parameters = inspect.signature(layer).parameters
    names = list(parameters)
    assert names[0] == 'in_channels'
    assert names[-1] == 'init_cfg'
    assert [n for n in names if n.endswith('_cfg')] == names[-sum(n.endswith('_cfg') for n in names) :]
    shared = dict(ratio=16, identity_init=False, conv_cfg=None, norm_cfg=None, init_cfg=None, stride=1, dilation=1)
    for name, default in shared.items():
        if name in parameters:
            assert parameters[name].default == PAPERS_OWN.get((layer, name), default), name
            assert type(parameters[name].default) is type(default), name
    for name in names[:-1]:
        assert f'        {name} (' in layer.__doc__, name
    assert layer(64, init_cfg=dict(type='Constant', val=0.5, layer='Linear')).init_cfg['val'] == 0.5


@pytest.mark.parametrize(
    ('layer', 'name'),
    [
        (layer, name)
        for layer in LAYERS
        for name in inspect.signature(layer).parameters
        if name in ('in_channels', 'ratio', 'groups', 'kernel_size', 'stride', 'dilation')
    ],
)
@pytest.mark.parametrize(('value', 'error'), [(0, ValueError), (-1, ValueError), ('16', TypeError), (True, TypeError)])
def test_numbers_are_checked_alike(layer, name, value, error):
    options = dict(mlp=True) if layer is GE else {}  # whose ratio means nothing without it
    with pytest.raises(error, match=rf'{name} must be .*got {value!r}$'):
        layer(**{'in_channels': 64, **options, name: value})


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('size', [(1, 1), (1, 7), (7, 7), (5, 3)])
def test_any_size_and_finite_gradients(layer, size):
    m = layer(64).train()
    x = torch.randn(2, 64, *size, requires_grad=True)
    y = m(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert x.grad.isfinite().all()
    for name, p in m.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


@pytest.mark.parametrize('layer', LAYERS)
def test_memory_layouts_agree(layer):
    m = layer(64).double().eval()
    for p in m.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(2, 64, 6, 5, dtype=torch.float64)
    expected = m(x)
    for other in (x.to(memory_format=torch.channels_last), torch.cat((x, x), 3)[..., :5]):
        assert torch.allclose(m(other), expected, rtol=1e-10)


@pytest.mark.parametrize('layer', LAYERS)
def test_bfloat16_autocast(layer):
    m = layer(64).eval()
    x = torch.randn(2, 64, 6, 5)
    with torch.autocast('cpu', torch.bfloat16):
        y = m(x.bfloat16())
    assert y.isfinite().all()
    assert ((y.float() - m(x)).abs().max() / m(x).abs().max()) < 0.05


@pytest.mark.parametrize('layer', PLUGINS)
def test_plugin_contract(layer):
    name, m = build_plugin_layer(dict(type=f'mmccd.{layer.__name__}'), postfix='_x', in_channels=64)
    assert name == f'{ABBREVIATIONS.get(layer, layer._abbr_)}_x'
    assert isinstance(m, layer)
    assert isinstance(m, BaseModule)


@pytest.mark.parametrize('layer', [*WITH_IDENTITY, GC])
def test_own_initial_weights_survive_a_backbones_init_cfg(layer):
    options = dict(identity_init=True) if layer in WITH_IDENTITY else {}

    class Backbone(BaseModule):
        def __init__(self):
            super().__init__(
                [dict(type='Kaiming', layer=['Conv2d', 'Linear']), dict(type='Normal', std=1.0, layer=['_BatchNorm'])]
            )
            self.inner = torch.nn.Sequential()  # as in a ResLayer: children of children
            self.attention = layer(64, **options)

    net = Backbone()
    net.init_weights()
    x = torch.randn(2, 64, 6, 5)
    assert torch.allclose(net.attention.eval()(x), x, atol=1e-6)


@pytest.mark.parametrize('layer', WITH_IDENTITY)
def test_identity_init(layer):
    x = torch.randn(2, 64, 9, 5)
    assert torch.allclose(layer(64, identity_init=True).eval()(x), x, atol=1e-6)
    plain = layer(64).eval()(x)
    assert (plain - x).abs().max() > 0.1


def test_an_own_init_cfg_has_the_last_word():
    m = SE(64, init_cfg=dict(type='Constant', val=0.25, bias=0.5, layer='Conv2d'))
    m.init_weights()
    assert torch.equal(m.conv2.conv.weight, torch.full_like(m.conv2.conv.weight, 0.25))
    assert torch.equal(m.conv1.conv.bias, torch.full_like(m.conv1.conv.bias, 0.5))


def test_init_weights_twice_keeps_what_was_trained():
    m = CCD(64)
    m.init_weights()
    torch.nn.init.constant_(m.scale, 3.0)
    m.init_weights()
    assert torch.equal(m.scale, torch.full((64,), 3.0))


@pytest.mark.parametrize(
    ('layer', 'options', 'error', 'message'),
    [
        (
            CCD,
            dict(in_channels=96),
            ValueError,
            'groups must divide the number of channels: 96 channels, got groups=64',
        ),
        (CCD, dict(in_channels=64, scales=(0, 2)), ValueError, 'every scale must be at least 1, got 0'),
        (CCD, dict(in_channels=64.0), TypeError, r'in_channels must be an int, got 64\.0'),
        (SE, dict(in_channels=8), ValueError, 'ratio must be at most in_channels=8, got 16'),
        (SE, dict(in_channels=64, ratio=0), ValueError, 'ratio must be at least 1, got 0'),
        (GC, dict(in_channels=64, ratio=0.5), TypeError, r'ratio must be an int, got 0\.5'),
        (SE, dict(in_channels=64, ratio=None), TypeError, 'ratio must be an int, got None'),
        (SK, dict(in_channels=64, ratio=None), TypeError, 'ratio must be an int, got None'),
        (GE, dict(in_channels=64, mlp=True, ratio=None), TypeError, 'ratio must be an int, got None'),
        (
            SK,
            dict(in_channels=64, out_channels=32, ratio=64),
            ValueError,
            'ratio must be at most out_channels=32, got 64',
        ),
        (CBAM, dict(in_channels=64, kernel_size=4), ValueError, 'kernel_size must be odd, got 4'),
        (GE, dict(in_channels=64, extent=3), ValueError, r'extent must be one of \(0, 2, 4, 8\).*got 3'),
        (GE, dict(in_channels=64, extra_params=True), ValueError, 'feat_size must be given for extent=0'),
        (CBAM, dict(in_channels=64, kernel_size=(3, 3)), TypeError, r'kernel_size must be an int, got \(3, 3\)'),
        (GE, dict(in_channels=64, extent=2.0), TypeError, r'extent must be an int, got 2\.0'),
        (GE, dict(in_channels=64, extra_params=True, feat_size=(7,)), ValueError, 'feat_size must be one int or two'),
        (GE, dict(in_channels=64, extra_params=True, feat_size=0), ValueError, 'feat_size must be at least 1, got 0'),
        (SK, dict(in_channels=64, groups=0), ValueError, 'groups must be at least 1, got 0'),
        (SK, dict(in_channels=64, stride=0), ValueError, 'stride must be at least 1, got 0'),
        (SK, dict(in_channels=64, out_channels='64'), TypeError, "out_channels must be an int, got '64'"),
        (SK, dict(in_channels=48), ValueError, 'groups must divide in_channels=48, got groups=32'),
    ],
)
def test_bad_arguments(layer, options, error, message):
    with pytest.raises(error, match=message):
        layer(**options)


@pytest.mark.parametrize('layer', LAYERS)
def test_copies_and_state_dicts(layer):
    m = layer(64)
    twin = copy.deepcopy(m)
    assert twin.load_state_dict(m.state_dict()).missing_keys == []
    x = torch.randn(1, 64, 4, 4)
    assert torch.equal(twin.eval()(x), m.eval()(x))


@pytest.mark.parametrize(
    ('layer', 'options'),
    [
        *((layer, {}) for layer in LAYERS if layer.gate_labels == AttentionLayer.gate_labels),
        *((layer, dict(identity_init=True)) for layer in WITH_IDENTITY),
        (CCD, dict(groups=8)),
        (CCD, dict(groups=64, identity_init=True, similarity='cosine', normalize='minmax')),
        (GE, dict(extent=4, extra_params=True)),
    ],
)
def test_gates_are_what_the_layer_multiplies_by(layer, options):
    m = layer(64, **options).double().eval()
    for p in m.parameters():
        torch.nn.init.normal_(p)
    x = 1 + torch.rand(2, 64, 6, 5, dtype=torch.float64)  # no zero to divide by
    product = torch.ones_like(x)
    for kind, gate in m.gates(x).items():
        if kind == 'spatial':  # maps of neighbouring channels
            maps = 1 if layer is CBAM else getattr(m, 'groups', 64)
            assert gate.shape == (2, maps, 6, 5)
            product *= gate.repeat_interleave(64 // gate.shape[1], 1)
        else:
            assert gate.shape == (2, 64)
            product *= gate[:, :, None, None]
    assert torch.allclose(product, m(x) / x, rtol=1e-10)
    assert product.std() > 1e-3  # or nothing would have been compared


def test_gates_of_gc_are_the_pooling_and_what_is_added():
    m = GC(64).double()
    for p in m.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(2, 64, 6, 5, dtype=torch.float64)
    gates = m.gates(x)
    assert torch.allclose((m(x) - x), gates['channel'][:, :, None, None].expand_as(x))
    assert torch.allclose(gates['spatial'].mean((2, 3)), torch.ones(2, 1, dtype=torch.float64))
    assert torch.allclose((x * gates['spatial']).mean((2, 3), keepdim=True), m.spatial_pool(x))


def test_gates_of_sk_mix_the_branches():
    m = SK(64, 128, stride=2).double().eval()
    x = torch.randn(2, 64, 6, 6, dtype=torch.float64)
    weight = m.gates(x)['channel'][:, :, None, None]
    dense, grouped = (branch(x) for branch in m.branches)
    assert weight.shape == (2, 128, 1, 1)
    assert weight.std() > 0.001
    assert torch.allclose(m(x), weight * dense + (1 - weight) * grouped)


@pytest.mark.parametrize(
    'layer',
    [
        pytest.param(layer, marks=() if layer in ABOVE else pytest.mark.long)
        for layer in PLUGINS
        if list(layer(64).parameters())
    ],
)
@pytest.mark.parametrize('frozen_stages', [0, 1])
def test_frozen_layers_of_any_backbone_are_named(monkeypatch, layer, frozen_stages):
    """mmdet's own ResNet, initialised from weights without the layer, as mmengine's Pretrained does."""
    warned = []
    monkeypatch.setattr(
        mmccd.models.layers.base,
        'print_log',
        lambda text, logger, level: warned.append(text),
    )
    plugin = dict(cfg=dict(type=f'mmccd.{layer.__name__}'), stages=(True, False, False, False), position='after_conv3')
    net = ResNet(50, plugins=[plugin], frozen_stages=frozen_stages)
    plain = ResNet(50).state_dict()
    load_state_dict(net, plain)
    names = [f'layer1.{i}.{layer._abbr_}' for i in range(3) if frozen_stages]
    assert [text.split('.{')[0] for text in warned] == names
    assert all('mmccd.PretrainedBackbone' in text for text in warned)
    load_state_dict(net, net.state_dict())
    assert len(warned) == len(names)
