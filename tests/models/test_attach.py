"""Attention in networks of others: the right places, the same outputs and names, and nothing lost in silence."""

import copy
import inspect
import logging
import pickle

import pytest
import torch
import torchvision
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.optim.swa_utils import AveragedModel

import mmccd
from mmccd.models import CCD, ECA
from mmccd.models.layers import attention_types
from mmccd.models.places import find_places


class Strange(nn.Module):
    """A residual network with no usual name, a branch that is added to from the left, and a plain sum beside it."""

    class Unit(nn.Module):
        def __init__(self, channels, stride=1):
            super().__init__()
            self.a = nn.Conv2d(channels, channels, 3, stride, 1)
            self.b = nn.GroupNorm(2, channels)
            self.c = nn.Conv2d(channels, channels, 3, 1, 1)
            self.skip = nn.AvgPool2d(2) if stride == 2 else nn.Identity()

        def forward(self, x):
            return torch.add(self.c(self.b(self.a(x)).tanh()), self.skip(x)).relu()

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 3)
        self.one, self.two = self.Unit(8), self.Unit(8, 2)
        self.other = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.two(self.one(self.enter(x)))
        return x + self.other(x)  # one layer is no branch


class PreActivation(nn.Module):
    """Norm and ReLU come first; the shortcut of the first block is made of what they give."""

    class Block(nn.Module):
        def __init__(self, channels, project):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1)
            self.bn2, self.conv2 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1)
            self.act = nn.ReLU()
            self.project = nn.Conv2d(channels, channels, 1) if project else None

        def forward(self, x):
            out = self.act(self.bn1(x))
            shortcut = x if self.project is None else self.project(out)
            return self.conv2(self.act(self.bn2(self.conv1(out)))) + shortcut

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(self.Block(8, True), self.Block(8, False))

    def forward(self, x):
        return self.blocks(self.stem(x))


class InPlace(nn.Module):
    """The branch ends in an activation that works in place, and the sum is made in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.branch = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1, bias=False), nn.ReLU(inplace=True))

    def forward(self, x):
        x = self.stem(x)
        y = self.branch(x)
        y += x
        return y


def long(*case):
    return pytest.param(*case, marks=pytest.mark.long)


TORCHVISION = [
    ('resnet18', 8, 'layer1.0.bn2', 'layer4.1.bn2'),
    ('mobilenet_v3_small', 6, 'features.3.block.2.1', 'features.11.block.3.1'),
    long('resnet50', 16, 'layer1.0.bn3', 'layer4.2.bn3'),
    long('resnext50_32x4d', 16, 'layer1.0.bn3', 'layer4.2.bn3'),
    long('regnet_y_400mf', 16, 'trunk_output.block1.block1-0.f.c.1', 'trunk_output.block4.block4-5.f.c.1'),
    long('mobilenet_v2', 10, 'features.3.conv.3', 'features.16.conv.3'),
    long('efficientnet_b0', 9, 'features.2.1.block.3.1', 'features.6.3.block.3.1'),
    long('convnext_tiny', 18, 'features.1.0.stochastic_depth', 'features.7.2.stochastic_depth'),
    long('mnasnet0_5', 10, 'layers.8.1.layers.7', 'layers.12.3.layers.7'),
]
OPENMMLAB = [
    (dict(type='mmdet.ResNet', depth=18), 8, 'layer1.0.bn2', 'layer4.1.bn2'),
    (
        dict(type='mmdet.CSPNeXt', deepen_factor=0.167, widen_factor=0.375),
        3,
        'stage1.1.blocks.0.conv2',
        'stage3.1.blocks.0.conv2',
    ),
    long(dict(type='mmdet.ResNeXt', depth=50, groups=32, base_width=4), 16, 'layer1.0.bn3', 'layer4.2.bn3'),
    long(dict(type='mmdet.Res2Net', depth=50, scales=4, base_width=26), 16, 'layer1.0.bn3', 'layer4.2.bn3'),
    long(dict(type='mmdet.RegNet', arch='regnetx_400mf'), 22, 'layer1.0.bn3', 'layer4.11.bn3'),
    long(dict(type='mmdet.ResNeSt', depth=50), 16, 'layer1.0.bn3', 'layer4.2.bn3'),
    long(
        dict(type='mmdet.CSPDarknet', deepen_factor=0.33, widen_factor=0.5),
        7,
        'stage1.1.blocks.0.conv2',
        'stage3.1.blocks.2.conv2',
    ),
    long(dict(type='mmdet.Darknet', depth=53), 23, 'conv_res_block1.res0.conv2', 'conv_res_block5.res3.conv2'),
    long(dict(type='mmdet.MobileNetV2'), 10, 'layer2.1.linear_conv', 'layer6.2.linear_conv'),
    long(dict(type='mmdet.EfficientNet', arch='b0'), 9, 'layers.2.1.linear_conv', 'layers.5.3.linear_conv'),
    long(dict(type='mmpretrain.HRNet', arch='w18'), 108, 'layer1.0.bn3', 'stage4.2.branches.3.3.bn2'),
    long(dict(type='mmpretrain.ConvNeXt', arch='tiny'), 18, 'stages.0.0.drop_path', 'stages.3.2.drop_path'),
    long(dict(type='mmpretrain.MobileNetV3', arch='small'), 6, 'layer3.linear_conv', 'layer11.linear_conv'),
]
TIMM = [
    ('timm:resnet18', 8, 'layer1.0.bn2', 'layer4.1.bn2'),
    long('timm:resnext50_32x4d', 16, 'layer1.0.bn3', 'layer4.2.bn3'),
    long('timm:res2net50_26w_4s', 16, 'layer1.0.bn3', 'layer4.2.bn3'),
    long('timm:regnetx_002', 13, 's1.b1.conv3', 's4.b7.conv3'),
    long('timm:resnest14d', 4, 'layer1.0.bn3', 'layer4.0.bn3'),
    long('timm:hrnet_w18_small', 23, 'layer1.0.bn3', 'incre_modules.3.0.bn3'),
    long('timm:convnext_atto', 12, 'stages.0.blocks.0.drop_path', 'stages.3.blocks.1.drop_path'),
    long('timm:mobilenetv3_small_050', 7, 'blocks.1.1.bn3', 'blocks.4.2.bn3'),
    long('timm:efficientnet_b0', 9, 'blocks.1.1.bn3', 'blocks.5.3.bn3'),
    long('timm:cspdarknet53', 23, 'stages.0.blocks.0.conv2', 'stages.4.blocks.3.conv2'),
    long('timm:cspresnet50', 13, 'stages.0.blocks.0.conv3', 'stages.3.blocks.1.conv3'),
]
OWN = [
    (Strange, 2, 'one.c', 'two.c'),
    (PreActivation, 2, 'blocks.0.conv2', 'blocks.1.conv2'),
    (InPlace, 1, 'branch.2', 'branch.2'),
]


def build(what):
    if isinstance(what, str) and what.startswith('timm:'):
        return pytest.importorskip('timm').create_model(what.removeprefix('timm:'), pretrained=False)
    if isinstance(what, dict):
        pytest.importorskip(what['type'].split('.')[0] + '.models')
        return MODELS.build(what)
    return getattr(torchvision.models, what)() if isinstance(what, str) else what()


def outputs(net, x):
    with torch.no_grad():
        out = net(x)
    return list(out) if isinstance(out, (tuple, list)) else [out]


def features(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(('what', 'count', 'first', 'last'), [*TORCHVISION, *OPENMMLAB, *TIMM, *OWN])
def test_places_names_and_outputs(what, count, first, last):
    net = build(what)
    net.eval()
    x, before = features(2, 3, 96, 64), net.state_dict()
    expected = outputs(net, x)
    assert mmccd.attach(net, 'mmccd.ECA') is net
    attached = [name for name, module in net.named_modules() if isinstance(module, ECA)]
    assert (len(attached), attached[0], attached[-1]) == (count, f'{first}.eca', f'{last}.eca')
    assert all(map(torch.equal, outputs(net, x), expected))
    names = list(net.state_dict())
    assert [n for n in names if n in before] == list(before)
    assert [n for n in names if n not in before] == [f'{name}.conv.weight' for name in attached]
    missing, unexpected = net.load_state_dict(before, strict=False)
    assert (len(missing), unexpected) == (count, [])
    assert list(mmccd.detach(net).state_dict()) == list(before)
    assert all(map(torch.equal, outputs(net, x), expected))
    with pytest.raises(ValueError, match='has no attention'):
        mmccd.detach(net)


def attached_resnet(identity_init=False, **options):
    """A ResNet-18 with CCD whose gates do something."""
    net = mmccd.attach(torchvision.models.resnet18(num_classes=5), 'mmccd.CCD', identity_init=identity_init, **options)
    for module in net.modules():
        if isinstance(module, CCD):
            nn.init.normal_(module.scale)
            nn.init.normal_(module.bias)
    return net


def test_the_branch_is_gated_before_the_sum():
    net = attached_resnet(groups=16).eval()
    block, x = net.layer2[0], features(2, 64, 12, 10)
    branch = block.bn2.ccd(
        nn.functional.batch_norm(block.conv2(block.relu(block.bn1(block.conv1(x)))), *norm(block.bn2))
    )
    assert block.bn2.ccd.groups == 16
    expected = torch.relu(branch + block.downsample(x))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize('name', [n for n, layer in attention_types().items() if not layer.replaces_conv])
def test_every_layer_starts_as_the_identity_or_says_that_it_cannot(name):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 4, 1), nn.Conv2d(4, 64, 1)

        def forward(self, x):
            x = self.stem(x)
            return x + self.b(self.a(x).relu())

    net, x = Net().eval(), features(2, 3, 14, 9)
    expected, layer = net(x), attention_types()[name]
    if 'identity_init' in inspect.signature(layer).parameters or name == 'GC':
        assert torch.equal(mmccd.attach(net, f'mmccd.{name}', sample=x)(x), expected)
    else:
        with pytest.raises(ValueError, match=f'mmccd.{name} does not start as the identity'):
            mmccd.attach(net, f'mmccd.{name}', sample=x)
        difference = (mmccd.attach(net, f'mmccd.{name}', identity_init=False, sample=x)(x) - expected).abs().max()
        assert difference > 1e-3
    assert isinstance(getattr(net.b, layer._abbr_), layer)


def norm(bn):
    return bn.running_mean, bn.running_var, bn.weight, bn.bias


def test_every_gate_gets_a_gradient():
    net = attached_resnet().train()
    net(features(2, 3, 64, 64)).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_copies_and_averages_are_whole():
    net = attached_resnet().eval()
    x = features(1, 3, 64, 64)
    expected = net(x)
    copied = copy.deepcopy(net)
    averages = AveragedModel(net), ExponentialMovingAverage(net, momentum=0.25)
    for each in (copied, pickle.loads(pickle.dumps(net)), *(average.module for average in averages)):
        assert torch.equal(each(x), expected)
    nn.init.constant_(copied.layer1[0].bn2.ccd.bias, 3.0)  # its own
    assert not torch.equal(copied(x), expected)
    assert torch.equal(net(x), expected)
    copied.layer1[0].bn2 = nn.BatchNorm2d(64)
    with pytest.raises(RuntimeError, match=r'layer1\.0\.bn2\.ccd is gone'):
        copied(x)
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize(
    ('average', 'share'), [(lambda net: ExponentialMovingAverage(net, momentum=0.25), 0.25), (AveragedModel, 0.5)]
)
def test_averages_follow_the_gates(average, share):
    net = attached_resnet()
    averaged = average(net)
    averaged.update_parameters(net)  # the first update copies
    before = net.layer3[1].bn2.ccd.scale.detach().clone()
    with torch.no_grad():
        net.layer3[1].bn2.ccd.scale += 2.0
    averaged.update_parameters(net)
    torch.testing.assert_close(averaged.module.layer3[1].bn2.ccd.scale, before + 2 * share)
    detached = mmccd.detach(copy.deepcopy(averaged.module))
    assert list(detached.state_dict()) == list(torchvision.models.resnet18(num_classes=5).state_dict())


def test_an_attention_that_is_lost_is_an_error():
    net = attached_resnet().eval()
    fused = fuse_conv_bn(net)
    with pytest.raises(RuntimeError, match='fuse_conv_bn'):
        fused(features(1, 3, 64, 64))


def test_mixed_precision():
    net = attached_resnet().eval()
    x = features(1, 3, 64, 64)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = net(x)
    expected = net(x)
    assert (y - expected).norm() / expected.norm() < 0.05
    with torch.autocast('cpu', dtype=torch.bfloat16):
        net(x).square().sum().backward()
    found = {name: p.grad for name, p in net.named_parameters() if '.ccd.' in name}
    net.zero_grad()
    net(x).square().sum().backward()
    assert len(found) == 16
    for name, p in net.named_parameters():
        if '.ccd.' in name:
            assert (found[name] - p.grad).norm() / p.grad.norm() < 0.2, name


@pytest.mark.long
def test_compiled_and_exported(tmp_path):
    net = attached_resnet().eval()
    x = features(1, 3, 64, 64)
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(torch.compile(net, fullgraph=True)(x), expected, rtol=1e-4, atol=1e-4)
    runtime = pytest.importorskip('onnxruntime')
    torch.onnx.export(net, (x,), tmp_path / 'net.onnx', dynamo=False, input_names=['x'])
    session = runtime.InferenceSession(tmp_path / 'net.onnx', providers=['CPUExecutionProvider'])
    [exported] = session.run(None, dict(x=x.numpy()))
    torch.testing.assert_close(torch.from_numpy(exported), expected, rtol=1e-4, atol=1e-4)


def test_where_by_name_and_pattern():
    net = torchvision.models.resnet18()
    mmccd.attach(net, 'mmccd.SE', where=['layer3.?.conv1', 'layer4'], ratio=8)
    # A container would run a further child as a step: its last step has the attention.
    assert [n for n, _ in net.named_modules() if n.endswith('se_layer')] == [
        'layer3.0.conv1.se_layer',
        'layer3.1.conv1.se_layer',
        'layer4.1.se_layer',
    ]
    assert net.layer4[1].se_layer.conv1.conv.out_channels == 512 // 8


def test_the_network_is_left_as_it_was(caplog):
    net = torchvision.models.resnet18().train()
    net.layer1.eval()
    state = copy.deepcopy(net.state_dict())
    with caplog.at_level(logging.INFO):
        mmccd.attach(net, dict(type='mmccd.CCD', groups=32))
    modes = {name: module.training for name, module in net.named_modules()}
    assert not any(mode for name, mode in modes.items() if name.split('.')[0] == 'layer1')
    assert all(mode for name, mode in modes.items() if name.split('.')[0] != 'layer1')
    assert all(torch.equal(net.state_dict()[name], t) for name, t in state.items())


@pytest.mark.parametrize(
    ('attention', 'options', 'message'),
    [
        ('mmccd.CCD', dict(groups=96), r'CCD does not fit behind 8 of 8 modules.*layer1\.0\.bn2 \(64 channels\)'),
        ('mmccd.CCD', dict(groups=128), r'2 of 8 modules.*fits behind: layer2\.0\.bn2, layer2\.1\.bn2, layer3'),
        ('mmccd.GE', {}, 'identity_init=True: mmccd.GE does not start as the identity.*identity_init=False'),
        ('mmccd.SK', {}, 'SK takes the place of a convolution'),
        ('mmccd.Nothing', {}, "there is no 'mmccd.Nothing'"),
        ('mmccd.ECA', dict(where='layer1.0.bn9'), r"'layer1\.0\.bn9'.*layer1\.0\.bn"),
        ('mmccd.ECA', dict(where='fc'), r'output of fc is no tensor of shape \(N, C, H, W\).*features: conv1, bn1'),
        ('mmccd.ECA', dict(sample=torch.rand(1, 4, 64, 64)), r'sample: ResNet does not run.*\(1, 4, 64, 64\)'),
    ],
)
def test_bad_input_changes_nothing(attention, options, message):
    net = torchvision.models.resnet18()
    names = list(net.state_dict())
    with pytest.raises(ValueError, match=message):
        mmccd.attach(net, attention, **options)
    assert list(net.state_dict()) == names
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_what_has_it_already_and_what_has_no_blocks():
    net = mmccd.attach(torchvision.models.resnet18(), 'mmccd.ECA')
    with pytest.raises(ValueError, match=r'layer1\.0\.bn2 has a eca already'):
        mmccd.attach(net, 'mmccd.ECA')
    mmccd.attach(net, 'mmccd.CCD')
    assert [name for name, _ in net.layer1[0].bn2.named_children()] == ['eca', 'ccd']
    with pytest.raises(ValueError, match=r'VGG has no residual block.*features\.0'):
        mmccd.attach(torchvision.models.vgg11(), 'mmccd.ECA')
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(64 * 64, 8))
    with pytest.raises(ValueError, match='Modules with such features: none'):
        find_places(tokens)


def test_what_ignores_padding():
    """An attention behind a norm would see the padding, and of a batch norm in training all images as one."""
    net = mmccd.models.AttentionResNet(18, ignore_padding=True)
    with pytest.raises(ValueError, match=r'mmccd\.CCD.*AttentionResNet.*ignore_padding=True.*attention='):
        mmccd.attach(net, 'mmccd.CCD')
    net.ignore_padding = False
    mmccd.attach(net, 'mmccd.CCD')


def test_in_a_config_the_backbone_keeps_its_names():
    pytest.importorskip('mmdet.models')
    backbone = dict(type='ResNet', depth=18, frozen_stages=1, norm_eval=True)
    head = dict(type='RetinaHead', num_classes=3, in_channels=256, stacked_convs=1, feat_channels=256)
    neck = dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=256, num_outs=5)
    attended = dict(type='mmccd.WithAttention', backbone=backbone, attention=dict(type='mmccd.CCD', groups=32))
    with DefaultScope.overwrite_default_scope('mmdet'):
        plain, net = (
            MODELS.build(dict(type='RetinaNet', backbone=b, neck=neck, bbox_head=head)) for b in (backbone, attended)
        )
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert {name.split('.')[-2] for name in missing} == {'ccd'} and len(missing) == 16
    x = features(1, 3, 64, 96)
    for each in (plain, net):
        each.eval()
    with torch.no_grad():
        assert all(map(torch.equal, net.extract_feat(x), plain.extract_feat(x)))


def test_a_model_that_is_built_without_memory():
    with torch.device('meta'):
        net = mmccd.attach(torchvision.models.resnet18(), 'mmccd.CCD')
    assert net.layer1[0].bn2.ccd.scale.is_meta
