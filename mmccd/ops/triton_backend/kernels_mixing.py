"""The mixing of scales: from sums over cells to the context, and its transpose.

In shapes, LB is a power of two from L on, the number of cells of a side; S = max(SCALES).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels_shared import bin_end, bin_start, cell_of


@triton.jit
def _gather_rows(v, member):
    """Sums of v (CB, LB, LB) over the rows that are members (row, row of v) of each row."""
    return tl.sum(tl.where(member[None, :, :, None], v[:, None, :, :], 0), 2)


@triton.jit
def _gather_columns(v, member):
    return tl.sum(tl.where(member[None, None, :, :], v[:, :, None, :], 0), 3)


@triton.jit
def _blocks(v, s: tl.constexpr, BACK: tl.constexpr, P: tl.constexpr):
    """For every cell the sum of v (CB, LB, LB) over the cells of the s x s bin that it reads; BACK: the transpose."""
    if P.S == P.LB and s == P.S:
        return v
    elif P.S == P.LB and P.L == P.LB:  # powers of two that divide each other: blocks, and their own transpose
        r: tl.constexpr = P.S // s
        sums = tl.sum(tl.sum(tl.reshape(v, (v.shape[0], s, r, s, r)), 4), 2)  # (CB, s, s)
        return tl.reshape(tl.broadcast_to(sums[:, :, None, :, None], (v.shape[0], s, r, s, r)), v.shape)
    else:
        i = tl.arange(0, P.LB)
        reads, has = cell_of(cell_of(i, P.L, P.S), P.S, s), cell_of(i, P.L, s)
        if BACK:
            member = has[:, None] == reads[None, :]
        else:
            member = reads[:, None] == has[None, :]
        member = member & (i < P.L)[None, :]
        return _gather_columns(_gather_rows(v, member), member)


@triton.jit
def _per_area(v, height, width, s: tl.constexpr, BACK: tl.constexpr, P: tl.constexpr):
    """v (CB, LB, LB) over the pixels of the s x s bin that a cell reads; BACK: that it belongs to."""
    if P.EVEN:
        return v * (s * s / tl.full((), height * width, v.dtype))
    elif s == 1:
        return v / tl.full((), height * width, v.dtype)
    else:
        i = tl.arange(0, P.LB)
        if BACK:
            i = cell_of(i, P.L, s)
        else:
            i = cell_of(cell_of(i, P.L, P.S), P.S, s)
        top, bottom = bin_start(i, height, s), bin_end(i, height, s)
        left, right = bin_start(i, width, s), bin_end(i, width, s)
        return v / ((bottom - top)[:, None] * (right - left)[None, :]).to(v.dtype)[None, :, :]


@triton.jit
def mix(cells, row, column, corner, height, width, P: tl.constexpr):
    """Context of every cell, (CB, LB, LB), from the four sums of every cell; where EVEN, the last three are unused."""
    i = tl.arange(0, P.LB)
    context = tl.zeros_like(cells)
    for k in tl.static_range(len(P.SCALES)):
        v = cells
        if not P.EVEN:
            # The first cell of a bin of this scale.
            border = i % (P.L // P.SCALES[k]) == 0
            v += tl.where(border[None, :, None], row, 0) + tl.where(border[None, None, :], column, 0)
            v += tl.where((border[:, None] & border[None, :])[None, :, :], corner, 0)
        context += _per_area(_blocks(v, P.SCALES[k], False, P), height, width, P.SCALES[k], False, P)
    return context / len(P.SCALES)


@triton.jit
def _to_cell(v, size, AXIS: tl.constexpr, P: tl.constexpr):
    """Of v (CB, LB, LB), from the bin that takes a line of another cell to that cell, along an axis.

    That is the cell before, farther if those between are empty, as they are on maps with fewer pixels than cells. NEXT
    says that no one is farther: an exchange between threads instead of a table (CB, LB, LB, LB).
    """
    i = tl.arange(0, P.LB)
    if P.NEXT:
        there = (i + 1 < P.L) & ((i + 1) * size % P.L != 0)
        after = tl.minimum(i + 1, P.LB - 1)
        if AXIS == 1:
            there, after = there[None, :, None], after[None, :, None]
        else:
            there, after = there[None, None, :], after[None, None, :]
        return tl.where(there, tl.gather(v, tl.broadcast_to(after, v.shape), AXIS), 0)
    else:
        member = cell_of(bin_start(i, size, P.L), size, P.L)[None, :] == i[:, None]
        member = member & ((i < P.L) & (i * size % P.L != 0))[None, :]
        if AXIS == 1:
            return _gather_rows(v, member)
        else:
            return _gather_columns(v, member)


@triton.jit
def mix_back(grad, height, width, P: tl.constexpr):
    """Transpose of mix and edges: what the pixels of a cell get, and besides its last row, column and corner."""
    i = tl.arange(0, P.LB)
    cells = tl.zeros_like(grad)
    row, column, corner = cells, cells, cells
    for k in tl.static_range(len(P.SCALES)):
        v = _per_area(_blocks(grad, P.SCALES[k], True, P), height, width, P.SCALES[k], True, P)
        cells += v
        if not P.EVEN and P.SCALES[k] == P.L:
            row, column, corner = row + v, column + v, corner + v
        elif not P.EVEN and P.SCALES[k] != 1:
            border = i % (P.L // P.SCALES[k]) == 0
            row += tl.where(border[None, :, None], v, 0)
            column += tl.where(border[None, None, :], v, 0)
            corner += tl.where((border[:, None] & border[None, :])[None, :, :], v, 0)
    if not P.EVEN:
        row, corner = _to_cell(row, height, 1, P), _to_cell(corner, height, 1, P)
        column, corner = _to_cell(column, width, 2, P), _to_cell(corner, width, 2, P)
    return cells / len(P.SCALES), row / len(P.SCALES), column / len(P.SCALES), corner / len(P.SCALES)
