"""Pooling, and its transpose, for devices that launch kernels: by sums, few of them, and nothing copied from the host.

The CPU multiplies by small matrices instead (:mod:`mmccd.ops.torch_backend`). On a GPU a product may round its factors
to TF32, whose error is far above the tolerance for flat maps; it wants CUBLAS_WORKSPACE_CONFIG in deterministic mode;
and the matrices would be copied from the host, or kept in memory that a CUDA graph may own. Here every number is summed
in the computing dtype, and borders of cells and bins reach the device as arguments of kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import compute_dtype
from .geometry import bin_end, bin_start, cell_start
from .reference import upsample


def wanted(t: Tensor) -> bool:
    """Whether this file is for the device of t."""
    return t.device.type != 'cpu'


def pool(x: Tensor, scales: Sequence[int]) -> Tensor:
    """Context (N, C, S, S) of x (N, C, H, W), in the computing dtype."""
    h, w = x.shape[-2:]
    grid = max(scales)
    if h % grid == w % grid == 0 and not any(grid % s for s in scales):
        # Bins do not overlap and are unions of the finest: x is read once.
        x = sum_over_cells(x, grid)
        pools = [sum_over_cells(x, s) for s in scales]
        factors = [s * s / (h * w * len(scales)) for s in scales]
    else:
        x = x.to(compute_dtype(x.dtype))
        pools = [F.adaptive_avg_pool2d(x, s) for s in scales]
        factors = [1 / len(scales)] * len(scales)
    finest = scales.index(grid)
    context = pools.pop(finest) * factors.pop(finest)
    for coarser, factor in zip(pools, factors):
        s = coarser.shape[-1]
        if grid % s == 0:
            _by_cells(context, s).add_(coarser[:, :, :, None, :, None], alpha=factor)
        else:
            context.add_(upsample(coarser, grid, grid), alpha=factor)
    return context


def sum_over_cells(t: Tensor, cells: int) -> Tensor:
    """Sums (N, C, cells, cells), in the computing dtype, over the pixels of t (N, C, H, W) that read a cell."""
    n, c, h, w = t.shape
    dtype = compute_dtype(t.dtype)
    if h == w == cells and t.dtype == dtype:
        return t
    if h % cells == w % cells == 0:
        return _by_cells(t, cells).sum((3, 5), dtype=dtype)
    rows, cols = t.new_empty((n, c, cells, w), dtype=dtype), t.new_empty((n, c, cells, cells), dtype=dtype)
    for a in range(cells):
        torch.sum(t[:, :, cell_start(a, h, cells) : cell_start(a + 1, h, cells)], 2, dtype=dtype, out=rows[:, :, a])
    for a in range(cells):
        torch.sum(rows[..., cell_start(a, w, cells) : cell_start(a + 1, w, cells)], 3, out=cols[..., a])
    return cols


def add_pool_transposed_(out: Tensor, grad: Tensor, scales: Sequence[int]) -> None:
    """Add to out (N, C, H, W) what the gradient (N, C, S, S) of :func:`pool`'s result is to its argument.

    PyTorch's backward of adaptive pooling is not deterministic, and refuses to run where that is asked for; there bins
    are added one after the other, in more kernels.
    """
    h, w = out.shape[-2:]
    for s in scales:
        bins = sum_over_cells(grad, s)
        if h % s == w % s == 0:
            _by_cells(out, s).add_(bins[:, :, :, None, :, None], alpha=s * s / (h * w * len(scales)))
        elif torch.are_deterministic_algorithms_enabled():
            rows = out.new_zeros((*out.shape[:3], s))
            for b in range(s):
                begin, end = bin_start(b, h, s), bin_end(b, h, s)
                rows[:, :, begin:end].add_(bins[:, :, b : b + 1], alpha=1 / (end - begin))
            for b in range(s):
                begin, end = bin_start(b, w, s), bin_end(b, w, s)
                out[..., begin:end].add_(rows[..., b : b + 1], alpha=1 / ((end - begin) * len(scales)))
        else:
            out.add_(torch.ops.aten._adaptive_avg_pool2d_backward(bins, out), alpha=1 / len(scales))


def _by_cells(t: Tensor, cells: int) -> Tensor:
    """(N, C, H, W) as (N, C, cells, rows, cells, columns), where cells divide both."""
    return t.unflatten(3, (cells, -1)).unflatten(2, (cells, -1))
