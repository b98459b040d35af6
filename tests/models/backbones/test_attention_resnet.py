import pytest
import torch
import torchvision
from mmdet.models.backbones import ResNet
from mmengine.model import PretrainedInit

from mmccd.models import CCD, AttentionResNet
from mmccd.models.backbones import attention_resnet
from mmccd.models.layers import attention_types

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EVERY_TIME = ('CBAM', 'CCD', 'ECA', 'GC', 'GE', 'SE', 'SK')  # whole networks with the others take too long for that
ATTENTIONS = [  # every file of mmccd/models/layers is in it
    pytest.param(name, marks=() if name in EVERY_TIME else pytest.mark.long) for name in attention_types()
]


def randomize(net):
    for name, p in net.named_parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, 1.0, 0.1) if name.endswith('weight') else torch.nn.init.normal_(p, 0.0, 0.1)
    return net


@pytest.mark.parametrize('depth', BLOCKS)
def test_plain_equals_mmdet_and_torchvision(depth):
    ours, theirs = AttentionResNet(depth).eval(), ResNet(depth)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    reference = getattr(torchvision.models, f'resnet{depth}')()
    names = [k for k in reference.state_dict() if not k.startswith('fc.')]
    assert sorted(ours.state_dict()) == sorted(names)
    randomize(reference).eval()
    ours.load_state_dict({k: reference.state_dict()[k] for k in names})
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = reference.avgpool(ours(x)[-1]).flatten(1)
        got = reference.fc(expected)
        assert torch.allclose(got, reference(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('depth', BLOCKS)
@pytest.mark.parametrize('attention', ATTENTIONS)
def test_every_block_of_every_depth_has_it(depth, attention):
    with torch.device('meta'):
        net = AttentionResNet(depth, attention=dict(type=f'mmccd.{attention}'))
    layer = attention_types()[attention]
    found = [name for name, m in net.named_modules() if isinstance(m, layer)]
    conv = 'conv1' if depth in (18, 34) else 'conv2'
    name = conv if layer.replaces_conv else layer._abbr_
    assert found == [f'layer{s + 1}.{b}.{name}' for s in range(4) for b in range(BLOCKS[depth][s])]


@pytest.mark.parametrize(('depth', 'position'), [(18, 2), (50, 3)])
def test_place_is_after_the_last_norm_before_the_addition(depth, position):
    net = AttentionResNet(depth, attention=dict(type='mmccd.CCD')).eval()
    block = randomize(net).layer2[0]
    x = torch.randn(2, block.conv1.in_channels, 8, 6)
    out = x
    for i in range(1, position + 1):
        out = getattr(block, f'bn{i}')(getattr(block, f'conv{i}')(out))
        out = torch.relu(out) if i < position else out
    expected = torch.relu(block.ccd(out) + block.downsample(x))
    assert torch.allclose(block(x), expected, atol=1e-6)


def test_stages():
    net = AttentionResNet(18, attention=dict(type='mmccd.CCD', stages=(False, True, False, True), groups=8))
    found = {name.split('.')[0] for name, m in net.named_modules() if isinstance(m, CCD)}
    assert found == {'layer2', 'layer4'}
    assert net.layer4[1].ccd.groups == 8


def test_plugins_in_basic_block():
    last = (False, False, False, True)
    plugins = [
        dict(cfg=dict(type='mmccd.SE'), position='after_conv1'),
        dict(cfg=dict(type='ContextBlock', ratio=1 / 16), position='after_conv2', stages=last),
    ]
    net = AttentionResNet(18, plugins=plugins, attention=dict(type='mmccd.CCD')).eval()
    block = randomize(net).layer4[1]
    x = torch.randn(2, 512, 4, 4)
    out = block.se_layer(torch.relu(block.bn1(block.conv1(x))))
    # In the order of the list, the attention last.
    out = block.ccd(block.context_block(block.bn2(block.conv2(out))))
    assert torch.allclose(block(x), torch.relu(out + x), atol=1e-6)
    assert not hasattr(net.layer1[0], 'context_block')


def test_the_same_layer_twice_in_a_block():
    plugins = [dict(cfg=dict(type='mmccd.CCD', postfix='_inner'), position='after_conv1')]
    block = AttentionResNet(18, plugins=plugins, attention=dict(type='mmccd.CCD')).layer1[0]
    assert [type(m) for m in (block.ccd, block.ccd_inner)] == [CCD, CCD]
    elsewhere = dict(type='mmccd.CCD', stages=(False, True, True, True))
    plugins = [dict(cfg=dict(type='mmccd.CCD'), position='after_conv1', stages=(True, False, False, False))]
    assert AttentionResNet(18, plugins=plugins, attention=elsewhere).layer1[0].plugin_names['after_conv1'] == ['ccd']


def test_stock_mmdet_resnet_takes_the_layer_as_plugin():
    plugins = [dict(cfg=dict(type='mmccd.CCD'), stages=(True,) * 4, position='after_conv3')]
    stock = randomize(ResNet(50, plugins=plugins))
    stock.eval()
    ours = AttentionResNet(50, attention=dict(type='mmccd.CCD')).eval()
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours(x), stock(x)))


def test_short_name_and_class_are_taken_too():
    for type_ in ('CCD', CCD):
        assert isinstance(AttentionResNet(18, attention=dict(type=type_)).layer1[0].ccd, CCD)


def test_zero_init_residual_reaches_our_blocks():
    for zero, expected in ((True, 0.0), (False, 1.0)):
        for depth, name in ((18, 'bn2'), (50, 'bn3')):
            net = AttentionResNet(depth, zero_init_residual=zero, attention=dict(type='mmccd.CCD'))
            net.init_weights()
            weights = torch.cat([getattr(b, name).weight for layer in net.res_layers for b in getattr(net, layer)])
            assert torch.equal(weights, torch.full_like(weights, expected))
            assert torch.equal(net.layer1[0].ccd.bias, torch.ones(64))


def test_frozen_stages_and_norm_eval():
    net = AttentionResNet(18, frozen_stages=1, attention=dict(type='mmccd.CCD')).train()
    frozen = {n.split('.')[0] for n, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {'conv1', 'bn1', 'layer1'}
    assert not net.layer3[0].bn1.training
    assert net.layer3[0].training


def pretrained(checkpoint, form):
    """mmengine's initialiser, as configs have it."""
    if form == 'class':
        return dict(type=PretrainedInit, checkpoint=str(checkpoint))
    if form == 'prefix':
        return dict(type='Pretrained', checkpoint=str(checkpoint), prefix='backbone.')
    cfg = dict(type='Pretrained', checkpoint=str(checkpoint))
    return [dict(type='Kaiming', layer='Conv2d'), cfg] if form == 'list' else cfg


@pytest.fixture
def warned(monkeypatch):
    messages = []
    monkeypatch.setattr(
        attention_resnet, 'print_log', lambda text, logger, level=20: messages.append(text) if level == 30 else None
    )
    return messages


@pytest.mark.parametrize('form', ['dict', 'list', 'prefix', 'class'])
@pytest.mark.parametrize('attention', ['CCD', 'SE', 'SK'])
def test_frozen_layers_that_pretrained_does_not_have_are_named(tmp_path, warned, attention, form):
    """mmengine's Pretrained loads what fits; what it did not find would stay untrained in a frozen stage."""
    prefix = 'backbone.' if form == 'prefix' else ''
    plain = AttentionResNet(18).state_dict()
    torch.save({prefix + k: v for k, v in plain.items()}, tmp_path / 'plain.pth')
    init_cfg = pretrained(tmp_path / 'plain.pth', form)
    net = AttentionResNet(18, frozen_stages=1, attention=dict(type=f'mmccd.{attention}'), init_cfg=init_cfg)
    net.init_weights()
    new = [k for k, _ in net.named_parameters() if k.startswith('layer1.') and k not in plain]
    (text,) = warned
    assert text.startswith(f'frozen_stages=1: {len(new)} tensors ')
    assert f'({new[0]}, {new[1]}, ' in text
    assert 'mmccd.PretrainedBackbone' in text
    assert 'allow_missing' in text
    assert 'layer2' not in text


def test_nothing_is_named_where_nothing_is_missing_or_frozen(tmp_path, warned):
    ccd = dict(type='mmccd.CCD')
    torch.save(AttentionResNet(18, attention=ccd).state_dict(), tmp_path / 'ccd.pth')
    torch.save(AttentionResNet(18).state_dict(), tmp_path / 'plain.pth')
    late = dict(ccd, stages=(False, True, True, True))
    for options in (
        dict(frozen_stages=1, attention=ccd, init_cfg=pretrained(tmp_path / 'ccd.pth', 'dict')),
        dict(frozen_stages=0, attention=ccd, init_cfg=pretrained(tmp_path / 'plain.pth', 'dict')),
        dict(frozen_stages=1, attention=late, init_cfg=pretrained(tmp_path / 'plain.pth', 'dict')),
        dict(frozen_stages=1, attention=ccd),
        dict(
            frozen_stages=1,
            attention=ccd,
            init_cfg=dict(type='mmccd.PretrainedBackbone', checkpoint=str(tmp_path / 'plain.pth'), allow_missing='ccd'),
        ),
    ):
        AttentionResNet(18, **options).init_weights()
        assert warned == []


@pytest.mark.parametrize('depth', [18, 50])
def test_fused_blocks_have_the_same_numbers_and_keys(depth):
    x = torch.randn(2, 3, 64, 64)
    results = []
    for fuse in (True, False):
        torch.manual_seed(0)
        net = AttentionResNet(depth, fuse=fuse, norm_eval=False, attention=dict(type='mmccd.CCD'))
        randomize(net)
        assert [b.fused for b in net.layer2] == ['ccd' if fuse else None] * len(net.layer2)
        seen = []
        net.layer2[0].ccd.register_forward_hook(lambda layer, inputs, output, seen=seen: seen.append(output.shape))
        outs = net(x)
        sum(out.square().mean() for out in outs).backward()
        assert len(seen) == 1
        results.append((outs, {n: p.grad for n, p in net.named_parameters()}, list(net.state_dict())))
    assert all(map(torch.equal, results[0][0], results[1][0]))
    assert results[0][1].keys() == results[1][1].keys()
    assert all(torch.allclose(g, results[1][1][n], rtol=1e-5, atol=1e-7) for n, g in results[0][1].items())
    assert results[0][2] == results[1][2]


def test_only_a_last_ccd_is_fused():
    se = dict(cfg=dict(type='mmccd.SE'), position='after_conv2')
    net = AttentionResNet(18, attention=dict(type='mmccd.CCD', stages=(False, True, True, True)), plugins=[se])
    assert net.layer1[0].fused is None
    assert net.layer2[0].fused == 'ccd'  # behind the SE layer
    assert net(torch.rand(1, 3, 64, 64))[1].min() >= 0
    assert AttentionResNet(18, attention=dict(type='mmccd.SE')).layer1[0].fused is None


# How detectors and classifiers are trained; and a detector whose checkpoint has no gates: those of frozen stages learn.
RECIPES = {
    'detector': dict(frozen_stages=1, norm_eval=True),
    'detector with new gates': dict(
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(
            type='mmccd.PretrainedBackbone',
            checkpoint='none.pth',
            allow_missing=[getattr(each, '_abbr_', 'sk') for each in attention_types().values()]
            + ['branches', 'fc1', 'fc2'],
        ),
    ),
    'classifier': dict(norm_eval=False, zero_init_residual=False),
}


@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize(
    ('attention', 'depth'),
    [
        *((a, 18) for a in (None, *EVERY_TIME)),
        *(pytest.param(a, 50, marks=pytest.mark.long) for a in (None, *EVERY_TIME)),
        # At depth 50, their configs are trained (tests/test_configs.py).
        *(pytest.param(a, 18, marks=pytest.mark.long) for a in attention_types() if a not in EVERY_TIME),
    ],
)
def test_all_that_is_trained_gets_a_gradient(attention, depth, recipe):
    """DistributedDataParallel needs no find_unused_parameters, whichever outputs a neck leaves alone."""
    net = AttentionResNet(depth, attention=attention and dict(type=f'mmccd.{attention}'), **RECIPES[recipe]).train()
    net(torch.randn(2, 3, 64, 64))[-1].square().mean().backward()
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    assert {n for n, p in net.named_parameters() if p.grad is not None} == trained
    if recipe == 'classifier':
        assert trained == {n for n, _ in net.named_parameters()}
    elif recipe == 'detector':
        assert {n.split('.')[0] for n in trained} == {'layer2', 'layer3', 'layer4'}
    else:
        in_layer1 = {n for n in trained if n.startswith('layer1.')}
        layer = attention and attention_types()[attention](64)
        assert bool(in_layer1) == (layer is not None and bool(list(layer.parameters())))


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_checkpointing_and_gradients(attention):
    net = AttentionResNet(18, norm_eval=False, attention=dict(type=f'mmccd.{attention}'))
    randomize(net)
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for with_cp in (False, True):
        for m in net.modules():
            m.momentum = 0.0 if isinstance(m, torch.nn.BatchNorm2d) else getattr(m, 'momentum', None)
            m.with_cp = with_cp
        net.zero_grad()
        net(x)[-1].square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in net.named_parameters()})
    assert all(torch.allclose(gradients[0][n], gradients[1][n], rtol=1e-3, atol=1e-6) for n in gradients[0])


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (
            dict(attention=dict(type='mmccd.CDD')),
            ValueError,
            r"mmccd\.CBAM, mmccd\.CCD.*got 'mmccd\.CDD'; did you mean 'mmccd\.CCD'",
        ),
        (dict(attention=dict(type='Nothing')), ValueError, "got 'Nothing'"),
        (dict(attention='mmccd.CCD'), TypeError, "attention must be a dict with the key 'type', got 'mmccd.CCD'"),
        (dict(attention=dict(type='mmccd.CCD', groups=48)), ValueError, 'groups must divide the number of channels'),
        (
            dict(attention=dict(type='mmccd.CCD', stages=(True,))),
            ValueError,
            'stages must have one entry for each of the 4',
        ),
        (
            dict(plugins=[dict(cfg=dict(type='mmccd.CCD'), position='after_conv3')]),
            ValueError,
            r"position of a plugin must be one of \('after_conv1', 'after_conv2'\) at depth 18, got 'after_conv3'",
        ),
        (
            dict(plugins=[dict(position='after_conv1')]),
            TypeError,
            "every plugin must have a dict 'cfg' with the key 'type'",
        ),
        (dict(attention=dict(type='mmccd.CCD', stages=True)), TypeError, 'stages must be a sequence of bools'),
        (
            dict(attention=dict(type='mmccd.SE', ration=4)),
            TypeError,
            "'ration' that SE does not know; did you mean 'ratio'",
        ),
        (
            dict(plugins=[dict(cfg=dict(type='mmccd.CCD'), position='after_conv1')], attention=dict(type='mmccd.CCD')),
            ValueError,
            "plugins and attention have 'ccd' twice in a block: give one a 'postfix'",
        ),
        (dict(num_stages=3), ValueError, 'strides must have one entry for each of the 3 stages'),
        (dict(num_stages=0), ValueError, 'num_stages must be at least 1, got 0'),
        (dict(out_indices=(0, 4)), ValueError, r'out_indices must name stages from 0 to 3, got \(0, 4\)'),
        (dict(out_indices=3), TypeError, 'out_indices must be a sequence of ints, got 3'),
        (dict(frozen_stages=1.5), TypeError, r'frozen_stages must be an int, got 1\.5'),
        (dict(depth=20), KeyError, r'depth must be one of \(18, 34, 50, 101, 152\), got 20'),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        AttentionResNet(**{'depth': 18, **options})
