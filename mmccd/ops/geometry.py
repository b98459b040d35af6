r"""Cells, bins and segments of one axis: which pixels a cell of the context averages, and which read it.

An axis of ``size`` pixels meets a grid of ``cells`` in two ways, both in integers, so that no rounding moves a border:

* **Pooling.** Bin b averages the pixels from :func:`bin_start` to before :func:`bin_end`, as adaptive average pooling
  does. Bins overlap by a pixel where the grid does not divide the axis.
* **Reading.** Pixel i reads cell :func:`cell_of`; cell a is read from pixel :func:`cell_start` (a) to before that of
  a + 1. Cells do not overlap; on axes of fewer pixels than cells, some are read by none.

Grids meet each other by the same formulas: cell a of a grid of S reads cell ``cell_of(a, S, s)`` of a grid of s.

The four functions take integers of at least 0: of Python, NumPy or PyTorch, and inside kernels. ``numba.njit`` and
``triton.jit`` compile these very functions, so they hold arithmetic alone: no calls, no annotations.

A **segment** is a longest run of pixels without a border of a cell or bin in it: every weight of a pooling and every
nearest cell is constant on it, so that pooling is a sum over segments and a product with a small matrix.
"""

# mypy: disable-error-code=no-untyped-def
# numba and Triton compile what has no annotations.
from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np


def cell_of(i, size, cells):
    """Cell that position i of ``size`` reads on a grid of ``cells``."""
    return i * cells // size


def cell_start(a, size, cells):
    """First of ``size`` positions that reads cell a of ``cells`` or a later one; ``size`` where a is ``cells``."""
    return (a * size + cells - 1) // cells


def bin_start(b, size, bins):
    """First of ``size`` positions that adaptive pooling to ``bins`` averages in bin b."""
    return b * size // bins


def bin_end(b, size, bins):
    """The position after the last one that adaptive pooling to ``bins`` averages in bin b."""
    return ((b + 1) * size + bins - 1) // bins


class Axis(NamedTuple):
    """One axis, cut into segments.

    Attributes:
        bounds (tuple[int, ...]): Where segments begin, and the axis' size at the end; segments + 1 numbers.
        cell (tuple[int, ...]): Cell of the finest grid that a segment's pixels read; one a segment.
        pool (np.ndarray): (scales, S, segments), float64: weight of one pixel of the segment in the bin that a cell of
            the finest grid, of S = max(scales), reads at each scale.
    """

    bounds: tuple[int, ...]
    cell: tuple[int, ...]
    pool: np.ndarray

    @property
    def segments(self) -> list[tuple[int, int, int]]:
        """(begin, end, cell) of every segment."""
        return list(zip(self.bounds, self.bounds[1:], self.cell))

    @property
    def lengths(self) -> np.ndarray:
        """Pixels of every segment, (segments,)."""
        return np.diff(self.bounds)

    @property
    def pool_by_pixel(self) -> np.ndarray:
        """(scales, S, size): ``pool`` with every segment's column as often as it has pixels."""
        return np.repeat(self.pool, self.lengths, axis=2)


@lru_cache(maxsize=4096)
def cut_axis(size: int, scales: tuple[int, ...]) -> Axis:
    """Segments of an axis of ``size`` pixels; see :class:`Axis`.

    Example:
        >>> cut_axis(5, (1, 2)).segments  # bins 0-2 and 2-4, cells 0-2 and 3-4
        [(0, 2, 0), (2, 3, 0), (3, 5, 1)]
    """
    grid = max(scales)
    edges = {cell_start(a, size, grid) for a in range(grid + 1)}
    for s in scales:
        edges |= {bin_start(b, size, s) for b in range(s)} | {bin_end(b, size, s) for b in range(s)}
    bounds = tuple(sorted(edges))
    first = np.array(bounds[:-1])  # a segment's first pixel stands for all of its pixels
    pool = np.zeros((len(scales), grid, len(first)))
    for weights, s in zip(pool, scales):
        for a in range(grid):
            b = cell_of(a, grid, s)
            begin, end = bin_start(b, size, s), bin_end(b, size, s)
            weights[a, (begin <= first) & (first < end)] = 1 / (end - begin)
    pool.flags.writeable = False  # shared by all who ask
    return Axis(bounds, tuple(cell_of(first, size, grid).tolist()), pool)


def context_weights(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Weight of every sum over a rectangle of pixels in every cell of the context.

    Args:
        rows (np.ndarray): (scales, S, R): :attr:`Axis.pool` or :attr:`Axis.pool_by_pixel` of the rows.
        cols (np.ndarray): (scales, S, C), that of the columns.

    Returns:
        np.ndarray: (S * S, R * C), float64, the mean over scales.
    """
    cells = rows.shape[1] * cols.shape[1]
    return np.einsum('sai,sbj->abij', rows / len(rows), cols).reshape(cells, -1)


def cell_of_pixel(height: int, width: int, grid: int) -> np.ndarray:
    """Cell of a grid x grid context that every pixel reads, row by row: (height * width,), int64."""
    rows, cols = (cell_of(np.arange(size), size, grid) for size in (height, width))
    return (rows[:, None] * grid + cols).ravel()
