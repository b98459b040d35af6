"""What the compiled loops are given: one record a call, and tables that depend on the size of the map alone.

Nothing here needs numba, so that a machine without it can still import the backend and learn why it cannot run.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from mmccd.ops.geometry import cell_of, cell_start, context_weights, cut_axis
from mmccd.ops.options import FLATNESS, MIN_NORM, Options

# Numbers of a vector in the loops; LLVM splits it where registers are shorter.
LANES = 16
# Numbers for which waking another thread pays, as in PyTorch's own loops.
GRAIN = 32768
CACHE_LINE = 64  # bytes

_ADDRESS, _INT, _FLOAT = np.int64, np.int64, np.float64
# The loops read these fields by name. Addresses are those of an array's first element, 0 where there is no such array.
ARGUMENTS = np.dtype(
    [
        ('next', _INT),  # the number of the next thread that comes
        ('threads', _INT),
        ('taken', _ADDRESS),  # (threads, CACHE_LINE) bytes: how many slabs, or blocks, of each thread's share are taken
        # Tensors; context, d and stats are described in mmccd.ops.backends
        ('x', _ADDRESS),
        ('out', _ADDRESS),  # written: y in forward, grad_x in backward
        ('scale', _ADDRESS),
        ('bias', _ADDRESS),
        ('weight', _ADDRESS),  # of the affine that x goes through first, (C,)
        ('shift', _ADDRESS),
        ('mean', _ADDRESS),  # with these two, weight and shift are those of a batch norm instead, (C,)
        ('variance', _ADDRESS),
        ('context', _ADDRESS),
        ('d', _ADDRESS),
        ('stats', _ADDRESS),
        ('residual', _ADDRESS),
        ('y', _ADDRESS),  # the y of a forward with a residual, read by backward
        ('grad_y', _ADDRESS),
        ('grad_residual', _ADDRESS),
        ('grad_scale', _ADDRESS),  # (N, G) float64
        ('grad_bias', _ADDRESS),  # (N, G) float64
        ('grad_weight', _ADDRESS),  # (N, C) float64
        ('grad_shift', _ADDRESS),  # (N, C) float64
        # Arrays of Tables
        ('row_bounds', _ADDRESS),
        ('col_bounds', _ADDRESS),
        ('row_cells', _ADDRESS),
        ('col_cells', _ADDRESS),
        ('row_edges', _ADDRESS),
        ('col_edges', _ADDRESS),
        ('matrix', _ADDRESS),
        ('matrix_t', _ADDRESS),
        ('cells_t', _ADDRESS),
        # Sizes
        ('samples', _INT),
        ('channels', _INT),
        ('groups', _INT),
        ('height', _INT),
        ('width', _INT),
        ('grid', _INT),  # S = max(scales)
        ('row_segments', _INT),
        ('col_segments', _INT),
        ('block', _INT),  # slabs that are gathered together
        # Layouts: strides of (N, C, H, W); whether samples are contiguous, so that they are read or written in place
        ('x_strides', _INT, (4,)),
        ('out_strides', _INT, (4,)),
        ('grad_y_strides', _INT, (4,)),
        ('x_in_place', _INT),
        ('out_in_place', _INT),
        ('grad_y_in_place', _INT),
        # Options
        ('cosine', _INT),
        ('normalize', _INT),  # of NORMALIZE
        ('eps', _FLOAT),
        ('norm_eps', _FLOAT),
        ('gain', _FLOAT),
        ('flat', _FLOAT),  # a map is flat if its deviation or range is at most this times its mean
        ('min_norm', _FLOAT),
        ('keep', _INT),
        ('need_x', _INT),
    ],
    align=True,
)
NO_NORM, ZSCORE, MINMAX = range(3)
NORMALIZE = {None: NO_NORM, 'zscore': ZSCORE, 'minmax': MINMAX}


class Tables(NamedTuple):
    """What depends on the size of the map alone.

    Narrow maps (W < LANES) are tabled pixel by pixel, wide ones by segments of rows (R of them) and, where the
    context's gradient is written back, of columns (K). See :mod:`mmccd.ops.geometry` for cells and segments.
    """

    row_bounds: np.ndarray  # (R + 1,) int64: where segments of rows begin
    col_bounds: np.ndarray  # (K + 1,) int64: the same of columns
    row_cells: np.ndarray  # (H,) int64: row of cells that a row reads
    col_cells: np.ndarray  # (W,) int64: column of cells that a column reads
    row_edges: np.ndarray  # (S + 1,) int64: first row that reads a row of cells
    col_edges: np.ndarray  # (S + 1,) int64: first column that reads a column of cells
    matrix: np.ndarray  # (H * W or R * W, S * S padded): weight of a sum in a cell's context
    matrix_t: np.ndarray  # (S * S, H * W or R * K padded): weight of a cell in a pixel, or in a segment
    cells_t: np.ndarray  # (H * W or S * W, S * S padded): 1 where the pixel, or sum over a cell's rows, reads the cell


def padded(size: int) -> int:
    """``size`` rounded up to whole vectors."""
    return -(-size // LANES) * LANES


@lru_cache(maxsize=512)
def tables(height: int, width: int, scales: tuple[int, ...], dtype: torch.dtype) -> Tables:
    """Tables of a size; matrices in ``dtype``, the computing one."""
    rows, cols = cut_axis(height, scales), cut_axis(width, scales)
    grid, narrow = max(scales), width < LANES
    row_pool = rows.pool_by_pixel if narrow else rows.pool
    weights = context_weights(row_pool, cols.pool_by_pixel)
    back = weights if narrow else context_weights(row_pool, cols.pool)
    row_cells, col_cells = (cell_of(np.arange(size), size, grid) for size in (height, width))
    row_edges, col_edges = (cell_start(np.arange(grid + 1), size, grid) for size in (height, width))
    summed = row_cells if narrow else np.arange(grid)
    cell = (summed[:, None] * grid + col_cells).ravel()

    real = np.float64 if dtype == torch.float64 else np.float32
    matrix = np.zeros((weights.shape[1], padded(grid * grid)), real)
    matrix[:, : grid * grid] = weights.T
    matrix_t = np.zeros((grid * grid, padded(back.shape[1])), real)
    matrix_t[:, : back.shape[1]] = back
    cells_t = np.zeros((len(cell), padded(grid * grid)), real)
    cells_t[np.arange(len(cell)), cell] = 1
    row_bounds, col_bounds = np.array(rows.bounds), np.array(cols.bounds)
    return Tables(row_bounds, col_bounds, row_cells, col_cells, row_edges, col_edges, matrix, matrix_t, cells_t)


class Arguments:
    """A record of ARGUMENTS that is written by the names of its fields, each of 8 bytes; NumPy takes 4 times as long.

    Attributes:
        address (int): Where it lies.
    """

    _AT = {name: at // 8 for name, (_, at, *_) in (ARGUMENTS.fields or {}).items()}

    def __init__(self, record: bytearray) -> None:
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(record))
        self._integers, self._floats = memoryview(record).cast('q'), memoryview(record).cast('d')

    def share(self, threads: int) -> None:
        """Make so many shares of the slabs."""
        self._taken = (ctypes.c_int64 * (threads * (CACHE_LINE // 8)))()
        self.set(threads=threads, taken=ctypes.addressof(self._taken))

    def set(self, **values: float | tuple[int, ...]) -> None:
        """Write fields: floats, integers, or four strides."""
        for name, value in values.items():
            at = self._AT[name]
            if isinstance(value, tuple):
                for i, stride in enumerate(value):
                    self._integers[at + i] = stride
            elif isinstance(value, float):
                self._floats[at] = value
            else:
                self._integers[at] = value


class Plan(NamedTuple):
    """What calls for one size, layout and set of options share."""

    record: bytes  # ARGUMENTS without the addresses of tensors
    threads: int  # for which there is work
    tables: Tables  # held, since the record has their addresses

    def arguments(self) -> Arguments:
        """A record of its own for a call."""
        return Arguments(bytearray(self.record))


def samples_are_contiguous(shape: torch.Size, strides: tuple[int, ...]) -> bool:
    """Whether every sample of a tensor (N, C, H, W) is contiguous, so that loops can read or write it in place."""
    _, c, h, w = shape
    _, sc, sh, sw = strides
    return (sw == 1 or w == 1) and (sh == w or h == 1) and (sc == h * w or c == 1)


@lru_cache(maxsize=1024)
def plan(
    shape: torch.Size,
    x_strides: tuple[int, ...],
    out_strides: tuple[int, ...],
    options: Options,
    dtype: torch.dtype,
) -> Plan:
    """Plan of a call that reads x of this shape and writes a tensor like it."""
    samples, channels, height, width = shape
    groups = options.groups
    x_in_place, out_in_place = (samples_are_contiguous(shape, strides) for strides in (x_strides, out_strides))
    sized = tables(height, width, options.scales, dtype)
    a = np.zeros(1, ARGUMENTS)
    for name, table in sized._asdict().items():
        a[name] = table.ctypes.data
    # A cache line of channels together, where a pixel's channels are neighbours in memory.
    line = -(-CACHE_LINE // (channels // groups * dtype.itemsize))
    block = 1 if x_in_place else min(groups, line)
    values = dict(
        samples=samples,
        channels=channels,
        groups=groups,
        height=height,
        width=width,
        grid=max(options.scales),
        row_segments=len(sized.row_bounds) - 1,
        col_segments=len(sized.col_bounds) - 1,
        block=block,
        x_strides=x_strides,
        out_strides=out_strides,
        x_in_place=x_in_place,
        out_in_place=out_in_place,
        cosine=options.similarity == 'cosine',
        normalize=NORMALIZE[options.normalize],
        eps=options.eps,
        gain=options.gain,
        flat=FLATNESS * torch.finfo(dtype).eps,
        min_norm=MIN_NORM,
    )
    for name, value in values.items():
        a[name] = value
    slabs = samples * -(-groups // block)
    return Plan(a.tobytes(), min(slabs, -(-shape.numel() // GRAIN)), sized)
