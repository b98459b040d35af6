"""The Triton kernels, on CUDA where there is one, and always in Triton's interpreter.

The interpreter has to be asked for before Triton's kernels are defined, so a process of its own runs this file again.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmccd.ops import ccd, ccd_reference, torch_backend
from mmccd.ops.backends import Inputs, affine
from mmccd.ops.options import Options
from mmccd.ops.triton_backend import launch, launches, plan

pytest.importorskip('triton', reason='Triton is not installed')

INTERPRETING = launches.interpreting()
DEVICE = 'cpu' if INTERPRETING else 'cuda'
runs = pytest.mark.skipif(
    not (INTERPRETING or torch.cuda.is_available()),
    reason='no CUDA device; test_in_the_interpreter runs these in a process of its own',
)
on_cuda = pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason='needs a CUDA device')

# Limits that make every image here go one way; small tiles and parts of cells, so that there are several.
WAYS = {
    'whole': dict(WHOLE_LIMIT=1 << 30),
    'split': dict(WHOLE_LIMIT=0, TILE_ELEMENTS=256, CELL_ELEMENTS=64, CELL_COLUMNS=4),
}
# Scales with few cells, each of which is a program: the interpreter is slow.
FEW = (1, 2)
LAYOUTS = {
    'contiguous': lambda x: x.contiguous(),
    'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
    # Every second channel and column of a larger tensor: no stride is one.
    'strided': lambda x: x.repeat_interleave(2, 1).repeat_interleave(2, 3)[:, ::2, :, ::2],
}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(plan, name, value)
    launches.forget()
    yield request.param
    launches.forget()


def arguments(shape, groups, dtype=torch.float32, layout='contiguous'):
    x, grad_y = (LAYOUTS[layout](torch.randn(shape).to(DEVICE, dtype)) for _ in range(2))
    assert x.shape == shape
    assert layout != 'strided' or math.prod(shape) == 1 or 1 not in x.stride(), 'to(device) makes it contiguous'
    scale, bias = (torch.randn(groups).to(dtype).to(DEVICE) for _ in range(2))
    return x, scale, bias, grad_y


def by_triton(x, scale, bias, grad_y, options):
    assert launch.unavailable(x, options) is None
    y, saved = launch.forward(Inputs(x, None, scale, bias), options, True)
    grad_x, _, grad_scale, grad_bias, *_ = launch.backward(
        grad_y, None, Inputs(x, None, scale, bias), saved, options, True
    )
    return y, grad_x, grad_scale, grad_bias


def by_reference(x, scale, bias, grad_y, options, dtype):
    inputs = [t.to(dtype).detach().requires_grad_() for t in (x, scale, bias)]
    y = ccd_reference(*inputs, *options)
    return y.detach(), *torch.autograd.grad(y, inputs, grad_y.to(dtype))


def check(x, scale, bias, grad_y, options):
    got = by_triton(x, scale, bias, grad_y, options)
    textbook = by_reference(x, scale, bias, grad_y, options, x.dtype)
    exact = by_reference(x, scale, bias, grad_y, options, torch.float64)
    for name, a, b, e in zip(('y', 'grad x', 'grad scale', 'grad bias'), got, textbook, exact):
        assert a.dtype == b.dtype and a.shape == b.shape
        # The textbook may be right to the last bit by luck, so two units of the last place are free: of the largest
        # result, and for the gradients of scale and bias, whose terms cancel, of their terms' root sum of squares.
        size = e.abs().max() if a.dim() > 1 else (grad_y.double() * x.double()).norm()
        allowed = 2 * (b.double() - e).abs().max() + 2 * torch.finfo(x.dtype).eps * size
        error = (a.double() - e).abs().max()
        assert error <= allowed, f'{name}: error {error:.2e}, allowed {allowed:.2e}, size {size:.2e}'


def same(a, b):
    """To the last bit; on a card, whose compiler makes one rounding of a product's and an addition's, nearly."""
    if INTERPRETING:
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=0, atol=64 * torch.finfo(a.dtype).eps * b.abs().max().item())


def in_the_interpreter(file, chosen):
    """Tests of a file in a process where Triton interprets, by pytest's -k, each of whose words has to be met."""
    env = {**os.environ, 'TRITON_INTERPRET': '1', 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    env['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [env.get('PYTHONPATH')])])
    command = [sys.executable, '-m', 'pytest', '-v', '-p', 'no:cacheprovider', '-p', 'interpreter', '-k', chosen]
    done = subprocess.run(
        [*command, str(file.resolve())], env=env, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert ' passed' in done.stdout
    words = set(re.findall(r'[\w-]+', chosen)) - {'and', 'or', 'not'}
    assert all(word in done.stdout for word in words), done.stdout[-4000:]


@pytest.mark.long  # two minutes
@pytest.mark.skipif(INTERPRETING, reason='this is that process')
def test_in_the_interpreter():
    in_the_interpreter(Path(__file__), 'test')


# Of the grid of all backends: tests by name, which take sizes for the interpreter themselves.
GRID = {
    # The bits of the fused parts one after the other, memory layouts, all gradients.
    'fused': 'in_other_layouts or asked_for_gradients_of_the_affine or interface or of_nothing',
    'affine': 'test_affine_against_the_definition and affine-residual and (13 or 14)',
    # Every two of all options, optional parts, dtypes and memory layouts; and what nobody thought of.
    'options': 'combinations or fuzz or (gradcheck and shape1)',
    # Inside PyTorch: torch.library, torch.compile, torch.export, and what is refused.
    'pytorch': 'opcheck or direct_call or compile_and_export or second_derivative or functorch',
}


@pytest.mark.long  # two minutes
@pytest.mark.skipif(INTERPRETING, reason='this is that process')
@pytest.mark.parametrize('tests', GRID)
def test_grid_of_all_backends_in_the_interpreter(tests):
    in_the_interpreter(Path(__file__).parents[1] / 'test_backends.py', f'triton and ({GRID[tests]})')


@runs
@pytest.mark.parametrize(
    ('shape', 'groups', 'options'),
    [
        ((2, 3, 1, 1), 1, {}),  # one pixel: flat
        ((1, 2, 1, 9), 2, {}),  # one row, in all four rows of bins; one channel a group
        ((1, 4, 9, 2), 1, dict(scales=(1, 4, 8))),  # fewer columns than cells
        ((1, 32, 7, 7), 1, {}),  # the last stage's: overlapping bins, 32 channels a group
        ((1, 3, 13, 21), 1, {}),  # primes; 3 channels a group leave one of four lanes idle
        ((1, 4, 13, 21), 1, dict(scales=(3, 5))),  # neither scale divides the other
        ((1, 4, 10, 7), 1, dict(scales=(2, 6))),  # not powers of two, but one divides the other
        ((1, 4, 6, 11), 2, dict(scales=(1,))),  # SGE
        ((1, 4, 8, 10), 2, dict(scales=(2, 2))),
        ((1, 8, 8, 12), 2, {}),  # the cells divide the image
        ((1, 2, 16, 8), 2, dict(scales=(1, 4, 8))),
        ((1, 4, 25, 42), 1, {}),  # 800 x 1344 at the last stage
        ((1, 3, 7, 9), 1, dict(similarity='cosine')),
        ((1, 3, 8, 4), 1, dict(similarity='cosine', normalize=None)),
        ((1, 3, 7, 9), 1, dict(normalize='minmax')),
        ((1, 3, 8, 4), 1, dict(normalize='minmax', similarity='cosine', gain=1.3, eps=0.1)),
        ((1, 3, 7, 9), 1, dict(normalize=None, gain=1.3)),
    ],
)
def test_within_twice_the_error_of_the_textbook(shape, groups, options, way):
    check(*arguments(shape, groups), Options(groups, **options))


@runs
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype, way):
    check(*arguments((1, 3, 7, 9), 1, dtype), Options(1))
    check(*arguments((1, 3, 8, 4), 1, dtype), Options(1, similarity='cosine'))


@runs
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(('shape', 'groups'), [((2, 4, 7, 5), 1), ((1, 16, 8, 16), 2), ((1, 3, 5, 1), 1)])
def test_layouts(shape, groups, layout, way):
    options = Options(groups)
    x, scale, bias, grad_y = arguments(shape, groups, torch.float16, layout)
    check(x, scale, bias, grad_y, options)
    y, grad_x, *_ = by_triton(x, scale, bias, grad_y, options)
    assert y.stride() == grad_x.stride() == torch.empty_like(x).stride()


@runs
def test_gradient_in_a_layout_of_its_own(way):
    for layout in LAYOUTS:
        x, scale, bias, grad_y = arguments((1, 4, 7, 5), 1, torch.float16, layout)
        check(x, scale, bias, grad_y.contiguous(), Options(1))
        # As from sum(): no memory behind every element.
        check(x, scale, bias, grad_y[:, :, :1, :1].expand(x.shape), Options(1))


@runs
def test_a_map_too_large_for_one_tile():
    options = Options(1)
    inputs = arguments((1, 2, 100, 168), 1)
    assert launch.kind(inputs[0], options) == 'split'
    check(*inputs, options)


@runs
@pytest.mark.parametrize('normalize', ['zscore', 'minmax'])
def test_flat_maps_take_no_gradient_through_the_similarity(normalize, way):
    for similarity, size in (('dot', (7, 7)), ('cosine', (8, 8))):
        x = torch.randn(1, 3, 1, 1).expand(1, 3, *size).contiguous().to(DEVICE)
        scale, bias = torch.full((1,), 5.0, device=DEVICE), torch.full((1,), 0.3, device=DEVICE)
        y, grad_x, grad_scale, grad_bias = by_triton(
            x, scale, bias, torch.ones_like(x), Options(1, similarity=similarity, normalize=normalize)
        )
        gate = torch.tensor(0.3).sigmoid().to(DEVICE)
        assert torch.allclose(y, x * gate, rtol=1e-6, atol=0)
        assert torch.allclose(grad_x, gate.expand_as(x), rtol=1e-6)
        assert torch.equal(grad_scale, torch.zeros_like(scale))
        assert torch.allclose(grad_bias, (gate * (1 - gate) * x).sum(), rtol=1e-4)


@runs
def test_ties_share_the_gradient(way):
    # Columns repeat, so that every extreme is met at several pixels, in different tiles where there are several.
    x, scale, bias, grad_y = arguments((1, 2, 8, 24), 1)
    x = x[..., :3].repeat(1, 1, 1, 8)
    check(x, scale, bias, grad_y, Options(1, scales=(1,), normalize='minmax'))


@runs
@pytest.mark.parametrize('normalize', ['zscore', 'minmax'])
def test_far_from_zero(normalize, way):
    # Mean 30 deviations away from zero: E[d^2] - E[d]^2 would have few digits left.
    x, scale, bias, grad_y = arguments((1, 3, 13, 9), 1)
    check(x + 30, scale, bias, grad_y, Options(1, normalize=normalize))


@runs
def test_results_repeat_to_the_bit(way):
    inputs = arguments((1, 4, 13, 21), 1)
    first, second = (by_triton(*inputs, Options(1)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@runs
def test_nothing_is_kept_where_nothing_is_asked(way):
    x, scale, bias, _ = arguments((1, 4, 7, 6), 2)
    options = Options(2, normalize='minmax')
    kept, left = (launch.forward(Inputs(x, None, scale, bias), options, keep) for keep in (True, False))
    assert same(kept[0], left[0])
    assert [t.numel() for t in left[1]] == [0, 0, 0]
    expected = torch_backend.forward(Inputs(x, None, scale, bias), options, True)[1]
    for a, b in zip(kept[1], expected):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('channels', 'scales', 'fits'), [(32, (1, 4, 8), True), (4, (3, 5), True), (8, (3, 5), False)])
def test_scales_that_no_card_has_the_memory_for_are_refused(channels, scales, fits):
    reason = plan.too_fine(channels, Options(1, scales))
    if fits:
        assert reason is None
    else:
        assert str(scales) in reason and str(plan.MIX_LIMIT) in reason


@pytest.mark.skipif(INTERPRETING, reason='the interpreter compiles nothing')
def test_without_a_c_compiler(monkeypatch):
    x = SimpleNamespace(
        dtype=torch.float32, device=torch.device('cuda'), shape=(1, 4, 7, 7), stride=lambda: (196, 49, 7, 1)
    )
    assert launch.unavailable(x, Options(1)) is None
    monkeypatch.setattr(launch, '_has_compiler', lambda: False)
    assert 'C compiler' in launch.unavailable(x, Options(1))


@runs
def test_scales_with_too_many_common_cells_are_refused():
    # By name: nothing runs stock operators under the name of these kernels.
    x, scale, bias, _ = arguments((1, 2, 9, 9), 1)
    with pytest.raises(ValueError, match=r"impl='triton'.*scales=\(7, 11, 13\).* 1001 cells"):
        ccd(x, scale, bias, 1, scales=(7, 11, 13), impl='triton')
    assert launch.unavailable(x, Options(1, scales=(7, 11))) is not None
    # What is refused depends on the channels of a group, too.
    assert launch.unavailable(x, Options(1, scales=(4, 8))) is None
    wide = torch.empty(1, 2048, 1, 1, device=DEVICE)
    assert 'scales=(4, 8)' in launch.unavailable(wide, Options(1, scales=(4, 8)))


@runs
@pytest.mark.parametrize('layout', ['of y', 'another'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=str)
def test_residual(dtype, layout, way):
    """In the same pass where its strides are those of y, and :func:`same` as an addition and a ReLU behind."""
    x, scale, bias, grad_y = arguments((1, 4, 7, 6), 2, dtype)
    for other in (dtype, torch.float64):
        residual = torch.randn(x.shape, device=DEVICE).to(other)
        if layout == 'another':
            residual = residual.to(memory_format=torch.channels_last)
        y, saved = launch.forward(Inputs(x, residual, scale, bias), Options(2, FEW), True)
        alone, _ = launch.forward(Inputs(x, None, scale, bias), Options(2, FEW), True)
        assert same(y, torch.relu(alone + residual).to(dtype))
    out = y if layout == 'of y' else y.contiguous(memory_format=torch.channels_last)
    got = launch.backward(grad_y, out, Inputs(x, None, scale, bias), saved, Options(2, FEW), True)
    through = torch.where(y > 0, grad_y, 0)
    expected = launch.backward(through, None, Inputs(x, None, scale, bias), saved, Options(2, FEW), True)
    assert got[1].stride() == out.stride()
    assert torch.equal(got[1], through) and expected[1] is None
    assert all(same(got[i], expected[i]) for i in (0, 2, 3))


@runs
def test_residual_that_is_not_a_number(way):
    x, scale, bias, grad_y = arguments((1, 4, 7, 6), 2)
    y, saved = launch.forward(Inputs(x, torch.full_like(x, math.nan), scale, bias), Options(2, FEW), True)
    assert y.isnan().all()
    assert torch.equal(
        launch.backward(grad_y, y, Inputs(x, None, scale, bias), saved, Options(2, FEW), True)[1], grad_y
    )


@pytest.mark.skipif(not INTERPRETING, reason='a card need not round as the CPU')
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_affine_to_the_bit(dtype, layout, way):
    """What the affine and then the kernels alone give; gradients of weight and shift are sums in float64."""
    x, scale, bias, grad_y = arguments((1, 3, 7, 5), 1, dtype, layout)
    weight, shift = torch.randn(2, 3, dtype=dtype).unbind()
    y, saved = launch.forward(Inputs(x, None, scale, bias, weight, shift), Options(1, FEW), True)
    z = affine(x, weight, shift)
    alone, kept = launch.forward(Inputs(z, None, scale, bias), Options(1, FEW), True)
    assert torch.equal(y, alone) and all(map(torch.equal, saved, kept))
    got = launch.backward(grad_y, None, Inputs(x, None, scale, bias, weight, shift), saved, Options(1, FEW), True)
    grad_z, _, *wanted = launch.backward(grad_y, None, Inputs(z, None, scale, bias), kept, Options(1, FEW), True)
    assert torch.equal(got[0], grad_z * weight.view(1, -1, 1, 1))
    assert torch.equal(got[2], wanted[0]) and torch.equal(got[3], wanted[1])
    for sums, terms in ((got[4], grad_z.double() * x), (got[5], grad_z.double())):
        error = (sums - terms.sum((0, 2, 3))).abs()
        assert (error <= torch.finfo(dtype).eps * sums.abs() + 1e-13 * terms.abs().sum((0, 2, 3))).all()


@runs
@pytest.mark.parametrize('size', [(7, 7), (8, 8), (5, 9)])
def test_affine_in_half_precision(size, way):
    """All six gradients, where sums are in float32: the grid of every backend has the wider dtypes."""
    x, scale, bias, grad_y = arguments((2, 6, *size), 2, torch.float16, 'channels_last')
    weight, shift = torch.rand(6, device=DEVICE) + 0.5, torch.randn(6, device=DEVICE)
    residual = torch.randn_like(x) + 20  # far from the ReLU's corner
    y, saved = launch.forward(Inputs(x, residual, scale, bias, weight, shift), Options(2, FEW), True)
    got = launch.backward(grad_y, y, Inputs(x, None, scale, bias, weight, shift), saved, Options(2, FEW), True)
    a = [t.detach().double().requires_grad_() for t in (x, residual, scale, bias, weight, shift)]
    z = a[0] * a[4].view(1, -1, 1, 1) + a[5].view(1, -1, 1, 1)
    expected = torch.relu(ccd_reference(z, *a[2:4], 2, FEW) + a[1])
    for g, t, e in zip(
        (y, *got), (x, residual, residual, *a[2:]), (expected, *torch.autograd.grad(expected, a, grad_y))
    ):
        assert g.shape == t.shape or t is residual
        assert (g.double() - e).abs().max() <= 30 * torch.finfo(x.dtype).eps * e.abs().max()
    assert got[4].dtype == got[5].dtype == torch.float32


@runs
def test_what_is_kept():
    """The similarity is kept where backward must meet its extremes, and nowhere else."""
    x, scale, bias, _ = arguments((1, 4, 7, 6), 2)
    for normalize, elements in (('zscore', 0), ('minmax', 2 * 7 * 6), (None, 0)):
        _, (context, d, stats) = launch.forward(Inputs(x, None, scale, bias), Options(2, normalize=normalize), True)
        assert (context.numel(), d.numel(), stats.numel()) == (4 * 16, elements, 4)


@runs
def test_empty_batch():
    x, scale, bias, grad_y = arguments((0, 4, 5, 5), 2)
    y, grad_x, grad_scale, grad_bias = by_triton(x, scale, bias, grad_y, Options(2))
    assert y.shape == grad_x.shape == x.shape
    assert torch.equal(grad_scale, torch.zeros_like(scale)) and torch.equal(grad_bias, torch.zeros_like(bias))


@runs
def test_through_the_operator():
    x, scale, bias, grad_y = (t.requires_grad_() for t in arguments((1, 4, 7, 6), 2))
    y = ccd(x, scale, bias, 2, impl='triton')
    y.backward(grad_y)
    expected = by_reference(x, scale, bias, grad_y, Options(2), torch.float64)
    for got, value in zip((y, x.grad, scale.grad, bias.grad), expected):
        assert torch.allclose(got.double(), value, rtol=1e-4, atol=1e-5)


@runs
def test_unavailable():
    def reason(x):
        return launch.unavailable(x, Options(1))

    assert 'got torch.int64' in reason(torch.ones(1, 1, 1, 1, dtype=torch.int64))
    assert 'meta' in reason(torch.ones(1, 1, 1, 1, device='meta'))
    # Of a tensor that fits in no memory here.
    far = SimpleNamespace(
        dtype=torch.float32, device=torch.device(DEVICE), shape=(1, 3, 1, 1), stride=lambda: (0, 2**30, 1, 1)
    )
    assert '32 bits' in reason(far)


def test_unavailable_without_a_device():
    x = torch.ones(1, 1, 1, 1)
    if INTERPRETING:
        assert launch.unavailable(x, Options(1)) is None
    else:
        assert 'need a CUDA tensor' in launch.unavailable(x, Options(1))


@pytest.mark.long
def test_without_triton():
    # sys.modules with None in it is how Python is told that a module is not there.
    code = """
import sys
sys.modules['triton'] = None
import torch
import mmccd.models
from mmccd.ops import ccd
from mmccd.ops.options import Options
from mmccd.ops.triton_backend import launch
x = torch.ones(1, 2, 4, 4)
assert launch.unavailable(x, Options(1)) == 'Triton is not installed'
try:
    ccd(x, torch.ones(1), torch.ones(1), 1, impl='triton')
except ValueError as e:
    assert "impl='triton'" in str(e) and 'Triton is not installed' in str(e), e
else:
    raise SystemExit('no error')
assert ccd(x, torch.ones(1), torch.ones(1), 1).shape == x.shape
"""
    subprocess.run([sys.executable, '-c', code], check=True)


def test_nothing_imports_triton_before_a_call():
    code = """
import sys
from mmccd.ops.triton_backend import launch, plan
assert not {m for m in sys.modules if m.split('.')[0] == 'triton'}
"""
    subprocess.run([sys.executable, '-c', code], check=True)
