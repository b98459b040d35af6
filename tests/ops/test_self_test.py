"""What ``impl='auto'`` takes only behind a self-test: with a backend that is right, and with such as lie or raise."""

import logging
import sys
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmccd.ops import backends, ccd
from mmccd.ops.backends import BACKENDS, Inputs, Row, load
from mmccd.ops.options import make_options
from mmccd.ops.self_test import SIZES


class CompileError(Exception):
    """What the backend here raises as Triton does."""


class Sample(types.ModuleType):
    """Stock operators by another name, with a log of calls."""

    def __init__(self):
        super().__init__('sample_backend')
        self.calls = []
        self.broken = None
        stock = load('torch')

        def kind(x, options):
            return 'small' if x.shape[2] * x.shape[3] <= 200 else 'large'

        def forward(inputs, options, keep, overwrite=False):
            self.calls.append(('forward', tuple(inputs.x.shape), inputs.x.dtype))
            if self.broken == 'forward':
                raise CompileError('out of resources')
            y, saved = stock.forward(inputs, options, keep)
            return y, (saved[0], saved[1].new_empty(0), saved[2])

        def backward(grad_y, y, inputs, saved, options, need_x):
            self.calls.append(('backward', tuple(inputs.x.shape), inputs.x.dtype))
            if self.broken == 'backward':
                raise CompileError('out of resources')
            saved = stock.forward(inputs, options, True)[1]
            return stock.backward(grad_y, y, inputs, saved, options, need_x)

        self.kind, self.forward, self.backward = kind, forward, backward
        self.unavailable = lambda x, options: None
        self.errors = lambda: (CompileError,)


@pytest.fixture
def sample(monkeypatch):
    """A backend that 'auto' takes on the CPU behind its self-test."""
    module = Sample()
    monkeypatch.setitem(sys.modules, 'sample_backend', module)
    monkeypatch.setitem(BACKENDS, 'cpu', Row('mmccd.ops.torch_backend'))
    monkeypatch.setitem(BACKENDS, 'sample', Row('sample_backend', preferred_on=('cpu',), self_test=True))
    monkeypatch.setattr(backends, '_reported', set())
    monkeypatch.delenv(backends.ENV_VAR, raising=False)
    backends.load.__globals__['_load'].cache_clear()
    backends._self_tested.cache_clear()
    yield module
    backends.load.__globals__['_load'].cache_clear()
    backends._self_tested.cache_clear()


def make(size=(6, 7), dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, *size, generator=rng).to(dtype).requires_grad_()
    scale, bias = (torch.randn(4, generator=rng).requires_grad_() for _ in range(2))
    return x, scale, bias


def check_numbers(size=(6, 7), dtype=torch.float32, **more):
    """Value and gradients are those of stock operators."""
    results = []
    for impl in ('auto', 'torch'):
        tensors = make(size, dtype)
        y = ccd(*tensors, 4, impl=impl, **more)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), tensors)])
    assert all(map(torch.equal, *results))


def self_tests(sample):
    """Calls with one sample: those of the self-test."""
    return [call for call in sample.calls if call[1][0] == 1]


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith('mmccd')]


def test_a_right_one_is_taken_and_tested_once_a_dtype_and_kind(sample, caplog):
    with caplog.at_level(logging.WARNING, 'mmccd'):
        check_numbers()
        small = [s for s in SIZES if s[0] * s[1] <= 200]
        wanted = [(d, (1, 4, *size), torch.float32) for size in (small[0], small[-1]) for d in ('forward', 'backward')]
        assert self_tests(sample) == wanted
        check_numbers((5, 5))  # another size of that kind
        assert self_tests(sample) == wanted
        check_numbers((30, 20))
        assert self_tests(sample)[4:][-1] == ('backward', (1, 4, *SIZES[-1]), torch.float32)
        check_numbers(dtype=torch.float64)
        assert self_tests(sample)[8:] == [(*call[:2], torch.float64) for call in wanted]
    assert backends.automatic(make()[0], make_options(4)) == 'sample'
    assert not warnings_of(caplog)


LIES = {
    'y': lambda y, grads: (y * 1.01, grads),
    'NaN': lambda y, grads: (torch.full_like(y, torch.nan), grads),
    **{
        name: lambda y, grads, i=i: (y, tuple(g * 1.05 if i == j else g for j, g in enumerate(grads)))
        for i, name in enumerate(Inputs._fields)
    },
    'no gradient': lambda y, grads: (y, (*grads[:4], None, grads[5])),
}


@pytest.mark.parametrize('lie', LIES)
def test_one_that_lies_is_not_taken(lie, sample, caplog):
    forward, backward = sample.forward, sample.backward
    sample.forward = lambda *a: (lambda y, saved: (LIES[lie](y, (torch.ones(1),) * 6)[0], saved))(*forward(*a))
    sample.backward = lambda *a: LIES[lie](torch.ones(1), backward(*a))[1]
    with caplog.at_level(logging.WARNING, 'mmccd'):
        for size in ((6, 7), (5, 5), (30, 20)):
            check_numbers(size)
            assert backends.automatic(make(size)[0], make_options(4)) == 'torch'
    (message,) = warnings_of(caplog)
    wrong = {'NaN': 'y is off', 'no gradient': 'gradient of weight is missing'}.get(lie, f'{lie} is off')
    assert "'sample'" in message and 'self-test' in message and wrong in message


@pytest.mark.parametrize('error', [CompileError('out of resources'), RuntimeError('Failed to find C compiler')])
def test_one_that_raises_is_not_taken(error, sample, caplog):
    def forward(*_):
        sample.calls.append(error)
        raise error

    sample.forward = forward
    with caplog.at_level(logging.WARNING, 'mmccd'):
        for _ in range(3):
            check_numbers()
    assert len(sample.calls) == 1
    (message,) = warnings_of(caplog)
    assert type(error).__name__ in message and str(error) in message


def test_one_that_cannot_run_is_not_tested(sample, caplog):
    sample.unavailable = lambda x, options: 'there is no C compiler'
    with caplog.at_level(logging.WARNING, 'mmccd'):
        check_numbers()
    assert not sample.calls
    (message,) = warnings_of(caplog)
    assert 'no C compiler' in message


@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('direction', ['forward', 'backward'])
def test_a_kernel_that_the_card_cannot_hold(direction, residual, sample, caplog):
    """One warning; that shape runs stock operators from then on, and the others do not."""
    check_numbers()
    sample.broken = direction
    more = dict(residual=torch.randn(2, 8, 9, 9)) if residual else {}
    with caplog.at_level(logging.WARNING, 'mmccd'):
        for _ in range(2):
            check_numbers((9, 9), **more)
    (message,) = warnings_of(caplog)
    assert "'sample' failed at (2, 8, 9, 9)" in message and 'out of resources' in message
    sample.broken = None
    sample.calls.clear()
    check_numbers((9, 9), **more)
    assert not sample.calls
    check_numbers()
    assert [c[0] for c in sample.calls] == ['forward', 'backward']


def test_failure_between_forward_and_backward_of_the_operator(sample):
    """The operator gives d zeros where the backend keeps none; stock operators must not read them."""
    from mmccd.ops.library import is_eager

    class Listener(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **kwargs or {})

    results = []
    for impl in ('auto', 'torch'):
        tensors = make()
        with Listener():
            assert not is_eager(tensors[0])
            y = ccd(*tensors, 4, impl=impl)
            sample.broken = 'backward' if impl == 'auto' else None
            results.append([y.detach(), *torch.autograd.grad(y.square().sum(), tensors)])
    assert all(map(torch.equal, *results))


def test_other_errors_of_a_call_are_raised(sample):
    check_numbers()
    sample.forward = lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError('CUDA out of memory'))
    with pytest.raises(torch.OutOfMemoryError, match='out of memory'):
        ccd(*make(), 4)


def test_environment_overrides(sample, monkeypatch):
    monkeypatch.setenv(backends.ENV_VAR, 'torch')
    check_numbers()
    assert not sample.calls
    monkeypatch.setenv(backends.ENV_VAR, 'sample')
    check_numbers()
    assert [shape for _, shape, _ in sample.calls] == [(2, 8, 6, 7)] * 2  # and not tested


def test_nothing_is_tested_where_nothing_runs(sample):
    with FakeTensorMode():
        x, scale, bias = torch.empty(2, 8, 6, 7), torch.empty(4), torch.empty(4)
        assert ccd(x, scale, bias, 4).shape == x.shape
    assert ccd(torch.empty(0, 8, 6, 7), *make()[1:], 4).shape == (0, 8, 6, 7)
    assert not self_tests(sample)


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_tested_without_gradients(mode, sample):
    with mode():
        y = ccd(*make(), 4)
    assert ('backward', (1, 4, 7, 7), torch.float32) in sample.calls
    assert torch.equal(y, ccd(*make(), 4, impl='torch'))


def test_the_rows_that_are_tested():
    assert [name for name, row in BACKENDS.items() if row.self_test] == ['triton']
    assert BACKENDS['triton'].preferred_on == ('cuda',)
