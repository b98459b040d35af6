"""The functions of a backend (:mod:`mmccd.ops.backends`), by Triton's kernels, which the first call imports."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from mmccd.env import c_compiler
from mmccd.ops.backends import Gradients, Inputs, Saved, add_relu_, compute_dtype, relu_gradient
from mmccd.ops.options import Options

from . import plan as planning
from .launches import backward_of, facts_of, forward_of, interpreting

# The kernels normalise, add and rectify what they hold in registers.
fuses_affine = True
_HERE: AbstractContextManager = nullcontext()


@cache
def _has_compiler() -> bool:
    return c_compiler() is not None


def unavailable(x: Tensor, options: Options) -> str | None:
    """Why these kernels cannot run on ``x``, or None where they can."""
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f'the Triton kernels have float16, bfloat16, float32 and float64, got {x.dtype}'
    if find_spec('triton') is None:
        return 'Triton is not installed'
    if interpreting():
        if x.device.type not in ('cpu', 'cuda'):
            return f'the Triton interpreter needs a tensor in memory, got one on {x.device}'
    elif x.device.type != 'cuda':
        return f'the Triton kernels need a CUDA tensor, got one on {x.device} (or set TRITON_INTERPRET=1)'
    elif not _has_compiler():
        return 'Triton needs a C compiler for its launchers, and found neither gcc nor clang (or set CC)'
    if sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:])) >= 2**31:
        return f'the Triton kernels count positions in a sample in 32 bits, which {tuple(x.shape)} exceeds'
    return planning.too_fine(x.shape[1], options)


def kind(x: Tensor, options: Options) -> str:
    """Which kernels x takes: ``'whole'`` where a program holds a slab, else ``'split'``."""
    return 'whole' if planning.launch_plan((x,), options).whole else 'split'


def errors() -> tuple[type[Exception], ...]:
    """What Triton raises where it cannot compile a kernel, or the kernel takes more than the card has."""
    from triton.errors import TritonError

    return (TritonError,)


def _on(device: torch.device) -> AbstractContextManager:
    """Where Triton launches on this device."""
    if device.type != 'cuda' or device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(device)


def forward(inputs: Inputs, options: Options, keep: bool, overwrite: bool = False) -> tuple[Tensor, Saved]:
    """See :class:`mmccd.ops.backends.Backend`; of the similarity, only min-max keeps anything."""
    x, residual = inputs[:2]
    y = torch.empty_like(x)
    if x.numel() == 0:
        samples, channels, dtype = *x.shape[:2], compute_dtype(x.dtype)
        shapes = (samples, channels, max(options.scales), max(options.scales)), (0,), (samples, options.groups, 2)
        context, d, stats = (x.new_zeros(shape if keep else 0, dtype=dtype) for shape in shapes)
        return y, (context, d, stats)
    # In the same pass where it lies in memory as y does.
    fused = residual if residual is not None and residual.stride() == y.stride() else None
    vectors = [None if t is None else t.contiguous() for t in inputs[2:]]
    launch = forward_of(x.shape, x.stride(), x.device, options, keep, facts_of((x, fused, *vectors)))
    with _on(x.device):
        saved = launch(x, fused, y, vectors)
    return y if fused is residual else add_relu_(y, residual), saved


def backward(
    grad_y: Tensor, y: Tensor | None, inputs: Inputs, saved: Saved, options: Options, need_x: bool
) -> Gradients:
    """See :class:`mmccd.ops.backends.Backend`."""
    x, _, scale, bias, weight, shift = inputs
    grad_x = torch.empty_like(x)
    grad_residual = None
    if y is not None:
        if y.stride() == grad_x.stride() and y.dtype == grad_y.dtype and y.numel() > 0:
            grad_residual = torch.empty_like(y)
        else:
            grad_y = grad_residual = relu_gradient(grad_y, y)
            y = None
    if x.numel() == 0:
        no_weight, no_shift = (None if t is None else torch.zeros_like(t) for t in (weight, shift))
        return grad_x, grad_residual, torch.zeros_like(scale), torch.zeros_like(bias), no_weight, no_shift
    vectors = [None if t is None else t.contiguous() for t in inputs[2:]]
    facts = facts_of((x, grad_y, y, *vectors, *saved))
    launch = backward_of(x.shape, x.stride(), grad_y.stride(), x.device, options, facts)
    with _on(x.device):
        written = None if y is None else grad_residual
        totals, affine = launch(x, grad_y, y, grad_x, written, vectors, saved, need_x)
    sums = _sum(totals[0], scale), _sum(totals[1], bias)
    if weight is None or shift is None or affine is None:
        return grad_x, grad_residual, *sums, None, None
    return grad_x, grad_residual, *sums, _sum(affine[0], weight), _sum(affine[1], shift)


def _sum(shares: Tensor, like: Tensor) -> Tensor:
    """Sum of shares in a gradient; one at a time, for a custom operator's results must not share memory."""
    total = shares.sum(0)
    return total if total.dtype == like.dtype else total.to(like.dtype)
