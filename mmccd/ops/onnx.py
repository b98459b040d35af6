"""The parts of CCD that depend on height and width, in operators that ONNX has: one graph for any size.

``ccd_gate`` takes them while ONNX is exported. ONNX has no adaptive pooling, so poolings are products with matrices
that the graph makes from the size it gets; cells are found in integers, as everywhere; and nothing is decided by the
size of the image that is traced, a single pixel included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .geometry import bin_end, bin_start, cell_of
from .options import FLATNESS


class _Counts:
    """Integers of at least 0 whose ``//`` truncates: one operator of ONNX, where a tensor's own, floor, is nine."""

    def __init__(self, value: int | Tensor) -> None:
        self.value = value

    def __add__(self, other: int) -> _Counts:
        return _Counts(self.value + other)

    def __sub__(self, other: int) -> _Counts:
        return _Counts(self.value - other)

    def __mul__(self, other: int | Tensor) -> _Counts:
        return _Counts(self.value * other)

    def __floordiv__(self, other: int | Tensor) -> Tensor:
        return torch.div(self.value, other, rounding_mode='trunc')


def _cells(size: Any, cells: int) -> Tensor:
    """Cell that each of ``size`` (int, or what stands for it in the graph) positions reads, (size,)."""
    return cell_of(_Counts(torch.arange(size)), size, cells)


def pooling_matrix(size: Any, cells: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(cells, size): row i averages the positions from ``bin_start(i)`` to before ``bin_end(i)``."""
    i = _Counts(torch.arange(cells))
    start, end = bin_start(i, size, cells), bin_end(i, size, cells)
    position = torch.arange(size)
    inside = (position >= start[:, None]) & (position < end[:, None])
    return inside.to(dtype) / (end - start).to(dtype)[:, None]


def pooled_context(z: Tensor, scales: Sequence[int]) -> Tensor:
    """Mean of the poolings, upsampled to the size of ``z``, (N, C, H, W)."""
    height, width = z.shape[-2:]
    grid = max(scales)
    total: Any = 0
    for s in scales:
        if s == 1:  # (N, C, 1, 1), added to every cell
            total = total + z.mean((2, 3), keepdim=True)
            continue
        p = pooling_matrix(height, s, z.dtype) @ (z @ pooling_matrix(width, s, z.dtype).T)  # (N, C, s, s)
        cells = _cells(grid, s)
        total = total + (p if s == grid else p.index_select(2, cells).index_select(3, cells))
    # Columns by a product with ones and zeros: onnxruntime's Gather is slow along the last axis.
    columns = (_cells(width, grid) == torch.arange(grid)[:, None]).to(z.dtype)  # (grid, W)
    return (total / len(scales) @ columns).index_select(2, _cells(height, grid))


def normalize_over_space(d: Tensor, normalize: str | None, eps: float) -> Tensor:
    """Normalise (N, G, H, W) over H and W; 0 where it is flat."""
    if normalize is None:
        return d
    tolerance = FLATNESS * torch.finfo(d.dtype).eps
    if normalize == 'zscore':
        mean = d.mean((2, 3), keepdim=True)
        pixels = torch.ones_like(d[:1, :1]).sum()
        variance = (d - mean).square().sum((2, 3), keepdim=True) / (pixels - 1).clamp_min(1)  # N - 1
        std = variance.sqrt()
        return ((d - mean) / (std + eps)).masked_fill(std <= tolerance * mean.abs(), 0)
    low, high = d.amin((2, 3), keepdim=True), d.amax((2, 3), keepdim=True)
    flat = high - low <= tolerance * torch.maximum(low.abs(), high.abs())
    return ((d - low) / (high - low).masked_fill(flat, 1)).masked_fill(flat, 0)
