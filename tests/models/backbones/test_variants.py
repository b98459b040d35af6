"""ResNet-C, ResNet-D and ResNeXt by arguments of AttentionResNet, against mmdet's and MMPretrain's own."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.backbones import ResNetV1d, ResNeXt
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict

from mmccd.checkpoints.fit import load_whole_checkpoint
from mmccd.errors import UserError
from mmccd.models import CCD, AttentionResNet, PretrainedBackbone
from mmccd.models.backbones.blocks import AttentionGroupedBottleneck
from mmccd.models.layers import AttentionLayer
from mmccd.models.resnet_variants import named_variant, published_weights

C, D, X = dict(deep_stem=True), dict(deep_stem=True, avg_down=True), dict(groups=32, base_width=4)
# Two stages, narrow: everything that the variants change is there.
SMALL = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1), base_channels=16, stem_channels=16)
GROUPED = dict(groups=4, base_width=8)
OURS = dict(type='mmccd.CCD', groups=16, identity_init=True)


def theirs(kind, depth=50, scope='mmdet', **options):
    """The same network of mmdet or MMPretrain."""
    pytest.importorskip(f'{scope}.models')
    names = dict(c='ResNetV1c', d='ResNetV1d', x='ResNeXt', r='ResNet')
    if scope == 'mmdet' and kind == 'c':
        return MODELS.build(dict(type='mmdet.ResNet', depth=depth, deep_stem=True, **options))
    if scope == 'mmpretrain':
        options = dict(out_indices=(0, 1, 2, 3), **options) if 'out_indices' not in options else options
        if 'base_width' in options:
            options['width_per_group'] = options.pop('base_width')
    return MODELS.build(dict(type=f'{scope}.{names[kind]}', depth=depth, **options))


def randomize(net, seed=0):
    rng = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        if p.dim() == 1:
            p.data += 0.1 * torch.randn(p.shape, generator=rng)
    for name, b in net.named_buffers():
        if name.endswith('running_var'):
            b.data = 0.5 + torch.rand(b.shape, generator=rng)
    return net


def image(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
@pytest.mark.parametrize(
    ('kind', 'depth', 'options', 'expected'),
    [
        ('c', 50, C, 23_527_264),
        ('d', 50, D, 23_527_264),
        ('x', 50, X, 22_979_904),  # torchvision's 25,028,904 less the classifier
        pytest.param('d', 101, D, 42_519_392, marks=pytest.mark.long),
        pytest.param('x', 101, dict(groups=32, base_width=8), 86_742_336, marks=pytest.mark.long),  # 88,791,336
        pytest.param('x', 152, X, None, marks=pytest.mark.long),
    ],
)
def test_parameters(kind, depth, options, expected, scope):
    """The same number as theirs, and the published one; CCD adds 2 x 64 a block."""
    with torch.device('meta'):
        own = AttentionResNet(depth, **options)
        attended = AttentionResNet(depth, attention=dict(type='mmccd.CCD'), **options)
    other = theirs(kind, depth, scope, **({} if kind != 'x' else options))  # MMPretrain's cannot be on meta
    assert count(own) == count(other)
    assert expected in (None, count(own))
    blocks = sum(own.stage_blocks)
    assert count(attended) - count(own) == blocks * 128
    if scope == 'mmdet':
        assert list(own.state_dict()) == list(other.state_dict())


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
@pytest.mark.parametrize(('kind', 'options'), [('c', C), ('d', D), ('x', GROUPED), ('r', {})])
@pytest.mark.parametrize('depth', [18, 50])
def test_outputs_with_the_attention_off(kind, options, depth, scope):
    """Their checkpoint, loaded by PyTorch and by mmengine, gives their outputs to the last bit."""
    if kind == 'x' and depth == 18:
        pytest.skip('ResNeXt has Bottleneck blocks')
    other = theirs(kind, depth, scope, **SMALL, **(options if kind == 'x' else {}))
    randomize(other).eval()
    own = [AttentionResNet(depth, fuse=False, **SMALL, **options).eval() for _ in range(2)]
    assert own[0].load_state_dict(other.state_dict()).missing_keys == []
    load_state_dict(own[1], other.state_dict(), strict=True)
    x = image(2, 3, 64, 50)
    with torch.no_grad():
        expected = other(x)
        for net in own:
            assert all(torch.equal(a, b) for a, b in zip(net(x), expected, strict=True))


@pytest.mark.parametrize(('kind', 'options'), [('d', D), ('x', GROUPED)])
def test_gradients(kind, options):
    """With gates that are the identity at first, every gradient of theirs, in float64; and one for every gate."""
    other = randomize(theirs(kind, 50, **SMALL, norm_eval=False, **(options if kind == 'x' else {}))).double()
    own = AttentionResNet(50, **SMALL, **options, norm_eval=False, attention=OURS).double()
    own.load_state_dict(other.state_dict(), strict=False)
    x = image(2, 3, 32, 32).double()
    for net in (own, other):
        net.train()  # mmdet's returns nothing
        sum((out**2).mean() for out in net(x)).backward()
    found = dict(own.named_parameters())
    for name, p in other.named_parameters():
        assert torch.allclose(found.pop(name).grad, p.grad, rtol=1e-6, atol=1e-12), name
    assert {name.split('.')[-2] for name in found} == {'ccd'}
    assert len(found) == 2 * 7
    assert all(p.grad.any() for p in found.values())


@pytest.mark.parametrize('options', [D, GROUPED, {**D, **GROUPED}])
def test_folded_norms(options):
    """In evaluation the last norm and the shortcut run in the layer's pass: the same outputs and gradients."""
    attention = dict(type='mmccd.CCD', groups=16)
    nets = [AttentionResNet(50, **SMALL, **options, attention=attention, fuse=fuse).eval() for fuse in (True, False)]
    randomize(nets[0])
    nets[1].load_state_dict(nets[0].state_dict())
    assert [nets[i].layer2[0].fused for i in (0, 1)] == ['ccd', None]
    x = image(2, 3, 64, 64)
    outs = [net(x) for net in nets]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*outs, strict=True))
    for out in outs:
        sum((level**2).mean() for level in out).backward()
    pairs = zip(*(net.parameters() for net in nets), strict=True)
    assert all(torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-5) for a, b in pairs)


def test_interplay():
    """Checkpointed activations, stochastic depth, plugins and frozen stages of the variants."""
    kinds = dict(SMALL, **D, **GROUPED, norm_eval=False, attention=OURS)
    x = image(2, 3, 32, 32)
    plain, saved = (AttentionResNet(50, **kinds, with_cp=with_cp).train() for with_cp in (False, True))
    saved.load_state_dict(plain.state_dict())
    for net in (plain, saved):
        net(x)[-1].sum().backward()
    pairs = zip(plain.parameters(), saved.parameters(), strict=True)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-5) for a, b in pairs)

    plugins = [dict(cfg=dict(type='mmccd.SE', ratio=4), position='after_conv2')]
    net = AttentionResNet(50, **{**kinds, 'frozen_stages': 1}, plugins=plugins, drop_path_rate=0.2)
    block = net.layer2[1]
    assert block.se_layer.conv1.conv.in_channels == block.conv2.out_channels == 64  # 4 groups of 16
    assert block.conv2.groups == 4
    frozen = {name.split('.')[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {'stem', 'layer1'}
    assert net.train()(x)[-1].shape == (2, 128, 4, 4)


@pytest.mark.parametrize('kind', ['d', 'x'])
def test_pretrained_backbone_takes_checkpoints_of_mmpretrain(tmp_path, kind):
    """Of a whole classifier; what is missing is the attention alone, and nothing is lost on the way."""
    options = D if kind == 'd' else GROUPED
    other = randomize(theirs(kind, 50, 'mmpretrain', **SMALL, **(options if kind == 'x' else {})))
    other.eval()  # returns nothing
    state = {f'backbone.{k}': v for k, v in other.state_dict().items()} | {'head.fc.weight': torch.zeros(2, 2)}
    torch.save(dict(state_dict=state), tmp_path / 'classifier.pth')
    net = AttentionResNet(50, **SMALL, **options, fuse=False, attention=OURS)
    with pytest.raises(ValueError, match=r'14 missing keys \(ccd: 14\)'):
        PretrainedBackbone(str(tmp_path / 'classifier.pth'))(net)
    PretrainedBackbone(str(tmp_path / 'classifier.pth'), allow_missing='ccd')(net)
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(net.eval()(x), other(x), strict=True))


def test_whole_checkpoints_of_mmpretrain(tmp_path):
    """What testing loads; of the other kind, every stray tensor is named."""
    other = theirs('d', 50, 'mmpretrain', **SMALL)
    torch.save(dict(state_dict=other.state_dict()), tmp_path / 'd.pth')
    net = AttentionResNet(50, **SMALL, **D)
    load_whole_checkpoint(tmp_path / 'd.pth', net)
    assert torch.equal(net.stem[3].weight, other.stem[1].conv.weight)
    assert torch.equal(net.layer1[0].downsample[1].weight, other.layer1[0].downsample[0].weight)
    assert torch.equal(net.layer1[0].downsample[2].running_var, other.layer1[0].downsample[1].running_var)
    with pytest.raises(UserError, match=r'stem\.0\.conv\.weight'):
        load_whole_checkpoint(tmp_path / 'd.pth', AttentionResNet(50, **SMALL))


def test_what_is_frozen_from_outside_stays_frozen():
    """A teacher's gates: train() and eval() free those alone that the stages of the backbone itself freeze."""
    init = dict(type='mmccd.PretrainedBackbone', checkpoint='a.pth', allow_missing='ccd')
    net = AttentionResNet(18, frozen_stages=1, attention=dict(type='mmccd.CCD'), init_cfg=init)
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    assert {'layer1.0.ccd.scale', 'layer2.0.conv1.weight'} <= trained
    assert not any(n.startswith(('conv1', 'layer1.0.conv')) for n in trained)
    for p in net.parameters():
        p.requires_grad = False
    net.train().eval()
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(depth=18, groups=32), ValueError, 'groups needs Bottleneck blocks .* groups=32 at depth 18'),
        (dict(depth=50, groups=0), ValueError, 'groups must be at least 1, got 0'),
        (dict(depth=50, groups='32'), TypeError, "groups must be an int, got '32'"),
        (dict(depth=50, base_width=4), ValueError, 'base_width needs groups above 1'),
        (dict(depth=50, groups=32, base_width=0), ValueError, 'base_width must be at least 1, got 0'),
        (dict(depth=50, groups=32, attention=dict(type='mmccd.SK')), ValueError, 'groups and a layer in place of'),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message), torch.device('meta'):
        AttentionResNet(**options)


def test_every_attention_stands_in_blocks_with_groups():
    with torch.device('meta'):
        net = AttentionResNet(50, **X, **D, attention=dict(type='mmccd.CCD'))
    assert [type(m) for m in net.layer3] == [AttentionGroupedBottleneck] * 6
    assert sum(isinstance(m, CCD) for m in net.modules()) == 16
    assert all(m.groups == 64 for m in net.modules() if isinstance(m, AttentionLayer))


def test_names_and_published_weights():
    assert named_variant('r50') == dict(depth=50)
    assert named_variant('r101d') == dict(depth=101, **D)
    assert named_variant('x50-32x4d') == dict(depth=50, **X)
    assert [named_variant(name) for name in ('x50', 'swin', 'r50dd')] == [{}] * 3
    assert published_weights(named_variant('r34')) == 'torchvision://resnet34'
    assert published_weights(named_variant('x50-32x4d')) == 'torchvision://resnext50_32x4d'
    assert '/resnetv1d50_' in published_weights(named_variant('r50d'))
    assert published_weights(dict(depth=50, **C)) == 'open-mmlab://resnet50_v1c'
    assert published_weights(dict(depth=50, groups=5)) is None


def test_the_classes_of_mmdet_are_those_that_configs_name():
    """mmdet's ResNetV1d and ResNeXt set these arguments, so that a config may name the one or the other."""
    with torch.device('meta'):
        d, x = ResNetV1d(depth=50), ResNeXt(depth=50, groups=32, base_width=4)
    assert (d.deep_stem, d.avg_down, x.groups, x.base_width) == (True, True, 32, 4)
