"""CCD inside PyTorch: one pair of custom operators, and a way around their Python where nobody looks at operators.

``mmccd::ccd_forward`` and ``mmccd::ccd_backward`` are what torch.compile and torch.export keep whole; tensor
subclasses, dispatch modes and functorch's transforms meet them, too. :class:`Direct` is the same for plain tensors
outside all of these. Both are kept, since the Python of torch.library would cost 0.16 ms more a layer and training
step, 0.03 ms more a forward pass (``python benchmarks/bench_overhead.py``; 2 cores of an Intel Xeon, PyTorch 2.11),
of 0.20 and 0.04 ms for a small map.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .backends import Inputs, choose, compute_dtype
from .options import Options

_OPTIONS = 'int groups, int[] scales, str similarity, str? normalize, float eps, float gain, str impl'


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Where backends run: float32 sums stay so in products with matrices, too."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def is_eager(*tensors: Tensor | None) -> bool:
    """Whether nothing but autograd listens: no subclass, no mode, no transform, which take note of operators."""
    for t in tensors:
        if t is not None and (type(t) not in (Tensor, Parameter) or t.is_meta):
            return False
    return not torch._C._len_torch_dispatch_stack() and not torch._C._are_functorch_transforms_active()


class Direct(torch.autograd.Function):
    """The operators for plain tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        *more: Any,  # the six tensors, options, impl and backend: autograd sees tensors among arguments only
    ) -> Tensor:
        *tensors, options, impl, backend = more
        inputs = Inputs(*tensors)
        y, saved = backend.forward(inputs, options, True)
        ctx.backend = backend
        _save(ctx, inputs, options, impl, y, saved)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_y is None or torch.is_grad_enabled():  # the operator says what is wrong with a second derivative
            return *_gradients(ctx, grad_y), None, None, None
        y, x, scale, bias, weight, shift, *saved = ctx.saved_tensors
        inputs, need = Inputs(x, None, scale, bias, weight, shift), ctx.needs_input_grad
        with without_autocast(x):
            grads = ctx.backend.backward(grad_y, y, inputs, tuple(saved), ctx.options, _needs_x(need))
        return *(g if n else None for g, n in zip(grads, need)), None, None, None


def _save(ctx: Any, inputs: Inputs, options: Options, impl: str, y: Tensor, saved: Sequence[Tensor]) -> None:
    """Keep what backward needs."""
    x, residual, *others = inputs
    ctx.options, ctx.impl = options, impl
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(None if residual is None else y, x, *others, *saved)


def _needs_x(need: Sequence[bool]) -> bool:
    """Whether what leads to x is wanted: its own gradient, or those of weight and shift, which are sums of it."""
    return need[0] or need[4] or need[5]


def _gradients(ctx: Any, grad_y: Tensor | None) -> tuple[Tensor | None, ...]:
    """Of x, residual, scale, bias, weight and shift, None where not asked for, by the operator."""
    if grad_y is None:
        return (None,) * 6
    need = ctx.needs_input_grad[:6]
    grads = torch.ops.mmccd.ccd_backward(grad_y, *ctx.saved_tensors, *ctx.options, ctx.impl, _needs_x(need))
    return tuple(g if n else None for g, n in zip(grads, need))


def _split(more: Sequence[Any]) -> tuple[Options, str, bool]:
    """The operators' last arguments: the options, impl, and keep or need_x."""
    groups, scales, *others, impl, switch = more
    return Options(groups, tuple(scales), *others), impl, switch


@torch.library.custom_op(
    'mmccd::ccd_forward',
    mutates_args=(),
    schema=f'(Tensor x, Tensor? residual, Tensor scale, Tensor bias, Tensor? weight, Tensor? shift, {_OPTIONS}, '
    'bool keep) -> (Tensor, Tensor, Tensor, Tensor)',
)
def ccd_forward(x: Tensor, *more: Any) -> tuple[Tensor, ...]:
    """(y, context, d, stats) of :class:`mmccd.ops.backends.Backend`."""
    options, impl, keep = _split(more[5:])
    with without_autocast(x):
        y, saved = choose(impl, x, options).forward(Inputs(x, *more[:5]), options, keep)
    if keep and saved[1].dim() != 4:  # not every backend keeps d, and an operator's results have one shape
        d = x.new_zeros((x.shape[0], options.groups, *x.shape[2:]), dtype=saved[1].dtype)
        saved = saved[0], d, saved[2]
    # An operator's results must not share memory, as a backend's constants without elements would.
    return y, *(saved if keep else (torch.empty_like(t) for t in saved))


@ccd_forward.register_fake
def _fake_forward(x: Tensor, *more: Any) -> tuple[Tensor, ...]:
    options, _, keep = _split(more[5:])
    n, c, h, w = x.shape
    grid = max(options.scales)
    shapes = ((n, c, grid, grid), (n, options.groups, h, w), (n, options.groups, 2)) if keep else ((0,),) * 3
    return torch.empty_like(x), *(x.new_empty(shape, dtype=compute_dtype(x.dtype)) for shape in shapes)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    options, impl, ctx.keep = _split(inputs[6:])
    y, *saved = output
    ctx.mark_non_differentiable(*saved)
    if ctx.keep:
        _save(ctx, Inputs(*inputs[:6]), options, impl, y, saved)


def _autograd(ctx: Any, grad_y: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, grad_y if ctx.keep else None), *(None,) * 8


ccd_forward.register_autograd(_autograd, setup_context=_setup_context)


@torch.library.custom_op(
    'mmccd::ccd_backward',
    mutates_args=(),
    schema='(Tensor grad_y, Tensor? y, Tensor x, Tensor scale, Tensor bias, Tensor? weight, Tensor? shift, '
    f'Tensor context, Tensor d, Tensor stats, {_OPTIONS}, bool need_x) '
    '-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)',
)
def ccd_backward(grad_y: Tensor, y: Tensor | None, x: Tensor, *more: Any) -> tuple[Tensor, ...]:
    """Gradients of x, residual, scale, bias, weight and shift, without elements where not needed or not there."""
    vectors, (context, d, stats) = more[:4], more[4:7]  # scale, bias, weight and shift
    options, impl, need_x = _split(more[7:])
    inputs = Inputs(x, None, *vectors)
    with without_autocast(x):
        backend = choose(impl, x, options)
        grad_x, *others = backend.backward(grad_y, y, inputs, (context, d, stats), options, need_x)
    return grad_x if need_x else x.new_empty(0), *(x.new_empty(0) if g is None else g for g in others)


@ccd_backward.register_fake
def _fake_backward(grad_y: Tensor, y: Tensor | None, x: Tensor, *more: Any) -> tuple[Tensor, ...]:
    *vectors, need_x = *more[:4], more[-1]
    return (
        torch.empty_like(x) if need_x else x.new_empty(0),
        *(x.new_empty(0) if t is None else torch.empty_like(t) for t in (y, *vectors)),
    )


@ccd_backward.register_autograd
def _no_second_derivative(*_: Any) -> None:
    raise RuntimeError('ccd has no second derivative; take it through mmccd.ops.ccd_reference')
