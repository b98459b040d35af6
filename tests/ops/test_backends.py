"""Every backend of the table against the definition in float64, value and gradients, and inside PyTorch.

Tests run over :data:`mmccd.ops.backends.BACKENDS`: a new row is covered without a change here. What needs one backend's
own functions is in the folder of that backend.
"""

import itertools
import logging
import math
import os
import random
import subprocess
import sys
import threading
import types

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import mmccd
from mmccd.models import CCD, AttentionResNet
from mmccd.ops import backends, ccd, ccd_add_relu, ccd_reference
from mmccd.ops.backends import BACKENDS, Inputs, Row, load
from mmccd.ops.options import make_options


def device_of(name):
    """(where a backend runs, None), or (None, why it runs nowhere here)."""
    for device in ('cpu', *(('cuda',) if torch.cuda.is_available() else ())):
        try:
            reason = load(name).unavailable(torch.empty(1, 1, 1, 1, device=device), make_options(1))
        except ImportError as e:
            reason = f'not installed: {e}'
        if reason is None:
            return device, None
    return None, reason


def rows():
    """A parameter for each row of the table."""
    marks = {name: pytest.mark.skipif(device_of(name)[0] is None, reason=str(device_of(name)[1])) for name in BACKENDS}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


IMPLS = rows()
# Triton's interpreter takes a tenth of a second for what a card does in some microseconds, and gets less of everything.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'


def size(shape, groups):
    """These, or in Triton's interpreter smaller ones."""
    return ((2, 2, 5, 3), 2) if INTERPRETED else (shape, groups)


SHAPES = [  # (N, C, H, W), groups
    ((2, 6, 1, 1), 2),  # no deviation; below a vector of the CPU loops
    ((2, 6, 1, 9), 2),  # one row
    ((1, 4, 1, 37), 2),  # one row of more than a vector
    ((1, 4, 19, 1), 2),  # one column
    ((1, 6, 13, 11), 2),  # primes: adaptive bins overlap
    ((1, 3, 82, 2), 1),  # F.interpolate reads row 41 from the wrong cell
    ((2, 8, 7, 7), 8),  # last stage at 224; one channel a group
    ((1, 64, 7, 7), 2),  # 32 channels a group
    ((1, 12, 14, 14), 4),  # third stage; 3 channels a group, the CPU loops take 4 at a time
    ((2, 8, 17, 16), 2),  # exactly a vector wide
    ((1, 8, 28, 28), 2),  # divisible by 4: bins do not overlap
    ((1, 6, 25, 42), 2),  # last stage at 800 x 1344
    ((1, 8, 200, 336), 1),  # first stage at 800 x 1344; with fewer channels the greatest cosine, 1, has ties
]
SCALES = [(1,), (1, 2, 4), (1, 4, 8), (3, 5)]
OPTIONS = [dict(similarity=s, normalize=n) for s in ('dot', 'cosine') for n in ('zscore', 'minmax', None)]


def make(shape, groups, dtype=torch.float32, seed=0, impl='auto'):
    """x, scale, bias, grad_y of numbers that ``dtype`` holds exactly, where ``impl`` runs."""
    rng = torch.Generator().manual_seed(seed)
    device = 'cpu' if impl == 'auto' else device_of(impl)[0]
    return [torch.randn(s, generator=rng).to(device, dtype) for s in (shape, groups, groups, shape)]


def evaluate(function, tensors, dtype):
    """y and the gradients of x, scale, bias and what else there is before grad_y, in float64."""
    *arguments, grad_y = (t.detach().to(dtype) for t in tensors)
    arguments = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in arguments]
    y = function(*arguments)
    y.backward(grad_y)
    return [t.double() for t in (y.detach(), *(a.grad for a in arguments))]


# Which of the operator's optional parts are there.
PARTS = [(), ('residual',), ('weight', 'shift'), ('residual', 'weight', 'shift')]
PART_IDS = ['plain', 'residual', 'affine', 'affine-residual']


def optional(x, parts, seed=1):
    """Arguments of these names for ``x``."""
    rng = torch.Generator().manual_seed(seed)
    shapes = dict(residual=x.shape, weight=x.shape[1:2], shift=x.shape[1:2])
    return {name: torch.randn(shapes[name], generator=rng).to(x.device, x.dtype) for name in parts}


def in_steps(parts, *options, **named):
    """The definition with optional parts: a function of x, scale, bias and those."""

    def run(x, scale, bias, *others):
        here = dict(zip(parts, others))
        if 'weight' in here:
            x = x * here['weight'].view(1, -1, 1, 1) + here['shift'].view(1, -1, 1, 1)
        y = ccd_reference(x, scale, bias, *options, **named)
        return torch.relu(y + here['residual']) if 'residual' in here else y

    return run


def at_once(parts, *options, **named):
    """The operator in their place."""
    return lambda *a: ccd(*a[:3], *options, **named, **dict(zip(parts, a[3:])))


def is_refused(impl, x, *options, **named):
    """Whether a backend cannot run these, as Triton's kernels cannot with many cells; a call by name says why."""
    reason = load(impl).unavailable(x, make_options(*options, **named))
    if reason is not None:
        vector = x.new_ones(options[0])
        with pytest.raises(ValueError, match=f'impl={impl!r}') as e:
            ccd(x, vector, vector, *options, impl=impl, **named)
        assert reason in str(e.value)
    return reason is not None


def errors(got, expected):
    return [((g.double() - e).abs().max() / e.abs().max().clamp_min(1e-30)).item() for g, e in zip(got, expected)]


def same(a, b):
    """To the last bit; on a GPU, whose compiler makes one rounding of a product's and an addition's, nearly."""
    if a.device.type == 'cpu':
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=0, atol=64 * torch.finfo(a.dtype).eps * b.abs().max().item())


def check(impl, tensors, groups, dtype=torch.float32, parts=(), got=None, **options):
    """At most twice the error of the reference in the same dtype, and of what one rounding of x makes of the result.

    The second part says how well the numbers can be known at all: sums that cancel (the gradient of ``scale``), an
    extremum that is nearly shared. The last 1e-6 (8 float32 ulp) is for those where the reference is right by luck. The
    cosine of one channel is its sign: what flows through it cancels to 0, from terms of size 1 / |x|.

    Returns:
        list[Tensor]: What the definition gives in float64.
    """
    reference = in_steps(parts, groups, **options)
    expected = evaluate(reference, tensors, torch.float64)
    if got is None:
        got = evaluate(at_once(parts, groups, impl=impl, **options), tensors, dtype)
    allowed = errors(evaluate(reference, tensors, dtype), expected)
    x = tensors[0].double()
    nudged = x * (1 + torch.finfo(dtype).eps / 2 * torch.sign(torch.randn_like(x)))
    nudge = errors(evaluate(reference, [nudged, *tensors[1:]], torch.float64), expected)
    # Of float64 nothing here knows more digits.
    floor = 1e-11 if dtype == torch.float64 else 8 * torch.finfo(dtype).eps
    if options.get('similarity') == 'cosine' and tensors[0].shape[1] == groups:
        floor *= 100
    names = 'y', *(f'grad_{name}' for name in ('x', 'scale', 'bias', *parts))
    for name, g, a, n in zip(names, errors(got, expected), allowed, nudge):
        assert g <= 2 * (a + n) + floor, f'{name}: error {g:.1e}, reference {a:.1e}, one rounding {n:.1e}'
    return expected


def check_residual(impl, tensors, groups, **options):
    """With a residual: value and all four gradients are :func:`same` as those of an addition and a ReLU behind."""

    def in_steps(x, residual, scale, bias):
        return torch.relu(ccd(x, scale, bias, groups, impl=impl, **options) + residual)

    def at_once(x, residual, scale, bias):
        return ccd(x, scale, bias, groups, impl=impl, residual=residual, **options)

    x, scale, bias, grad_y = tensors
    residual = torch.randn_like(x)
    results = []
    for function in (at_once, in_steps):
        a = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, residual, scale, bias)]
        y = function(*a)
        y.backward(grad_y)
        results.append([y.detach(), *(t.grad for t in a)])
        with torch.no_grad():
            assert same(function(*a), y)
    assert all(map(same, *results))
    assert results[0][0].stride() == torch.empty_like(x).stride()
    return results[0]


@pytest.mark.parametrize('options', OPTIONS, ids=lambda o: '-'.join(map(str, o.values())))
@pytest.mark.parametrize(('shape', 'groups'), SHAPES, ids=str)
@pytest.mark.parametrize('impl', IMPLS)
def test_against_the_definition(impl, shape, groups, options):
    """In float32 within twice the definition's error, in float64 the same maths, and with a residual the same bits."""
    tensors = make(shape, groups, impl=impl)
    for scales in SCALES:
        if scales != (1, 2, 4) and is_refused(impl, tensors[0], groups, scales, **options):
            continue
        expected = check(impl, tensors, groups, scales=scales, **options)
        got = evaluate(lambda *a: ccd(*a, groups, scales, impl=impl, **options), tensors, torch.float64)  # noqa: B023
        for g, e in zip(got, expected):
            # 1e-10 where all is 0, as the gradient of scale at a single pixel.
            assert (g - e).abs().max() <= 1e-10 * (1 + e.abs().max())
    for dtype in (torch.float32, torch.float64):
        check_residual(impl, [t.to(dtype) for t in tensors], groups, **options)


LAYOUTS = {
    'contiguous': lambda t: t.contiguous(),
    'channels_last': lambda t: t.contiguous(memory_format=torch.channels_last),
    'strided': lambda t: t.repeat_interleave(2, 1).repeat_interleave(2, 3)[:, ::2, :, ::2],  # no stride is one
    'offset': lambda t: t.new_zeros(t.numel() + 3)[3:].view(t.shape).copy_(t),  # not aligned to a vector
}
# What can be chosen; every two values of two of these meet in one of CASES.
AXES = dict(
    shape=[((2, 2, 1, 1), 1), ((1, 6, 1, 5), 2), ((1, 4, 5, 3), 4), ((1, 3, 7, 7), 1), ((1, 4, 8, 4), 2)],
    scales=[(1,), (2, 1), (3, 1), (1, 2, 4)],
    similarity=['dot', 'cosine'],
    normalize=['zscore', 'minmax', None],
    parts=PARTS,
    dtype=[torch.float32, torch.float64, torch.float16, torch.bfloat16],
    layout=list(LAYOUTS),
    grad_layout=list(LAYOUTS),
    gain=[1.0, 1.3],
    way=['whole', 'split'],  # of the Triton kernels; the other backends find theirs by the shape
)


def pairwise(axes):
    """Cases in which every two values of two axes meet, far fewer than all; the same ones each time."""
    rng = random.Random(0)
    missing = {
        frozenset([(a, i), (b, j)])
        for a, b in itertools.combinations(axes, 2)
        for i, j in itertools.product(range(len(axes[a])), range(len(axes[b])))
    }
    cases = []

    def pairs(case):
        return set(map(frozenset, itertools.combinations(case.items(), 2)))

    while missing:
        wanted = dict(min(missing, key=sorted))
        drawn = [{name: rng.randrange(len(values)) for name, values in axes.items()} | wanted for _ in range(60)]
        best = max(drawn, key=lambda case: len(missing & pairs(case)))
        missing -= pairs(best)
        cases.append({name: axes[name][i] for name, i in best.items()})
    return cases


CASES = pairwise(AXES)


@pytest.mark.parametrize('case', range(len(CASES)))
@pytest.mark.parametrize('impl', IMPLS)
def test_combinations(impl, case, monkeypatch):
    """Value and all gradients of options, optional parts, dtypes and memory layouts together."""
    options = dict(CASES[case])
    (shape, groups), parts, dtype = (options.pop(name) for name in ('shape', 'parts', 'dtype'))
    layout, grad_layout = (LAYOUTS[options.pop(name)] for name in ('layout', 'grad_layout'))
    way = options.pop('way')
    if impl == 'triton':
        from mmccd.ops.triton_backend import launches, plan

        for name, value in dict(WHOLE_LIMIT=1 << 30 if way == 'whole' else 0, TILE_ELEMENTS=128).items():
            monkeypatch.setattr(plan, name, value)
        launches.forget()
    x, scale, bias, grad_y = make(shape, groups, dtype, impl=impl)
    more = optional(x, parts)
    if 'residual' in more:  # far from the ReLU's corner, where a rounding would decide about gradients
        more['residual'] = layout(more['residual'] + 20 * more['residual'].sign())
    x = layout(x).requires_grad_()
    arguments = [x, *(t.requires_grad_() for t in (scale, bias, *more.values()))]
    y = at_once(parts, groups, impl=impl, **options)(*arguments)
    grads = torch.autograd.grad(y, arguments, grad_layout(grad_y))
    assert (y.dtype, y.stride()) == (dtype, torch.empty_like(x).stride())
    assert all(g.dtype == t.dtype and g.shape == t.shape for g, t in zip(grads, arguments))
    check(impl, (*arguments, grad_y), groups, dtype, parts, got=[y.detach(), *grads], **options)


def test_combinations_have_every_two_values_of_two_axes():
    for a, b in itertools.combinations(AXES, 2):
        met = [(case[a], case[b]) for case in CASES]
        assert all(pair in met for pair in itertools.product(AXES[a], AXES[b])), (a, b)
    assert len(CASES) < 40


@pytest.mark.parametrize(('shape', 'groups'), [((3, 6, 4, 4), 2), ((0, 4, 5, 5), 2)], ids=str)
@pytest.mark.parametrize('impl', ['auto', *IMPLS])
def test_residual_of_other_shapes(impl, shape, groups):
    # No sample; and, with those of the grid, where 'auto' decides.
    for dtype, options in itertools.product((torch.float32, torch.float64), OPTIONS[:2]):
        check_residual(impl, make(shape, groups, dtype, impl=impl), groups, **options)


@pytest.mark.parametrize('impl', IMPLS)
def test_residual_in_other_layouts_and_dtypes(impl):
    for change in (
        lambda t: t.to(memory_format=torch.channels_last),
        torch.Tensor.half,
        torch.Tensor.bfloat16,
        lambda t: t.repeat(1, 1, 1, 2)[..., ::2],
    ):
        tensors = [change(t) if t.dim() == 4 else t for t in make((2, 8, 6, 8), 4, impl=impl)]
        check_residual(impl, tensors, 4)
    x, scale, bias, grad_y = make((2, 8, 6, 8), 4, impl=impl)
    y = ccd(x, scale, bias, 4, impl=impl)
    # A gradient of other strides than y's, and one that is wanted alone.
    residual = torch.zeros_like(x).requires_grad_()
    ccd(x, scale, bias, 4, impl=impl, residual=residual).sum().backward()
    assert torch.equal(residual.grad, (y > 0).float())
    assert ccd(x, scale, bias, 4, impl=impl, residual=torch.full_like(x, math.nan)).isnan().all()
    # Of another layout or dtype than x: y has those of x, and each gradient those of its tensor.
    for change in (lambda t: t.to(memory_format=torch.channels_last), torch.Tensor.double, torch.Tensor.half):
        a = [x.clone().requires_grad_(), change(torch.randn_like(x)).requires_grad_()]
        joined = ccd(a[0], scale, bias, 4, impl=impl, residual=a[1])
        joined.backward(grad_y)
        assert joined.dtype == x.dtype and joined.stride() == x.stride()
        expected = torch.relu(y + a[1].detach())
        assert torch.allclose(joined, expected.to(x.dtype), rtol=1e-6)
        assert a[1].grad.dtype == a[1].dtype
        assert torch.equal(a[1].grad, torch.where(joined > 0, grad_y, 0).to(a[1].dtype))


def norm_of(affine, x):
    """A batch norm in evaluation mode that is this affine of ``x``, but for roundings: (module, weight, shift)."""
    norm = torch.nn.BatchNorm2d(x.shape[1]).to(x.device, x.dtype).eval()
    with torch.no_grad():
        norm.weight.copy_(affine['weight'])
        norm.bias.copy_(affine['shift'])
        norm.running_mean.copy_(affine['shift'] * 3)
        norm.running_var.copy_(affine['weight'].abs() + 0.1)
        weight = torch.rsqrt(norm.running_var + norm.eps) * norm.weight
        shift = torch.addcmul(norm.bias, norm.running_mean, weight, value=-1)
    return norm, weight.detach(), shift.detach()


@pytest.mark.parametrize('parts', PARTS[2:], ids=PART_IDS[2:])
@pytest.mark.parametrize('options', OPTIONS, ids=lambda o: '-'.join(map(str, o.values())))
@pytest.mark.parametrize(('shape', 'groups'), [s for s in SHAPES if math.prod(s[0]) < 20000], ids=str)
@pytest.mark.parametrize('impl', IMPLS)
def test_affine_against_the_definition(impl, shape, groups, options, parts):
    """In float64 the same maths; in both dtypes the bits of an affine and the operator behind it, all gradients."""
    x, scale, bias, grad_y = make(shape, groups, torch.float64, impl=impl)
    more = optional(x, parts)

    def run(dtype, function):
        a = [t.detach().to(dtype).requires_grad_() for t in (x, scale, bias, *more.values())]
        named = dict(zip(parts, a[3:]))
        y, z = function(a, named.pop('weight'), named.pop('shift'), **named)
        y.backward(grad_y.to(dtype))
        return [y.detach(), *(t.grad for t in a)], z

    def definition(a, weight, shift, residual=None):
        z = a[0] * weight.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        y = ccd_reference(z, *a[1:3], groups, **options)
        return y if residual is None else torch.relu(y + residual), z

    def in_steps(a, weight, shift, residual=None):
        z = backends.affine(a[0], weight, shift)
        z.retain_grad()
        return ccd(z, *a[1:3], groups, impl=impl, residual=residual, **options), z

    def at_once(a, weight, shift, residual=None):
        arguments = dict(residual=residual, weight=weight, shift=shift)
        return ccd(*a[:3], groups, impl=impl, **arguments, **options), None

    for got, expected in zip(run(torch.float64, at_once)[0], run(torch.float64, definition)[0]):
        assert (got - expected).abs().max() <= 1e-9 * (1 + expected.abs().max())
    for dtype in (torch.float32, torch.float64):
        *got, grad_weight, grad_shift = run(dtype, at_once)[0]
        (*expected, _, _), z = run(dtype, in_steps)
        assert all(map(same, got, expected))
        # Sums in float64, rounded once.
        for sum_, terms in ((grad_weight, z.grad.double() * x), (grad_shift, z.grad.double())):
            error = (sum_ - terms.sum((0, 2, 3))).abs()
            rounding = torch.finfo(dtype).eps * sum_.abs() + 1e-13 * terms.abs().sum((0, 2, 3))
            assert (error <= rounding).all()


@pytest.mark.parametrize(('shape', 'groups'), SHAPES, ids=str)
@pytest.mark.parametrize('impl', IMPLS)
def test_affine(impl, shape, groups):
    """To the last bit what PyTorch's batch norm and the operator behind it give; y over x changes nothing."""
    for dtype, parts in itertools.product((torch.float32, torch.float64), PARTS[2:]):
        x, scale, bias, _ = make(shape, groups, dtype, impl=impl)
        more = optional(x, parts)
        norm, more['weight'], more['shift'] = norm_of(more, x)
        y = ccd(x, scale, bias, groups, impl=impl, **more)
        with torch.no_grad():
            in_steps = ccd(norm(x), scale, bias, groups, impl=impl, residual=more.get('residual'))
            if x.device.type == 'cpu':
                assert torch.equal(y, in_steps)
            assert torch.allclose(y, in_steps, rtol=1e-5, atol=1e-5)
            residual = more.pop('residual', None)
            inputs = Inputs(x.clone(), residual, scale, bias, **more)
            over = load(impl).forward(inputs, make_options(groups), False, overwrite=True)[0]
        assert torch.equal(over, y)


@pytest.mark.parametrize('impl', IMPLS)
def test_affine_in_other_layouts_and_dtypes(impl):
    tensors = make((2, 8, 6, 8), 4, impl=impl)
    for change in (
        lambda t: t.to(memory_format=torch.channels_last),
        lambda t: t.repeat(1, 1, 1, 2)[..., ::2],
        torch.Tensor.half,
        torch.Tensor.bfloat16,
    ):
        x, scale, bias, grad_y = (change(t) if t.dim() == 4 else t for t in tensors)
        for parts in PARTS[2:]:
            # Far from the ReLU's corner, where a rounding would decide about gradients.
            more = {k: v if k != 'residual' else change(v + 20) for k, v in optional(tensors[0], parts).items()}
            results = []
            for dtype in (x.dtype, torch.float64):
                a = [t.detach().to(dtype if t.dim() == 4 else t.dtype).requires_grad_() for t in (x, scale, bias)]
                b = {k: t.detach().to(dtype if t.dim() == 4 else t.dtype).requires_grad_() for k, t in more.items()}
                y = ccd(*a, 4, impl=impl, **b)
                y.backward(grad_y.to(dtype))
                assert y.dtype == dtype and y.stride() == torch.empty_like(a[0]).stride()
                assert all(t.grad.dtype == t.dtype for t in (*a, *b.values()))
                results.append([y.detach(), *(t.grad for t in (*a, *b.values()))])
            tolerance = 30 * torch.finfo(x.dtype).eps
            for got, expected in zip(*results):
                assert (got - expected).abs().max() <= tolerance * expected.abs().max()
    # Weight and shift of another dtype than x, and not contiguous; gradients of their own dtype.
    x, scale, bias, grad_y = tensors
    weight, shift = torch.randn(2, 8, 2, dtype=torch.float64, device=x.device)[..., 0].requires_grad_()
    y = ccd(x, scale, bias, 4, impl=impl, weight=weight, shift=shift)
    grads = torch.autograd.grad(y, (weight, shift), grad_y)
    assert all(g.dtype == torch.float64 for g in grads)
    single = [t.detach().float().requires_grad_() for t in (weight, shift)]
    other = ccd(x, scale, bias, 4, impl=impl, weight=single[0], shift=single[1])
    assert same(y, other)
    for g, e in zip(grads, torch.autograd.grad(other, single, grad_y)):
        assert same(g.float(), e)


@pytest.mark.parametrize('impl', IMPLS)
def test_only_asked_for_gradients_of_the_affine(impl):
    x, scale, bias, grad_y = make((2, 8, 9, 6), 4, impl=impl)
    tensors = [x, scale, bias, *optional(x, PARTS[3]).values()]
    everything = [t.clone().requires_grad_() for t in tensors]

    def run(a):
        return ccd(*a[:3], 4, impl=impl, residual=a[3], weight=a[4], shift=a[5])

    run(everything).backward(grad_y)
    for wanted in range(6):
        a = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        run(a).backward(grad_y)
        assert torch.equal(a[wanted].grad, everything[wanted].grad)


@pytest.mark.parametrize('shape', [(0, 4, 5, 5), (2, 0, 5, 5)])
@pytest.mark.parametrize('impl', IMPLS)
def test_affine_of_nothing(impl, shape):
    x = torch.empty(shape, device=device_of(impl)[0])
    scale, bias, weight, shift = (torch.ones(n, device=x.device) for n in (2, 2, shape[1], shape[1]))
    a = [t.requires_grad_() for t in (x, scale, bias, weight, shift)]
    y = ccd(*a[:3], 2, impl=impl, weight=weight, shift=shift)
    y.sum().backward()
    assert y.shape == shape
    assert all(torch.equal(t.grad, torch.zeros_like(t)) for t in a)


def test_add_relu_is_another_name():
    x, scale, bias, _ = make((2, 8, 6, 8), 4)
    residual = torch.randn_like(x)
    for more in ({}, dict(impl='torch', similarity='cosine')):
        expected = ccd(x, scale, bias, 4, (1, 3), residual=residual, **more)
        assert torch.equal(ccd_add_relu(x, residual, scale, bias, 4, (1, 3), **more), expected)


@pytest.mark.parametrize(('shape', 'groups'), [((2, 64, 7, 7), 2), ((2, 12, 14, 9), 4), ((1, 8, 25, 42), 2)], ids=str)
@pytest.mark.parametrize('impl', IMPLS)
def test_memory_layouts(impl, shape, groups):
    x, scale, bias, grad_y = make(shape, groups, impl=impl)
    n, c, h, w = shape
    layouts = dict(
        channels_last=lambda t: t.to(memory_format=torch.channels_last),
        transposed=lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        every_second=lambda t: t.new_zeros(n, 2 * c, 2 * h, 2 * w)[:, ::2, ::2, ::2].copy_(t),
        some_channels=lambda t: t.new_zeros(n, c + 3, h, w)[:, 1 : c + 1].copy_(t),
        tail=lambda t: t.new_zeros(n * c * h * w + 5)[5:].view(n, c, h, w).copy_(t),  # not aligned to a vector
    )
    expected = evaluate(lambda *a: ccd(*a, groups, impl=impl), (x, scale, bias, grad_y), torch.float64)
    for in_layout, grad_layout in itertools.product([*layouts.values(), lambda t: t], repeat=2):
        a = [in_layout(x).detach().requires_grad_(), scale.clone().requires_grad_(), bias.clone().requires_grad_()]
        y = ccd(*a, groups, impl=impl)
        y.backward(grad_layout(grad_y))
        assert y.stride() == torch.empty_like(in_layout(x)).stride()
        for got, e in zip((y, *(t.grad for t in a)), expected):
            assert torch.allclose(got.double(), e, rtol=1e-4, atol=2e-5 * e.abs().max().item())


@pytest.mark.parametrize('impl', IMPLS)
def test_expanded_gradient(impl):
    x, scale, bias, _ = make((2, 8, 9, 6), 4, impl=impl)
    results = []
    for f in (ccd_reference, lambda *a: ccd(*a, impl=impl)):
        a = [t.double().requires_grad_() for t in (x, scale, bias)]
        f(*a, 4).sum().backward()  # strides 0
        results.append([t.grad for t in a])
    assert all(torch.allclose(g, e, rtol=1e-10) for g, e in zip(*results))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('impl', IMPLS)
def test_half_precision(impl, layout, dtype):
    x, scale, bias, grad_y = make((2, 16, 13, 21), 4, dtype, impl=impl)
    check(impl, (x.to(memory_format=layout), scale, bias, grad_y), 4, dtype)
    a = [x.clone().requires_grad_(), scale.float().requires_grad_(), bias.float().requires_grad_()]
    y = ccd(*a, 4, impl=impl)
    y.backward(grad_y)
    assert y.dtype == a[0].grad.dtype == dtype
    assert a[1].grad.dtype == a[2].grad.dtype == torch.float32


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(similarity='cosine'),
        dict(normalize='minmax'),
        dict(scales=(3, 5)),
        dict(normalize=None),
        dict(gain=1.3),
    ],
    ids=str,
)
@pytest.mark.parametrize('shape', [(2, 4, 5, 7), (1, 2, 2, 18), (1, 2, 1, 3)])
@pytest.mark.parametrize('impl', IMPLS)
def test_gradcheck(impl, shape, options):
    for parts in ((), PARTS[2]):
        x, scale, bias = (t.double() for t in make(shape, 2, impl=impl)[:3])
        arguments = [t.requires_grad_() for t in (x, scale, bias, *optional(x, parts).values())]
        # In fast mode along a random direction, not for each number.
        assert torch.autograd.gradcheck(at_once(parts, 2, impl=impl, **options), arguments, fast_mode=INTERPRETED)


LARGEST = 9 if INTERPRETED else 40


@settings(max_examples=12 if INTERPRETED else 40, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, LARGEST), st.integers(1, LARGEST)),
    groups=st.integers(1, 3),
    scales=st.lists(st.integers(1, 4 if INTERPRETED else 9), min_size=1, max_size=4),
    options=st.sampled_from(OPTIONS),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    gain=st.sampled_from([1.0, 1.3679]),
    parts=st.sampled_from(PARTS),
)
@pytest.mark.parametrize('impl', IMPLS)
def test_fuzz(impl, shape, groups, scales, options, layout, gain, parts):
    n, per_group, h, w = shape
    tensors = make((n, per_group * groups, h, w), groups, impl=impl)
    tensors[0] = tensors[0].to(memory_format=layout)
    if is_refused(impl, tensors[0], groups, scales, gain=gain, **options):
        return
    arguments = (*tensors[:3], *optional(tensors[0].double(), parts).values(), tensors[3])
    expected = evaluate(in_steps(parts, groups, scales, gain=gain, **options), arguments, torch.float64)
    got = evaluate(at_once(parts, groups, scales, gain=gain, impl=impl, **options), arguments, torch.float64)
    for g, e in zip(got, expected):
        assert (g - e).abs().max() <= 1e-8 * (1 + e.abs().max())


@pytest.mark.parametrize('normalize', ['zscore', 'minmax'])
@pytest.mark.parametrize('similarity', ['dot', 'cosine'])
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (7, 7), (25, 42), (100, 167)])
@pytest.mark.parametrize('impl', IMPLS)
def test_flat_map(impl, size, similarity, normalize):
    # Rounding in the poolings makes the similarity of a constant map almost, not quite, constant.
    device = device_of(impl)[0]
    for factor in (0.0, 1e-3, 1.0, 3.7e3):
        x = (torch.randn(2, 16, 1, 1, device=device) * factor).expand(2, 16, *size).contiguous().requires_grad_()
        scale, bias = (torch.full((4,), v, device=device, requires_grad=True) for v in (5.0, 0.3))
        y = ccd(x, scale, bias, 4, similarity=similarity, normalize=normalize, impl=impl)
        gate = 1 / (1 + math.exp(-0.3))
        assert torch.allclose(y, x * gate, rtol=1e-6, atol=0)
        y.sum().backward()
        assert torch.allclose(x.grad, torch.full_like(x, gate), rtol=1e-5)
        assert torch.equal(scale.grad, torch.zeros_like(scale))
        assert torch.allclose(
            bias.grad, (x.detach().sum((0, 2, 3)).view(4, 4).sum(1) * gate * (1 - gate)), rtol=1e-3, atol=1e-3 * factor
        )


@pytest.mark.parametrize('shape', [(0, 4, 5, 5), (1, 4, 7, 7), (1, 4, 20, 30)])
@pytest.mark.parametrize('impl', IMPLS)
def test_empty_batch_and_zeros(impl, shape):
    x, scale, bias = (
        f(s, device=device_of(impl)[0]) for f, s in ((torch.zeros, shape), (torch.ones, 2), (torch.ones, 2))
    )
    x.requires_grad_(), scale.requires_grad_()
    y = ccd(x, scale, bias, 2, impl=impl)
    assert y.shape == shape
    y.sum().backward()
    assert torch.allclose(x.grad, torch.full_like(x, 1 / (1 + math.exp(-1))))
    assert torch.equal(scale.grad, torch.zeros_like(scale))


@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('normalize', ['zscore', 'minmax', None])
@pytest.mark.parametrize('shape', [(1, 4, 7, 7), (1, 4, 20, 30)])
@pytest.mark.parametrize('impl', IMPLS)
def test_what_is_not_finite_stays_so(impl, shape, normalize, value):
    # In the map's group alone, so that a loss scaler or a detector of anomalies sees it.
    x, scale, bias, _ = make(shape, 2, impl=impl)
    x[0, 0, 3, 3] = value
    y = ccd(x, scale, bias, 2, normalize=normalize, impl=impl)
    assert y[:, 2:].isfinite().all()
    assert not y[:, :2].isfinite().all()
    if normalize and math.isnan(value):
        assert y[:, :2].isnan().all()


@pytest.mark.parametrize('impl', IMPLS)
def test_large_logits(impl):
    # Beyond exp(88) = Inf. A factor of 200 lifts the last digit of the similarity to the gate's fifth.
    x, scale, bias, grad_y = make((1, 4, 9, 9), 2, impl=impl)
    tensors = (x, scale * 200, bias, grad_y)
    expected = evaluate(lambda *a: ccd_reference(*a, 2), tensors, torch.float64)
    got = evaluate(lambda *a: ccd(*a, 2, impl=impl), tensors, torch.float32)
    assert max(errors(got, expected)) < 1e-4


@pytest.mark.parametrize('impl', IMPLS)
def test_only_asked_for_gradients(impl):
    x, scale, bias, grad_y = make((2, 8, 9, 6), 4, impl=impl)
    everything = [t.clone().requires_grad_() for t in (x, scale, bias)]
    ccd(*everything, 4, impl=impl).backward(grad_y)
    for needed in itertools.product((False, True), repeat=3):
        a = [t.clone().requires_grad_(n) for t, n in zip((x, scale, bias), needed)]
        y = ccd(*a, 4, impl=impl)
        assert y.requires_grad == any(needed)
        if any(needed):
            y.backward(grad_y)
        for t, full, n in zip(a, everything, needed):
            assert torch.allclose(t.grad, full.grad, rtol=1e-5) if n else t.grad is None


@pytest.mark.parametrize(
    ('shape', 'groups'), [((8, 256, 28, 28), 64), ((2, 1024, 14, 14), 64), ((2, 2048, 7, 7), 64)], ids=str
)
@pytest.mark.parametrize('impl', IMPLS)
def test_memory_kept_for_backward(impl, shape, groups):
    x, scale, bias, _ = make(shape, groups, impl=impl)
    x.requires_grad_()
    kept = {}

    def pack(t):
        kept[t.data_ptr()] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = ccd(x, scale.requires_grad_(), bias.requires_grad_(), groups, impl=impl)
    assert kept.pop(x.data_ptr()) == x.numel() * 4
    assert y.data_ptr() not in kept
    assert sum(kept.values()) <= 0.6 * x.numel() * 4
    kept.clear()
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ccd(x, scale, bias, groups, impl=impl)
    assert not kept


@pytest.mark.parametrize(
    'parts',
    [pytest.param(p, marks=pytest.mark.long if i in (1, 2) else (), id=PART_IDS[i]) for i, p in enumerate(PARTS)],
)
@pytest.mark.parametrize('impl', [pytest.param('auto', marks=pytest.mark.long), *IMPLS])
def test_opcheck(impl, parts):
    shape, groups = size((2, 8, 9, 7), 4)
    options = (groups, [1, 2, 4], 'dot', 'zscore', 1e-7, 1.0, impl)
    dtypes = (torch.float32,) if parts or INTERPRETED else (torch.float32, torch.float64)
    layouts = (torch.channels_last,) if INTERPRETED else (torch.contiguous_format, torch.channels_last)
    for dtype, layout in itertools.product(dtypes, layouts):
        x, scale, bias, grad_y = make(shape, groups, dtype, impl=impl)
        x = x.to(memory_format=layout)
        more = optional(x, parts)
        detached = x, more.get('residual'), scale, bias, more.get('weight'), more.get('shift')
        wanted = [None if t is None else t.clone().requires_grad_() for t in detached]
        opcheck(torch.ops.mmccd.ccd_forward, (*wanted, *options, True))
        opcheck(torch.ops.mmccd.ccd_forward, (*detached, *options, False))
        y, *saved = torch.ops.mmccd.ccd_forward(*detached, *options, True)
        inputs = (grad_y, y if 'residual' in more else None, x, scale, bias, *detached[4:], *saved, *options)
        opcheck(torch.ops.mmccd.ccd_backward, (*inputs, True))
    opcheck(torch.ops.mmccd.ccd_backward, (*inputs, False))


@pytest.mark.parametrize('parts', PARTS, ids=PART_IDS)
@pytest.mark.parametrize('impl', IMPLS)
def test_operator_gives_what_a_direct_call_gives(impl, parts):
    # A dispatch mode is one that listens; plain tensors go without torch.library.
    shape, groups = size((2, 8, 9, 7), 4)
    tensors = make(shape, groups, impl=impl)
    more = optional(tensors[0], parts)

    class Listener(torch.utils._python_dispatch.TorchDispatchMode):
        heard = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.heard.append(func.name())
            return func(*args, **kwargs or {})

    results = []
    for mode in (None, Listener()):
        a = [t.clone().requires_grad_() for t in (*tensors[:3], *more.values())]
        with mode or torch.enable_grad():
            y = ccd(*a[:3], groups, impl=impl, **dict(zip(more, a[3:])))
            y.backward(tensors[3])
        results.append([y.detach(), *(t.grad for t in a)])
    assert all(map(torch.equal, *results))
    assert {'mmccd::ccd_forward', 'mmccd::ccd_backward'} <= set(Listener.heard)


@pytest.mark.long
@pytest.mark.parametrize('parts', PARTS, ids=PART_IDS)
@pytest.mark.parametrize('impl', IMPLS)
def test_compile_and_export(impl, parts):
    """torch.compile and torch.export keep the operator whole, and give what it gives, all gradients too."""
    torch._dynamo.reset()
    shape, groups = size((2, 8, 9, 7), 4)
    x, scale, bias, grad_y = make(shape, groups, impl=impl)
    arguments = x, scale, bias, *optional(x, parts).values()
    operator = at_once(parts, groups, impl=impl)

    class Layer(torch.nn.Module):
        def forward(self, *a):
            return operator(*a)

    compiled = torch.compile(Layer(), fullgraph=True, backend='aot_eager')
    expected, got = (evaluate(f, (*arguments, grad_y), torch.float32) for f in (operator, compiled))
    for g, e in zip(got, expected):
        assert torch.allclose(g, e, rtol=1e-5, atol=1e-5 * e.abs().max().item())
    program = torch.export.export(Layer(), arguments)
    assert 'mmccd.ccd_forward' in str(program.graph)
    assert torch.allclose(program.module()(*arguments), operator(*arguments), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('parts', PARTS, ids=PART_IDS)
@pytest.mark.parametrize('impl', IMPLS)
def test_second_derivative_is_refused(impl, parts):
    x, scale, bias, _ = make((1, 4, 5, 5), 2, impl=impl)
    x.requires_grad_()
    y = ccd(x, scale, bias, 2, impl=impl, **optional(x, parts))
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r'mmccd\.ops\.ccd_reference'):
        grad.sum().backward()


@pytest.mark.parametrize('parts', PARTS, ids=PART_IDS)
@pytest.mark.parametrize('impl', IMPLS)
def test_functorch(impl, parts):
    """Gradients by torch.func are refused, not wrong; vmap gives what a loop gives."""
    shape, groups = size((2, 8, 5, 6), 4)
    x, scale, bias, _ = make(shape, groups, impl=impl)
    more = optional(x[:1], parts)

    def one(t):
        return ccd(t, scale, bias, groups, impl=impl, **more)

    with pytest.raises(RuntimeError):
        torch.func.grad(lambda t: one(t[:1]).sum())(x)
    batched = torch.vmap(one)(x[:, None])
    assert torch.equal(batched, torch.stack([one(t[None]) for t in x]))


def test_impl_that_is_not_there():
    x, scale, bias, _ = make((1, 4, 5, 5), 2)
    for residual in (None, x):
        with pytest.raises(ValueError, match='impl') as e:
            ccd(x, scale, bias, 2, impl='fast', residual=residual)
        assert all(repr(name) in str(e.value) for name in ('fast', 'auto', *BACKENDS))


@pytest.mark.parametrize('impl', list(BACKENDS))
def test_named_backend_that_cannot_run_says_why(impl, monkeypatch):
    monkeypatch.setattr(load(impl), 'unavailable', lambda *_: 'the moon is full')
    x, scale, bias, _ = make((1, 4, 5, 5), 2)
    for residual in (None, x):
        with pytest.raises(ValueError, match=rf'impl={impl!r}.*the moon is full'):
            ccd(x, scale, bias, 2, impl=impl, residual=residual)


@pytest.mark.parametrize('impl', ['cpu', 'triton'])
def test_backend_on_another_device(impl):
    pytest.importorskip('numba' if impl == 'cpu' else impl)
    meta = [t.to('meta') for t in make((1, 4, 5, 5), 2)[:3]]
    with pytest.raises(ValueError, match=f"impl='{impl}'.*meta"):
        ccd(*meta, 2, impl=impl)
    assert ccd(*meta, 2).shape == (1, 4, 5, 5)


def test_auto_falls_back_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(backends, '_reported', set())
    monkeypatch.setattr(load('cpu'), 'unavailable', lambda *_: 'the moon is full')
    x, scale, bias, grad_y = make((2, 8, 9, 6), 4)
    with caplog.at_level(logging.WARNING, 'mmccd'):
        results = [evaluate(lambda *a: ccd(*a, 4), (x, scale, bias, grad_y), torch.float32) for _ in range(3)]
    stock = evaluate(lambda *a: ccd(*a, 4, impl='torch'), (x, scale, bias, grad_y), torch.float32)
    assert all(map(torch.equal, results[0], stock))
    (record,) = caplog.records
    assert 'the moon is full' in record.getMessage() and "'cpu'" in record.getMessage()
    # Another device is nobody's fault.
    ccd(*(t.to('meta') for t in (x, scale, bias)), 4)
    assert len(caplog.records) == 1


def sample_backend():
    """A module with what the protocol wants: forward by the definition, the rest by stock operators."""
    module, stock = types.ModuleType('sample_backend'), load('torch')

    def unavailable(x, options):
        return 'it has no grid of 13' if 13 in options.scales else None

    def forward(inputs, options, keep, overwrite=False):
        x, residual, scale, bias, weight, shift = inputs
        x = backends.affine(x, weight, shift)
        y = torch.empty_like(x).copy_(ccd_reference(x, scale, bias, *options))
        saved = stock.forward(Inputs(x, None, scale, bias), options, keep)[1]
        return backends.add_relu_(y, residual), saved

    module.unavailable, module.forward, module.backward = unavailable, forward, stock.backward
    return module


def test_environment_names_what_auto_takes(monkeypatch):
    x, scale, bias, _ = make((1, 4, 5, 5), 2)
    called = []
    forward = load('torch').forward
    monkeypatch.setattr(load('torch'), 'forward', lambda *a: called.append(1) or forward(*a))
    monkeypatch.setenv('MMCCD_CCD_IMPL', 'torch')
    assert backends.automatic(x, make_options(2)) == 'torch'
    y = ccd(x, scale, bias, 2)
    assert called == [1]
    ccd(x, scale, bias, 2, impl='cpu')  # a named one stays
    assert called == [1]
    for nothing in ('', 'auto'):
        monkeypatch.setenv('MMCCD_CCD_IMPL', nothing)
        torch.testing.assert_close(ccd(x, scale, bias, 2), y)
    assert called == [1]


def test_environment_that_names_no_backend(monkeypatch):
    x, scale, bias, _ = make((1, 4, 5, 5), 2)
    monkeypatch.setenv('MMCCD_CCD_IMPL', 'numpy')
    for name in BACKENDS:
        monkeypatch.setattr(load(name), 'forward', None)  # not called
    for call in (lambda: ccd(x, scale, bias, 2), lambda: backends.automatic(x, make_options(2))):
        with pytest.raises(ValueError, match=r"MMCCD_CCD_IMPL.*'torch'.*'numpy'"):
            call()
    monkeypatch.setenv('MMCCD_CCD_IMPL', 'triton')
    monkeypatch.setattr(load('triton'), 'unavailable', lambda *_: 'the moon is full')
    with pytest.raises(ValueError, match=r"'triton'.*moon"):
        ccd(x, scale, bias, 2)


def test_new_backend_is_one_row_of_the_table(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sample_backend', sample_backend())
    monkeypatch.setitem(BACKENDS, 'sample', Row('sample_backend'))
    assert 'sample' in [p.values[0] for p in rows()]  # what every test here runs over
    test_against_the_definition('sample', (2, 6, 13, 11), 2, OPTIONS[0])
    test_memory_layouts('sample', (2, 12, 14, 9), 4)
    test_residual_in_other_layouts_and_dtypes('sample')
    test_affine('sample', (2, 6, 13, 11), 2)
    test_affine_in_other_layouts_and_dtypes('sample')
    for parts in PARTS:
        test_opcheck('sample', parts)
        test_operator_gives_what_a_direct_call_gives('sample', parts)
        test_second_derivative_is_refused('sample', parts)
        test_functorch('sample', parts)
    test_interface('sample')
    x, scale, bias, _ = make((1, 4, 5, 5), 2)
    with pytest.raises(ValueError, match=r"impl='sample'.*no grid of 13"):
        ccd(x, scale, bias, 2, (7, 11, 13), impl='sample')
    # Preferred on a device, it is what 'auto' takes there.
    monkeypatch.setitem(BACKENDS, 'cpu', Row('sample_backend', preferred_on=('cpu',)))
    assert torch.equal(ccd(x, scale, bias, 2), ccd(x, scale, bias, 2, impl='sample'))


def calls_of_mmccd(function):
    """For every call inside ``function``: the names of the functions of mmccd that are on the stack."""
    stacks, stack = [], []
    package = os.path.dirname(mmccd.__file__) + os.sep  # the checkout may be called mmccd, too

    def watch(frame, event, _):
        if frame.f_code.co_filename.startswith(package):
            if event == 'call':
                stack.append(frame.f_code.co_name)
                stacks.append(tuple(stack))
            elif event == 'return':
                stack.pop()

    sys.setprofile(watch)
    try:
        function()
    finally:
        sys.setprofile(None)
    return stacks


@pytest.mark.parametrize('with_residual', [False, True])
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('impl', IMPLS)
def test_at_most_five_calls_to_the_kernel(impl, train, with_residual, monkeypatch):
    """From the layer, which has the config's ``groups``, to where a backend hands over to its kernel."""
    device = device_of(impl)[0]
    monkeypatch.setitem(BACKENDS, impl, BACKENDS[impl]._replace(preferred_on=(device,)))
    for other in set(BACKENDS) - {impl}:
        monkeypatch.setitem(BACKENDS, other, BACKENDS[other]._replace(preferred_on=()))
    layer = CCD(8, groups=4).to(device)
    x = torch.randn(2, 8, 20, 20, device=device, requires_grad=train)
    residual = torch.randn_like(x) if with_residual else None
    with torch.set_grad_enabled(train):
        layer(x, residual)  # what is imported, compiled and tabled at the first call
        stacks = calls_of_mmccd(lambda: layer(x, residual))
    assert stacks[0] == ('forward',)  # the layer's
    to_backend = next(s for s in stacks if s[-1] == 'forward' and len(s) == 3 + train)
    assert len(to_backend) <= 4
    # Beyond that, the compiled loops have a function that starts threads.
    to_kernel = next(s for s in stacks if s[-1] == '_run') if impl == 'cpu' else to_backend
    assert len(to_kernel) <= 5, to_kernel


@pytest.mark.parametrize('impl', IMPLS)
def test_calls_from_several_threads(impl):
    # Different sizes at once, larger than what one thread does alone.
    cases = [make((2, 16, 40 + i, 50 + 3 * i), 4, impl=impl) for i in range(4)]
    expected = [evaluate(lambda *a: ccd(*a, 4, impl=impl), case, torch.float32) for case in cases]
    wrong = []

    def work(i):
        for _ in range(20):
            got = evaluate(lambda *a: ccd(*a, 4, impl=impl), cases[i], torch.float32)
            if not all(torch.equal(g, e) for g, e in zip(got, expected[i])):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.skipif(device_of('cpu')[0] is None, reason=str(device_of('cpu')[1]))
@pytest.mark.parametrize('openmp', [True, False])
def test_result_of_the_loops_does_not_depend_on_threads(openmp, monkeypatch):
    if not openmp:
        monkeypatch.setattr(load('cpu'), '_openmp', lambda: None)
    tensors = make((2, 64, 28, 28), 16)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(evaluate(lambda *a: ccd(*a, 16, impl='cpu'), tensors, torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.long  # compiles the loops
@pytest.mark.skipif(device_of('cpu')[0] is None, reason=str(device_of('cpu')[1]))
def test_cache_of_the_loops_that_cannot_be_written():
    # No folder that numba may write to.
    code = """
from numba.core import caching
caching.CacheImpl._locator_classes = []
import torch
from mmccd.ops import ccd
ccd(torch.randn(1, 4, 5, 5), torch.ones(2), torch.ones(2), 2, impl='cpu')
"""
    subprocess.run([sys.executable, '-c', code], check=True)


def test_without_numba():
    code = """
import sys
sys.modules['numba'] = None
import torch
from mmccd.ops import ccd, ccd_reference
x, scale, bias = torch.randn(2, 8, 9, 9, requires_grad=True), torch.randn(4), torch.randn(4)
y = ccd(x, scale, bias, 4)
y.sum().backward()
assert torch.allclose(y, ccd_reference(x, scale, bias, 4), atol=1e-5)
try:
    ccd(x, scale, bias, 4, impl='cpu')
except ValueError as e:
    assert "impl='cpu' cannot run here: numba is not installed" in str(e), e
else:
    raise SystemExit('no error')
"""
    subprocess.run([sys.executable, '-c', code], check=True)


def test_nothing_heavy_at_import():
    code = """
import sys
import mmccd.ops
assert not {m for m in sys.modules if m.split('.')[0] in ('numba', 'triton', 'llvmlite')}, sys.modules
"""
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('use_reentrant', [False, True])
def test_checkpointing(use_reentrant):
    x, scale, bias, grad_y = make((2, 8, 9, 6), 4)
    expected = evaluate(lambda *a: ccd(*a, 4), (x, scale, bias, grad_y), torch.float32)
    got = evaluate(
        lambda *a: torch.utils.checkpoint.checkpoint(lambda *b: ccd(*b, 4), *a, use_reentrant=use_reentrant),
        (x, scale, bias, grad_y),
        torch.float32,
    )
    assert all(torch.equal(g, e) for g, e in zip(got, expected))


def test_autocast():
    conv, layer = torch.nn.Conv2d(3, 8, 3), CCD(8, groups=4)
    torch.nn.init.normal_(layer.scale)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        features = conv(torch.randn(2, 3, 12, 12))
        y = layer(features)
        assert features.dtype == y.dtype == torch.bfloat16
        saved = torch.ops.mmccd.ccd_forward(
            features, None, layer.scale, layer.bias, None, None, 4, [1, 2, 4], 'dot', 'zscore', 1e-7, 1.0, 'auto', True
        )[1:]
        assert {t.dtype for t in saved} == {torch.float32}
    y.float().sum().backward()
    assert layer.scale.grad.dtype == conv.weight.grad.dtype == torch.float32


def test_fx_keeps_the_layer_whole():
    layer = CCD(8, groups=4)
    torch.nn.init.normal_(layer.scale)
    traced = torch.fx.symbolic_trace(layer)
    for size in ((7, 7), (9, 12)):
        x = torch.randn(1, 8, *size)
        assert torch.equal(traced(x), layer(x))


def test_jit_trace_is_made_of_stock_operators():
    layer = CCD(8, groups=4)
    torch.nn.init.normal_(layer.scale)
    x = torch.randn(1, 8, 8, 8)
    traced = torch.jit.trace(layer, x)
    assert 'mmccd::' not in str(traced.inlined_graph)
    assert torch.allclose(traced(x), layer(x), atol=1e-6)


@pytest.mark.parametrize('dynamic', [False, True])
def test_compile_layer(dynamic):
    torch._dynamo.reset()
    layer = CCD(8, groups=4)
    torch.nn.init.normal_(layer.scale)
    counter = torch._dynamo.testing.CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=counter)
    counts = []
    for size in ((9, 12), (20, 15), (33, 28), (13, 40), (64, 48), (25, 42)) if dynamic else ((7, 7), (7, 7)):
        x = torch.randn(2, 8, *size)
        results = []
        for f in (layer, compiled):
            a = x.clone().requires_grad_()
            y = f(a)
            y.square().sum().backward()
            results.append((y, a.grad))
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results))
        counts.append(counter.frame_count)
    assert 1 <= counts[0] <= 2
    assert counts == counts[:1] * len(counts)  # none for another size


@pytest.mark.parametrize('strict', [False, True])
def test_export_layer_of_any_size(strict):
    layer = CCD(8, groups=4).eval()
    torch.nn.init.normal_(layer.scale)
    n, h, w = torch.export.Dim('n', max=64), torch.export.Dim('h', max=4096), torch.export.Dim('w', max=4096)
    program = torch.export.export(
        layer, (torch.randn(2, 8, 9, 7),), dynamic_shapes=({0: n, 2: h, 3: w},), strict=strict
    )
    for shape in ((1, 8, 5, 6), (3, 8, 20, 31)):
        x = torch.randn(shape)
        assert torch.equal(program.module()(x), layer(x))


@pytest.mark.slow
def test_compile_and_export_backbone():
    torch._dynamo.reset()
    net = AttentionResNet(18, attention=dict(type='mmccd.CCD'), norm_eval=False)
    for layer in net.modules():
        if isinstance(layer, CCD):
            torch.nn.init.normal_(layer.scale)
    x = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(net, fullgraph=True, backend='aot_eager')
    sum(y.sum() for y in compiled(x)).backward()
    compiled_grad = net.conv1.weight.grad.clone()
    net.zero_grad()
    sum(y.sum() for y in net(x)).backward()
    assert torch.allclose(compiled_grad, net.conv1.weight.grad, rtol=1e-3, atol=1e-3 * compiled_grad.abs().max().item())
    net.eval()
    program = torch.export.export(net, (x,))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(program.module()(x), net(x)))


@pytest.mark.parametrize('impl', IMPLS)
def test_interface(impl):
    # What Backend promises to those who call one directly.
    backend = load(impl)
    x, scale, bias, grad_y = make((2, 8, 9, 6), 4, impl=impl)
    options, inputs = make_options(4, (1, 4)), Inputs(x, None, scale, bias)
    y, (context, d, stats) = backend.forward(inputs, options, True)
    assert (y.shape, context.shape, stats.shape) == ((2, 8, 9, 6), (2, 8, 4, 4), (2, 4, 2))
    expected = load('torch').forward(inputs, options, True)
    assert torch.allclose(context, expected[1][0], atol=1e-6)
    if d.numel() == 0:  # it computes it again
        d = expected[1][1]
    assert d.shape == (2, 4, 9, 6)
    assert torch.allclose(d, expected[1][1], atol=1e-5)
    assert torch.allclose(stats, torch.stack([d.mean((2, 3)), d.std((2, 3))], -1), atol=1e-5)
    y, saved = backend.forward(inputs, options, False)
    assert all(s.numel() == 0 for s in saved)
    for out in (None, torch.relu(y + 1)):
        arguments = (grad_y, out, inputs, (context, d, stats), options)
        grads, wanted = backend.backward(*arguments, False), load('torch').backward(*arguments, True)
        assert torch.allclose(grads[2], wanted[2], rtol=1e-4, atol=1e-5)
        assert torch.allclose(grads[3], wanted[3], rtol=1e-4, atol=1e-5)
        assert (grads[1] is None) == (out is None)
        assert out is None or torch.equal(grads[1], torch.where(out > 0, grad_y, 0))
