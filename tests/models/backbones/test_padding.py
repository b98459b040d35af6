"""AttentionResNet(ignore_padding=True): an image in a padded batch is as it is alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmccd.errors import UserError
from mmccd.models import AttentionResNet
from mmccd.models.backbones import attention_resnet
from mmccd.models.layers import attention_types
from mmccd.models.padding import ValidArea, apply_norm, per_size, read_area, zero_outside

# Remainders of all kinds at the strides; one image is whole.
SIZES = [(64, 48), (37, 48), (40, 31), (32, 34)]
PLAIN = [None, 'CCD', 'SK', 'CBAM']  # a layer without norms, one in place of a convolution, one with a norm
TYPES = [None, *attention_types()]


def network(attention, depth=18, **options):
    """A network whose every parameter matters, in evaluation mode."""
    attention = attention and dict(type=f'mmccd.{attention}', **(dict(groups=4) if attention == 'CCD' else {}))
    options = dict(dict(norm_eval=True, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1), num_stages=2), **options)
    options.setdefault('base_channels', 64)
    net = AttentionResNet(depth, attention=attention, ignore_padding=True, **options)
    for name, p in net.named_parameters():
        if p.dim() == 1:
            nn.init.normal_(p, 1.0, 0.1) if name.endswith('weight') else nn.init.normal_(p, 0.0, 0.3)
    for m in net.modules():
        if isinstance(m, _BatchNorm):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 1.5)
    return net.eval()


def images(sizes=SIZES, pad_value=0.0, dtype=torch.float32):
    alone = [torch.randn(1, 3, h, w, dtype=dtype) for h, w in sizes]
    batch = torch.full((len(sizes), 3, *(max(s) for s in zip(*sizes))), pad_value, dtype=dtype)
    for x, image in zip(batch, alone):
        x[:, : image.shape[2], : image.shape[3]] = image[0]
    return alone, batch


def check(together, alone, atol=1e-5):
    """Together: maps of the batch; alone: maps of every image."""
    for i, maps in enumerate(alone):
        for whole, own in zip(together, maps, strict=True):
            h, w = own.shape[-2:]
            scale = own.abs().max().item()
            torch.testing.assert_close(whole[i, :, :h, :w], own[0], atol=atol * scale, rtol=0)
            assert not whole[i, :, h:].any()
            assert not whole[i, :, :, w:].any()


@pytest.mark.parametrize('attention', TYPES)
def test_features_are_those_of_the_image_alone(attention):
    net = network(attention, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    alone, batch = images()
    with torch.no_grad():
        together = net(batch)
        check(together, [net(image) for image in alone])
        net.ignore_padding = False
        assert (net(batch)[0] - together[0]).abs().max() > 0.1


@pytest.mark.long
@pytest.mark.parametrize('attention', TYPES)
@pytest.mark.parametrize(
    ('depth', 'options'),
    [(18, {}), (50, dict(deep_stem=True, avg_down=True)), (50, dict(style='caffe')), (50, dict(dilations=(1, 2)))],
)
def test_whole_networks_and_gradients(attention, depth, options):
    net = network(attention, depth, **options).double().train()
    check_gradients(net)


def check_gradients(net):
    alone, batch = images(dtype=torch.float64)
    together = net(batch)
    sum(out.square().sum() for out in together).backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad()
    maps = [net(image) for image in alone]
    check(together, maps, 1e-10)
    sum(out.square().sum() for each in maps for out in each).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, atol=1e-9 * p.grad.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    'options', [{}, dict(with_cp=True), dict(fuse=False), dict(norm_cfg=dict(type='GN', num_groups=8))]
)
def test_gradients_in_training(options):
    """Frozen norms (norm_eval), so that training is the same at any batch."""
    one = dict(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    check_gradients(network('CCD', **one, **options).double().train())


def test_float32_in_training_takes_the_fused_way():
    net = network('CCD').train()
    alone, batch = images()
    check(net(batch), [net(image) for image in alone])


def test_plugins():
    plugins = [
        dict(cfg=dict(type='mmccd.SE'), position='after_conv1'),
        dict(cfg=dict(type='ContextBlock', ratio=1 / 16), position='after_conv2'),
    ]
    net = network('ECA', plugins=plugins, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    alone, batch = images()
    with torch.no_grad():
        check(net(batch), [net(image) for image in alone])


def test_channels_last_and_half_precision():
    net = network('CCD')
    alone, batch = images()
    with torch.no_grad():
        expected = net(batch)
        got = net.to(memory_format=torch.channels_last)(batch.to(memory_format=torch.channels_last))
        for a, b in zip(got, expected):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        with torch.autocast('cpu', torch.bfloat16):
            check(net(batch), [net(image) for image in alone], 0.05)


@pytest.mark.parametrize('grad', [True, False])
def test_without_padding_bits_are_the_same(grad):
    net = network('CCD')
    x = torch.randn(2, 3, 64, 48)
    with torch.set_grad_enabled(grad):
        on = net(x)
        assert net.areas == []
        net.ignore_padding = False
        assert all(torch.equal(a, b) for a, b in zip(on, net(x)))


def test_given_sizes():
    """What lies outside does not matter then, and an image may end in zeros."""
    net = network('CCD')
    alone, batch = images()
    alone[1][:, :, -5:] = 0
    noisy = torch.randn_like(batch)
    for x, image in zip(noisy, alone):
        x[:, : image.shape[2], : image.shape[3]] = image[0]
    before = noisy.clone()
    with torch.no_grad():
        check(net(noisy, [(*size, 3) for size in SIZES]), [net(image, [size]) for image, size in zip(alone, SIZES)])
    assert torch.equal(noisy, before)
    assert [area.map_size for area in net.areas] == []  # of the last image, which is whole


def test_areas_say_where_the_images_are():
    net = network(None)
    net(images()[1])
    assert net.areas == [
        ValidArea((16, 12), ((16, 12), (10, 12), (10, 8), (8, 9))),
        ValidArea((8, 6), ((8, 6), (5, 6), (5, 4), (4, 5))),
    ]


def test_sizes_are_read_off():
    _, batch = images(pad_value=114.0)
    assert read_area(batch, 114.0).sizes == tuple(SIZES)
    assert read_area(batch).is_whole
    assert read_area(torch.zeros(2, 3, 8, 9)).sizes == ((8, 9), (8, 9))  # nothing to be seen
    one = torch.zeros(1, 3, 8, 9)
    one[0, 1, 3, 5] = 1  # one channel of one pixel
    assert read_area(one).sizes == ((4, 6),)
    assert read_area(one.to('meta')).is_whole  # as get_flops.py has it


def test_other_pad_value():
    net = network('CCD', pad_value=114.0)
    alone, batch = images(pad_value=114.0)
    with torch.no_grad():
        check(net(batch), [net(image) for image in alone])


def test_an_image_that_must_have_been_cut_is_named_once(monkeypatch):
    said = []
    monkeypatch.setattr(attention_resnet, 'print_log', lambda text, **_: said.append(text))
    net = network(None, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    x = torch.randn(2, 3, 160, 32)
    x[0, :, 100:] = 0
    net(x)
    assert said == []  # the other one is as high as the batch
    x[:, :, 20:] = 0
    net(x)
    net(x)
    assert len(said) == 1
    assert '140 rows and 0 columns' in said[0]
    assert 'image_sizes' in said[0]


def test_batch_statistics_are_those_of_the_images():
    norm = nn.BatchNorm2d(3).train()
    alone, batch = images()
    area = ValidArea(tuple(batch.shape[-2:]), tuple(SIZES))
    y = apply_norm(norm, batch, area, norm)
    pixels = torch.cat([image[0].flatten(1) for image in alone], 1)
    mean, std = pixels.mean(1), pixels.var(1, unbiased=False).add(norm.eps).sqrt()
    expected = [[(image - mean[:, None, None]) / std[:, None, None]] for image in alone]
    check([y], expected)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)


def test_training_with_batch_statistics():
    net = network('CCD', norm_eval=False).train()
    _, batch = images()
    wider = torch.nn.functional.pad(batch, (0, 32, 0, 64))
    twin = copy.deepcopy(net)
    for a, b in zip(net(batch), twin(wider, SIZES)):
        h, w = a.shape[-2:]
        torch.testing.assert_close(a, b[:, :, :h, :w], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(net.layer2[1].bn2.running_var, twin.layer2[1].bn2.running_var)


def test_a_norm_over_the_batch_inside_an_attention_is_an_error():
    net = network('SK', norm_eval=False).train()
    with pytest.raises(ValueError, match=r'ignore_padding.*SK.*norm_eval=True'):
        net(images()[1])
    net(images([(37, 48), (37, 48)])[1])  # one size: those of the batch
    assert all(block.area is None for block in net.layer1)


def test_zeros_outside_have_no_gradient():
    x = torch.randn(2, 1, 3, 3, requires_grad=True)
    area = ValidArea((3, 3), ((2, 3), (3, 1)))
    y = zero_outside(x * 1, area)
    (y + 1).sum().backward()
    expected = torch.tensor([[[[1, 1, 1], [1, 1, 1], [0, 0, 0]]], [[[1, 0, 0], [1, 0, 0], [1, 0, 0]]]]).float()
    assert torch.equal(x.grad, expected)
    assert torch.equal(y, x * expected)


def test_repeated_edge():
    x = torch.arange(1.0, 10).view(1, 1, 3, 3)
    y = per_size(lambda crop: crop, ValidArea((3, 3), ((1, 2),)), x, edge=1)
    assert y[0, 0].tolist() == [[1, 2, 2], [1, 2, 2], [0, 0, 0]]


@pytest.mark.parametrize(
    ('sizes', 'error', 'message'),
    [
        ([(64, 48)], ValueError, r'image_sizes .*4 images, got 1'),
        ([(64, 48)] * 3 + [(65, 48)], ValueError, r'image_sizes .*\(64, 48\), got \(65, 48\)'),
        ([(64, 48)] * 3 + [(0, 48)], ValueError, r'image_sizes .*got \(0, 48\)'),
        ([(64, 48)] * 3 + [(1.5, 48)], TypeError, r'image_sizes .*got \(1\.5, 48\)'),
        (64, TypeError, r'image_sizes must be a list of pairs of ints, height and width, got 64'),
        ([64, 48, 64, 48], TypeError, r'image_sizes .*got 64'),
    ],
)
def test_wrong_sizes(sizes, error, message):
    with pytest.raises(error, match=message):
        network(None)(images()[1], sizes)


def test_wrong_options():
    with pytest.raises(TypeError, match='ignore_padding must be a bool, got 1'):
        AttentionResNet(18, ignore_padding=1)
    with pytest.raises(TypeError, match="pad_value must be a number, got '0'"):
        AttentionResNet(18, ignore_padding=True, pad_value='0')
    with pytest.raises(ValueError, match='image_sizes need ignore_padding=True'):
        AttentionResNet(18)(torch.randn(1, 3, 32, 32), [(32, 32)])
    with pytest.raises(ValueError, match='padding_mode'):
        AttentionResNet(18, ignore_padding=True, conv_cfg=dict(type='Conv2d', padding_mode='reflect'))


def test_no_graph_of_it():
    net = network(None)
    with pytest.raises(UserError, match='ignore_padding=False'):
        torch.jit.trace(net, torch.randn(1, 3, 32, 32))


@pytest.mark.long
def test_compiled():
    """What has padding runs as without a compiler; a graph of all is an error, and no wrong result."""
    targets = []

    def backend(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    net = network('CCD', num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)).train()
    _, batch = images()
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, backend=backend)
    for x, sizes in ((batch, None), (batch.roll(1, 0), [SIZES[-1], *SIZES[:-1]])):
        [expected], [got] = net(x, sizes), compiled(x, sizes)
        assert torch.equal(got, expected)
        expected.square().sum().backward()
        got.square().sum().backward()
    assert not any('conv' in target for target in targets)
    compiled(batch[:1])
    assert any('conv' in target for target in targets)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, atol=1e-4 * p.grad.abs().max().item(), rtol=0)
    torch._dynamo.reset()
    with pytest.raises(Exception, match='ignore_padding=False'):
        torch.compile(twin, backend='eager', fullgraph=True)(batch)
    with pytest.raises(UserError, match='ignore_padding=False'):
        torch.export.export(net, (batch,), strict=False)
