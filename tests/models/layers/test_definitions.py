"""Ten attentions against their papers: NumPy written in other words, cases worked out by hand, counts, gradients."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import mmccd
from mmccd.models import (
    BAM,
    CCD,
    FCA,
    LSK,
    NAM,
    SGE,
    AttentionResNet,
    CoordAttention,
    EMAttention,
    ShuffleAttention,
    SimAM,
    TripletAttention,
)
from mmccd.models.layers import AttentionLayer
from mmccd.ops import ccd

# ------------------------------------------------------------------------------------------------------ NumPy's words


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def conv(x, weight, bias=None, padding=0, dilation=1):
    """One sample, (C, H, W); depth-wise if the kernel has one channel and there are several."""
    (out, inside, kh, kw), (channels, h, w) = weight.shape, x.shape
    px, py = (padding, padding) if isinstance(padding, int) else padding
    padded = np.pad(x, ((0, 0), (px, px), (py, py)))
    y = np.zeros((out, h + 2 * px - dilation * (kh - 1), w + 2 * py - dilation * (kw - 1)))
    for i in range(kh):
        for j in range(kw):
            seen = padded[:, i * dilation : i * dilation + y.shape[1], j * dilation : j * dilation + y.shape[2]]
            if inside == 1 and channels > 1:
                y += weight[:, 0, i, j, None, None] * seen
            else:
                y += np.einsum('oc,chw->ohw', weight[:, :, i, j], seen)
    return y if bias is None else y + bias[:, None, None]


def batch_norm(x, p, name):
    """At test time, (C, H, W)."""
    shape = (-1, 1, 1)
    mean, variance = p[f'{name}.running_mean'].reshape(shape), p[f'{name}.running_var'].reshape(shape)
    return (x - mean) / np.sqrt(variance + 1e-5) * p[f'{name}.weight'].reshape(shape) + p[f'{name}.bias'].reshape(shape)


def normed_channels(x, p):
    """Each channel over space, then scale and shift of ``gn``; (C, H, W)."""
    y = np.stack([(c - c.mean()) / math.sqrt(c.var() + 1e-5) for c in x])
    return y * p['gn.weight'][:, None, None] + p['gn.bias'][:, None, None]


def sge(x, p, groups=4, eps=1e-5):
    y = np.empty_like(x)
    for g, part in enumerate(np.split(np.arange(len(x)), groups)):
        feature = x[part].mean((1, 2))  # one vector for the group
        similarity = np.tensordot(feature, x[part], 1)
        similarity = (similarity - similarity.mean()) / (similarity.std(ddof=1) + eps)
        y[part] = x[part] * sigmoid(p['scale'][g] * similarity + p['bias'][g])
    return y


def simam(x, p, e_lambda=1e-4):
    """The minimal energy of each neuron, as the paper's equation has it; its inverse is the importance."""
    y = np.empty_like(x)
    for c, channel in enumerate(x):
        mean, variance = channel.mean(), channel.var(ddof=1)
        energy = 4 * (variance + e_lambda) / ((channel - mean) ** 2 + 2 * variance + 2 * e_lambda)
        y[c] = channel * sigmoid(1 / energy)
    return y


def coord(x, p):
    h = x.shape[1]
    strips = np.concatenate((x.mean(2), x.mean(1)), 1)  # (C, H + W)
    hidden = batch_norm(conv(strips[:, :, None], p['conv1.weight'], p['conv1.bias']), p, 'bn1')
    hidden = hidden * np.clip(hidden + 3, 0, 6) / 6
    rows = sigmoid(conv(hidden[:, :h], p['conv_h.weight'], p['conv_h.bias']))[:, :, 0]
    columns = sigmoid(conv(hidden[:, h:], p['conv_w.weight'], p['conv_w.bias']))[:, :, 0]
    return x * rows[:, :, None] * columns[:, None, :]


def ema(x, p, groups=8):
    parts = []
    for part in np.split(x, groups):
        h = part.shape[1]
        strips = np.concatenate((part.mean(2), part.mean(1)), 1)[:, :, None]
        strips = sigmoid(conv(strips, p['conv1x1.weight'], p['conv1x1.bias']))[:, :, 0]
        first = normed_channels(part * strips[:, :h, None] * strips[:, None, h:], p)
        second = conv(part, p['conv3x3.weight'], p['conv3x3.bias'], padding=1)
        of_first, of_second = (softmax(branch.mean((1, 2)), 0) for branch in (first, second))
        parts.append(part * sigmoid(np.tensordot(of_first, second, 1) + np.tensordot(of_second, first, 1)))
    return np.concatenate(parts)


def triplet(x, p):
    total = np.zeros_like(x)
    for name, order in (('cw', (1, 0, 2)), ('hc', (2, 1, 0)), ('hw', (0, 1, 2))):
        turned = x.transpose(order)  # the dimension that is pooled comes first
        pooled = np.stack((turned.max(0), turned.mean(0)))
        kernel = p[f'{name}.conv.weight']
        logit = batch_norm(conv(pooled, kernel, padding=kernel.shape[2] // 2), p, f'{name}.bn')
        total += (turned * sigmoid(logit)).transpose(order)  # each of these orders undoes itself
    return total / 3


def bam(x, p, dilation=4):
    def layer(y, conv_name, norm_name, **options):
        y = conv(y, p[f'{conv_name}.weight'], p[f'{conv_name}.bias'], **options)
        return np.maximum(batch_norm(y, p, norm_name), 0)

    c, s = 'channel_branch', 'spatial_branch'
    channel = layer(x.mean((1, 2), keepdims=True), f'{c}.fc1', f'{c}.bn')
    channel = conv(channel, p[f'{c}.fc2.weight'], p[f'{c}.fc2.bias'])
    spatial = layer(x, f'{s}.conv1', f'{s}.bn1')
    for i in (2, 3):
        spatial = layer(spatial, f'{s}.conv{i}', f'{s}.bn{i}', padding=dilation, dilation=dilation)
    spatial = conv(spatial, p[f'{s}.conv4.weight'], p[f'{s}.conv4.bias'])
    return x + x * sigmoid(channel + spatial)


def shuffle(x, p, groups=32):
    weights = {k: p[k].reshape(-1, 1, 1) for k in ('cweight', 'cbias', 'sweight', 'sbias')}
    parts = []
    for part in np.split(x, groups):
        first, second = np.split(part, 2)
        parts += [
            first * sigmoid(weights['cweight'] * first.mean((1, 2), keepdims=True) + weights['cbias']),
            second * sigmoid(weights['sweight'] * normed_channels(second, p) + weights['sbias']),
        ]
    y = np.concatenate(parts)
    shuffled = np.empty_like(y)
    shuffled[0::2], shuffled[1::2] = np.split(y, 2)
    return shuffled


def nam(x, p):
    share = np.abs(p['bn.weight']) / np.abs(p['bn.weight']).sum()
    return x * sigmoid(share[:, None, None] * batch_norm(x, p, 'bn'))


def lsk(x, p):
    near = conv(x, p['conv0.weight'], p['conv0.bias'], padding=2)
    far = conv(near, p['conv_spatial.weight'], p['conv_spatial.bias'], padding=9, dilation=3)
    near, far = (conv(y, p[f'{n}.weight'], p[f'{n}.bias']) for y, n in ((near, 'conv1'), (far, 'conv2')))
    both = np.concatenate((near, far))
    pooled = np.stack((both.mean(0), both.max(0)))
    selection = sigmoid(conv(pooled, p['conv_squeeze.weight'], p['conv_squeeze.bias'], padding=3))
    return x * conv(near * selection[0] + far * selection[1], p['conv.weight'], p['conv.bias'])


# Of height and of width, in the paper's grid of 7 x 7: the 16 best.
FREQUENCIES = [(0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0)]
FREQUENCIES += [(5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3), (3, 5), (2, 2)]


def fca(x, p, grid=7):
    channels, h, w = x.shape
    context = np.zeros(channels)
    for c in range(channels):
        u, v = (f * grid // 7 for f in FREQUENCIES[c * 16 // channels])
        for i in range(grid):
            for j in range(grid):
                rows = slice(i * h // grid, -(-(i + 1) * h // grid))
                columns = slice(j * w // grid, -(-(j + 1) * w // grid))
                basis = math.cos(math.pi * u * (i + 0.5) / grid) * math.cos(math.pi * v * (j + 0.5) / grid)
                basis *= (1 if u == 0 else math.sqrt(2)) * (1 if v == 0 else math.sqrt(2)) / grid
                context[c] += basis * x[c, rows, columns].mean()
    gate = sigmoid(p['fc2.weight'] @ np.maximum(p['fc1.weight'] @ context, 0))
    return x * gate[:, None, None]


CASES = [
    (SGE, dict(groups=4), sge, 16),
    (SGE, dict(groups=2, eps=0.5), lambda x, p: sge(x, p, 2, 0.5), 6),
    (SimAM, {}, simam, 6),
    (SimAM, dict(e_lambda=0.25), lambda x, p: simam(x, p, 0.25), 6),
    (CoordAttention, {}, coord, 20),
    (CoordAttention, dict(ratio=2), coord, 24),
    (EMAttention, {}, ema, 24),
    (EMAttention, dict(groups=2), lambda x, p: ema(x, p, 2), 6),
    (TripletAttention, {}, triplet, 5),
    (TripletAttention, dict(kernel_size=3), triplet, 8),
    (BAM, {}, bam, 32),
    (BAM, dict(ratio=4, dilation=2), lambda x, p: bam(x, p, 2), 12),
    (ShuffleAttention, {}, shuffle, 64),
    (ShuffleAttention, dict(groups=3), lambda x, p: shuffle(x, p, 3), 12),
    (NAM, {}, nam, 6),
    (LSK, {}, lsk, 6),
    (FCA, dict(ratio=4), fca, 32),
    (FCA, dict(grid=14), lambda x, p: fca(x, p, 14), 16),
]


def random_weights(layer):
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5)
    for name, b in layer.named_buffers():
        if name.endswith('running_mean'):
            nn.init.normal_(b)
        elif name.endswith('running_var'):
            nn.init.uniform_(b, 0.5, 2)
    return layer.double().eval()


def features(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize('size', [(8, 7), (1, 1), (1, 5)], ids=str)
@pytest.mark.parametrize(('layer', 'options', 'definition', 'channels'), CASES)
def test_equals_numpy(layer, options, definition, channels, size):
    torch.manual_seed(0)
    m = random_weights(layer(channels, **options))
    x = features(2, channels, *size)
    p = {k: v.detach().numpy() for k, v in m.state_dict().items()}
    # A deviation with N - 1 is not defined for one pixel; the layers take 0.
    if size == (1, 1) and layer in (SGE, SimAM):
        zero = sigmoid(np.repeat(p['bias'], channels // m.groups) if layer is SGE else np.full(channels, 0.5))
        expected = [sample * zero[:, None, None] for sample in x.numpy()]
    else:
        expected = [definition(sample, p) for sample in x.numpy()]
    got = m(x).detach().numpy()
    rtol = 1e-5 if layer is FCA else 1e-9  # whose basis is in float32
    np.testing.assert_allclose(got, np.stack(expected), rtol=rtol, atol=1e-3 * rtol)
    if layer is not SimAM:
        assert np.abs(got - layer(channels, **options).double().eval()(x).detach().numpy()).max() > 1e-3


@pytest.mark.parametrize(('layer', 'options', 'channels'), [(c[0], c[1], c[3]) for c in CASES if c[0] is not LSK])
def test_every_gradient(layer, options, channels):
    """Of the features and of each parameter, against differences; in training, so through the statistics of norms."""
    torch.manual_seed(0)
    m = random_weights(layer(channels, **options)).train()
    x = features(2, channels, 3, 2).requires_grad_()
    names = [n for n, _ in m.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for _, p in m.named_parameters()]
    for p in parameters:
        p.data[p == 0] = 0.1

    def run(x, *parameters):
        return torch.func.functional_call(m, dict(zip(names, parameters)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True, atol=1e-6)


def test_every_gradient_of_lsk():
    """Parameter by parameter: its large kernels see the borders of a small map alone."""
    torch.manual_seed(0)
    m = random_weights(LSK(4))
    x = features(1, 4, 8, 7).requires_grad_()
    for inputs in ([x], *([p] for p in m.parameters())):
        assert torch.autograd.gradcheck(lambda *_: m(x), inputs, fast_mode=True, atol=1e-6)
        assert torch.autograd.grad(m(x).square().sum(), inputs)[0].abs().max() > 0


# ------------------------------------------------------------------------------------------------------------ by hand


def test_sge_is_ccd_with_the_context_of_the_whole_map():
    x = features(2, 128, 7, 5)
    m = random_weights(SGE(128))
    assert torch.equal(m(x), ccd(x, m.scale, m.bias, 64, scales=(1,), eps=1e-5))
    twin = CCD(128, scales=(1,), eps=1e-5).double()
    twin.load_state_dict(m.state_dict())  # the keys are the same
    assert torch.equal(twin(x), m(x))
    assert (m.scales, m.eps, SGE._abbr_) == ((1,), 1e-5, 'ccd')


def test_simam_hand_worked():
    # Channel 0 1 2 5: mean 2, squares 4 1 0 9, variance 14 / 3; with lambda 1/3, 4 (v + lambda) = 20.
    x = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64).view(1, 1, 2, 2)
    gate = torch.sigmoid(torch.tensor([0.7, 0.55, 0.5, 0.95], dtype=torch.float64)).view(1, 1, 2, 2)
    torch.testing.assert_close(SimAM(1, e_lambda=1 / 3)(x), x * gate)
    flat = torch.full((1, 1, 3, 3), 60000.0)  # nothing stands out
    assert torch.equal(SimAM(1)(flat), flat * torch.sigmoid(torch.tensor(0.5)))


def test_coord_attention_hand_worked():
    """Rows 1 2 | 3 6: their means are 1.5 and 4.5, those of the columns 2 and 4. h-swish is the identity above 3."""
    m = CoordAttention(1).double().eval()
    with torch.no_grad():
        for p in m.parameters():
            p.zero_()
        m.conv1.weight[0], m.conv1.bias[0] = 1.0, 10.0  # the first of 8 hidden channels: the mean + 10
        m.bn1.weight[0] = math.sqrt(1 + 1e-5)
        m.conv_h.weight[0, 0], m.conv_h.bias[0] = 1.0, -11.5  # 0 and 3
        m.conv_w.weight[0, 0], m.conv_w.bias[0] = 0.5, -6.0  # 0 and 1
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.float64)[None, None]
    rows, columns = (torch.sigmoid(torch.tensor(v, dtype=torch.float64)) for v in ([[0.0], [3.0]], [[0.0, 1.0]]))
    torch.testing.assert_close(m(x), x * rows * columns)


def test_em_attention_hand_worked():
    """A group of one channel: both softmaxes are 1, so the logit is the 3x3 convolution plus the norm's result."""
    m = EMAttention(2, groups=2).double()
    with torch.no_grad():
        for p in m.parameters():
            p.zero_()  # strips of 1/2 each: the first branch is the norm of x / 4
        m.gn.weight.fill_(2.0)
        m.gn.bias.fill_(0.5)
        m.conv3x3.weight[0, 0, 1, 1] = 0.1
    x = torch.tensor([[-4.0, 4.0], [400.0, -400.0]], dtype=torch.float64)[None, :, None]
    normed = (
        torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        / torch.tensor([[1 + 1e-5], [1 + 1e-9]], dtype=torch.float64).sqrt()
    )
    logit = 2 * normed + 0.5 + 0.1 * x[0, :, 0]
    torch.testing.assert_close(m(x), x * torch.sigmoid(logit)[None, :, None])


def test_triplet_attention_hand_worked():
    """1x1 kernels, one on the maximum and one on the mean: over (C, W), (H, C) and (H, W)."""
    m = TripletAttention(2, kernel_size=1).double().eval()
    with torch.no_grad():
        for gate, (of_maximum, of_mean) in ((m.cw, (1.0, 0.0)), (m.hc, (0.0, 1.0)), (m.hw, (1.0, 1.0))):
            gate.conv.weight.copy_(torch.tensor([of_maximum, of_mean]).view(1, 2, 1, 1))
            gate.bn.weight.fill_(math.sqrt(1 + 1e-5))
    x = torch.tensor([[[1.0, 2.0], [3.0, -4.0]], [[0.0, 1.0], [5.0, 2.0]]], dtype=torch.float64)[None]
    cw = torch.tensor([[[3.0, 2.0]], [[5.0, 2.0]]])  # maximum over rows
    hc = torch.tensor([[[1.5], [-0.5]], [[0.5], [3.5]]])  # mean over columns
    hw = torch.tensor([[[1.5, 3.5], [9.0, 1.0]]])  # maximum and mean over channels
    gate = sum(torch.sigmoid(t.double()) for t in (cw, hc, hw)) / 3
    torch.testing.assert_close(m(x), x * gate)
    assert m.hw.bn.momentum == 0.01


def test_bam_hand_worked():
    """All weights 0: M is the sigmoid of the two last biases, and x (1 + M) comes out."""
    m = BAM(16).double().eval()
    for p in m.parameters():
        nn.init.zeros_(p)
    nn.init.constant_(m.channel_branch.fc2.bias, 0.25)
    nn.init.constant_(m.spatial_branch.conv4.bias, 0.5)
    x = features(1, 16, 3, 3)
    torch.testing.assert_close(m(x), x * (1 + 1 / (1 + math.exp(-0.75))))
    # Its field of view: two 3x3 convolutions with dilation 4 see 8 pixels to each side.
    torch.manual_seed(0)
    m = random_weights(BAM(64))
    nn.init.zeros_(m.channel_branch.fc2.weight)
    x = features(1, 64, 1, 21).requires_grad_()
    m.gate(x)[..., 10].sum().backward()
    assert x.grad.abs().sum((0, 1, 2)).nonzero().flatten().tolist() == [2, 6, 10, 14, 18]


def test_shuffle_attention_hand_worked():
    """One group, four channels: two of the first half with weights 0 (gates sigmoid(1)), two normalised."""
    m = ShuffleAttention(4, groups=1).double()
    nn.init.ones_(m.sweight)
    nn.init.zeros_(m.sbias)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [-1.0, 1.0], [300.0, 100.0]], dtype=torch.float64)[None, :, None]
    one, near_one = torch.sigmoid(torch.tensor([1.0, 1 / math.sqrt(1 + 1e-5)], dtype=torch.float64))
    first = x[0, :2, 0] * one
    third = torch.tensor([-(1 - near_one), near_one], dtype=torch.float64)
    fourth = torch.tensor([300 * one, 100 * (1 - one)], dtype=torch.float64)
    expected = torch.stack((first[0], third, first[1], fourth))  # 0 1 | 2 3 become 0 2 1 3
    torch.testing.assert_close(m(x)[0, :, 0], expected, rtol=1e-6, atol=1e-6)


def test_nam_hand_worked():
    # Scaling factors 1, -3 and 0 have the shares 1/4, 3/4 and 0.
    m = NAM(3).double().eval()
    m.bn.weight.data.copy_(torch.tensor([1.0, -3.0, 0.0]))
    m.bn.bias.data.copy_(torch.tensor([0.0, 2.0, 5.0]))
    x = torch.tensor([2.0, 2.0, 2.0], dtype=torch.float64).view(1, 3, 1, 1)
    gate = torch.sigmoid(torch.tensor([0.5, 0.75 * (-6 + 2), 0.0], dtype=torch.float64)).view(1, 3, 1, 1)
    torch.testing.assert_close(m(x), x * gate, rtol=1e-4, atol=1e-4)
    nn.init.zeros_(m.bn.weight)
    assert torch.equal(m(x), x / 2)  # no share, and no NaN
    with pytest.raises(ValueError, match=r"norm_cfg must be a norm with a weight, got {'type': 'IN'}"):
        NAM(8, norm_cfg=dict(type='IN'))


def test_lsk_hand_worked():
    """Kernels that pass the features on, and a selection of all of the first and nothing of the second."""
    m = LSK(2).double()
    with torch.no_grad():
        for p in m.parameters():
            p.zero_()
        m.conv0.weight[:, 0, 2, 2] = 1.0
        m.conv_spatial.weight[:, 0, 3, 3] = 5.0
        m.conv1.weight[0, :, 0, 0] = torch.tensor([1.0, 10.0])
        m.conv2.weight[0, 0, 0, 0] = 1.0
        m.conv_squeeze.bias.copy_(torch.tensor([50.0, -50.0]))
        m.conv.weight[:, 0, 0, 0] = torch.tensor([2.0, 3.0])
        m.conv.bias[1] = 1.0
    x = features(1, 2, 4, 3)
    near = x[:, :1] + 10 * x[:, 1:]
    torch.testing.assert_close(m(x), x * torch.cat((2 * near, 3 * near + 1), 1))
    # 23 pixels: a 5x5 kernel, and a 7x7 one with dilation 3 behind it.
    m = random_weights(LSK(2))
    x = features(1, 2, 1, 31).requires_grad_()
    m.gate(x)[..., 15].sum().backward()
    seen = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    assert {4, 26} <= set(seen.tolist())
    assert LSK(2).conv_spatial.padding == (9, 9)


def test_fca_hand_worked():
    """The first frequency is the mean, seven times; a map that is one basis function has that frequency alone."""
    m = FCA(16, ratio=1).double()
    with torch.no_grad():
        m.fc1.weight.copy_(torch.eye(16))
        m.fc2.weight.copy_(torch.eye(16))
    x = torch.full((1, 16, 14, 21), 0.5, dtype=torch.float64)
    logit = torch.zeros(16, dtype=torch.float64)
    logit[0] = 3.5
    torch.testing.assert_close(m.gates(x)['channel'][0], torch.sigmoid(logit), rtol=1e-6, atol=1e-6)
    for part, (u, v) in enumerate(FREQUENCIES[1:4], 1):
        k = (torch.arange(7, dtype=torch.float64) + 0.5) * math.pi / 7
        wave = (u * k).cos()[:, None] * (v * k).cos()
        logit = torch.zeros(16, dtype=torch.float64)
        logit[part] = wave.square().sum().sqrt()
        torch.testing.assert_close(
            m.gates(wave.expand(1, 16, 7, 7))['channel'][0], torch.sigmoid(logit), rtol=1e-6, atol=1e-6
        )


def test_basis_of_fca_is_orthonormal():
    m = FCA(32, ratio=2, frequencies=32)
    basis = m.filters.flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(32), rtol=1e-5, atol=1e-5)
    assert list(m.state_dict()) == ['fc1.weight', 'fc2.weight']  # the DCT is no part of checkpoints
    with torch.device('meta'):
        empty = FCA(32, ratio=2, frequencies=32)
    empty.to_empty(device='cpu')
    empty.init_weights()
    assert torch.equal(empty.filters, m.filters)


# ------------------------------------------------------------------------------------------------------------- counts


def hidden(channels, ratio):
    return channels // ratio


FORMULAS = {
    SGE: lambda c: 2 * 64,
    SimAM: lambda c: 0,
    CoordAttention: lambda c: 3 * c * max(8, c // 32) + 3 * max(8, c // 32) + 2 * c,
    EMAttention: lambda c: 10 * (c // 8) ** 2 + 4 * (c // 8),
    TripletAttention: lambda c: 3 * (2 * 7 * 7 + 2),
    BAM: lambda c: 3 * c * (c // 16) + 18 * (c // 16) ** 2 + 13 * (c // 16) + c + 1,
    ShuffleAttention: lambda c: 3 * c // 64,
    NAM: lambda c: 2 * c,
    LSK: lambda c: 3 * c * c // 2 + 78 * c + 2 * 2 * 49 + 2,
    FCA: lambda c: 2 * c * c // 16,
}


@pytest.mark.parametrize('layer', FORMULAS)
def test_parameters_follow_the_papers_formulas(layer):
    with torch.device('meta'):
        for channels in (256, 512, 1024, 2048):
            assert sum(p.numel() for p in layer(channels).parameters()) == FORMULAS[layer](channels)


def test_bam_at_its_papers_place():
    """Behind the first three stages of ResNet-50: 25.92 M parameters, as the paper has it."""
    with torch.device('meta'):
        net = mmccd.attach(AttentionResNet(50), 'mmccd.BAM', where=['layer1', 'layer2', 'layer3'])
    assert [n for n, m in net.named_modules() if isinstance(m, BAM)] == ['layer1.2.bam', 'layer2.3.bam', 'layer3.5.bam']
    total = sum(p.numel() for p in net.parameters()) + 2048 * 1000 + 1000  # and the classifier
    assert round(total / 1e6, 2) == 25.92


@pytest.mark.parametrize(
    ('layer', 'options', 'error', 'message'),
    [
        (SGE, dict(in_channels=96), ValueError, '96 channels, got groups=64'),
        (SGE, dict(in_channels=64, eps=-1.0), ValueError, r'eps must be .*got -1\.0'),
        (SimAM, dict(in_channels=8, e_lambda=0), ValueError, 'e_lambda must be above 0 and finite, got 0'),
        (SimAM, dict(in_channels=8, e_lambda='1'), TypeError, "e_lambda must be a number, got '1'"),
        (EMAttention, dict(in_channels=12), ValueError, 'groups must divide in_channels=12, got groups=8'),
        (TripletAttention, dict(in_channels=8, kernel_size=4), ValueError, 'kernel_size must be odd, got 4'),
        (BAM, dict(in_channels=8), ValueError, 'ratio must be at most in_channels=8, got 16'),
        (ShuffleAttention, dict(in_channels=9), ValueError, 'in_channels must be even, got 9'),
        (
            ShuffleAttention,
            dict(in_channels=64, groups=64),
            ValueError,
            'groups must divide half of the channels, in_channels / 2 = 32, got groups=64',
        ),
        (LSK, dict(in_channels=1), ValueError, 'in_channels must be at least 2, got 1'),
        (FCA, dict(in_channels=24), ValueError, 'frequencies must be at most 32 and divide in_channels=24, got 16'),
        (FCA, dict(in_channels=66, frequencies=33), ValueError, 'frequencies must be at most 32.*got 33'),
        (FCA, dict(in_channels=64, grid=8), ValueError, 'grid must be a multiple of 7, got 8'),
    ],
)
def test_bad_arguments(layer, options, error, message):
    with pytest.raises(error, match=message):
        layer(**options)


@pytest.mark.parametrize('layer', [layer for layer in FORMULAS if layer.gate_labels != AttentionLayer.gate_labels])
def test_gates_with_labels_of_their_own(layer):
    m = random_weights(layer(64))
    x = 1 + torch.rand(2, 64, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    product = x * m.gates(x)['spatial']
    if layer is ShuffleAttention:
        product = torch.stack(product.chunk(2, 1), 2).flatten(1, 2)
    torch.testing.assert_close(m(x), product)
