"""SE, GE, CBAM, GC and SK against their definitions, written out in other words."""

import pytest
import torch
import torch.nn.functional as F

from mmccd.models import CBAM, GC, GE, SE, SK

DOUBLE = dict(dtype=torch.float64)


def random_weights(m):
    for p in m.parameters():
        torch.nn.init.normal_(p, std=0.5)
    for name, b in m.named_buffers():
        if name.endswith('running_mean'):
            torch.nn.init.normal_(b)
        elif name.endswith('running_var'):
            torch.nn.init.uniform_(b, 0.5, 2)
    return m.double().eval()


def norm(x, bn):
    shape = (1, -1, 1, 1)
    return (x - bn.running_mean.view(shape)) / (bn.running_var.view(shape) + bn.eps).sqrt() * bn.weight.view(
        shape
    ) + bn.bias.view(shape)


def test_se():
    m = random_weights(SE(32, ratio=8))
    assert {k: tuple(v.shape) for k, v in m.state_dict().items()} == {
        'conv1.conv.weight': (4, 32, 1, 1),
        'conv1.conv.bias': (4,),
        'conv2.conv.weight': (32, 4, 1, 1),
        'conv2.conv.bias': (32,),
    }
    x = torch.randn(2, 32, 3, 5, **DOUBLE)
    hidden = torch.relu(x.mean((2, 3)) @ m.conv1.conv.weight.flatten(1).T + m.conv1.conv.bias)
    gate = torch.sigmoid(hidden @ m.conv2.conv.weight.flatten(1).T + m.conv2.conv.bias)
    assert torch.allclose(m(x), x * gate[:, :, None, None])


def test_ge_without_parameters():
    assert list(GE(32).parameters()) == []
    x = torch.randn(2, 32, 3, 5, **DOUBLE)
    assert torch.allclose(GE(32)(x), x * torch.sigmoid(x.mean((2, 3), keepdim=True)))


def test_ge_extent_hand_worked():
    # One row 1 2 3 4, extent 2: windows of 3 around positions 0 and 2, cut off at the border:
    #   mean(1, 2) = 1.5 for the first two positions, mean(2, 3, 4) = 3 for the others.
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]], **DOUBLE)
    gate = torch.sigmoid(torch.tensor([1.5, 1.5, 3.0, 3.0], **DOUBLE))
    assert torch.allclose(GE(1, extent=2)(x), x * gate)


@pytest.mark.parametrize(('extent', 'convs'), [(2, 1), (4, 2), (8, 3)])
def test_ge_with_parameters(extent, convs):
    m = random_weights(GE(8, extent=extent, extra_params=True, mlp=True, ratio=4))
    x = torch.randn(2, 8, 13, 9, **DOUBLE)
    context = x
    for i in range(1, convs + 1):
        conv, bn = getattr(m.gather, f'conv{i}'), getattr(m.gather, f'bn{i}')
        context = norm(F.conv2d(context, conv.weight, stride=2, padding=1, groups=8), bn)
        context = torch.relu(context) if i < convs else context
    context = F.conv2d(torch.relu(F.conv2d(context, m.mlp[0].weight, m.mlp[0].bias)), m.mlp[2].weight, m.mlp[2].bias)
    assert torch.allclose(m(x), x * torch.sigmoid(F.interpolate(context, size=(13, 9))))


def test_ge_with_parameters_over_the_whole_map():
    m = random_weights(GE(8, extra_params=True, feat_size=(5, 3)))
    x = torch.randn(2, 8, 5, 3, **DOUBLE)
    context = norm((x * m.gather.conv1.weight[:, 0]).sum((2, 3), keepdim=True), m.gather.bn1)
    assert torch.allclose(m(x), x * torch.sigmoid(context))
    with pytest.raises(ValueError, match=r'feat_size=\(5, 3\), got \(5, 4\)'):
        m(torch.randn(2, 8, 5, 4, **DOUBLE))


def test_cbam():
    m = random_weights(CBAM(16, ratio=4, kernel_size=3))
    x = torch.randn(2, 16, 6, 5, **DOUBLE)
    g = m.channel_gate

    def mlp(v):
        return torch.relu(v @ g.fc1.weight.T + g.fc1.bias) @ g.fc2.weight.T + g.fc2.bias

    channel = torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.flatten(2).max(2).values))
    y = x * channel[:, :, None, None]
    pooled = torch.stack((y.max(1).values, y.mean(1)), 1)  # maximum first
    spatial = torch.sigmoid(norm(F.conv2d(pooled, m.spatial_gate.conv.weight, padding=1), m.spatial_gate.bn))
    assert torch.allclose(m(x), y * spatial)
    assert m.spatial_gate.bn.momentum == 0.01


def test_gc():
    m = random_weights(GC(16, ratio=4))
    assert m.channel_add_conv[0].out_channels == 4
    x = torch.randn(2, 16, 3, 4, **DOUBLE)
    logit = (x * m.conv_mask.weight[0, :, :, :]).sum(1).flatten(1) + m.conv_mask.bias
    weight = logit.exp() / logit.exp().sum(1, keepdim=True)
    context = (x.flatten(2) * weight[:, None]).sum(2)
    first, layer_norm, _, last = m.channel_add_conv
    hidden = context @ first.weight.flatten(1).T + first.bias
    hidden = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    hidden = torch.relu(hidden * layer_norm.weight.flatten() + layer_norm.bias.flatten())
    term = hidden @ last.weight.flatten(1).T + last.bias
    assert torch.allclose(m(x), x + term[:, :, None, None])


def test_gc_starts_as_identity_and_keeps_mmcvs_keys():
    from mmcv.cnn.bricks import ContextBlock

    m, stock = GC(64), ContextBlock(64, ratio=1 / 16)
    assert {k: v.shape for k, v in m.state_dict().items()} == {k: v.shape for k, v in stock.state_dict().items()}
    x = torch.randn(2, 64, 3, 4)
    assert torch.equal(m(x), x)
    assert GC(49, ratio=49).planes == 1  # 49 * (1 / 49) truncates to 0 in floating point


def test_sk():
    m = random_weights(SK(32, 64, stride=2, groups=8, ratio=4))
    x = torch.randn(2, 32, 7, 6, **DOUBLE)
    first, second = (
        torch.relu(norm(F.conv2d(x, b.conv.weight, stride=2, padding=1, groups=n), b.bn))
        for b, n in zip(m.branches, (1, 8))
    )
    context = first.mean((2, 3), keepdim=True) + second.mean((2, 3), keepdim=True)
    hidden = torch.relu(norm(F.conv2d(context, m.fc1.conv.weight), m.fc1.bn))
    a, b = F.conv2d(hidden, m.fc2.weight).chunk(2, 1)
    weight = torch.sigmoid(a - b)  # softmax over two
    y = m(x)
    assert y.shape == (2, 64, 4, 3)
    assert torch.allclose(y, first * weight + second * (1 - weight))
