"""What kernels of both directions are made of: positions in tiles, sums over cells, the mixing of scales.

The header of the package says what cells and tiles are. In shapes, LB and A are cells of a tile in a row and a column,
BH and BW rows and columns of a cell in a tile, CB channels; L is the number of cells of a side, S = max(SCALES).
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import triton
import triton.language as tl

from mmccd.ops import geometry

from . import plan

# Triton wants constants that kernels see to be of this type.
WHOLE, POOL, MEASURE, SUMS, APPLY = (tl.constexpr(stage) for stage in plan.STAGES)
UNIT_CHANNEL, UNIT_COLUMN = tl.constexpr(plan.UNIT_CHANNEL), tl.constexpr(plan.UNIT_COLUMN)
ZSCORE, MINMAX, NO_NORM = (tl.constexpr(plan.NORMALIZE[name]) for name in ('zscore', 'minmax', None))


def _for_kernels(function: Callable) -> Any:
    """A function of geometry, among this module's names: the interpreter looks there for Triton's language."""
    return triton.jit(FunctionType(function.__code__, globals(), function.__name__))


cell_of, cell_start = _for_kernels(geometry.cell_of), _for_kernels(geometry.cell_start)
bin_start, bin_end = _for_kernels(geometry.bin_start), _for_kernels(geometry.bin_end)


@triton.jit
def positions(
    t,
    tiles_h,
    tiles_w,
    height,
    width,
    cell_w,
    A: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    L: tl.constexpr,
    LB: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Tile t's rows of cells (A,), rows (BH, A), columns (LB, BW), and which of the last two are in their cells."""
    a, b = t // (tiles_h * tiles_w) + tl.arange(0, A), tl.arange(0, LB)
    i = t // tiles_w % tiles_h * BH + tl.arange(0, BH)
    j = t % tiles_w * BW + tl.arange(0, BW)
    if EVEN:
        cell_h = height // L
        h, w = (a * cell_h)[None, :] + i[:, None], (b * cell_w)[:, None] + j[None, :]
        return a, h, w, (a < L)[None, :] & (i < cell_h)[:, None], (b < L)[:, None] & (j < cell_w)[None, :]
    else:
        first, last = cell_start(a, height, L), cell_start(a + 1, height, L)
        h = first[None, :] + i[:, None]
        rows = (a < L)[None, :] & (h < last[None, :])
        first, last = cell_start(b, width, L), cell_start(b + 1, width, L)
        w = first[:, None] + j[None, :]
        return a, h, w, rows, (b < L)[:, None] & (w < last[:, None])


@triton.jit
def tile(c, h, w, s_c, s_h, s_w):
    """Offsets (LB, BH, A, CB, BW) in a slab."""
    return (c * s_c)[None, None, None, :, None] + (h * s_h)[None, :, :, None, None] + (w * s_w)[:, None, None, None, :]


@triton.jit
def cell_sums(v):
    """(LB, BH, A, CB, BW) to (CB, A, LB): columns first, which is within a warp."""
    return tl.permute(tl.sum(tl.sum(v, 4), 1), (2, 1, 0))


@triton.jit
def over_pixels(cells):
    """(CB, A, LB) to what broadcasts to a tile: (LB, 1, A, CB, 1)."""
    return tl.permute(cells, (2, 1, 0))[:, None, :, :, None]


@triton.jit
def over_channels(d):
    """(LB, BH, A, BW) to what broadcasts to a tile: (LB, BH, A, 1, BW)."""
    return d[:, :, :, None, :]


@triton.jit
def edges(
    x,
    c,
    a,
    h,
    w,
    rows,
    columns,
    height,
    width,
    s_c,
    s_h,
    s_w,
    CG: tl.constexpr,
    L: tl.constexpr,
    LB: tl.constexpr,
    ACC: tl.constexpr,
):
    """Sums of x over what bins have besides their cells: a row, a column, a corner; each (CB, A, LB).

    Read once more, for these lines are few, and in a cache.
    """
    b = tl.arange(0, LB)
    r, q = bin_start(a, height, L), bin_start(b, width, L)
    shared_r, shared_q = (a < L) & (a * height % L != 0), (b < L) & (b * width % L != 0)
    row = tl.load(
        x + (c * s_c)[:, None, None, None] + (r * s_h)[None, :, None, None] + (w * s_w)[None, None, :, :],
        (c < CG)[:, None, None, None] & shared_r[None, :, None, None] & columns[None, None, :, :],
        0.0,
    )
    column = tl.load(
        x + (c * s_c)[:, None, None, None] + (h * s_h)[None, :, :, None] + (q * s_w)[None, None, None, :],
        (c < CG)[:, None, None, None] & rows[None, :, :, None] & shared_q[None, None, None, :],
        0.0,
    )
    corner = tl.load(
        x + (c * s_c)[:, None, None] + (r * s_h)[None, :, None] + (q * s_w)[None, None, :],
        (c < CG)[:, None, None] & shared_r[None, :, None] & shared_q[None, None, :],
        0.0,
    )
    return tl.sum(row.to(ACC), 3), tl.sum(column.to(ACC), 1), corner.to(ACC)


@triton.jit
def _gather_rows(v, member):
    """Sums of v (CB, LB, LB) over the rows that are members (row, row of v) of each row."""
    return tl.sum(tl.where(member[None, :, :, None], v[:, None, :, :], 0), 2)


@triton.jit
def _gather_columns(v, member):
    return tl.sum(tl.where(member[None, None, :, :], v[:, :, None, :], 0), 3)


@triton.jit
def _blocks(v, s: tl.constexpr, S: tl.constexpr, L: tl.constexpr, LB: tl.constexpr, BACK: tl.constexpr):
    """For every cell the sum of v (CB, LB, LB) over the cells of the s x s bin that it reads; BACK: the transpose."""
    if S == LB and s == S:
        return v
    elif S == LB and L == LB:  # powers of two that divide each other: blocks, and their own transpose
        r: tl.constexpr = S // s
        sums = tl.sum(tl.sum(tl.reshape(v, (v.shape[0], s, r, s, r)), 4), 2)  # (CB, s, s)
        return tl.reshape(tl.broadcast_to(sums[:, :, None, :, None], (v.shape[0], s, r, s, r)), v.shape)
    else:
        i = tl.arange(0, LB)
        reads, has = cell_of(cell_of(i, L, S), S, s), cell_of(i, L, s)
        if BACK:
            member = has[:, None] == reads[None, :]
        else:
            member = reads[:, None] == has[None, :]
        member = member & (i < L)[None, :]
        return _gather_columns(_gather_rows(v, member), member)


@triton.jit
def _per_area(
    v,
    height,
    width,
    s: tl.constexpr,
    S: tl.constexpr,
    L: tl.constexpr,
    LB: tl.constexpr,
    EVEN: tl.constexpr,
    BACK: tl.constexpr,
):
    """v (CB, LB, LB) over the pixels of the s x s bin that a cell reads; BACK: that it belongs to."""
    if EVEN:
        return v * (s * s / (height * width).to(v.dtype))
    else:
        i = tl.arange(0, LB)
        if BACK:
            i = cell_of(i, L, s)
        else:
            i = cell_of(cell_of(i, L, S), S, s)
        top, bottom = bin_start(i, height, s), bin_end(i, height, s)
        left, right = bin_start(i, width, s), bin_end(i, width, s)
        return v / ((bottom - top)[:, None] * (right - left)[None, :]).to(v.dtype)[None, :, :]


@triton.jit
def mix(
    cells,
    row,
    column,
    corner,
    height,
    width,
    SCALES: tl.constexpr,
    S: tl.constexpr,
    L: tl.constexpr,
    LB: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Context of every cell, (CB, LB, LB), from the four sums of every cell; where EVEN, the last three are unused."""
    i = tl.arange(0, LB)
    context = tl.zeros_like(cells)
    for k in tl.static_range(len(SCALES)):
        v = cells
        if not EVEN:
            border = i % (L // SCALES[k]) == 0  # the first cell of a bin of this scale
            v += tl.where(border[None, :, None], row, 0) + tl.where(border[None, None, :], column, 0)
            v += tl.where((border[:, None] & border[None, :])[None, :, :], corner, 0)
        context += _per_area(_blocks(v, SCALES[k], S, L, LB, False), height, width, SCALES[k], S, L, LB, EVEN, False)
    return context / len(SCALES)


@triton.jit
def mix_back(
    grad, height, width, SCALES: tl.constexpr, S: tl.constexpr, L: tl.constexpr, LB: tl.constexpr, EVEN: tl.constexpr
):
    """Transpose of mix and edges: what the pixels of a cell get, and besides its last row, column and corner."""
    i = tl.arange(0, LB)
    cells = tl.zeros_like(grad)
    row, column, corner = cells, cells, cells
    for k in tl.static_range(len(SCALES)):
        v = _per_area(_blocks(grad, SCALES[k], S, L, LB, True), height, width, SCALES[k], S, L, LB, EVEN, True)
        cells += v
        if not EVEN:
            border = i % (L // SCALES[k]) == 0
            row += tl.where(border[None, :, None], v, 0)
            column += tl.where(border[None, None, :], v, 0)
            corner += tl.where((border[:, None] & border[None, :])[None, :, :], v, 0)
    if not EVEN:
        # From the bin that takes a line of another cell, to that cell: the one before, farther if those between are
        # empty, as they are on maps with fewer pixels than cells.
        member = (cell_of(bin_start(i, height, L), height, L)[None, :] == i[:, None]) & (
            (i < L) & (i * height % L != 0)
        )[None, :]
        row, corner = _gather_rows(row, member), _gather_rows(corner, member)
        member = (cell_of(bin_start(i, width, L), width, L)[None, :] == i[:, None]) & ((i < L) & (i * width % L != 0))[
            None, :
        ]
        column, corner = _gather_columns(column, member), _gather_columns(corner, member)
    return cells / len(SCALES), row / len(SCALES), column / len(SCALES), corner / len(SCALES)


@triton.jit
def at_cells(c, a, CG: tl.constexpr, L: tl.constexpr, LB: tl.constexpr):
    """Offsets and mask (CB, A, LB) of cells in contiguous (CG, L, L)."""
    b = tl.arange(0, LB)
    offsets = c[:, None, None] * (L * L) + a[None, :, None] * L + b[None, None, :]
    return offsets, (c < CG)[:, None, None] & (a < L)[None, :, None] & (b < L)[None, None, :]


@triton.jit
def at_context(c, a, CG: tl.constexpr, S: tl.constexpr, L: tl.constexpr, LB: tl.constexpr):
    """Offsets (CB, A, LB) of what cells read in a slab's context, contiguous (CG, S, S); which cells are, and write."""
    b = tl.arange(0, LB)
    offsets = c[:, None, None] * (S * S) + cell_of(a, L, S)[None, :, None] * S + cell_of(b, L, S)[None, None, :]
    reads = (c < CG)[:, None, None] & (a < L)[None, :, None] & (b < L)[None, None, :]
    return offsets, reads, reads & (a % (L // S) == 0)[None, :, None] & (b % (L // S) == 0)[None, None, :]


@triton.jit
def similarity(v, u, COSINE: tl.constexpr, MIN: tl.constexpr):
    """d, (LB, BH, A, BW), of v (LB, BH, A, CB, BW) and u (LB, 1, A, CB, 1)."""
    d = tl.sum(v * u, 3)
    if COSINE:
        d = d / (tl.maximum(tl.sqrt(tl.sum(v * v, 3)), MIN) * tl.maximum(tl.sqrt(tl.sum(u * u, 3)), MIN))
    return d


@triton.jit
def factor(std_or_range, NORM: tl.constexpr, EPS: tl.constexpr):
    """From a deviation or range, which is 0 where the map is flat."""
    if NORM == ZSCORE:
        return tl.where(std_or_range == 0, 0, 1 / (std_or_range + EPS))
    else:
        return tl.where(std_or_range == 0, 0, 1 / tl.where(std_or_range == 0, 1, std_or_range))
