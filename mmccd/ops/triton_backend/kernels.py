r"""CCD in Triton: for CUDA, and on the CPU in Triton's interpreter (``TRITON_INTERPRET=1`` set before the import).

A slab is what one group of one sample holds, C/G channels by H x W pixels; slabs are independent of each other. With x
and u the slab and its upsampled context, P the adaptive poolings with their mean (:math:`ctx = P x`), sums over c over
the slab's channels, and sums over i over its pixels:

.. math::
    d_i &= \sum_c x_{ci} u_{ci} \ \text{or its cosine},
    \qquad \hat d = (d - shift) \cdot factor, \qquad y = x \cdot gain\,\sigma(scale\,\hat d + bias) \\
    a_i &= gain\,\sigma'(scale\,\hat d_i + bias) \sum_c \bar y_{ci} x_{ci},
    \qquad \overline{bias} = \sum_i a_i, \qquad \overline{scale} = \sum_i a_i \hat d_i \\
    \bar d_i &= \alpha\,scale\,a_i - \beta\,m_i - \gamma\,m'_i \\
    \overline{ctx}_{c,cell} &= \sum_{i \in cell} \bar d_i \frac{\partial d_i}{\partial u_{ci}},
    \qquad \bar x = \bar y \cdot gain\,\sigma + \bar d\,\frac{\partial d}{\partial x} + P^T\,\overline{ctx}

========== ============== =================== ===================================
normalize  shift          factor              m, m'
========== ============== =================== ===================================
zscore     mean           1 / (std + eps)     1, :math:`\hat d`
minmax     min            1 / (max - min)     1 at the minima, 1 at the maxima
None       0              1                   none
========== ============== =================== ===================================

========== ====== ======================================= ======================================
normalize  alpha  beta                                    gamma
========== ====== ======================================= ======================================
zscore     factor scale bias' factor / HW                 scale scale' / (std (HW - 1))
minmax     factor scale (bias' - scale') factor / #minima scale scale' factor / #maxima
None       1      0                                       0
========== ====== ======================================= ======================================

where bias' and scale' are that slab's shares of the two gradients. A flat map has factor, beta and gamma 0: the forward
decides, the backward reads the decision.

**Cells.** The image is cut into L x L cells, L the least common multiple of the scales (the finest grid, where the
others divide it); cell k has the pixels from ceil(k H / L) on. Tiles are (L, rows, A, C/G, columns): A rows of cells,
some rows and columns in each; in this order, because Triton spreads threads over the contiguous dimension, and then
from the first dimension on, and sums over channels should stay within a thread. On a cell the context is one number,
and its gradient one sum, so nothing is selected or looked up pixel by pixel. Bin k of an L x L adaptive pooling is cell
k and, where L does not divide H, the last row before it, which bin k - 1 has too; bins of the other scales are unions
of these. So pools are four sums of every cell: of the cell, of that row, of that column, of their corner. Back, a
cell's last row gets what the next bins give it.

**Two ways, one code.** ``WHOLE``: the slab is one tile. One program reads it once, keeps it in registers and writes it
once, forward and backward. Else a program takes a tile, and a stage that needs a sum over the slab ends its kernel:
``POOL``, ``MEASURE``, ``APPLY`` (x read three times), and backward ``SUMS``, ``APPLY`` (x and the gradient read twice).
Two passes do backward, since :math:`\overline{ctx}` is linear in alpha, beta and gamma: the sums of :math:`a_i`,
:math:`m_i` and :math:`m'_i` times the derivative are taken before these are known. Partial sums lie in memory and are
added in a fixed order; there are no atomics, so results repeat to the bit. There is no contiguous copy of anything:
kernels go by strides.

**Compilations.** Everything that depends on the image's size is a run-time argument, never specialised on, except
for facts with few values each: the way and its tile, whether L divides the image (``EVEN``), which stride is one
(``UNIT``), and the power of two that divides the others (``ALIGN``, at most 16 bytes), without which no load could be a
vector. :func:`launch_plan` is all of it, and has few values for one layer, however many sizes it sees.
"""

# ruff: noqa: SIM109  (Triton's language has no `in`)
from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmccd.ops import torch_backend as ccd_torch
from mmccd.ops.functional import FLATNESS, MIN_NORM, CCDOptions

# Elements of the padded slab up to which it is one tile, kept in registers.
WHOLE_LIMIT = 16384
# Elements of the other way's tiles.
TILE_ELEMENTS = 4096
# Elements of the largest table in the mixing of scales, (C/G, L, L, L); stock operators beyond.
MIX_LIMIT = 1 << 17

# What a launch does.
WHOLE, POOL, MEASURE, SUMS, APPLY = (tl.constexpr(i) for i in range(5))
# Which stride is one.
UNIT_NONE, UNIT_CHANNEL, UNIT_COLUMN = (tl.constexpr(i) for i in range(3))
ZSCORE, MINMAX, NO_NORM = (tl.constexpr(i) for i in range(3))
NORMALIZE = {'zscore': ZSCORE.value, 'minmax': MINMAX.value, None: NO_NORM.value}

# Triton compiles anew for an integer that is 1 or a multiple of 16; sizes and strides take such values by chance.
SIZES = ['samples', 'groups', 'height', 'width', 'cell_w', 'tiles', 'tiles_h', 'tiles_w']
X_STRIDES = ['x_n', 'x_c', 'x_h', 'x_w']
Y_STRIDES = ['y_n', 'y_c', 'y_h', 'y_w']
G_STRIDES = ['g_n', 'g_c', 'g_h', 'g_w']


@triton.jit
def _bounds(i, size, s: tl.constexpr, POOLING: tl.constexpr):
    """First position and the one after the last, of bin i of an adaptive pooling to s, or of cell i of s cells."""
    if POOLING:
        return i * size // s, ((i + 1) * size + s - 1) // s
    else:
        return (i * size + s - 1) // s, ((i + 1) * size + s - 1) // s


@triton.jit
def _positions(
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
        first, last = _bounds(a, height, L, False)
        h = first[None, :] + i[:, None]
        rows = (a < L)[None, :] & (h < last[None, :])
        first, last = _bounds(b, width, L, False)
        w = first[:, None] + j[None, :]
        return a, h, w, rows, (b < L)[:, None] & (w < last[:, None])


@triton.jit
def _tile(c, h, w, s_c, s_h, s_w):
    """Offsets (LB, BH, A, CB, BW) in a slab."""
    return (c * s_c)[None, None, None, :, None] + (h * s_h)[None, :, :, None, None] + (w * s_w)[:, None, None, None, :]


@triton.jit
def _cell_sums(v):
    """(LB, BH, A, CB, BW) to (CB, A, LB): columns first, which is within a warp."""
    return tl.permute(tl.sum(tl.sum(v, 4), 1), (2, 1, 0))


@triton.jit
def _over_pixels(cells):
    """(CB, A, LB) to what broadcasts to a tile: (LB, 1, A, CB, 1)."""
    return tl.permute(cells, (2, 1, 0))[:, None, :, :, None]


@triton.jit
def _over_channels(d):
    """(LB, BH, A, BW) to what broadcasts to a tile: (LB, BH, A, 1, BW)."""
    return d[:, :, :, None, :]


@triton.jit
def _edges(
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
    r, q = a * height // L, b * width // L
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
        reads, has = i * S // L * s // S, i * s // L
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
            i = i * s // L
        else:
            i = i * S // L * s // S
        top, bottom = _bounds(i, height, s, True)
        left, right = _bounds(i, width, s, True)
        return v / ((bottom - top)[:, None] * (right - left)[None, :]).to(v.dtype)[None, :, :]


@triton.jit
def _mix(
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
def _mix_back(
    grad, height, width, SCALES: tl.constexpr, S: tl.constexpr, L: tl.constexpr, LB: tl.constexpr, EVEN: tl.constexpr
):
    """Transpose of _mix and _edges: what the pixels of a cell get, and besides its last row, column and corner."""
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
        member = ((i * height // L * L // height)[None, :] == i[:, None]) & ((i < L) & (i * height % L != 0))[None, :]
        row, corner = _gather_rows(row, member), _gather_rows(corner, member)
        member = ((i * width // L * L // width)[None, :] == i[:, None]) & ((i < L) & (i * width % L != 0))[None, :]
        column, corner = _gather_columns(column, member), _gather_columns(corner, member)
    return cells / len(SCALES), row / len(SCALES), column / len(SCALES), corner / len(SCALES)


@triton.jit
def _at_cells(c, a, CG: tl.constexpr, L: tl.constexpr, LB: tl.constexpr):
    """Offsets and mask (CB, A, LB) of cells in contiguous (CG, L, L)."""
    b = tl.arange(0, LB)
    offsets = c[:, None, None] * (L * L) + a[None, :, None] * L + b[None, None, :]
    return offsets, (c < CG)[:, None, None] & (a < L)[None, :, None] & (b < L)[None, None, :]


@triton.jit
def _at_context(c, a, CG: tl.constexpr, S: tl.constexpr, L: tl.constexpr, LB: tl.constexpr):
    """Offsets (CB, A, LB) of what cells read in a slab's context, contiguous (CG, S, S); which cells are, and write."""
    b = tl.arange(0, LB)
    offsets = c[:, None, None] * (S * S) + (a * S // L)[None, :, None] * S + (b * S // L)[None, None, :]
    reads = (c < CG)[:, None, None] & (a < L)[None, :, None] & (b < L)[None, None, :]
    return offsets, reads, reads & (a % (L // S) == 0)[None, :, None] & (b % (L // S) == 0)[None, None, :]


@triton.jit
def _similarity(v, u, COSINE: tl.constexpr, MIN: tl.constexpr):
    """d, (LB, BH, A, BW), of v (LB, BH, A, CB, BW) and u (LB, 1, A, CB, 1)."""
    d = tl.sum(v * u, 3)
    if COSINE:
        d = d / (tl.maximum(tl.sqrt(tl.sum(v * v, 3)), MIN) * tl.maximum(tl.sqrt(tl.sum(u * u, 3)), MIN))
    return d


@triton.jit
def _derivatives(v, u, d, COSINE: tl.constexpr, MIN: tl.constexpr):
    """Derivatives of d by x and by u: (LB, BH, A, CB, BW), or what broadcasts to it."""
    if COSINE:
        length_v, length_u = tl.sqrt(tl.sum(v * v, 3)), tl.sqrt(tl.sum(u * u, 3))
        # A length below MIN was replaced by a constant.
        long_v, long_u = length_v >= MIN, length_u >= MIN
        length_v, length_u = tl.maximum(length_v, MIN), tl.maximum(length_u, MIN)
        product = length_v * length_u
        product = _over_channels(product)
        by_x = u / product - v * _over_channels(tl.where(long_v, d / (length_v * length_v), 0))
        by_u = v / product - u * _over_channels(tl.where(long_u, d / (length_u * length_u), 0))
        return by_x, by_u
    else:
        return u, v


@triton.jit
def _measure(d, pixels, count, NORM: tl.constexpr):
    """Of a tile's d: mean and sum of squares about it (zscore) or minimum and maximum (minmax)."""
    if NORM == ZSCORE:
        # Two passes over registers: no difference of large squares. d is 0 outside the map.
        mean = tl.sum(d) / tl.maximum(count, 1)
        rest = tl.where(pixels, d - mean, 0)
        return mean, tl.sum(rest * rest)
    else:
        return tl.min(tl.where(pixels, d, float('inf'))), tl.max(tl.where(pixels, d, float('-inf')))


@triton.jit
def _factor(spread, NORM: tl.constexpr, EPS: tl.constexpr):
    """From a deviation or range, which is 0 where the map is flat."""
    if NORM == ZSCORE:
        return tl.where(spread == 0, 0, 1 / (spread + EPS))
    else:
        return tl.where(spread == 0, 0, 1 / tl.where(spread == 0, 1, spread))


@triton.jit
def _conclude(count, first, second, NORM: tl.constexpr, FLAT: tl.constexpr):
    """Mean and deviation or minimum and range of a slab, the second 0 where it is flat, from what _measure gives."""
    if NORM == ZSCORE:
        spread = tl.sqrt(second / tl.maximum(count - 1, 1))
        size = tl.abs(first)
    else:
        spread = second - first
        size = tl.maximum(tl.abs(first), tl.abs(second))
    return first, tl.where((count == 1) | (spread <= FLAT * size), 0, spread)


@triton.jit(do_not_specialize=[*SIZES, *X_STRIDES, *Y_STRIDES])
def _forward_kernel(
    x,  # (N, C, H, W), strides x_*
    y,  # (N, C, H, W), strides y_*; written by WHOLE, APPLY
    scale,  # (G,)
    bias,  # (G,)
    context,  # (N, C, S, S) contiguous, ACC; WHOLE writes it if KEEP
    d_out,  # (N, G, H, W) contiguous, ACC; written by WHOLE, MEASURE if KEEP
    stats,  # (N, G, 2), ACC; WHOLE writes it if KEEP
    partial,  # POOL: (tiles_h * tiles_w, N, G, 1 if EVEN else 4, C/G, L, L); MEASURE: (N, G, tiles, 3); ACC
    samples,
    groups,  # N, G
    height,
    width,  # H, W
    cell_w,  # W / L where EVEN, in units of ALIGN where a UNIT is the column
    tiles,
    tiles_h,
    tiles_w,  # tiles of a slab; in a cell's height and width
    x_n,
    x_c,
    x_h,
    x_w,  # in units of ALIGN
    y_n,
    y_c,
    y_h,
    y_w,  # in units of ALIGN
    STAGE: tl.constexpr,  # WHOLE: a program a slab; POOL, MEASURE or APPLY: a program a tile
    KEEP: tl.constexpr,  # keep for the backward
    CG: tl.constexpr,  # C/G
    CB: tl.constexpr,  # C/G rounded up to a power of two
    A: tl.constexpr,  # rows of cells in a tile: LB or 1
    BH: tl.constexpr,  # rows of a cell in a tile, a power of two
    BW: tl.constexpr,  # columns of a cell in a tile, a power of two
    SCALES: tl.constexpr,
    S: tl.constexpr,  # max(SCALES)
    L: tl.constexpr,  # lcm(SCALES)
    LB: tl.constexpr,  # L rounded up to a power of two
    EVEN: tl.constexpr,  # L divides H and W
    ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    Y_UNIT: tl.constexpr,
    COSINE: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    GAIN: tl.constexpr,
    FLAT: tl.constexpr,  # FLATNESS times the epsilon of ACC
    MIN: tl.constexpr,
    ACC: tl.constexpr,
):
    # Neighbouring programs have neighbouring groups, which share memory sectors in channels_last.
    pid = tl.program_id(0)
    g, t, n = pid % groups, pid // groups % tiles, pid // groups // tiles
    slab = n * groups + g
    if X_UNIT == UNIT_COLUMN or Y_UNIT == UNIT_COLUMN:
        cell_w = cell_w * ALIGN
    x_c = 1 if X_UNIT == UNIT_CHANNEL else x_c * ALIGN
    x_w = 1 if X_UNIT == UNIT_COLUMN else x_w * ALIGN
    x_h = x_h * ALIGN
    x += n.to(tl.int64) * (x_n * ALIGN) + g.to(tl.int64) * CG * x_c
    c = tl.arange(0, CB)
    a, h, w, rows, columns = _positions(t, tiles_h, tiles_w, height, width, cell_w, A, BH, BW, L, LB, EVEN)
    pixels = rows[None, :, :, None] & columns[:, None, None, :]  # (LB, BH, A, BW)
    inside = (c < CG)[None, None, None, :, None] & _over_channels(pixels)
    v = tl.load(x + _tile(c, h, w, x_c, x_h, x_w), inside, 0.0).to(ACC)
    context += slab.to(tl.int64) * (CG * S * S)
    at, reads, writes = _at_context(c, a, CG, S, L, LB)

    if STAGE == WHOLE or STAGE == POOL:
        cells = _cell_sums(v)  # (CB, A, LB)
        row, column, corner = cells, cells, cells
        if not EVEN:
            # The tile with a cell's first row has the row before it, likewise the column.
            top, left = t // tiles_w % tiles_h == 0, t % tiles_w == 0
            row, column, corner = _edges(x, c, a, h, w, rows, columns, height, width, x_c, x_h, x_w, CG, L, LB, ACC)
            row, column = tl.where(top, row, 0), tl.where(left, column, 0)
            corner = tl.where(top & left, corner, 0)
        if STAGE == POOL:
            offsets, mask = _at_cells(c, a, CG, L, LB)
            size: tl.constexpr = CG * L * L
            part = t % (tiles_h * tiles_w)
            partial += ((part * samples + n).to(tl.int64) * groups + g) * ((1 if EVEN else 4) * size)
            tl.store(partial + offsets, cells, mask)
            if not EVEN:
                tl.store(partial + size + offsets, row, mask)
                tl.store(partial + 2 * size + offsets, column, mask)
                tl.store(partial + 3 * size + offsets, corner, mask)
        else:
            u = _mix(cells, row, column, corner, height, width, SCALES, S, L, LB, EVEN)
            if KEEP:
                tl.store(context + at, u, writes)
    else:
        u = tl.load(context + at, reads, 0.0)
    if STAGE != POOL:
        d = _similarity(v, _over_pixels(u), COSINE, MIN)  # (LB, BH, A, BW)
        stats += slab * 2
        if KEEP and STAGE != APPLY:
            d_out += slab.to(tl.int64) * (height * width)
            tl.store(d_out + (h * width)[None, :, :, None] + w[:, None, None, :], d, pixels)
        if NORM != NO_NORM:
            if STAGE == APPLY:
                shift, spread = tl.load(stats), tl.load(stats + 1)
            else:
                count = (height * width).to(ACC)
                if STAGE == MEASURE:
                    count = tl.sum(pixels.to(ACC))
                first, second = _measure(d, pixels, count, NORM)
                if STAGE == MEASURE:
                    partial += (slab * tiles + t).to(tl.int64) * 3
                    tl.store(partial, count)
                    tl.store(partial + 1, first)
                    tl.store(partial + 2, second)
                else:
                    shift, spread = _conclude(count, first, second, NORM, FLAT)
                    if KEEP:
                        tl.store(stats, shift)
                        tl.store(stats + 1, spread)
        if STAGE != MEASURE:
            if NORM != NO_NORM:
                d = (d - shift) * _factor(spread, NORM, EPS)
            gate = GAIN * tl.sigmoid(tl.load(scale + g).to(ACC) * d + tl.load(bias + g).to(ACC))
            y_c = 1 if Y_UNIT == UNIT_CHANNEL else y_c * ALIGN
            y_w = 1 if Y_UNIT == UNIT_COLUMN else y_w * ALIGN
            y += n.to(tl.int64) * (y_n * ALIGN) + g.to(tl.int64) * CG * y_c
            result = v * _over_channels(gate)
            tl.store(y + _tile(c, h, w, y_c, y_h * ALIGN, y_w), result.to(y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=['samples', 'groups', 'parts', 'height', 'width'])
def _mix_kernel(
    partial,  # (parts, N, G, 1 if EVEN else 4, C/G, L, L), of _forward_kernel's POOL
    context,  # (N, C, S, S), written
    samples,
    groups,
    parts,
    height,
    width,
    CG: tl.constexpr,
    CF: tl.constexpr,  # channels of a program, a power of two
    BLOCK: tl.constexpr,  # parts read at once, a power of two
    SCALES: tl.constexpr,
    S: tl.constexpr,
    L: tl.constexpr,
    LB: tl.constexpr,
    EVEN: tl.constexpr,
    ACC: tl.constexpr,
):
    slab = tl.program_id(0).to(tl.int64)
    c, a = tl.program_id(1) * CF + tl.arange(0, CF), tl.arange(0, LB)
    offsets, mask = _at_cells(c, a, CG, L, LB)
    size: tl.constexpr = CG * L * L
    cells = tl.zeros((CF, LB, LB), ACC)
    row, column, corner = cells, cells, cells
    start = tl.zeros((), tl.int32)
    while start < parts:  # `while`, here and below, because the interpreter's range() fails with NumPy 2
        t = start + tl.arange(0, BLOCK)
        start += BLOCK
        at = (t.to(tl.int64) * samples * groups + slab) * ((1 if EVEN else 4) * size)
        at = partial + at[:, None, None, None] + offsets[None]
        some = (t < parts)[:, None, None, None] & mask[None]
        cells += tl.sum(tl.load(at, some, 0.0), 0)
        if not EVEN:
            row += tl.sum(tl.load(at + size, some, 0.0), 0)
            column += tl.sum(tl.load(at + 2 * size, some, 0.0), 0)
            corner += tl.sum(tl.load(at + 3 * size, some, 0.0), 0)
    u = _mix(cells, row, column, corner, height, width, SCALES, S, L, LB, EVEN)
    at, _, writes = _at_context(c, a, CG, S, L, LB)
    tl.store(context + slab * (CG * S * S) + at, u, writes)


@triton.jit(do_not_specialize=['tiles', 'height', 'width'])
def _conclude_kernel(
    partial,  # (N, G, tiles, 3), of _forward_kernel's MEASURE
    stats,  # (N, G, 2), written
    tiles,
    height,
    width,
    NORM: tl.constexpr,
    FLAT: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slab = tl.program_id(0)
    partial += slab.to(tl.int64) * tiles * 3
    count = (height * width).to(ACC)
    first = tl.zeros((), ACC)
    second = tl.zeros((), ACC)
    if NORM == MINMAX:
        first += float('inf')
        second += float('-inf')
    start = tl.zeros((), tl.int32)
    while start < tiles:
        t = start + tl.arange(0, BLOCK)
        start += BLOCK
        if NORM == ZSCORE:
            first += tl.sum(tl.load(partial + t * 3, t < tiles, 0.0) * tl.load(partial + t * 3 + 1, t < tiles, 0.0))
        else:
            first = tl.minimum(first, tl.min(tl.load(partial + t * 3 + 1, t < tiles, float('inf'))))
            second = tl.maximum(second, tl.max(tl.load(partial + t * 3 + 2, t < tiles, float('-inf'))))
    if NORM == ZSCORE:
        first = first / count
        start = tl.zeros((), tl.int32)
        while start < tiles:
            t = start + tl.arange(0, BLOCK)
            start += BLOCK
            step = tl.load(partial + t * 3 + 1, t < tiles, 0.0) - first
            second += tl.sum(
                tl.load(partial + t * 3, t < tiles, 0.0) * step * step + tl.load(partial + t * 3 + 2, t < tiles, 0.0)
            )
    shift, spread = _conclude(count, first, second, NORM, FLAT)
    tl.store(stats + slab * 2, shift)
    tl.store(stats + slab * 2 + 1, spread)


@triton.jit
def _slopes(
    v, gy, d, pixels, scale_g, bias_g, shift, spread, GAIN: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr
):
    """Of every pixel of a tile, (LB, BH, A, BW): the gate, a, d^, m and m' (None: anything)."""
    if NORM == NO_NORM:
        normalized, one, two = d, d, d
    else:
        normalized = (d - shift) * _factor(spread, NORM, EPS)
        if NORM == ZSCORE:
            one, two = pixels.to(d.dtype), tl.where(pixels, normalized, 0)
        else:
            one, two = (pixels & (d == shift)).to(d.dtype), (pixels & (d - shift == spread)).to(d.dtype)
    gate = tl.sigmoid(scale_g * normalized + bias_g)
    slope = GAIN * gate * (1 - gate) * tl.sum(gy * v, 3)  # 0 outside the map
    return GAIN * gate, slope, normalized, one, two


@triton.jit
def _coefficients(total, total_d, ones, twos, scale_g, spread, count, NORM: tl.constexpr, EPS: tl.constexpr):
    """alpha * scale, beta and gamma of a slab."""
    if NORM == NO_NORM:
        return scale_g, scale_g * 0, scale_g * 0
    else:
        alpha = scale_g * _factor(spread, NORM, EPS)
        if NORM == ZSCORE:
            gamma = scale_g * total_d / (tl.where(spread == 0, 1, spread) * tl.maximum(count - 1, 1))
            return alpha, alpha * total / count, tl.where(spread == 0, 0, gamma)
        else:
            return alpha, alpha * (total - total_d) / tl.maximum(ones, 1), alpha * total_d / tl.maximum(twos, 1)


@triton.jit(do_not_specialize=[*SIZES, *X_STRIDES, *Y_STRIDES, *G_STRIDES])
def _backward_kernel(
    x,  # (N, C, H, W), strides x_*
    grad_y,  # (N, C, H, W), strides g_*
    grad_x,  # (N, C, H, W), strides y_*; written by WHOLE, APPLY
    scale,  # (G,)
    bias,  # (G,)
    context,  # (N, C, S, S) contiguous, ACC
    d_in,  # (N, G, H, W) contiguous, ACC; read for minmax, whose extremes must be met to the bit
    stats,  # (N, G, 2), ACC
    totals,  # (N, G, 4), ACC: sums of a (bias's gradient), a d^ (scale's), m, m'; SUMS: (tiles, N, G, 4)
    spread_out,  # SUMS writes (tiles_h * tiles_w, N, G, 3, C/G, L, L): sums of a, m, m' times the derivative;
    # APPLY reads (N, G, 1 if EVEN else 4, C/G, L, L), of _mix_back; ACC
    samples,
    groups,  # N, G
    height,
    width,  # H, W
    cell_w,  # W / L where EVEN, in units of ALIGN where a UNIT is the column
    tiles,
    tiles_h,
    tiles_w,  # tiles of a slab; in a cell's height and width
    x_n,
    x_c,
    x_h,
    x_w,  # in units of ALIGN
    y_n,
    y_c,
    y_h,
    y_w,  # in units of ALIGN
    g_n,
    g_c,
    g_h,
    g_w,  # in units of ALIGN
    STAGE: tl.constexpr,  # WHOLE: a program a slab; SUMS or APPLY: a program a tile
    CG: tl.constexpr,  # from here on as in _forward_kernel
    CB: tl.constexpr,
    A: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    SCALES: tl.constexpr,
    S: tl.constexpr,
    L: tl.constexpr,
    LB: tl.constexpr,
    EVEN: tl.constexpr,
    ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    Y_UNIT: tl.constexpr,
    G_UNIT: tl.constexpr,
    COSINE: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    GAIN: tl.constexpr,
    MIN: tl.constexpr,
    ACC: tl.constexpr,
):
    pid = tl.program_id(0)
    g, t, n = pid % groups, pid // groups % tiles, pid // groups // tiles
    slab = n * groups + g
    if X_UNIT == UNIT_COLUMN or Y_UNIT == UNIT_COLUMN or G_UNIT == UNIT_COLUMN:
        cell_w = cell_w * ALIGN
    x_c = 1 if X_UNIT == UNIT_CHANNEL else x_c * ALIGN
    x_w = 1 if X_UNIT == UNIT_COLUMN else x_w * ALIGN
    g_c = 1 if G_UNIT == UNIT_CHANNEL else g_c * ALIGN
    g_w = 1 if G_UNIT == UNIT_COLUMN else g_w * ALIGN
    x += n.to(tl.int64) * (x_n * ALIGN) + g.to(tl.int64) * CG * x_c
    grad_y += n.to(tl.int64) * (g_n * ALIGN) + g.to(tl.int64) * CG * g_c
    c = tl.arange(0, CB)
    a, h, w, rows, columns = _positions(t, tiles_h, tiles_w, height, width, cell_w, A, BH, BW, L, LB, EVEN)
    pixels = rows[None, :, :, None] & columns[:, None, None, :]  # (LB, BH, A, BW)
    inside = (c < CG)[None, None, None, :, None] & _over_channels(pixels)
    v = tl.load(x + _tile(c, h, w, x_c, x_h * ALIGN, x_w), inside, 0.0).to(ACC)
    gy = tl.load(grad_y + _tile(c, h, w, g_c, g_h * ALIGN, g_w), inside, 0.0).to(ACC)

    at, reads, _ = _at_context(c, a, CG, S, L, LB)
    u = _over_pixels(tl.load(context + slab.to(tl.int64) * (CG * S * S) + at, reads, 0.0))
    if NORM == MINMAX:
        d_in += slab.to(tl.int64) * (height * width)
        d = tl.load(d_in + (h * width)[None, :, :, None] + w[:, None, None, :], pixels, 0.0)
    else:
        d = _similarity(v, u, COSINE, MIN)  # (LB, BH, A, BW)
    scale_g, bias_g = tl.load(scale + g).to(ACC), tl.load(bias + g).to(ACC)
    shift, spread = scale_g, scale_g
    if NORM != NO_NORM:
        shift, spread = tl.load(stats + slab * 2), tl.load(stats + slab * 2 + 1)
    gate, slope, normalized, one, two = _slopes(v, gy, d, pixels, scale_g, bias_g, shift, spread, GAIN, NORM, EPS)
    by_x, by_u = _derivatives(v, u, d, COSINE, MIN)

    if STAGE == APPLY:
        totals += slab * 4
        total, total_d = tl.load(totals), tl.load(totals + 1)
        ones, twos = tl.load(totals + 2), tl.load(totals + 3)
    else:
        total, total_d = tl.sum(slope), tl.sum(slope * normalized)
        ones, twos = total, total
        if NORM == MINMAX:
            ones, twos = tl.sum(one), tl.sum(two)
        if STAGE == SUMS:
            totals += ((t * samples + n).to(tl.int64) * groups + g) * 4
        else:
            totals += slab * 4
        tl.store(totals, total)
        tl.store(totals + 1, total_d)
        tl.store(totals + 2, ones)
        tl.store(totals + 3, twos)

    offsets, mask = _at_cells(c, a, CG, L, LB)
    size: tl.constexpr = CG * L * L
    if STAGE == SUMS:
        part = t % (tiles_h * tiles_w)
        spread_out += ((part * samples + n).to(tl.int64) * groups + g) * (3 * size)
        tl.store(spread_out + offsets, _cell_sums(_over_channels(slope) * by_u), mask)
        if NORM != NO_NORM:
            tl.store(spread_out + size + offsets, _cell_sums(_over_channels(one) * by_u), mask)
            tl.store(spread_out + 2 * size + offsets, _cell_sums(_over_channels(two) * by_u), mask)
    else:
        count = (height * width).to(ACC)
        alpha, beta, gamma = _coefficients(total, total_d, ones, twos, scale_g, spread, count, NORM, EPS)
        grad_d = alpha * slope
        if NORM != NO_NORM:
            grad_d -= beta * one + gamma * two
        if STAGE == WHOLE:
            cells = _cell_sums(_over_channels(grad_d) * by_u)
            cells, row, column, corner = _mix_back(cells, height, width, SCALES, S, L, LB, EVEN)
        else:
            spread_out += slab.to(tl.int64) * ((1 if EVEN else 4) * size)
            cells = tl.load(spread_out + offsets, mask, 0.0)
            row, column, corner = cells, cells, cells
            if not EVEN:
                row = tl.load(spread_out + size + offsets, mask, 0.0)
                column = tl.load(spread_out + 2 * size + offsets, mask, 0.0)
                corner = tl.load(spread_out + 3 * size + offsets, mask, 0.0)
        result = gy * _over_channels(gate) + _over_channels(grad_d) * by_x + _over_pixels(cells)
        if not EVEN:
            _, last = _bounds(a, height, L, False)
            last_row = (h == last[None, :] - 1)[None, :, :, None, None]
            _, last = _bounds(tl.arange(0, LB), width, L, False)
            last_column = (w == last[:, None] - 1)[:, None, None, None, :]
            result += tl.where(last_row, _over_pixels(row), 0)  # (LB, BH, A, CB, 1)
            line = _over_pixels(column) + tl.where(last_row, _over_pixels(corner), 0)
            result += tl.where(last_column, line, 0)
        y_c = 1 if Y_UNIT == UNIT_CHANNEL else y_c * ALIGN
        y_w = 1 if Y_UNIT == UNIT_COLUMN else y_w * ALIGN
        grad_x += n.to(tl.int64) * (y_n * ALIGN) + g.to(tl.int64) * CG * y_c
        tl.store(grad_x + _tile(c, h, w, y_c, y_h * ALIGN, y_w), result.to(grad_x.dtype.element_ty), inside)


@triton.jit(do_not_specialize=['samples', 'groups', 'parts', 'tiles', 'height', 'width'])
def _collect_kernel(
    sums,  # (parts, N, G, 3, C/G, L, L), of _backward_kernel's SUMS
    shares,  # (tiles, N, G, 4), of the same
    scale,  # (G,)
    stats,  # (N, G, 2)
    totals,  # (N, G, 4), written
    spread_out,  # (N, G, 1 if EVEN else 4, C/G, L, L), written
    samples,
    groups,
    parts,
    tiles,
    height,
    width,
    CG: tl.constexpr,
    CF: tl.constexpr,  # channels of a program, a power of two
    BLOCK: tl.constexpr,  # parts and tiles read at once, a power of two
    SCALES: tl.constexpr,
    S: tl.constexpr,
    L: tl.constexpr,
    LB: tl.constexpr,
    EVEN: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    ACC: tl.constexpr,
):
    slab = tl.program_id(0).to(tl.int64)
    c, a, k = tl.program_id(1) * CF + tl.arange(0, CF), tl.arange(0, LB), tl.arange(0, 4)
    offsets, mask = _at_cells(c, a, CG, L, LB)
    size: tl.constexpr = CG * L * L

    four = tl.zeros((4,), ACC)
    start = tl.zeros((), tl.int32)
    while start < tiles:
        t = start + tl.arange(0, BLOCK)
        start += BLOCK
        at = shares + (t.to(tl.int64) * samples * groups + slab)[:, None] * 4 + k[None, :]
        four += tl.sum(tl.load(at, (t < tiles)[:, None] & (k < 4)[None, :], 0.0), 0)
    tl.store(totals + slab * 4 + k, four)  # every program of the slab writes the same numbers
    total, total_d = tl.sum(tl.where(k == 0, four, 0)), tl.sum(tl.where(k == 1, four, 0))
    ones, twos = tl.sum(tl.where(k == 2, four, 0)), tl.sum(tl.where(k == 3, four, 0))

    by_slope = tl.zeros((CF, LB, LB), ACC)
    by_one, by_two = by_slope, by_slope
    start = tl.zeros((), tl.int32)
    while start < parts:
        t = start + tl.arange(0, BLOCK)
        start += BLOCK
        at = sums + ((t.to(tl.int64) * samples * groups + slab) * (3 * size))[:, None, None, None] + offsets[None]
        some = (t < parts)[:, None, None, None] & mask[None]
        by_slope += tl.sum(tl.load(at, some, 0.0), 0)
        if NORM != NO_NORM:
            by_one += tl.sum(tl.load(at + size, some, 0.0), 0)
            by_two += tl.sum(tl.load(at + 2 * size, some, 0.0), 0)

    scale_g = tl.load(scale + slab % groups).to(ACC)
    spread = scale_g
    if NORM != NO_NORM:
        spread = tl.load(stats + slab * 2 + 1)
    count = (height * width).to(ACC)
    alpha, beta, gamma = _coefficients(total, total_d, ones, twos, scale_g, spread, count, NORM, EPS)
    cells, row, column, corner = _mix_back(
        alpha * by_slope - beta * by_one - gamma * by_two, height, width, SCALES, S, L, LB, EVEN
    )
    spread_out += slab * ((1 if EVEN else 4) * size)
    tl.store(spread_out + offsets, cells, mask)
    if not EVEN:
        tl.store(spread_out + size + offsets, row, mask)
        tl.store(spread_out + 2 * size + offsets, column, mask)
        tl.store(spread_out + 3 * size + offsets, corner, mask)


class Plan(NamedTuple):
    """What is compiled for: the only things that may depend on the image's size, with few values each."""

    whole: bool
    rows: int
    columns: int
    even: bool
    align: int
    units: tuple[int, ...]


def _strides(t: Tensor) -> list[int]:
    """Strides of (N, C, H, W), 0 where there is one element only: PyTorch leaves those arbitrary."""
    return [stride if size > 1 else 0 for size, stride in zip(t.shape, t.stride())]


def _largest_cell(size: int, cells: int) -> int:
    return -(-size // cells)


def launch_plan(tensors: tuple[Tensor, ...], options: CCDOptions) -> Plan:
    """How kernels are launched for these (N, C, H, W) tensors of one shape."""
    _, channels, height, width = tensors[0].shape
    per_group, cells = channels // options.groups, math.lcm(*options.scales)
    block_c, block_l = triton.next_power_of_2(per_group), triton.next_power_of_2(cells)
    even = height % cells == 0 and width % cells == 0
    cell_h, cell_w = _largest_cell(height, cells), _largest_cell(width, cells)
    side = triton.next_power_of_2(max(cell_h, cell_w))
    whole = block_c * (block_l * side) ** 2 <= WHOLE_LIMIT
    if whole:
        rows = columns = side
    else:
        # 64 columns of an image, or 32 where that leaves fewer idle.
        columns = max(1, 64 // block_l)
        if columns > 1 and triton.cdiv(cell_w, columns // 2) < 2 * triton.cdiv(cell_w, columns):
            columns //= 2
        rows = max(1, TILE_ELEMENTS // (block_c * block_l * columns))
        rows = min(rows, triton.next_power_of_2(cell_h))

    # The unit stride and what divides the others, so that threads may load vectors.
    align, units = max(1, 16 // max(t.element_size() for t in tensors)), []
    for t in tensors:
        strides = _strides(t)
        if strides[3] == 1 or (width == 1 and strides[1] != 1):
            unit, others = UNIT_COLUMN, [*strides[:3], width // cells if even else 1]
        elif strides[1] == 1 or channels == 1:
            unit, others = UNIT_CHANNEL, [strides[0], *strides[2:], per_group]
        else:
            unit, others = UNIT_NONE, strides
        units.append(unit.value)
        while any(stride % align for stride in others):
            align //= 2
    return Plan(whole, rows, columns, even, align, tuple(units))


def _sizes(x: Tensor, plan: Plan, cells: int) -> dict[str, int]:
    samples, _, height, width = x.shape
    cell_w = width // cells if plan.even else 0
    tiles_h = triton.cdiv(_largest_cell(height, cells), plan.rows)
    tiles_w = triton.cdiv(_largest_cell(width, cells), plan.columns)
    return dict(
        samples=samples,
        height=height,
        width=width,
        cell_w=cell_w // plan.align if UNIT_COLUMN.value in plan.units else cell_w,
        tiles=1 if plan.whole else cells * tiles_h * tiles_w,
        tiles_h=tiles_h,
        tiles_w=tiles_w,
    )


def _named_strides(names: list[str], t: Tensor, unit: int, align: int) -> dict[str, int]:
    strides = _strides(t)
    if unit == UNIT_CHANNEL.value:
        strides[1] = 0  # the kernel knows it
    elif unit == UNIT_COLUMN.value:
        strides[3] = 0
    return dict(zip(names, (stride // align for stride in strides)))


def _switches(x: Tensor, options: CCDOptions, plan: Plan) -> dict[str, object]:
    """Compile-time arguments that forward and backward share."""
    per_group, cells = x.shape[1] // options.groups, math.lcm(*options.scales)
    block_l = triton.next_power_of_2(cells)
    return dict(
        CG=per_group,
        CB=triton.next_power_of_2(per_group),
        A=block_l if plan.whole else 1,
        BH=plan.rows,
        BW=plan.columns,
        SCALES=tuple(options.scales),
        S=max(options.scales),
        L=cells,
        LB=block_l,
        EVEN=plan.even,
        ALIGN=plan.align,
        COSINE=options.similarity == 'cosine',
        NORM=NORMALIZE[options.normalize],
        EPS=float(options.eps),
        GAIN=float(options.gain),
        MIN=MIN_NORM,
        ACC=tl.float64 if x.dtype == torch.float64 else tl.float32,
    )


def _warps(switches: dict[str, object], per_thread: int) -> int:
    elements = math.prod(switches[k] for k in ('CB', 'A', 'BH', 'LB', 'BW'))
    return min(16, max(1, elements // (32 * per_thread)))


def _sum_launch(switches: dict[str, object], slabs: int, wanted: tuple[str, ...]) -> tuple[tuple[int, int], dict]:
    """Grid and compile-time arguments of the kernels that add up parts and mix scales."""
    block, table = 8, switches['LB'] ** 2
    channels = min(switches['CB'], max(1, TILE_ELEMENTS // (max(block, switches['LB']) * table)))
    names = ('CG', 'SCALES', 'S', 'L', 'LB', 'EVEN', 'ACC', *wanted)
    return (slabs, triton.cdiv(switches['CG'], channels)), dict(
        CF=channels, BLOCK=block, num_warps=4, **{k: switches[k] for k in names}
    )


def _too_fine(x: Tensor, options: CCDOptions) -> bool:
    """Whether scales such as (7, 11, 13) need more cells than kernels should hold."""
    block_c, block_l = (triton.next_power_of_2(i) for i in (x.shape[1] // options.groups, math.lcm(*options.scales)))
    return block_c * block_l**3 > MIX_LIMIT


def forward(
    x: Tensor, scale: Tensor, bias: Tensor, options: CCDOptions, keep: bool = True
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """See ``ccd_torch``; y has the strides of ``torch.empty_like(x)``."""
    if _too_fine(x, options):
        return ccd_torch.forward(x, scale, bias, options, keep)
    samples, channels, height, width = x.shape
    groups, grid = options.groups, max(options.scales)
    compute = ccd_torch.compute_dtype(x.dtype)
    y = torch.empty_like(x)
    nothing = x.new_empty(0, dtype=compute)
    plan = launch_plan((x, y), options)
    # A kernel a stage hands context and statistics on through memory, kept or not.
    through_memory = keep or not plan.whole
    context = x.new_empty((samples, channels, grid, grid), dtype=compute) if through_memory else nothing
    stats = x.new_empty((samples, groups, 2), dtype=compute) if through_memory else nothing
    d = x.new_empty((samples, groups, height, width), dtype=compute) if keep else nothing
    saved = (context, d, stats) if keep else (nothing, x.new_empty(0, dtype=compute), x.new_empty(0, dtype=compute))
    if options.normalize is None:
        stats.zero_()
    if x.numel() == 0:
        return y, saved

    switches = _switches(x, options, plan)
    sizes = _sizes(x, plan, switches['L'])
    flat = FLATNESS * torch.finfo(compute).eps
    slabs, tiles = samples * groups, sizes['tiles']
    arguments = dict(
        x=x,
        y=y,
        scale=scale.contiguous(),
        bias=bias.contiguous(),
        context=context,
        d_out=d,
        stats=stats,
        partial=nothing,
        groups=groups,
        **sizes,
        **switches,
        KEEP=keep,
        X_UNIT=plan.units[0],
        Y_UNIT=plan.units[1],
        FLAT=flat,
        **_named_strides(X_STRIDES, x, plan.units[0], plan.align),
        **_named_strides(Y_STRIDES, y, plan.units[1], plan.align),
        num_warps=_warps(switches, 32),
    )
    launch = _forward_kernel[(slabs * tiles,)]
    with torch.cuda.device_of(x):
        if plan.whole:
            launch(STAGE=WHOLE.value, **arguments)
            return y, saved
        parts = sizes['tiles_h'] * sizes['tiles_w']
        partial = x.new_empty((parts, slabs, 1 if plan.even else 4, switches['CG'] * switches['L'] ** 2), dtype=compute)
        launch(STAGE=POOL.value, **{**arguments, 'partial': partial})
        mixing, mix_switches = _sum_launch(switches, slabs, ())
        _mix_kernel[mixing](partial, context, samples, groups, parts, height, width, **mix_switches)
        if options.normalize is not None or keep:
            partial = x.new_empty((slabs, tiles, 3), dtype=compute)
            launch(STAGE=MEASURE.value, **{**arguments, 'partial': partial})
        if options.normalize is not None:
            _conclude_kernel[(slabs,)](
                partial,
                stats,
                tiles,
                height,
                width,
                NORM=switches['NORM'],
                FLAT=flat,
                ACC=switches['ACC'],
                BLOCK=128,
                num_warps=1,
            )
        launch(STAGE=APPLY.value, **arguments)
    return y, saved


def backward(
    grad_y: Tensor,
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    options: CCDOptions,
    need_x: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``ccd_torch``; grad_x has the strides of ``torch.empty_like(x)``."""
    if _too_fine(x, options):
        return ccd_torch.backward(grad_y, x, scale, bias, saved, options, need_x)
    context, d, stats = saved
    samples, _, height, width = x.shape
    groups = options.groups
    grad_x = torch.empty_like(x)
    if x.numel() == 0:
        return grad_x, torch.zeros_like(scale), torch.zeros_like(bias)
    plan = launch_plan((x, grad_x, grad_y), options)
    switches = _switches(x, options, plan)
    sizes = _sizes(x, plan, switches['L'])
    slabs, tiles = samples * groups, sizes['tiles']
    scale_in = scale.contiguous()
    totals = context.new_empty((samples, groups, 4))
    arguments = dict(
        x=x,
        grad_y=grad_y,
        grad_x=grad_x,
        scale=scale_in,
        bias=bias.contiguous(),
        context=context,
        d_in=d,
        stats=stats,
        totals=totals,
        spread_out=totals,
        groups=groups,
        **sizes,
        **switches,
        X_UNIT=plan.units[0],
        Y_UNIT=plan.units[1],
        G_UNIT=plan.units[2],
        **_named_strides(X_STRIDES, x, plan.units[0], plan.align),
        **_named_strides(Y_STRIDES, grad_x, plan.units[1], plan.align),
        **_named_strides(G_STRIDES, grad_y, plan.units[2], plan.align),
        num_warps=_warps(switches, 16),
    )
    launch = _backward_kernel[(slabs * tiles,)]
    with torch.cuda.device_of(x):
        if plan.whole:
            launch(STAGE=WHOLE.value, **arguments)
        else:
            parts, size = sizes['tiles_h'] * sizes['tiles_w'], switches['CG'] * switches['L'] ** 2
            shares, sums = context.new_empty((tiles, slabs, 4)), context.new_empty((parts, slabs, 3, size))
            spread = context.new_empty((slabs, 1 if plan.even else 4, size))
            launch(STAGE=SUMS.value, **{**arguments, 'totals': shares, 'spread_out': sums})
            mixing, mix_switches = _sum_launch(switches, slabs, ('NORM', 'EPS'))
            _collect_kernel[mixing](
                sums,
                shares,
                scale_in,
                stats,
                totals,
                spread,
                samples,
                groups,
                parts,
                tiles,
                height,
                width,
                **mix_switches,
            )
            if need_x:
                launch(STAGE=APPLY.value, **{**arguments, 'spread_out': spread})
    # Two sums: a custom operator's results must not share memory.
    return grad_x, totals[..., 1].sum(0).to(scale.dtype), totals[..., 0].sum(0).to(bias.dtype)


def interpreting() -> bool:
    """Whether Triton was told to interpret when this module was imported."""
    return not isinstance(_forward_kernel, triton.JITFunction)


def unavailable(x: Tensor) -> str | None:
    """Why these kernels cannot run on ``x``, or None where they can."""
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f'the Triton kernels have float16, bfloat16, float32 and float64, got {x.dtype}'
    if interpreting():
        if x.device.type not in ('cpu', 'cuda'):
            return f'the Triton interpreter needs a tensor in memory, got one on {x.device}'
    elif x.device.type != 'cuda':
        return f'the Triton kernels need a CUDA tensor, got one on {x.device} (or set TRITON_INTERPRET=1)'
    if sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:])) >= 2**31:
        return f'the Triton kernels count positions in a sample in 32 bits, which {tuple(x.shape)} exceeds'
    return None
