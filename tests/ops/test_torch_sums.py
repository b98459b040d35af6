"""The stock operators as they run on a GPU: values here on the CPU, kernels counted on tensors that are CUDA's in name.

Fake tensors have CUDA's device and no data, so that operators are chosen as on a GPU, and none runs.
"""

from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmccd.ops import ccd_reference, torch_backend, torch_sums
from mmccd.ops.backends import Inputs
from mmccd.ops.options import Options

LAYERS = {  # of ResNet-50: (C, H, W) to how many there are
    '224': {(256, 56, 56): 3, (512, 28, 28): 4, (1024, 14, 14): 6, (2048, 7, 7): 3},
    '800x1344': {(256, 200, 336): 3, (512, 100, 168): 4, (1024, 50, 84): 6, (2048, 25, 42): 3},
}
SHAPES = [(2, 8, 1, 1), (1, 4, 1, 9), (2, 8, 7, 7), (1, 8, 14, 14), (2, 8, 12, 8), (1, 6, 25, 42), (1, 4, 82, 10)]
SCALES = [(1,), (1, 2, 4), (4, 2, 2), (1, 4, 8), (3, 5), (2, 6)]
OPTIONS = [dict(similarity=s, normalize=n) for s in ('dot', 'cosine') for n in ('zscore', 'minmax', None)]
PRODUCTS = ('mm', 'bmm', 'addmm', 'baddbmm', 'mv', 'addmv', 'dot', 'matmul', 'einsum', 'linear', 'convolution')


def named(function):
    return function._schema.name.removeprefix('aten::')


class Kernels(TorchDispatchMode):
    """Operators that launch a kernel, counted, and those that wait for the host or copy from it, named."""

    def __init__(self):
        super().__init__()
        self.launched, self.blocking = Counter(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name, (out, *_) = named(function), result if isinstance(result, (tuple, list)) else (result,)
        if function.namespace != 'aten' or function.is_view or name.startswith(('empty', 'new_empty', 'detach')):
            return result
        if not isinstance(out, torch.Tensor) or name in ('_local_scalar_dense', 'is_nonzero', 'nonzero', 'equal'):
            self.blocking.append(name)
        else:
            self.launched[name] += 1
            inputs = [a for a in args if isinstance(a, torch.Tensor)]
            if out.device.type == 'cpu' or (name in ('_to_copy', 'copy_') and any(a.is_cpu for a in inputs)):
                self.blocking.append(name)
        return result


class Tf32(TorchDispatchMode):
    """Rounds what every product of matrices multiplies to 10 bits, as a GPU may."""

    products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if named(function) in PRODUCTS:
            self.products += 1
            args = [self._rounded(a) if isinstance(a, torch.Tensor) and a.dtype == torch.float32 else a for a in args]
        return function(*args, **(kwargs or {}))

    @staticmethod
    def _rounded(t):
        return ((t.view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch_sums, 'wanted', lambda t: True)


def evaluate(x, scale, bias, grad_y, options):
    y, saved = torch_backend.forward(Inputs(x, None, scale, bias), options, True)
    grad_x, _, grad_scale, grad_bias, *_ = torch_backend.backward(
        grad_y, None, Inputs(x, None, scale, bias), saved, options, True
    )
    return y, grad_x, grad_scale, grad_bias


def by_reference(x, scale, bias, grad_y, options):
    x, scale, bias = (t.detach().requires_grad_() for t in (x, scale, bias))
    y = ccd_reference(x, scale, bias, *options)
    return y.detach(), *torch.autograd.grad(y, (x, scale, bias), grad_y)


def tensors(shape, groups, dtype=torch.float64, layout=torch.contiguous_format):
    torch.manual_seed(0)
    x, grad_y = (torch.randn(shape).to(dtype, memory_format=layout) for _ in range(2))
    return x, torch.randn(groups).to(dtype), torch.randn(groups).to(dtype), grad_y


@pytest.mark.parametrize('deterministic', [False, True])
@pytest.mark.parametrize('options', OPTIONS, ids=lambda o: '-'.join(map(str, o.values())))
def test_values_and_gradients_are_the_definitions(options, deterministic, as_on_a_gpu):
    torch.use_deterministic_algorithms(deterministic)
    try:
        for layout in (torch.contiguous_format, torch.channels_last):
            for shape in SHAPES:
                for scales in SCALES:
                    made = Options(2, scales, gain=1.3, **options)
                    a = tensors(shape, 2, layout=layout)
                    got, expected = evaluate(*a, made), by_reference(*a, made)
                    assert got[1].stride() == torch.empty_like(a[0]).stride()
                    for g, e in zip(got, expected):
                        assert torch.allclose(g, e, rtol=1e-7, atol=1e-7), (shape, scales, layout)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('similarity', ['dot', 'cosine'])
def test_half_precision_is_rounded_once(similarity, dtype, as_on_a_gpu):
    options = Options(2, similarity=similarity)
    for shape in SHAPES[2:]:
        x, scale, bias, grad_y = tensors(shape, 2, dtype)
        got = evaluate(x, scale.float(), bias.float(), grad_y, options)
        expected = by_reference(*(t.double() for t in (x, scale, bias, grad_y)), options)
        assert got[0].dtype == got[1].dtype == dtype
        for g, e in zip(got[:2], expected):
            error = (g.double() - e).abs().max() / e.abs().max()
            assert error <= torch.finfo(dtype).eps, (shape, error)


def test_nothing_is_lost_where_matrix_products_round_to_tf32(as_on_a_gpu):
    for shape in SHAPES:
        x, scale, bias, grad_y = tensors(shape, 2, torch.float32)
        x[:, : shape[1] // 2] = 0.7313  # the first group is constant
        for options in (Options(2), Options(2, normalize='minmax')):
            with Tf32() as mode:
                got = evaluate(x, scale, bias, grad_y, options)
            assert mode.products == 0
            expected = by_reference(x, scale, bias, grad_y, options)
            flat = x[:, : shape[1] // 2] * torch.sigmoid(bias[0])
            torch.testing.assert_close(got[0][:, : shape[1] // 2], flat, rtol=1e-6, atol=0)
            for g, e in zip(got, expected):
                torch.testing.assert_close(g, e, rtol=2e-4, atol=1e-5 * float(e.abs().max()))


def test_the_rounding_of_that_test_finds_products():
    """On the CPU small maps are pooled by a product, and a constant one passes for one that varies."""
    x, scale, bias, grad_y = tensors((1, 4, 7, 9), 2, torch.float32)
    x[:] = 0.7313
    with Tf32() as mode:
        got = evaluate(x, scale, bias, grad_y, Options(2))[0]
    assert mode.products > 0
    expected = by_reference(x, scale, bias, grad_y, Options(2))[0]
    assert not torch.allclose(got, expected, rtol=1e-3)


def count(shape, dtype, options, by_definition):
    """(kernels forward, backward) of a layer, and what waits for the host."""
    # Autograd wants a device that is there, which 'meta' is: the definition chooses nothing by device.
    device = 'meta' if by_definition else 'cuda'
    with FakeTensorMode():
        x, grad_y = (torch.empty(shape, device=device, dtype=dtype) for _ in range(2))
        scale, bias = (torch.empty(options.groups, device=device) for _ in range(2))
        if by_definition:
            x, scale, bias = (t.requires_grad_() for t in (x, scale, bias))
            with Kernels() as forward:
                y = ccd_reference(x, scale, bias, *options)
            with Kernels() as backward:
                torch.autograd.grad(y, (x, scale, bias), grad_y)
        else:
            with Kernels() as forward:
                _, saved = torch_backend.forward(Inputs(x, None, scale, bias), options, True)
            with Kernels() as backward:
                torch_backend.backward(grad_y, None, Inputs(x, None, scale, bias), saved, options, True)
    return forward, backward


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('size', LAYERS)
def test_no_more_kernels_than_the_definition_and_no_wait(size, dtype):
    options, totals = Options(64), Counter()
    for (c, h, w), layers in LAYERS[size].items():
        ours = count((2, c, h, w), dtype, options, by_definition=False)
        textbook = count((2, c, h, w), dtype, options, by_definition=True)
        for name, a, b in zip(('forward', 'backward'), ours, textbook):
            launched, allowed = a.launched.total(), b.launched.total()
            assert launched <= allowed, f'{name} of {c} x {h} x {w}: {a.launched} where {b.launched} do'
            assert not a.blocking, a.blocking
            totals[name] += layers * launched
    # And so that it cannot creep up where the definition leaves room.
    assert 16 < totals['forward'] <= 26 * 16 and 16 < totals['backward'] <= 43 * 16


@pytest.mark.parametrize(
    'options', [Options(64, (1,)), Options(64, (1, 4, 8)), Options(64, (3, 5)), Options(64, similarity='cosine')]
)
def test_no_other_options_wait(options):
    for c, h, w in (*LAYERS['224'], *LAYERS['800x1344'], (64, 82, 94)):
        for kernels in count((2, c, h, w), torch.float16, options, by_definition=False):
            assert kernels.launched.total() > 10
            assert not kernels.blocking, kernels.blocking


def test_deterministic_mode_calls_nothing_that_refuses():
    torch.use_deterministic_algorithms(True)
    try:
        forward, backward = count((2, 256, 25, 42), torch.float32, Options(64), by_definition=False)
    finally:
        torch.use_deterministic_algorithms(False)
    called = {*forward.launched, *backward.launched}
    assert not called & {'_adaptive_avg_pool2d_backward', 'index_add_', *PRODUCTS}
    assert not forward.blocking and not backward.blocking
