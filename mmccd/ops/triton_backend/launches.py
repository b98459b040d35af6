"""Launches that are planned once, for tensors that are alike in all that Triton looks at, and then only called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from mmccd.ops.backends import Saved, compute_dtype
from mmccd.ops.options import Options

from . import plan as planning

# Of scale, bias, weight and shift; the last two may be missing.
Vectors = list[Tensor | None]


@cache
def interpreting() -> bool:
    """Whether Triton was told to interpret when the kernels were imported."""
    import triton

    from .kernels_whole import forward_kernel

    return not isinstance(forward_kernel, triton.JITFunction)


class Launch:
    """A kernel and all that it is given but its tensors, which come first among its arguments.

    Triton looks for a compiled kernel by all arguments, which takes longer than most kernels run. So the first call
    keeps the one that Triton found, and the others launch it as it is.

    Args:
        kernel: A function of ``triton.jit``.
        grid (tuple[int, ...]): Programs.
        warps (int): Warps of a program.
        values (dict): Arguments by name, of this kernel and others.
    """

    __slots__ = ('_direct', '_grid', '_kernel', '_rest', '_warps')

    def __init__(self, kernel: Any, grid: tuple[int, ...], warps: int, values: dict[str, Any]) -> None:
        self._kernel, self._grid, self._warps = kernel, (*grid, 1, 1)[:3], warps
        self._rest = [values[name] for name in kernel.arg_names if name in values]
        self._direct: Callable | None = None

    def __call__(self, *tensors: Tensor | None) -> None:
        if self._direct is not None:
            self._direct(*tensors, *self._rest)
            return
        compiled = self._kernel[self._grid](*tensors, *self._rest, num_warps=self._warps)
        if compiled is not None:  # as the interpreter gives
            self._direct = compiled[self._grid]


class _Planned:
    """What both directions plan from tensors without memory, the first of which is x."""

    def __init__(self, tensors: tuple[Tensor, ...], options: Options) -> None:
        import triton.language as tl

        self.plan = plan = planning.launch_plan(tensors, options)
        self.constants = planning.constants(plan, tensors[0], options)
        numbers = planning.numbers(plan, self.constants, tensors, options)
        dtype = tensors[0].dtype
        self.values: dict[str, Any] = dict(numbers, P=self.constants)
        self.values['ACC'] = tl.float64 if dtype == torch.float64 else tl.float32
        # Of the gradient over samples and pixels, where terms cancel: half precision knows them no better.
        self.sums_in_double = dtype not in (torch.float16, torch.bfloat16)
        self.values['SUM'] = tl.float64 if self.sums_in_double else tl.float32
        if plan.fixed and not interpreting():
            strides = planning.X_STRIDES[1:] + planning.Y_STRIDES[1:] + planning.G_STRIDES[1:]
            for name in {'groups', 'height', 'width', *strides} & numbers.keys():
                self.values[name] = tl.constexpr(numbers[name])
        samples, groups = numbers['samples'], numbers['groups']
        self.slabs, self.parts, self.tiles = (samples * groups,), numbers['parts'], numbers['tiles']
        blocks = samples * -(-groups // plan.groups)
        # Programs with a tile each; with a part of a cell; with some channels whose scales they mix.
        self.by_tile, self.by_cell = (blocks * self.tiles,), (blocks * self.constants.L**2, self.parts)
        self.by_channel = samples, -(-numbers['channels'] // self.constants.CF)

    def launch(self, kernel: Any, grid: tuple[int, ...], warps: int, **values: Any) -> Launch:
        return Launch(kernel, grid, warps, {**self.values, **values})

    def mixing(self, kernel: Any) -> Launch:
        return self.launch(kernel, self.by_channel, 4, P=self.constants.of_mixing())

    def warps(self, per_thread: int) -> int:
        return planning.warps(self.constants, self.plan.whole, per_thread)


@lru_cache(maxsize=64)
def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor without elements, and so without memory."""
    return torch.empty(0, dtype=dtype, device=device)


class Forward:
    """The forward, of one kernel or several, for x like this one.

    Args:
        x (Tensor): (N, C, H, W), without memory.
        y (Tensor): Likewise.
        options (Options): Of the operator.
        keep (bool): Whether backward follows.
    """

    def __init__(self, x: Tensor, y: Tensor, options: Options, keep: bool) -> None:
        from . import kernels_split_forward as split
        from . import kernels_whole

        planned = _Planned((x, y), options)
        samples, channels, height, width = x.shape
        cells, grid = planned.constants.L, planned.constants.S
        self._keep, self._dtype = keep, compute_dtype(x.dtype)
        self._context, self._stats = (samples, channels, grid, grid), (samples, options.groups, 2)
        self._unused_stats = keep and options.normalize is None
        keeps_d = keep and options.normalize == 'minmax'
        self._similarity = (samples, options.groups, height, width) if keeps_d else None
        self._whole = None
        warps = planned.warps(planning.FORWARD_PER_THREAD)
        if planned.plan.whole:
            if planned.constants.CB * planned.constants.LB**3 > planning.MIX_ELEMENTS:
                warps *= 2
            self._whole = planned.launch(kernels_whole.forward_kernel, planned.slabs, warps, KEEP=keep)
            return
        self._sums, self._shares = (planned.parts, 4, samples, channels, cells**2), (*planned.slabs, planned.tiles, 3)
        self._pool = planned.launch(split.pool_kernel, planned.by_cell, planning.POOL_WARPS)
        self._mix = planned.mixing(split.mix_kernel)
        self._measure = None
        if options.normalize is not None:
            self._measure = planned.launch(split.measure_kernel, planned.by_tile, warps, KEEP=keeps_d)
            norm, flat = planned.constants.NORM, planned.constants.FLAT
            self._conclude = planned.launch(
                split.conclude_kernel, planned.slabs, 1, NORM=norm, FLAT=flat, BLOCK=planning.TILES_AT_ONCE
            )
        warps = planned.warps(planning.APPLY_PER_THREAD)
        self._apply = planned.launch(split.apply_kernel, planned.by_tile, warps)

    def __call__(self, x: Tensor, residual: Tensor | None, y: Tensor, vectors: Vectors) -> Saved:
        """Write y; returned is what backward needs, as :class:`mmccd.ops.backends.Backend` says."""
        nothing = _nothing(self._dtype, x.device)
        context, d, stats = nothing, nothing, nothing
        if self._keep or self._whole is None:  # kernels hand on through memory what is not kept, too
            context = x.new_empty(self._context, dtype=self._dtype)
            stats = x.new_empty(self._stats, dtype=self._dtype)
            if self._unused_stats:
                stats.zero_()
            if self._similarity is not None:
                d = x.new_empty(self._similarity, dtype=self._dtype)
        if self._whole is not None:
            self._whole(x, residual, y, *vectors, context, d, stats)
        else:
            affine = vectors[2:]
            sums = context.new_empty(self._sums)
            self._pool(x, *affine, sums)
            self._mix(sums, context)
            if self._measure is not None:
                partial = context.new_empty(self._shares)
                self._measure(x, *affine, context, d, partial)
                self._conclude(partial, stats)
            self._apply(x, residual, y, *vectors, context, stats)
        return (context, d, stats) if self._keep else (nothing, nothing, nothing)


class Backward:
    """The backward, of one kernel or three."""

    def __init__(self, x: Tensor, grad_x: Tensor, grad_y: Tensor, options: Options) -> None:
        from . import kernels_split_backward as split
        from . import kernels_whole

        planned = _Planned((x, grad_x, grad_y), options)
        whole, (samples, channels), cells = planned.plan.whole, x.shape[:2], planned.constants.L**2
        self._sum_dtype = torch.float64 if planned.sums_in_double else compute_dtype(x.dtype)
        self._affine = 2, samples * (1 if whole else planned.tiles), channels
        self._totals = 2 if whole else 4, samples, options.groups
        self._whole = None
        warps = planned.warps(planning.BACKWARD_PER_THREAD)
        if whole:
            self._whole = planned.launch(kernels_whole.backward_kernel, planned.slabs, warps)
            return
        self._shares, self._spread = (
            (planned.parts, cells, 4, *planned.slabs),
            (planned.parts, 3, samples, channels, cells),
        )
        self._mixed = 4, samples, channels, cells
        self._sums = planned.launch(split.sums_kernel, planned.by_cell, planning.SUMS_WARPS)
        self._collect = planned.mixing(split.collect_kernel)
        self._apply = planned.launch(split.apply_back_kernel, planned.by_tile, warps)

    def __call__(
        self,
        x: Tensor,
        grad_y: Tensor,
        out: Tensor | None,
        grad_x: Tensor,
        grad_residual: Tensor | None,
        vectors: Vectors,
        saved: Saved,
        need_x: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Write grad_x and grad_residual.

        Returns:
            tuple: (2 or more, N, G), shares of samples in the gradients of scale and bias; (2, M, C), shares in those
            of weight and shift, or None.
        """
        context, _, stats = saved
        totals = context.new_empty(self._totals)
        affine = None if vectors[2] is None else context.new_empty(self._affine, dtype=self._sum_dtype)
        if self._whole is not None:
            self._whole(x, grad_y, out, grad_x, grad_residual, *vectors, *saved, totals, affine)
            return totals, affine
        shares, spread = context.new_empty(self._shares), context.new_empty(self._spread)
        mixed = context.new_empty(self._mixed)
        self._sums(x, grad_y, out, grad_residual, *vectors, *saved, shares, spread)
        self._collect(spread, shares, vectors[0], stats, totals, mixed)
        if need_x:
            self._apply(x, grad_y, out, grad_x, *vectors, *saved, totals, mixed, affine)
        return totals, affine


def _like(shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor without memory."""
    return torch.empty_strided(shape, strides, dtype=dtype, device='meta')


# What is looked up by: all that a plan depends on, and in ``facts`` what Triton looks at besides, see :func:`facts_of`.
@lru_cache(maxsize=1024)
def forward_of(
    shape: torch.Size, strides: tuple[int, ...], device: torch.device, options: Options, keep: bool, facts: tuple
) -> Forward:
    x = _like(shape, strides, facts[0][0])
    return Forward(x, torch.empty_like(x), options, keep)


@lru_cache(maxsize=1024)
def backward_of(
    shape: torch.Size,
    strides: tuple[int, ...],
    g_strides: tuple[int, ...],
    device: torch.device,
    options: Options,
    facts: tuple,
) -> Backward:
    x, grad_y = (_like(shape, s, facts[0][0]) for s in (strides, g_strides))
    return Backward(x, torch.empty_like(x), grad_y, options)


def forget() -> None:
    """Plan again, as after another choice of the constants of :mod:`.plan`."""
    forward_of.cache_clear()
    backward_of.cache_clear()


def facts_of(tensors: Sequence[Tensor | None]) -> tuple:
    """What Triton looks at in tensors: dtype, and what their addresses are beyond a multiple of 16 bytes."""
    return tuple([None if t is None else (t.dtype, t.data_ptr() & 15) for t in tensors])  # a list is faster
