"""The functions of a backend (:mod:`mmccd.ops.backends`), by Triton's kernels, which the first call imports."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mmccd.env import c_compiler
from mmccd.ops.backends import Inputs, Saved, add_relu_, affine, compute_dtype, with_affine_and_residual
from mmccd.ops.options import FLATNESS, Options

from . import plan as planning
from .plan import APPLY, G_STRIDES, MEASURE, POOL, SUMS, WHOLE, X_STRIDES, Y_STRIDES, Plan, launch_plan


@cache
def _has_compiler() -> bool:
    return c_compiler() is not None


def interpreting() -> bool:
    """Whether Triton was told to interpret when the kernels were imported."""
    import triton

    from .kernels_forward import forward_kernel

    return not isinstance(forward_kernel, triton.JITFunction)


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


def _switches(plan: Plan, x: Tensor, options: Options) -> dict[str, Any]:
    """What both directions are compiled for."""
    import triton.language as tl

    sums = tl.float64 if x.dtype == torch.float64 else tl.float32
    return dict(planning.compile_time(plan, x.shape[1], options), ACC=sums)


def forward(inputs: Inputs, options: Options, keep: bool, overwrite: bool = False) -> tuple[Tensor, Saved]:
    """See :class:`mmccd.ops.backends.Backend`."""
    x, residual, scale, bias, weight, shift = inputs
    x = affine(x, weight, shift)
    samples, channels, height, width = x.shape
    groups, grid = options.groups, max(options.scales)
    compute = compute_dtype(x.dtype)
    y = torch.empty_like(x)
    plan = launch_plan((x, y), options)
    # A kernel a stage hands context and statistics on through memory, kept or not.
    through_memory = keep or not plan.whole
    context = x.new_empty((samples, channels, grid, grid) if through_memory else 0, dtype=compute)
    stats = x.new_empty((samples, groups, 2) if through_memory else 0, dtype=compute)
    d = x.new_empty((samples, groups, height, width) if keep else 0, dtype=compute)
    saved = context, d, stats
    if not keep:
        saved = x.new_empty(0, dtype=compute), x.new_empty(0, dtype=compute), x.new_empty(0, dtype=compute)
    if options.normalize is None:
        stats.zero_()
    if x.numel() > 0:
        with torch.cuda.device_of(x):
            _launch_forward(plan, x, y, scale.contiguous(), bias.contiguous(), context, d, stats, options, keep)
    return add_relu_(y, residual), saved


def _launch_forward(
    plan: Plan,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    context: Tensor,
    d: Tensor,
    stats: Tensor,
    options: Options,
    keep: bool,
) -> None:
    """Write y, and what is kept."""
    from .kernels_forward import conclude_kernel, forward_kernel, mix_kernel

    switches, sizes = _switches(plan, x, options), planning.run_time(plan, x, options)
    compute = compute_dtype(x.dtype)
    flat = FLATNESS * torch.finfo(compute).eps
    slabs, tiles = x.shape[0] * options.groups, sizes['tiles']
    arguments: dict[str, Any] = dict(
        x=x,
        y=y,
        scale=scale,
        bias=bias,
        context=context,
        d_out=d,
        stats=stats,
        partial=stats,
        KEEP=keep,
        X_UNIT=plan.units[0],
        Y_UNIT=plan.units[1],
        FLAT=flat,
        num_warps=planning.warps(switches, 32),
        **sizes,
        **switches,
        **planning.run_time_strides(plan, X_STRIDES, x, 0),
        **planning.run_time_strides(plan, Y_STRIDES, y, 1),
    )
    launch = forward_kernel[(slabs * tiles,)]
    if plan.whole:
        launch(STAGE=WHOLE, **arguments)
        return
    parts, lines = sizes['tiles_h'] * sizes['tiles_w'], 1 if plan.even else 4
    partial = x.new_empty((parts, slabs, lines, switches['CG'] * switches['L'] ** 2), dtype=compute)
    launch(STAGE=POOL, **{**arguments, 'partial': partial})
    grid, mix_switches = planning.sum_launch(switches, slabs)
    samples, groups, height, width = (sizes[name] for name in ('samples', 'groups', 'height', 'width'))
    mix_kernel[grid](partial, context, samples, groups, parts, height, width, **mix_switches)
    if options.normalize is not None or keep:
        partial = x.new_empty((slabs, tiles, 3), dtype=compute)
        launch(STAGE=MEASURE, **{**arguments, 'partial': partial})
    if options.normalize is not None:
        norm, acc = switches['NORM'], switches['ACC']
        conclude_kernel[(slabs,)](
            partial, stats, tiles, height, width, NORM=norm, FLAT=flat, ACC=acc, BLOCK=128, num_warps=1
        )
    launch(STAGE=APPLY, **arguments)


@with_affine_and_residual
def backward(
    grad_y: Tensor, x: Tensor, scale: Tensor, bias: Tensor, saved: Saved, options: Options, need_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x)
    totals = saved[0].new_empty((x.shape[0], options.groups, 4))
    with torch.cuda.device_of(x):
        _launch_backward(grad_y, x, grad_x, scale.contiguous(), bias.contiguous(), saved, totals, options, need_x)
    # Two sums: a custom operator's results must not share memory.
    grad_scale, grad_bias = totals[..., 1].sum(0).to(scale.dtype), totals[..., 0].sum(0).to(bias.dtype)
    return grad_x, grad_scale, grad_bias


def _launch_backward(
    grad_y: Tensor,
    x: Tensor,
    grad_x: Tensor,
    scale: Tensor,
    bias: Tensor,
    saved: Saved,
    totals: Tensor,
    options: Options,
    need_x: bool,
) -> None:
    """Write grad_x and the totals, (N, G, 4): sums of a slab's shares in the gradients of bias and scale come first."""
    from .kernels_backward import backward_kernel, collect_kernel

    context, d, stats = saved
    plan = launch_plan((x, grad_x, grad_y), options)
    switches, sizes = _switches(plan, x, options), planning.run_time(plan, x, options)
    slabs, tiles = x.shape[0] * options.groups, sizes['tiles']
    arguments: dict[str, Any] = dict(
        x=x,
        grad_y=grad_y,
        grad_x=grad_x,
        scale=scale,
        bias=bias,
        context=context,
        d_in=d,
        stats=stats,
        totals=totals,
        spread_out=totals,
        X_UNIT=plan.units[0],
        Y_UNIT=plan.units[1],
        G_UNIT=plan.units[2],
        num_warps=planning.warps(switches, 16),
        **sizes,
        **switches,
        **planning.run_time_strides(plan, X_STRIDES, x, 0),
        **planning.run_time_strides(plan, Y_STRIDES, grad_x, 1),
        **planning.run_time_strides(plan, G_STRIDES, grad_y, 2),
    )
    launch = backward_kernel[(slabs * tiles,)]
    if plan.whole:
        launch(STAGE=WHOLE, **arguments)
        return
    parts, size = sizes['tiles_h'] * sizes['tiles_w'], switches['CG'] * switches['L'] ** 2
    shares, sums = context.new_empty((tiles, slabs, 4)), context.new_empty((parts, slabs, 3, size))
    std_or_range = context.new_empty((slabs, 1 if plan.even else 4, size))
    launch(STAGE=SUMS, **{**arguments, 'totals': shares, 'spread_out': sums})
    grid, sum_switches = planning.sum_launch(switches, slabs, 'NORM', 'EPS')
    samples, groups, height, width = (sizes[name] for name in ('samples', 'groups', 'height', 'width'))
    collect_kernel[grid](
        sums, shares, scale, stats, totals, std_or_range, samples, groups, parts, tiles, height, width, **sum_switches
    )
    if need_x:
        launch(STAGE=APPLY, **{**arguments, 'spread_out': std_or_range})
