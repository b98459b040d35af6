"""Norms and convolutions inside attentions: those of the network around them, under the names of always."""

import pytest
import torch
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import ConvWS2d
from mmengine.model import revert_sync_batchnorm
from torch import nn

from mmccd.models import BAM, CBAM, GE, NAM, SK, AttentionResNet, CoordAttention, TripletAttention
from mmccd.models.layers.base import fit_norm_cfg

GN = dict(type='GN', num_groups=32)
WITH_NORMS = {
    'CBAM': dict(type='mmccd.CBAM'),
    'GE': dict(type='mmccd.GE', extent=4, extra_params=True),
    'SK': dict(type='mmccd.SK'),
}
# Where each keeps its norms in a block of ResNet-50, and their channels in the first stage.
NORMS = {
    'CBAM': {'cbam.spatial_gate.bn': 1},
    'GE': {'ge.gather.bn1': 256, 'ge.gather.bn2': 256},
    'SK': {'conv2.branches.0.{}': 64, 'conv2.branches.1.{}': 64, 'conv2.fc1.{}': 4},
}


def norms(net, name, kind='bn'):
    return {key: net.layer1[0].get_submodule(key.format(kind)) for key in NORMS[name]}


@pytest.mark.parametrize('name', WITH_NORMS)
def test_no_batch_norm_is_left_under_group_norm(name):
    net = AttentionResNet(50, attention=WITH_NORMS[name], norm_cfg=GN)
    assert not [n for n, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    found = norms(net, name, 'gn')
    assert {key: m.num_channels for key, m in found.items()} == NORMS[name]
    # A group of one channel of a pooled map would be normalised to zero.
    assert all(m.num_groups in (32, 1) and m.num_groups < max(m.num_channels, 2) for m in found.values())
    out = net.train()(torch.randn(2, 3, 64, 64))[-1]
    assert out.isfinite().all()


@pytest.mark.parametrize('name', WITH_NORMS)
def test_names_in_checkpoints_stay(name):
    plain = AttentionResNet(18, attention=WITH_NORMS[name])
    named = AttentionResNet(18, attention=WITH_NORMS[name], norm_cfg=dict(type='BN', requires_grad=True), conv_cfg=None)
    assert list(plain.state_dict()) == list(named.state_dict())
    for a, b in zip(plain.modules(), named.modules()):
        assert type(a) is type(b)
        assert getattr(a, 'momentum', None) == getattr(b, 'momentum', None)
        assert getattr(a, 'eps', None) == getattr(b, 'eps', None)
    if name != 'SK':  # mmcv names the norm of a ConvModule by its type
        other = {k for k, _ in AttentionResNet(18, attention=WITH_NORMS[name], norm_cfg=GN).named_parameters()}
        inside = {k for k, _ in plain.named_parameters() if '.cbam.' in k or '.ge.' in k}
        assert inside
        assert inside <= other


def test_momentum_of_cbam():
    """0.01, as the published model has it, unless the config says otherwise."""
    for norm_cfg, momentum in (
        (None, 0.01),
        (dict(type='BN', requires_grad=True), 0.01),
        (dict(type='SyncBN'), 0.01),
        (dict(type='BN', momentum=0.2), 0.2),
    ):
        assert CBAM(64, norm_cfg=norm_cfg).spatial_gate.bn.momentum == momentum
    assert GE(64, extent=2, extra_params=True).gather.bn1.momentum == 0.1
    assert CBAM(64, norm_cfg=dict(type='BN', eps=1e-3)).spatial_gate.bn.eps == 1e-3


@pytest.mark.parametrize('name', WITH_NORMS)
def test_frozen_norms(name):
    net = AttentionResNet(50, attention=WITH_NORMS[name], norm_cfg=dict(type='BN', requires_grad=False))
    frozen = {n for n, p in net.named_parameters() if not p.requires_grad}
    wanted = {f'layer1.0.{key.format("bn")}.{p}' for key in NORMS[name] for p in ('weight', 'bias')}
    assert wanted <= frozen
    assert not {n for n in frozen if n.endswith(('conv.weight', 'fc2.weight', 'conv1.weight'))}


@pytest.mark.parametrize(('name', 'new'), [('CBAM', 'cbam'), ('GE', 'ge'), ('SK', 'branches')])
def test_frozen_norms_of_what_the_checkpoint_may_miss_are_trained(name, new):
    """They would keep their initial weights; an identity_init of CBAM could never leave the identity."""
    init_cfg = dict(type='mmccd.PretrainedBackbone', checkpoint='none.pth', allow_missing=new)
    net = AttentionResNet(
        18, attention=WITH_NORMS[name], norm_cfg=dict(type='BN', requires_grad=False), init_cfg=init_cfg
    )
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    for stage in ('layer1.0.', 'layer4.1.'):
        inside = {n for n, _ in net.named_parameters() if n.startswith(stage) and f'.{new}.' in n}
        assert any('.bn' in n for n in inside)
        assert inside <= trained
        assert f'{stage}bn2.weight' not in trained


@pytest.mark.parametrize('name', WITH_NORMS)
def test_synchronised_norms(name):
    """By ``norm_cfg``, and by PyTorch's conversion; back again, it computes what it did."""
    named = AttentionResNet(50, attention=WITH_NORMS[name], norm_cfg=dict(type='SyncBN'))
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms(named, name).values())
    net = AttentionResNet(50, attention=WITH_NORMS[name]).eval()
    x = torch.randn(1, 3, 64, 64)
    keys = list(net.state_dict())
    with torch.no_grad():
        before = net(x)
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        assert all(isinstance(m, nn.SyncBatchNorm) for m in norms(net, name).values())
        assert list(net.state_dict()) == keys == list(named.state_dict())
        net = revert_sync_batchnorm(net).eval()
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(net(x), before))
    if name == 'CBAM':
        assert norms(net, name)['cbam.spatial_gate.bn'].momentum == 0.01


def test_convolutions_are_the_networks():
    for layer in (
        CBAM(64, conv_cfg=dict(type='ConvWS')).spatial_gate.conv,
        GE(64, extent=2, extra_params=True, conv_cfg=dict(type='ConvWS')).gather.conv1,
        TripletAttention(64, conv_cfg=dict(type='ConvWS')).hc.conv,
        SK(64, conv_cfg=dict(type='ConvWS')).branches[0].conv,
    ):
        assert isinstance(layer, ConvWS2d)
    net = AttentionResNet(18, attention=WITH_NORMS['CBAM'], conv_cfg=dict(type='ConvWS'))
    assert isinstance(net.layer4[1].cbam.spatial_gate.conv, ConvWS2d)


def test_group_norm_in_cbam_by_hand():
    """Its one channel is one group: a map less its mean, by its deviation."""
    layer = CBAM(16, ratio=4, kernel_size=1, norm_cfg=GN).double()
    nn.init.normal_(layer.spatial_gate.bn.weight)
    nn.init.normal_(layer.spatial_gate.bn.bias)
    x = torch.randn(2, 16, 4, 5, dtype=torch.float64)
    a, b = layer.spatial_gate.conv.weight.flatten()
    logit = a * x.amax(1, keepdim=True) + b * x.mean(1, keepdim=True)
    centred = logit - logit.mean((2, 3), keepdim=True)
    normed = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    expected = torch.sigmoid(normed * layer.spatial_gate.bn.weight + layer.spatial_gate.bn.bias)
    assert torch.allclose(layer.spatial_gate(x), expected)


@pytest.mark.parametrize(
    ('norm_cfg', 'channels', 'expected'),
    [
        (None, 8, dict(type='BN', momentum=0.3)),
        (dict(type='BN', requires_grad=False), 8, dict(type='BN', requires_grad=False, momentum=0.3)),
        (dict(type=nn.BatchNorm2d, momentum=0.5), 8, dict(type=nn.BatchNorm2d, momentum=0.5)),
        (dict(type='SyncBN', eps=1e-3), 8, dict(type='SyncBN', eps=1e-3, momentum=0.3)),
        (GN, 64, GN),  # two channels a group
        (GN, 32, dict(GN, num_groups=1)),
        (GN, 48, dict(GN, num_groups=1)),
        (GN, 1, dict(GN, num_groups=1)),
        (dict(type='IN'), 8, dict(type='IN')),
    ],
)
def test_fit_norm_cfg(norm_cfg, channels, expected):
    given = norm_cfg and dict(norm_cfg)
    assert fit_norm_cfg(norm_cfg, channels, momentum=0.3) == expected
    assert norm_cfg == given
    build_norm_layer(expected, channels)


@pytest.mark.parametrize(
    ('layer', 'norms'),
    [
        (CoordAttention, {'bn1': 8}),
        (TripletAttention, {'cw.bn': 1, 'hc.bn': 1, 'hw.bn': 1}),
        (BAM, {'channel_branch.bn': 16, **{f'spatial_branch.bn{i}': 16 for i in (1, 2, 3)}}),
        (NAM, {'bn': 256}),
    ],
)
def test_norms_of_other_layers(layer, norms):
    """Those of ``norm_cfg``, under the names of always; and the network's, where the layer is its attention."""
    plain, m = layer(256), layer(256, norm_cfg=GN)
    assert {n: g.num_channels for n, g in m.named_modules() if isinstance(g, nn.GroupNorm)} == norms
    assert {n: g.num_features for n, g in plain.named_modules() if isinstance(g, nn.BatchNorm2d)} == norms
    assert not [n for n, g in m.named_modules() if isinstance(g, nn.modules.batchnorm._BatchNorm)]
    assert [n for n, _ in m.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert m(torch.randn(2, 256, 4, 3)).isfinite().all()
    synchronised = layer(256, norm_cfg=dict(type='SyncBN'))
    assert all(isinstance(synchronised.get_submodule(n), nn.SyncBatchNorm) for n in norms)
    frozen = layer(256, norm_cfg=dict(type='BN', requires_grad=False))
    expected = {f'{n}.{p}' for n in norms for p in ('weight', 'bias')}
    assert {n for n, p in frozen.named_parameters() if not p.requires_grad} == expected
    with torch.device('meta'):
        net = AttentionResNet(50, attention=dict(type=f'mmccd.{layer.__name__}'), norm_cfg=GN)
    assert not [n for n, g in net.named_modules() if isinstance(g, nn.modules.batchnorm._BatchNorm)]


def test_identity_needs_a_weight():
    with pytest.raises(ValueError, match=r"identity_init needs a norm with a weight, got norm_cfg={'type': 'IN'}"):
        TripletAttention(64, identity_init=True, norm_cfg=dict(type='IN'))
    with pytest.raises(ValueError, match=r"identity_init needs a norm with a weight, got norm_cfg={'type': 'IN'}"):
        CBAM(64, identity_init=True, norm_cfg=dict(type='IN'))
    CBAM(64, norm_cfg=dict(type='IN'))
