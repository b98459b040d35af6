import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmccd.models import CCD
from mmccd.ops import ccd, ccd_reference, check_ccd_options
from mmccd.ops.backends import RunningNorm
from mmccd.ops.functional import ccd_with_options
from mmccd.ops.options import make_options

CASES = json.loads((Path(__file__).parents[1] / 'data/golden/ccd_cases.json').read_text())
DOUBLE = dict(dtype=torch.float64)


def by_loops(x, scale, bias, groups, scales=(1, 2, 4), similarity='dot', normalize='zscore', eps=1e-7):
    """The definition written once more, position by position in NumPy: no pooling, no upsampling, no broadcasting."""
    x = np.asarray(x, np.float64)
    n, c, height, width = x.shape
    grid = max(scales)
    y = np.zeros_like(x)

    def pooled(b, k, s, i, j):  # bin (i, j) of an adaptive average pooling to s x s
        rows = range(i * height // s, -(-(i + 1) * height // s))
        cols = range(j * width // s, -(-(j + 1) * width // s))
        return np.mean([[x[b, k, r, q] for q in cols] for r in rows])

    for b in range(n):
        context = np.zeros((c, height, width))
        for k in range(c):
            cells = [
                [np.mean([pooled(b, k, s, i * s // grid, j * s // grid) for s in scales]) for j in range(grid)]
                for i in range(grid)
            ]
            for r in range(height):
                for q in range(width):
                    context[k, r, q] = cells[r * grid // height][q * grid // width]
        size = c // groups
        for g in range(groups):
            part, ctx = x[b, g * size : (g + 1) * size], context[g * size : (g + 1) * size]
            d = (part * ctx).sum(0)
            if similarity == 'cosine':
                d = d / (np.maximum(np.sqrt((part**2).sum(0)), 1e-8) * np.maximum(np.sqrt((ctx**2).sum(0)), 1e-8))
            if normalize == 'zscore':
                d = (d - d.mean()) / (d.std(ddof=1) + eps)
            elif normalize == 'minmax':
                d = (d - d.min()) / (d.max() - d.min())
            gate = 1 / (1 + np.exp(-(float(scale[g]) * d + float(bias[g]))))
            y[b, g * size : (g + 1) * size] = part * gate
    return y


def random_arguments(shape, groups, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype), torch.randn(groups, dtype=dtype), torch.randn(groups, dtype=dtype)


def relative(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def test_hand_worked():
    # One channel, one group, 2 x 2, scales (1, 2), no normalisation:
    #   x = 1 3    pool 1: 4 everywhere    context = (4 + x) / 2 = 2.5 3.5    d = x * context = 2.5 10.5
    #       5 7    pool 2: x itself                                4.5 5.5                     22.5 38.5
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]], **DOUBLE)
    d = [2.5, 10.5, 22.5, 38.5]
    scale, bias = torch.tensor([0.1], **DOUBLE), torch.tensor([-0.5], **DOUBLE)
    y = ccd(x, scale, bias, 1, scales=(1, 2), normalize=None)
    expected = [v / (1 + math.exp(-(0.1 * s - 0.5))) for v, s in zip([1, 3, 5, 7], d)]
    assert torch.allclose(y.flatten(), torch.tensor(expected, **DOUBLE), rtol=1e-14)

    # z-score: mean 18.5, deviations -16 -8 4 20, their squares' sum 736, std = sqrt(736 / 3)
    y = ccd(x, scale, bias, 1, scales=(1, 2), eps=1e-30)
    std = math.sqrt(736 / 3)
    expected = [v / (1 + math.exp(-(0.1 * s / std - 0.5))) for v, s in zip([1, 3, 5, 7], [-16, -8, 4, 20])]
    assert torch.allclose(y.flatten(), torch.tensor(expected, **DOUBLE), rtol=1e-14)


@pytest.mark.parametrize(
    ('shape', 'groups', 'options'),
    [
        ((2, 6, 7, 7), 3, {}),  # overlapping adaptive bins
        ((1, 4, 3, 5), 4, {}),  # fewer rows than cells; one channel a group
        ((1, 4, 1, 9), 2, {}),
        ((1, 4, 13, 11), 1, {}),  # all channels in one group
        ((1, 4, 9, 10), 2, dict(scales=(3, 5))),  # neither scale divides the other
        ((1, 4, 8, 8), 2, dict(scales=(1,))),  # SGE
        ((1, 4, 6, 9), 2, dict(similarity='cosine')),
        ((1, 4, 6, 9), 2, dict(normalize='minmax')),
        ((1, 4, 6, 9), 2, dict(similarity='cosine', normalize=None, scales=(1, 4, 8))),
        ((1, 1, 82, 2), 1, dict(scales=(4,))),  # F.interpolate reads row 41 from the wrong cell here
    ],
)
def test_equals_definition_by_loops(shape, groups, options):
    x, scale, bias = random_arguments(shape, groups)
    y = ccd(x, scale, bias, groups, **options)
    assert relative(y, torch.from_numpy(by_loops(x, scale, bias, groups, **options))) < 1e-12


@pytest.mark.smoke
@pytest.mark.parametrize('case', CASES, ids=lambda c: c['file'][:-4])
def test_golden(golden, case):
    data = {k: torch.from_numpy(v).double() for k, v in np.load(golden / case['file']).items()}
    x = data['x'].requires_grad_()
    scale, bias = (data[k].flatten().requires_grad_() for k in ('scale', 'bias'))
    y = ccd(x, scale, bias, case['groups'], tuple(case['scales']), case['similarity'], case['normalize'])
    y.backward(data['grad_y'])
    assert relative(y.detach(), data['y']) < 1e-9
    assert relative(x.grad, data['grad_x']) < 1e-9
    assert relative(scale.grad, data['grad_scale'].flatten()) < 1e-9
    assert relative(bias.grad, data['grad_bias'].flatten()) < 1e-9


def test_one_constant_group_among_others():
    x, scale, bias = random_arguments((1, 4, 6, 6), 2, torch.float32)
    x[:, :2] = 1.7
    x.requires_grad_()
    y = ccd(x, scale, bias, 2)
    y.square().sum().backward()
    assert torch.allclose(y[:, :2], x[:, :2] * bias[0].sigmoid())
    assert torch.allclose(y[:, 2:], ccd(x[:, 2:], scale[1:], bias[1:], 1))
    assert x.grad.isfinite().all()


def test_memory_layouts():
    x, scale, bias = random_arguments((2, 8, 9, 6), 4)
    expected = ccd(x, scale, bias, 4)
    channels_last = ccd(x.to(memory_format=torch.channels_last), scale, bias, 4)
    assert torch.equal(channels_last, expected) or relative(channels_last, expected) < 1e-14
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    strided = torch.randn(2, 16, 9, 12, **DOUBLE)[:, ::2, :, ::2]
    assert relative(ccd(strided, scale, bias, 4), ccd(strided.contiguous(), scale, bias, 4)) < 1e-14


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_has_float32_statistics(dtype, tolerance):
    # Sums of 16 squares of 500 overflow float16 (65504) many times over.
    x = (500 * torch.randn(2, 64, 12, 9)).to(dtype)
    scale, bias = torch.randn(4), torch.randn(4)
    y = ccd(x, scale, bias, 4)
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert relative(y.double(), ccd(x.double(), scale.double(), bias.double(), 4)) < tolerance


def test_gain():
    x, scale, bias = random_arguments((1, 4, 5, 5), 2)
    assert torch.allclose(ccd(x, scale, bias, 2, gain=1.7), 1.7 * ccd(x, scale, bias, 2))


def test_reference_is_what_ccd_computes():
    x, scale, bias = random_arguments((2, 8, 11, 6), 4)
    assert relative(ccd(x, scale, bias, 4), ccd_reference(x, scale, bias, 4)) < 1e-14


@pytest.mark.parametrize(
    ('options', 'error', 'words'),
    [
        (dict(groups=3), ValueError, ('groups=3', 'divide', '8 channels')),
        (dict(groups=0), ValueError, ('groups', 'at least 1', 'got 0')),
        (dict(groups=2.0), TypeError, ('groups', 'int', 'got 2.0')),
        (dict(groups=True), TypeError, ('groups', 'int', 'got True')),
        (dict(groups=[4]), TypeError, ('groups', 'int', 'got [4]')),
        (dict(scales=(1, 0)), ValueError, ('scale', 'at least 1', 'got 0', '(1, 0)')),
        (dict(scales=()), ValueError, ('scales', 'at least one', 'empty')),
        (dict(scales=4), TypeError, ('scales', 'sequence', 'got 4')),
        (dict(scales='124'), TypeError, ('scales', 'sequence', "got '124'")),
        (dict(scales=(1, 2.5)), TypeError, ('scales', 'ints', 'got 2.5')),
        (dict(scales=(True, 2)), TypeError, ('scales', 'ints', 'got True')),
        (dict(similarity='l2'), ValueError, ('similarity', "('dot', 'cosine')", "got 'l2'")),
        (dict(normalize='softmax'), ValueError, ('normalize', "'zscore', 'minmax', None", "got 'softmax'")),
        (dict(eps=0), ValueError, ('eps', 'above 0', 'got 0')),
        (dict(eps=math.nan), ValueError, ('eps', 'above 0', 'got nan')),
        (dict(eps='1e-7'), TypeError, ('eps', 'number', "got '1e-7'")),
    ],
)
def test_bad_options(options, error, words):
    # Valid ones first, which are kept: 1 and True, 2 and 2.0 are equal.
    check_ccd_options(4, (1, 2), channels=8), check_ccd_options(2, channels=8), check_ccd_options(1, channels=8)
    arguments = {'groups': 4, **options}
    calls = [
        lambda: check_ccd_options(**arguments, channels=8),
        lambda: ccd(torch.ones(1, 8, 4, 4), torch.ones(4), torch.ones(4), **arguments),
        lambda: CCD(8, **arguments),
    ]
    for call in calls:
        with pytest.raises(error) as e:
            call()
        assert all(w in str(e.value) for w in words), e.value


def test_bad_gain():
    with pytest.raises(TypeError, match=r"gain.*got 'twice'"):
        ccd(torch.ones(1, 8, 4, 4), torch.ones(4), torch.ones(4), 4, gain='twice')


def test_options_are_checked_once():
    options = make_options(4, [1, 2], eps=1e-5)
    assert options == (4, (1, 2), 'dot', 'zscore', 1e-5, 1.0)
    assert make_options(4, (1, 2), eps=1e-5) is options
    assert make_options(4, range(1, 3), eps=1e-5) == options
    assert check_ccd_options(4, [1, 2]) == (1, 2)
    with pytest.raises(AttributeError):
        options.groups = 2


@pytest.mark.parametrize(
    ('replaced', 'error', 'words'),
    [
        (dict(x=torch.ones(8, 4, 4)), ValueError, ('x', '(N, C, H, W)', 'got (8, 4, 4)')),
        (dict(x=torch.ones(1, 8, 4, 4, dtype=torch.int64)), TypeError, ('x', 'floating point', 'got torch.int64')),
        (dict(x=[1.0]), TypeError, ('x', 'Tensor', 'got list')),
        (dict(x=torch.ones(1, 8, 0, 4)), ValueError, ('x', 'at least one pixel', 'got (1, 8, 0, 4)')),
        (dict(x=torch.ones(1, 6, 4, 4)), ValueError, ('groups=4', 'divide', '6 channels')),
        (dict(scale=torch.ones(1, 4, 1)), ValueError, ('scale', '(4,)', 'got (1, 4, 1)')),
        (dict(scale=1.0), TypeError, ('scale', 'Tensor', 'got float')),
        (dict(bias=torch.ones(5)), ValueError, ('bias', '(4,)', 'got (5,)')),
        (dict(bias=torch.ones(4, dtype=torch.int32)), TypeError, ('bias', 'floating point', 'got torch.int32')),
        (dict(bias=torch.ones(4, device='meta')), ValueError, ('bias', 'device of x', 'cpu', 'bias on meta')),
        (dict(residual=torch.ones(1, 8, 4, 1)), ValueError, ('residual', '(1, 8, 4, 4)', 'got (1, 8, 4, 1)')),
        (dict(residual=0), TypeError, ('residual', 'Tensor', 'got int')),
        (dict(residual=torch.ones(1, 8, 4, 4, device='meta')), ValueError, ('residual', 'cpu', 'residual on meta')),
        (dict(residual=torch.ones(1, 8, 4, 4).int()), TypeError, ('residual', 'floating point', 'got torch.int32')),
        (dict(weight=torch.ones(8)), ValueError, ('weight', 'shift', 'together', 'shift=None')),
        (dict(shift=torch.ones(8)), ValueError, ('weight', 'shift', 'together', 'weight=None')),
        (dict(weight=torch.ones(4), shift=torch.ones(8)), ValueError, ('weight', '(8,)', 'channel', 'got (4,)')),
        (dict(weight=torch.ones(8), shift=torch.ones(1, 8, 1, 1)), ValueError, ('shift', '(8,)', 'got (1, 8, 1, 1)')),
        (dict(weight=1.0, shift=torch.ones(8)), TypeError, ('weight', 'Tensor', 'got float')),
        (dict(weight=torch.ones(8), shift=torch.ones(8).long()), TypeError, ('shift', 'floating', 'torch.int64')),
        (dict(weight=torch.ones(8), shift=torch.ones(8, device='meta')), ValueError, ('shift', 'cpu', 'shift on meta')),
    ],
)
def test_bad_tensors(replaced, error, words):
    arguments = {**dict(x=torch.ones(1, 8, 4, 4), scale=torch.ones(4), bias=torch.ones(4), groups=4), **replaced}
    with pytest.raises(error) as e:
        ccd(**arguments)
    assert all(w in str(e.value) for w in words), e.value


@pytest.mark.parametrize('impl', ['cpu', 'torch'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16])
def test_a_norm_in_the_place_of_weight_and_shift(impl, dtype):
    """Bit for bit what PyTorch's batch norm and then the operator give, whether or not the backend reads norms."""
    if impl == 'cpu':
        pytest.importorskip('numba')
    rng = torch.Generator().manual_seed(3)
    x, residual = (torch.randn(2, 24, 9, 20, generator=rng).to(dtype) for _ in range(2))
    real = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias, mean = (torch.randn(24, generator=rng).to(real) for _ in range(3))
    variance = torch.rand(24, generator=rng).to(real) + 0.1
    scale, offset = (torch.randn(6, generator=rng).to(real) for _ in range(2))
    options = make_options(6, (1, 2, 4), 'dot', 'zscore', 1e-7, 1.0)
    norm = RunningNorm(weight, bias, mean, variance, 1e-3)
    z = torch.nn.functional.batch_norm(x, mean, variance, weight, bias, False, 0.1, 1e-3)
    with torch.no_grad():
        for other in (None, residual):
            y = ccd_with_options(x, other, scale, offset, options, impl, norm=norm)
            folded = dict(zip(('weight', 'shift'), norm.affine()))
            assert torch.equal(y, ccd_with_options(x, other, scale, offset, options, impl, **folded))
            if dtype != torch.float16:  # which is not rounded in between
                assert torch.equal(y, ccd_with_options(z, other, scale, offset, options, impl))


def norm_of_ones(**replaced):
    return RunningNorm(
        **{**{name: torch.ones(8) for name in ('weight', 'bias', 'mean', 'variance')}, 'eps': 1e-5, **replaced}
    )


@pytest.mark.parametrize(
    ('norm', 'more', 'error', 'words'),
    [
        (torch.nn.BatchNorm2d(8), {}, TypeError, ('norm', 'RunningNorm', 'got BatchNorm2d in training mode')),
        (norm_of_ones(weight=torch.ones(4)), {}, ValueError, ('norm.weight', '(8,)', 'channel', 'got (4,)')),
        (norm_of_ones(bias=torch.ones(16)), {}, ValueError, ('norm.bias', '(8,)', 'got (16,)')),
        (norm_of_ones(mean=None), {}, TypeError, ('norm.mean', 'Tensor', 'got NoneType')),
        (norm_of_ones(variance=torch.ones(8, device='meta')), {}, ValueError, ('norm.variance', 'cpu', 'meta')),
        (norm_of_ones(), dict(weight=torch.ones(8), shift=torch.ones(8)), ValueError, ('norm', 'weight and shift')),
    ],
)
def test_bad_norm(norm, more, error, words):
    """Before any work: a backend reads these numbers by their addresses."""
    layer, x = CCD(8, groups=4), torch.ones(1, 8, 4, 4)
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled), pytest.raises(error) as e:
            layer(x, norm=norm, **more)
        assert all(w in str(e.value) for w in words), e.value
    with pytest.raises(ValueError, match=r"impl must be.*'fast'"):
        ccd_with_options(x, None, layer.scale, layer.bias, layer.options, 'fast', norm=norm_of_ones())


def test_gradients_through_a_norm():
    """Where gradients are wanted, a norm is the same as its weight and shift."""
    rng = torch.Generator().manual_seed(4)
    x, grad_y = torch.randn(2, 1, 8, 5, 6, generator=rng)
    weight, bias, mean, variance = torch.rand(4, 8, generator=rng) + 0.5
    layer = CCD(8, groups=4)
    torch.nn.init.ones_(layer.scale)
    results = []
    for fused in (False, True):
        a = [t.clone().requires_grad_() for t in (x, weight, bias)]
        if fused:
            y = layer(a[0], norm=RunningNorm(a[1], a[2], mean, variance, 1e-5))
        else:
            y = layer(torch.nn.functional.batch_norm(a[0], mean, variance, a[1], a[2]))
        results.append((y.detach(), *torch.autograd.grad(y, (*a, layer.scale), grad_y)))
    for got, expected in zip(*results):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)
