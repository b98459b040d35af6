r"""CCD in Triton: for CUDA, and on the CPU in Triton's interpreter (``TRITON_INTERPRET=1`` set before the import).

A slab is what one group of one sample holds, C/G channels by H x W pixels; slabs are independent of each other. With x
and u the slab and its upsampled context, P the adaptive poolings with their mean (:math:`ctx = P x`, S x S cells), and
all sums over the pixels i of a slab unless a cell is named:

.. math::
    d_i &= \sum_c x_{ci} u_{ci} \ \text{or its cosine},
    \qquad \hat d = (d - shift) \cdot factor, \qquad y = x \cdot gain\,\sigma(scale\,\hat d + bias) \\
    a_i &= gain\,\sigma'(scale\,\hat d_i + bias) \sum_c \bar y_{ci} x_{ci},
    \qquad \overline{bias} = \sum a_i, \qquad \overline{scale} = \sum a_i \hat d_i \\
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

where bias' and scale' are that slab's shares of the two gradients. A flat map has factor, beta and gamma 0: what the
forward decided is saved as its statistics, and read by the backward.

Three ways, one code. The kernels work on tiles, (C/G, rows, columns) of a slab.

* ``WHOLE``: the slab is one tile. It is read once, stays in registers and is written once.
* ``LOOP``: the slab fits in a processor's cache. One program goes over its tiles three times, to pool, to measure and
  to apply; backward twice, to sum and to apply. Only the first time reads from memory.
* ``POOL``, ``MEASURE``, ``APPLY`` and ``SUMS``, ``APPLY``: the same for larger slabs, a program a tile, a kernel a
  stage. Partial sums lie in memory and are added in a fixed order; there are no atomics, so results repeat to the bit.

Two passes do backward, since :math:`\overline{ctx}` is linear in alpha, beta and gamma: the cells' sums of :math:`a_i`,
:math:`m_i` and :math:`m'_i` times the derivative are taken before these are known.

Neither u nor :math:`P^T\,\overline{ctx}` exists outside registers, nor does a contiguous copy of x: kernels go by
strides. Kept for backward are the context, five numbers a slab and, with minmax, d (ties must be found again exactly).

Compilations. Everything that depends on the picture's size is a run-time argument, never specialised on, except
for facts with few values each: the way and its tile, whether the grid divides the picture (``EVEN``), which stride is
one (``UNIT``), and the power of two that divides the others (``ALIGN``, at most 16 bytes), without which no load could
be a vector. :func:`launch_plan` is all of it, and has few values for one layer, however many sizes it sees.
"""
# ruff: noqa: SIM109  (Triton's language has no `in`)
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .ccd import FLATNESS, MIN_NORM

if TYPE_CHECKING:
    from .ccd import CCDOptions

# Elements of the padded slab (C/G, side, side) up to which it is one tile.
WHOLE_LIMIT = 4096
# Bytes of a slab up to which one program loops over it: several programs' slabs share a processor's cache.
LOOP_LIMIT = 65536
# Elements of the other ways' tiles, and their width in pixels; narrower only where C/G is huge.
TILE_ELEMENTS = 4096
TILE_WIDTH = 32
# Numbers a slab: shift, factor, third (zscore: 1 / (std (HW - 1)), minmax: max), number of minima, number of maxima.
STATISTICS = tl.constexpr(5)

# What a launch does.
WHOLE, LOOP, POOL, MEASURE, SUMS, APPLY = (tl.constexpr(i) for i in range(6))
# Which stride is one.
UNIT_NONE, UNIT_CHANNEL, UNIT_COLUMN = (tl.constexpr(i) for i in range(3))
ZSCORE, MINMAX, NO_NORM = (tl.constexpr(i) for i in range(3))
NORMALIZE = {'zscore': ZSCORE.value, 'minmax': MINMAX.value, None: NO_NORM.value}

# Triton compiles anew for an integer that is 1 or a multiple of 16; sizes and strides take such values by chance.
SIZES = ['groups', 'height', 'width', 'tiles', 'tiles_w', 'samples']
X_STRIDES = ['x_n', 'x_c', 'x_h', 'x_w']
Y_STRIDES = ['y_n', 'y_c', 'y_h', 'y_w']
G_STRIDES = ['g_n', 'g_c', 'g_h', 'g_w']


@triton.jit
def _offsets(c, h, w, s_c, s_h, s_w, UNIT: tl.constexpr, ALIGN: tl.constexpr):
    """Offsets (CB, BH, BW) in a slab; strides in units of ALIGN, so that the compiler sees what they divide by."""
    if UNIT == UNIT_COLUMN:
        return (c * (s_c * ALIGN))[:, None, None] + (h * (s_h * ALIGN))[None, :, None] + w[None, None, :]
    elif UNIT == UNIT_CHANNEL:
        return c[:, None, None] + (h * (s_h * ALIGN))[None, :, None] + (w * (s_w * ALIGN))[None, None, :]
    else:
        return ((c * (s_c * ALIGN))[:, None, None] + (h * (s_h * ALIGN))[None, :, None] +
                (w * (s_w * ALIGN))[None, None, :])


@triton.jit
def _slab(pointer, n, g, s_n, s_c, CG: tl.constexpr, UNIT: tl.constexpr, ALIGN: tl.constexpr):
    """Where slab (n, g) starts."""
    if UNIT == UNIT_CHANNEL:
        return pointer + n.to(tl.int64) * (s_n * ALIGN) + g * CG
    else:
        return pointer + n.to(tl.int64) * (s_n * ALIGN) + g.to(tl.int64) * CG * (s_c * ALIGN)


@triton.jit
def _bounds(i, size, s: tl.constexpr, POOLING: tl.constexpr):
    """First position and the one after the last, of bin i of an adaptive pooling, or of cell i of an upsampling."""
    if POOLING:
        return i * size // s, ((i + 1) * size + s - 1) // s
    else:
        return (i * size + s - 1) // s, ((i + 1) * size + s - 1) // s


@triton.jit
def _grid_sums(v, h, w, height, width, s: tl.constexpr, S: tl.constexpr, SB: tl.constexpr, POOLING: tl.constexpr):
    """Sums of v (CB, BH, BW) over an s x s grid, shown on S x S cells: (CB, SB, SB).

    POOLING: means over the overlapping bins of an adaptive pooling; else sums over the cells of nearest upsampling.
    Columns first, each a sum within a warp; then all rows in one sum across warps.
    """
    cell = tl.arange(0, SB)
    columns = tl.zeros((v.shape[0], v.shape[1], SB), v.dtype)
    for j in tl.static_range(s):
        first, last = _bounds(j, width, s, POOLING)
        part = tl.sum(tl.where(((w >= first) & (w < last))[None, None, :], v, 0), 2)  # (CB, BH)
        if POOLING:
            part = part / (last - first).to(v.dtype)
        columns += tl.where((cell * s // S == j)[None, None, :], part[:, :, None], 0)
    first, last = _bounds(cell * s // S, height, s, POOLING)
    member = (h[:, None] >= first[None, :]) & (h[:, None] < last[None, :])  # (BH, SB)
    result = tl.sum(tl.where(member[None, :, :, None], columns[:, :, None, :], 0), 1)  # (CB, SB, SB)
    if POOLING:
        result = result / (last - first).to(v.dtype)[None, :, None]
    return result


@triton.jit
def _block_means(fine, s: tl.constexpr, S: tl.constexpr):
    """Means of fine (CB, S, S) over s x s blocks, shown on S x S cells."""
    if s == S:
        return fine
    else:
        r: tl.constexpr = S // s
        means = tl.sum(tl.sum(tl.reshape(fine, (fine.shape[0], s, r, s, r)), 4), 2) / (r * r)  # (CB, s, s)
        return tl.reshape(tl.broadcast_to(means[:, :, None, :, None], (fine.shape[0], s, r, s, r)), fine.shape)


@triton.jit
def _mix(fine, SCALES: tl.constexpr, S: tl.constexpr):
    """Mean over the scales of the block means of fine (CB, S, S): what the cascade does where the grid divides.

    Its own adjoint, so the backward uses it too.
    """
    mixed = tl.zeros(fine.shape, fine.dtype)
    for k in tl.static_range(len(SCALES)):
        mixed += _block_means(fine, SCALES[k], S)
    return mixed / len(SCALES)


@triton.jit
def _pool(x, h, w, height, width, SCALES: tl.constexpr, S: tl.constexpr, SB: tl.constexpr, EVEN: tl.constexpr):
    """Share of the tile x (CB, BH, BW), 0 outside the map, in the context: (CB, SB, SB)."""
    if EVEN:
        return _mix(_grid_sums(x, h, w, height, width, S, S, SB, True), SCALES, S)
    else:
        context = tl.zeros((x.shape[0], SB, SB), x.dtype)
        for k in tl.static_range(len(SCALES)):
            context += _grid_sums(x, h, w, height, width, SCALES[k], S, SB, True)
        return context / len(SCALES)


@triton.jit
def _cells(c, a, b, CG: tl.constexpr, S: tl.constexpr):
    """Offsets and mask, (CB, SB, SB), of a slab's cells: contiguous (CG, S, S)."""
    offsets = c[:, None, None] * (S * S) + a[None, :, None] * S + b[None, None, :]
    return offsets, (c < CG)[:, None, None] & (a < S)[None, :, None] & (b < S)[None, None, :]


@triton.jit
def _upsample(cells, c, h, w, height, width, CG: tl.constexpr, S: tl.constexpr):
    """Nearest upsampling of a slab's cells, a pointer to (CG, S, S), to the tile: (CB, BH, BW).

    By selection, since a gather of whole tiles would come in a layout of its own and be moved through shared memory.
    """
    inside = (c < CG)[:, None] & (h < height)[None, :]
    rows = cells + c[:, None] * (S * S) + (h * S // height)[None, :] * S  # (CB, BH)
    column = w * S // width
    u = tl.broadcast_to(tl.load(rows, inside, 0.0)[:, :, None], (c.shape[0], h.shape[0], w.shape[0]))
    for b in tl.static_range(1, S):
        u = tl.where((column == b)[None, None, :], tl.load(rows + b, inside, 0.0)[:, :, None], u)
    return u


@triton.jit
def _unpool_scale(cells, c, h, w, height, width, CG: tl.constexpr, s: tl.constexpr, S: tl.constexpr, SB: tl.constexpr):
    """One scale's share of _unpool."""
    a = tl.arange(0, SB)
    offsets, mask = _cells(c, a, a, CG, S)
    first, last = _bounds(a * s // S, height, s, True)
    lines = tl.load(cells + offsets, mask, 0.0) / (last - first).to(cells.dtype.element_ty)[None, :, None]
    member = (h[:, None] >= first[None, :]) & (h[:, None] < last[None, :])  # (BH, SB)
    rows = tl.sum(tl.where(member[None, :, :, None], lines[:, None, :, :], 0), 2)  # (CB, BH, SB)
    e = tl.zeros((c.shape[0], h.shape[0], w.shape[0]), cells.dtype.element_ty)
    for j in tl.static_range(s):
        first, last = _bounds(j, width, s, True)
        part = tl.sum(tl.where((a * s // S == j)[None, None, :], rows, 0), 2)  # (CB, BH)
        part = part / (last - first).to(part.dtype)
        e += tl.where(((w >= first) & (w < last))[None, None, :], part[:, :, None], 0)
    return e


@triton.jit
def _unpool(cells, c, h, w, height, width, CG: tl.constexpr, SCALES: tl.constexpr, S: tl.constexpr, SB: tl.constexpr,
            EVEN: tl.constexpr):
    """Transpose of _pool, from the context's gradient, a pointer to (CG, S, S), to the tile: (CB, BH, BW).

    A pixel takes its share from every bin that contains it. Where EVEN, the caller has mixed and divided already.
    """
    if EVEN:
        return _upsample(cells, c, h, w, height, width, CG, S)
    else:
        e = tl.zeros((c.shape[0], h.shape[0], w.shape[0]), cells.dtype.element_ty)
        for k in tl.static_range(len(SCALES)):
            e += _unpool_scale(cells, c, h, w, height, width, CG, SCALES[k], S, SB)
        return e / len(SCALES)


@triton.jit
def _similarity(x, u, COSINE: tl.constexpr, MIN: tl.constexpr):
    """d, (BH, BW)."""
    d = tl.sum(x * u, 0)
    if COSINE:
        d = d / (tl.maximum(tl.sqrt(tl.sum(x * x, 0)), MIN) * tl.maximum(tl.sqrt(tl.sum(u * u, 0)), MIN))
    return d


@triton.jit
def _derivatives(x, u, d, COSINE: tl.constexpr, MIN: tl.constexpr):
    """Derivatives of d by x and by u, each (CB, BH, BW)."""
    if COSINE:
        length_x, length_u = tl.sqrt(tl.sum(x * x, 0)), tl.sqrt(tl.sum(u * u, 0))
        # A length below MIN was replaced by a constant.
        long_x, long_u = length_x >= MIN, length_u >= MIN
        length_x, length_u = tl.maximum(length_x, MIN), tl.maximum(length_u, MIN)
        product = length_x * length_u
        by_x = u / product[None] - x * tl.where(long_x, d / (length_x * length_x), 0)[None]
        by_u = x / product[None] - u * tl.where(long_u, d / (length_u * length_u), 0)[None]
        return by_x, by_u
    else:
        return u, x


@triton.jit
def _conclude(first, second, lows, highs, count, stats, NORM: tl.constexpr, EPS: tl.constexpr, FLAT: tl.constexpr):
    """Write a slab's statistics, stats (STATISTICS,), from mean and sum of squares (zscore) or min and max (minmax).

    Returns shift and factor.
    """
    if NORM == ZSCORE:
        rest = tl.maximum(count - 1, 1)
        std = tl.sqrt(second / rest)
        flat = (count == 1) | (std <= FLAT * tl.abs(first))
        factor = tl.where(flat, 0, 1 / (std + EPS))
        third = tl.where(flat, 0, 1 / (tl.where(flat, 1, std) * rest))
    else:
        flat = (count == 1) | (second - first <= FLAT * tl.maximum(tl.abs(first), tl.abs(second)))
        factor = tl.where(flat, 0, 1 / tl.where(flat, 1, second - first))
        third = second
    tl.store(stats, first)
    tl.store(stats + 1, factor)
    tl.store(stats + 2, third)
    tl.store(stats + 3, lows)
    tl.store(stats + 4, highs)
    return first, factor


@triton.jit
def _measure(d, pixels, NORM: tl.constexpr):
    """Pixels of a tile's d (BH, BW), mean and sum of squares about it | min and max, and how many pixels have them."""
    count = tl.sum(pixels.to(d.dtype))
    if NORM == ZSCORE:
        # Two passes over registers: no difference of large squares.
        first = tl.sum(d) / count  # d is 0 outside the map
        rest = tl.where(pixels, d - first, 0)
        return count, first, tl.sum(rest * rest), count * 0, count * 0
    else:
        low = tl.min(tl.where(pixels, d, float('inf')))
        high = tl.max(tl.where(pixels, d, float('-inf')))
        return (count, low, high, tl.sum((pixels & (d == low)).to(d.dtype)),
                tl.sum((pixels & (d == high)).to(d.dtype)))


@triton.jit
def _merge(count, first, second, lows, highs, count_b, first_b, second_b, lows_b, highs_b, NORM: tl.constexpr):
    """What _measure gives for two tiles, from what it gives for each; the first may have no pixel."""
    total = count + count_b
    if NORM == ZSCORE:
        step = first_b - first
        return (total, first + step * (count_b / total), second + second_b + step * step * (count * count_b / total),
                lows, highs)
    else:
        low, high = tl.minimum(first, first_b), tl.maximum(second, second_b)
        lows = tl.where(first == low, lows, 0) + tl.where(first_b == low, lows_b, 0)
        return total, low, high, lows, tl.where(second == high, highs, 0) + tl.where(second_b == high, highs_b, 0)


@triton.jit
def _tile(t, tiles_w, height, width, c, CG: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr):
    """Rows (BH,), columns (BW,), which pixels of tile t are in the map (BH, BW), and which elements (CB, BH, BW)."""
    h = t // tiles_w * BH + tl.arange(0, BH)
    w = t % tiles_w * BW + tl.arange(0, BW)
    pixels = (h < height)[:, None] & (w < width)[None, :]
    return h, w, pixels, (c < CG)[:, None, None] & pixels[None]


@triton.jit
def _gated(v, d, shift, factor, scale, bias, GAIN: tl.constexpr):
    """y of a tile, (CB, BH, BW)."""
    return v * (GAIN * tl.sigmoid(scale * ((d - shift) * factor) + bias))[None]


@triton.jit(do_not_specialize=[*SIZES, *X_STRIDES, *Y_STRIDES])
def _forward_kernel(
        x,  # (N, C, H, W), strides x_*
        y,  # (N, C, H, W), strides y_*; written by WHOLE, LOOP, APPLY
        scale,  # (G,)
        bias,  # (G,)
        context,  # (N, C, S, S) contiguous, ACC; POOL writes (tiles, N, C, S, S) partial sums instead
        similarity,  # (N, G, H, W) contiguous, ACC; written if NORM == MINMAX
        stats,  # (N, G, STATISTICS), ACC; written by WHOLE, LOOP
        partial,  # (N, G, tiles, 5), ACC: what _measure gives; written by MEASURE
        samples, groups, height,  # N, G, H
        width,  # W, in units of ALIGN where a UNIT is the column
        tiles, tiles_w,  # tiles of a slab; in a row of tiles
        x_n, x_c, x_h, x_w,  # in units of ALIGN
        y_n, y_c, y_h, y_w,  # in units of ALIGN
        STAGE: tl.constexpr,  # WHOLE or LOOP: a program a slab; POOL, MEASURE or APPLY: a program a tile
        CG: tl.constexpr,  # C/G
        CB: tl.constexpr,  # C/G rounded up to a power of two
        BH: tl.constexpr,  # rows of a tile, a power of two
        BW: tl.constexpr,  # columns of a tile, a power of two
        SCALES: tl.constexpr,
        S: tl.constexpr,  # max(SCALES)
        SB: tl.constexpr,  # S rounded up to a power of two
        EVEN: tl.constexpr,  # the grid divides H and W, and every scale divides the grid, a power of two
        ALIGN: tl.constexpr,
        X_UNIT: tl.constexpr,
        Y_UNIT: tl.constexpr,
        COSINE: tl.constexpr,
        NORM: tl.constexpr,
        EPS: tl.constexpr,
        GAIN: tl.constexpr,
        FLAT: tl.constexpr,  # FLATNESS times the epsilon of ACC
        MIN: tl.constexpr,
        ACC: tl.constexpr):
    # Neighbouring programs have neighbouring groups, which share memory sectors in channels_last.
    pid = tl.program_id(0)
    g = pid % groups
    if STAGE == WHOLE or STAGE == LOOP:
        n = pid // groups
        t = n * 0
    else:
        n, t = pid // groups // tiles, pid // groups % tiles
    slab = n * groups + g
    if X_UNIT == UNIT_COLUMN or Y_UNIT == UNIT_COLUMN:
        width = width * ALIGN
    c, a = tl.arange(0, CB), tl.arange(0, SB)
    x = _slab(x, n, g, x_n, x_c, CG, X_UNIT, ALIGN)
    y = _slab(y, n, g, y_n, y_c, CG, Y_UNIT, ALIGN)
    similarity += slab.to(tl.int64) * (height * width)
    offsets, mask = _cells(c, a, a, CG, S)

    # Pool.
    if STAGE == POOL:
        context += ((t * samples + n).to(tl.int64) * groups + g) * (CG * S * S)
    else:
        context += slab.to(tl.int64) * (CG * S * S)
    if STAGE == LOOP:
        cells = tl.zeros((CB, SB, SB), ACC)
        while t < tiles:  # `while`, here and below, because the interpreter's range() fails with NumPy 2
            h, w, pixels, inside = _tile(t, tiles_w, height, width, c, CG, BH, BW)
            v = tl.load(x + _offsets(c, h, w, x_c, x_h, x_w, X_UNIT, ALIGN), inside, 0.0).to(ACC)
            cells += _pool(v, h, w, height, width, SCALES, S, SB, EVEN)
            t += 1
        tl.store(context + offsets, cells, mask)
        tl.debug_barrier()  # other threads of this program read the context
    else:
        h, w, pixels, inside = _tile(t, tiles_w, height, width, c, CG, BH, BW)
        v = tl.load(x + _offsets(c, h, w, x_c, x_h, x_w, X_UNIT, ALIGN), inside, 0.0).to(ACC)
        if STAGE == WHOLE or STAGE == POOL:
            tl.store(context + offsets, _pool(v, h, w, height, width, SCALES, S, SB, EVEN), mask)
            if STAGE == WHOLE:
                tl.debug_barrier()

    if STAGE != POOL:
        scale_g, bias_g = tl.load(scale + g).to(ACC), tl.load(bias + g).to(ACC)
        stats += slab * STATISTICS
        shift = tl.zeros((), ACC)
        factor = shift + 1

        # Measure.
        if STAGE == LOOP:
            count, lows, highs = shift, shift, shift
            first, second = shift, shift
            if NORM == MINMAX:
                first, second = shift + float('inf'), shift - float('inf')
            t = n * 0
            while t < tiles and NORM != NO_NORM:
                h, w, pixels, inside = _tile(t, tiles_w, height, width, c, CG, BH, BW)
                v = tl.load(x + _offsets(c, h, w, x_c, x_h, x_w, X_UNIT, ALIGN), inside, 0.0).to(ACC)
                d = _similarity(v, _upsample(context, c, h, w, height, width, CG, S), COSINE, MIN)
                if NORM == MINMAX:
                    tl.store(similarity + h[:, None] * width + w[None, :], d, pixels)
                count_t, first_t, second_t, lows_t, highs_t = _measure(d, pixels, NORM)
                count, first, second, lows, highs = _merge(count, first, second, lows, highs,
                                                           count_t, first_t, second_t, lows_t, highs_t, NORM)
                t += 1
        else:
            d = _similarity(v, _upsample(context, c, h, w, height, width, CG, S), COSINE, MIN)  # (BH, BW)
            if STAGE != APPLY and NORM != NO_NORM:
                if NORM == MINMAX:
                    tl.store(similarity + h[:, None] * width + w[None, :], d, pixels)
                count, first, second, lows, highs = _measure(d, pixels, NORM)
        if NORM != NO_NORM:
            if STAGE == MEASURE:
                partial += (slab * tiles + t).to(tl.int64) * 5
                tl.store(partial, count)
                tl.store(partial + 1, first)
                tl.store(partial + 2, second)
                tl.store(partial + 3, lows)
                tl.store(partial + 4, highs)
            elif STAGE == APPLY:
                shift, factor = tl.load(stats), tl.load(stats + 1)
            else:
                shift, factor = _conclude(first, second, lows, highs, count, stats, NORM, EPS, FLAT)

        # Apply.
        if STAGE == LOOP:
            t = n * 0
            while t < tiles:
                h, w, pixels, inside = _tile(t, tiles_w, height, width, c, CG, BH, BW)
                v = tl.load(x + _offsets(c, h, w, x_c, x_h, x_w, X_UNIT, ALIGN), inside, 0.0).to(ACC)
                d = _similarity(v, _upsample(context, c, h, w, height, width, CG, S), COSINE, MIN)
                result = _gated(v, d, shift, factor, scale_g, bias_g, GAIN)
                tl.store(y + _offsets(c, h, w, y_c, y_h, y_w, Y_UNIT, ALIGN), result.to(y.dtype.element_ty), inside)
                t += 1
        elif STAGE != MEASURE:
            result = _gated(v, d, shift, factor, scale_g, bias_g, GAIN)
            tl.store(y + _offsets(c, h, w, y_c, y_h, y_w, Y_UNIT, ALIGN), result.to(y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=['tiles', 'height', 'width'])
def _conclude_kernel(
        partial,  # (N, G, tiles, 5), of _forward_kernel's MEASURE
        stats,  # (N, G, STATISTICS)
        tiles, height, width,
        NORM: tl.constexpr, EPS: tl.constexpr, FLAT: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    slab = tl.program_id(0)
    partial += slab.to(tl.int64) * tiles * 5
    count = (height * width).to(ACC)
    first = tl.zeros((), ACC)
    second = tl.zeros((), ACC)
    lows = tl.zeros((), ACC)
    highs = tl.zeros((), ACC)
    if NORM == MINMAX:
        first += float('inf')
        second += float('-inf')
    start = tl.zeros((), tl.int32)
    while start < tiles:
        t = start + tl.arange(0, BLOCK)
        start += BLOCK
        if NORM == ZSCORE:
            first += tl.sum(tl.load(partial + t * 5, t < tiles, 0.0) * tl.load(partial + t * 5 + 1, t < tiles, 0.0))
        else:
            first = tl.minimum(first, tl.min(tl.load(partial + t * 5 + 1, t < tiles, float('inf'))))
            second = tl.maximum(second, tl.max(tl.load(partial + t * 5 + 2, t < tiles, float('-inf'))))
    if NORM == ZSCORE:
        first = first / count
    start = tl.zeros((), tl.int32)
    while start < tiles:
        t = start + tl.arange(0, BLOCK)
        start += BLOCK
        value = tl.load(partial + t * 5 + 1, t < tiles, 0.0)
        if NORM == ZSCORE:
            value = value - first
            second += tl.sum(tl.load(partial + t * 5, t < tiles, 0.0) * value * value +
                             tl.load(partial + t * 5 + 2, t < tiles, 0.0))
        else:
            lows += tl.sum(tl.where(value == first, tl.load(partial + t * 5 + 3, t < tiles, 0.0), 0))
            value = tl.load(partial + t * 5 + 2, t < tiles, 0.0)
            highs += tl.sum(tl.where(value == second, tl.load(partial + t * 5 + 4, t < tiles, 0.0), 0))
    _conclude(first, second, lows, highs, count, stats + slab * STATISTICS, NORM, EPS, FLAT)


@triton.jit
def _coefficients(total, total_d, scale_g, stats, count, NORM: tl.constexpr):
    """alpha * scale, beta and gamma of a slab; total and total_d are its shares of the bias's and scale's gradient."""
    if NORM == NO_NORM:
        return scale_g, tl.zeros_like(scale_g), tl.zeros_like(scale_g)
    else:
        factor = tl.load(stats + 1)
        if NORM == ZSCORE:
            return factor * scale_g, factor * scale_g * total / count, tl.load(stats + 2) * scale_g * total_d
        else:
            by_range = factor * scale_g
            return (by_range, by_range * (total - total_d) / tl.load(stats + 3),
                    by_range * total_d / tl.load(stats + 4))


@triton.jit
def _slopes(v, gy, d, pixels, scale_g, bias_g, stats, GAIN: tl.constexpr, NORM: tl.constexpr):
    """Of every pixel of a tile, (BH, BW): the gate, a, d^, m and m' (None: anything)."""
    if NORM == NO_NORM:
        normalized, one, two = d, d, d
    else:
        normalized = (d - tl.load(stats)) * tl.load(stats + 1)
        if NORM == ZSCORE:
            one, two = pixels.to(d.dtype), tl.where(pixels, normalized, 0)
        else:
            one = (pixels & (d == tl.load(stats))).to(d.dtype)
            two = (pixels & (d == tl.load(stats + 2))).to(d.dtype)
    gate = tl.sigmoid(scale_g * normalized + bias_g)
    slope = GAIN * gate * (1 - gate) * tl.sum(gy * v, 0)  # 0 outside the map
    return GAIN * gate, slope, normalized, one, two


@triton.jit(do_not_specialize=[*SIZES, *X_STRIDES, *Y_STRIDES, *G_STRIDES])
def _backward_kernel(
        x,  # (N, C, H, W), strides x_*
        grad_y,  # (N, C, H, W), strides g_*
        grad_x,  # (N, C, H, W), strides y_*; written by WHOLE, LOOP, APPLY
        scale,  # (G,)
        bias,  # (G,)
        context,  # (N, C, S, S) contiguous, ACC
        similarity,  # (N, G, H, W) contiguous, ACC; read if NORM == MINMAX
        stats,  # (N, G, STATISTICS), ACC
        totals,  # (N, G, 2), ACC: shares of the bias's and the scale's gradient; SUMS writes (tiles, N, G, 2)
        grad_context,  # (N, C, S, S), ACC; SUMS writes (tiles, N, G, 3, C/G, S, S): the sums of a, m, m'
        samples, groups, height,  # N, G, H
        width,  # W, in units of ALIGN where a UNIT is the column
        tiles, tiles_w,  # tiles of a slab; in a row of tiles
        x_n, x_c, x_h, x_w,  # in units of ALIGN
        y_n, y_c, y_h, y_w,  # in units of ALIGN
        g_n, g_c, g_h, g_w,  # in units of ALIGN
        STAGE: tl.constexpr,  # WHOLE or LOOP: a program a slab; SUMS or APPLY: a program a tile
        CG: tl.constexpr,  # from here on as in _forward_kernel
        CB: tl.constexpr,
        BH: tl.constexpr,
        BW: tl.constexpr,
        SCALES: tl.constexpr,
        S: tl.constexpr,
        SB: tl.constexpr,
        EVEN: tl.constexpr,
        ALIGN: tl.constexpr,
        X_UNIT: tl.constexpr,
        Y_UNIT: tl.constexpr,
        G_UNIT: tl.constexpr,
        COSINE: tl.constexpr,
        NORM: tl.constexpr,
        GAIN: tl.constexpr,
        MIN: tl.constexpr,
        ACC: tl.constexpr):
    pid = tl.program_id(0)
    g = pid % groups
    if STAGE == WHOLE or STAGE == LOOP:
        n = pid // groups
        t = n * 0
        end = tiles
    else:
        n, t = pid // groups // tiles, pid // groups % tiles
        end = t + 1
    slab = n * groups + g
    if X_UNIT == UNIT_COLUMN or Y_UNIT == UNIT_COLUMN or G_UNIT == UNIT_COLUMN:
        width = width * ALIGN
    count = (height * width).to(ACC)
    c, a = tl.arange(0, CB), tl.arange(0, SB)
    x = _slab(x, n, g, x_n, x_c, CG, X_UNIT, ALIGN)
    grad_x = _slab(grad_x, n, g, y_n, y_c, CG, Y_UNIT, ALIGN)
    grad_y = _slab(grad_y, n, g, g_n, g_c, CG, G_UNIT, ALIGN)
    context += slab.to(tl.int64) * (CG * S * S)
    similarity += slab.to(tl.int64) * (height * width)
    stats += slab * STATISTICS
    offsets, mask = _cells(c, a, a, CG, S)
    scale_g, bias_g = tl.load(scale + g).to(ACC), tl.load(bias + g).to(ACC)

    if STAGE == SUMS:
        slab_of_tile = (t * samples + n).to(tl.int64) * groups + g
        totals += slab_of_tile * 2
        grad_context += slab_of_tile * (3 * CG * S * S)
    else:
        totals += slab * 2
        grad_context += slab.to(tl.int64) * (CG * S * S)

    # Sum.
    if STAGE == LOOP or STAGE == SUMS:
        total = tl.zeros((), ACC)
        total_d = tl.zeros((), ACC)
        by_slope = tl.zeros((CB, SB, SB), ACC)
        by_one = tl.zeros((CB, SB, SB), ACC)
        by_two = tl.zeros((CB, SB, SB), ACC)
        while t < end:
            h, w, pixels, inside = _tile(t, tiles_w, height, width, c, CG, BH, BW)
            v = tl.load(x + _offsets(c, h, w, x_c, x_h, x_w, X_UNIT, ALIGN), inside, 0.0).to(ACC)
            gy = tl.load(grad_y + _offsets(c, h, w, g_c, g_h, g_w, G_UNIT, ALIGN), inside, 0.0).to(ACC)
            u = _upsample(context, c, h, w, height, width, CG, S)
            if NORM == MINMAX:
                d = tl.load(similarity + h[:, None] * width + w[None, :], pixels, 0.0)
            else:
                d = _similarity(v, u, COSINE, MIN)
            gate, slope, normalized, one, two = _slopes(v, gy, d, pixels, scale_g, bias_g, stats, GAIN, NORM)
            by_x, by_u = _derivatives(v, u, d, COSINE, MIN)
            total += tl.sum(slope)
            total_d += tl.sum(slope * normalized)
            by_slope += _grid_sums(slope[None] * by_u, h, w, height, width, S, S, SB, False)
            if NORM != NO_NORM:
                by_one += _grid_sums(one[None] * by_u, h, w, height, width, S, S, SB, False)
                by_two += _grid_sums(two[None] * by_u, h, w, height, width, S, S, SB, False)
            t += 1
        if STAGE == SUMS:
            tl.store(grad_context + offsets, by_slope, mask)
            if NORM != NO_NORM:
                tl.store(grad_context + CG * S * S + offsets, by_one, mask)
                tl.store(grad_context + 2 * CG * S * S + offsets, by_two, mask)
        else:
            alpha, beta, gamma = _coefficients(total, total_d, scale_g, stats, count, NORM)
            cells = alpha * by_slope - beta * by_one - gamma * by_two
            if EVEN:
                cells = _mix(cells, SCALES, S) * (S * S) / count
            tl.store(grad_context + offsets, cells, mask)
            tl.debug_barrier()  # other threads of this program read it
            t = n * 0
        tl.store(totals, total)
        tl.store(totals + 1, total_d)

    # Apply.
    if STAGE != SUMS:
        if STAGE == APPLY:
            total, total_d = tl.load(totals), tl.load(totals + 1)
            alpha, beta, gamma = _coefficients(total, total_d, scale_g, stats, count, NORM)
        while t < end:
            h, w, pixels, inside = _tile(t, tiles_w, height, width, c, CG, BH, BW)
            v = tl.load(x + _offsets(c, h, w, x_c, x_h, x_w, X_UNIT, ALIGN), inside, 0.0).to(ACC)
            gy = tl.load(grad_y + _offsets(c, h, w, g_c, g_h, g_w, G_UNIT, ALIGN), inside, 0.0).to(ACC)
            u = _upsample(context, c, h, w, height, width, CG, S)
            if NORM == MINMAX:
                d = tl.load(similarity + h[:, None] * width + w[None, :], pixels, 0.0)
            else:
                d = _similarity(v, u, COSINE, MIN)
            gate, slope, normalized, one, two = _slopes(v, gy, d, pixels, scale_g, bias_g, stats, GAIN, NORM)
            by_x, by_u = _derivatives(v, u, d, COSINE, MIN)
            if STAGE == WHOLE:  # one tile, so the sums are known at once
                total, total_d = tl.sum(slope), tl.sum(slope * normalized)
                tl.store(totals, total)
                tl.store(totals + 1, total_d)
                alpha, beta, gamma = _coefficients(total, total_d, scale_g, stats, count, NORM)
            grad_d = alpha * slope
            if NORM != NO_NORM:
                grad_d -= beta * one + gamma * two
            if STAGE == WHOLE:
                cells = _grid_sums(grad_d[None] * by_u, h, w, height, width, S, S, SB, False)
                if EVEN:
                    cells = _mix(cells, SCALES, S) * (S * S) / count
                tl.store(grad_context + offsets, cells, mask)
                tl.debug_barrier()
            result = gy * gate[None] + grad_d[None] * by_x
            result += _unpool(grad_context, c, h, w, height, width, CG, SCALES, S, SB, EVEN)
            tl.store(grad_x + _offsets(c, h, w, y_c, y_h, y_w, Y_UNIT, ALIGN),
                     result.to(grad_x.dtype.element_ty), inside)
            t += 1


@triton.jit(do_not_specialize=['samples', 'groups', 'tiles', 'height', 'width'])
def _collect_kernel(
        sums,  # (tiles, N, G, 3, C/G, S, S), of _backward_kernel's SUMS
        shares,  # (tiles, N, G, 2), of the same
        scale,  # (G,)
        stats,  # (N, G, STATISTICS)
        totals,  # (N, G, 2), written
        grad_context,  # (N, C, S, S), written
        samples, groups, tiles, height, width,
        CG: tl.constexpr,
        CF: tl.constexpr,  # channels of a program, a power of two
        BLOCK: tl.constexpr,  # tiles read at once, a power of two
        SCALES: tl.constexpr, S: tl.constexpr, SB: tl.constexpr, EVEN: tl.constexpr, NORM: tl.constexpr,
        ACC: tl.constexpr):
    slab = tl.program_id(0)
    c = tl.program_id(1) * CF + tl.arange(0, CF)
    a = tl.arange(0, SB)
    offsets, mask = _cells(c, a, a, CG, S)
    by_slope = tl.zeros((CF, SB, SB), ACC)
    by_one = tl.zeros((CF, SB, SB), ACC)
    by_two = tl.zeros((CF, SB, SB), ACC)
    total = tl.zeros((), ACC)
    total_d = tl.zeros((), ACC)
    start = tl.zeros((), tl.int32)
    while start < tiles:
        t = start + tl.arange(0, BLOCK)
        start += BLOCK
        slab_of_tile = t.to(tl.int64) * (samples * groups) + slab
        total += tl.sum(tl.load(shares + slab_of_tile * 2, t < tiles, 0.0))
        total_d += tl.sum(tl.load(shares + slab_of_tile * 2 + 1, t < tiles, 0.0))
        part = sums + (slab_of_tile * (3 * CG * S * S))[:, None, None, None] + offsets[None]
        some = (t < tiles)[:, None, None, None] & mask[None]
        by_slope += tl.sum(tl.load(part, some, 0.0), 0)
        if NORM != NO_NORM:
            by_one += tl.sum(tl.load(part + CG * S * S, some, 0.0), 0)
            by_two += tl.sum(tl.load(part + 2 * CG * S * S, some, 0.0), 0)
    count = (height * width).to(ACC)
    scale_g = tl.load(scale + slab % groups).to(ACC)
    alpha, beta, gamma = _coefficients(total, total_d, scale_g, stats + slab * STATISTICS, count, NORM)
    cells = alpha * by_slope - beta * by_one - gamma * by_two
    if EVEN:
        cells = _mix(cells, SCALES, S) * (S * S) / count
    tl.store(grad_context + slab.to(tl.int64) * (CG * S * S) + offsets, cells, mask)
    tl.store(totals + slab * 2, total)  # every program of the slab writes the same numbers
    tl.store(totals + slab * 2 + 1, total_d)


class Plan(NamedTuple):
    """What is compiled for: the only things that may depend on the picture's size, with few values each."""

    way: int  # WHOLE, LOOP or APPLY, which stands for a kernel a stage
    rows: int
    columns: int
    even: bool
    align: int
    units: tuple[int, ...]
    warps: int


def _strides(t: Tensor) -> list[int]:
    """Strides of (N, C, H, W), 0 where there is one element only: PyTorch leaves those arbitrary."""
    return [stride if size > 1 else 0 for size, stride in zip(t.shape, t.stride())]


def launch_plan(tensors: tuple[Tensor, ...], options: CCDOptions) -> Plan:
    """How kernels are launched for these (N, C, H, W) tensors of one shape."""
    x = tensors[0]
    _, channels, height, width = x.shape
    per_group = channels // options.groups
    block = triton.next_power_of_2(per_group)
    side = max(8, triton.next_power_of_2(max(height, width)))
    if block * side * side <= WHOLE_LIMIT:
        way, rows, columns = WHOLE, side, side
    else:
        way = LOOP if per_group * height * width * x.element_size() <= LOOP_LIMIT else APPLY
        columns = max(1, min(TILE_WIDTH, TILE_ELEMENTS // block))
        rows = max(1, TILE_ELEMENTS // (block * columns))

    grid = max(options.scales)
    even = (grid & (grid - 1) == 0 and all(grid % s == 0 for s in options.scales) and height % grid == 0
            and width % grid == 0)

    # The unit stride and what divides the others, so that threads may load vectors.
    align, units = 16 // min(16, max(t.element_size() for t in tensors)), []
    for t in tensors:
        strides = _strides(t)
        if strides[3] == 1 or (width == 1 and strides[1] != 1):
            unit, others = UNIT_COLUMN, [*strides[:3], width]
        elif strides[1] == 1 or channels == 1:
            unit, others = UNIT_CHANNEL, [strides[0], *strides[2:], per_group]
        else:
            unit, others = UNIT_NONE, strides
        units.append(unit.value)
        while any(stride % align for stride in others):
            align //= 2
    warps = min(16, max(1, block * rows * columns // 512))
    return Plan(way.value, rows, columns, even, align, tuple(units), warps)


def _sizes(x: Tensor, plan: Plan) -> dict[str, int]:
    height, width = x.shape[2:]
    in_units = UNIT_COLUMN.value in plan.units
    tiles_w = triton.cdiv(width, plan.columns)
    return dict(height=height, width=width // plan.align if in_units else width,
                tiles=triton.cdiv(height, plan.rows) * tiles_w, tiles_w=tiles_w)


def _named_strides(names: list[str], t: Tensor, unit: int, align: int) -> dict[str, int]:
    strides = _strides(t)
    if unit == UNIT_CHANNEL.value:
        strides[1] = 0  # the kernel knows it
    elif unit == UNIT_COLUMN.value:
        strides[3] = 0
    return dict(zip(names, (stride // align for stride in strides)))


def _switches(x: Tensor, options: CCDOptions, plan: Plan) -> tuple[torch.dtype, dict[str, object]]:
    """Compile-time arguments that forward and backward share, and the dtype that sums have."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    per_group, grid = x.shape[1] // options.groups, max(options.scales)
    return compute, dict(
        CG=per_group, CB=triton.next_power_of_2(per_group), BH=plan.rows, BW=plan.columns,
        SCALES=tuple(options.scales), S=grid, SB=triton.next_power_of_2(grid), EVEN=plan.even, ALIGN=plan.align,
        COSINE=options.similarity == 'cosine', NORM=NORMALIZE[options.normalize], GAIN=float(options.gain),
        MIN=MIN_NORM, ACC=tl.float64 if compute == torch.float64 else tl.float32)


def forward(x: Tensor, scale: Tensor, bias: Tensor, options: CCDOptions) -> tuple[Tensor, tuple[Tensor, ...]]:
    """CCD of ``x`` (N, C, H, W); arguments as checked by :func:`mmccd.ops.ccd`.

    Returns:
        tuple: y (N, C, H, W) in the layout of ``x``, and what :func:`backward` needs besides the arguments: context
        (N, C, S, S), statistics (N, G, 5) and, for minmax, similarity (N, G, H, W); float32 (float64 for such an x).
    """
    samples, channels, height, width = x.shape
    groups, grid = options.groups, max(options.scales)
    y = torch.empty_like(x)
    plan = launch_plan((x, y), options)
    compute, switches = _switches(x, options, plan)
    context = x.new_empty((samples, channels, grid, grid), dtype=compute)
    stats = x.new_empty((samples, groups, STATISTICS.value), dtype=compute)
    saved = [context, stats]
    if options.normalize == 'minmax':
        saved.append(x.new_empty((samples, groups, height, width), dtype=compute))
    if x.numel() == 0:
        return y, tuple(saved)

    sizes = _sizes(x, plan)
    tiles = sizes['tiles']
    flat = FLATNESS * torch.finfo(compute).eps
    arguments = dict(
        x=x, y=y, scale=scale.contiguous(), bias=bias.contiguous(), context=context, similarity=saved[-1],
        stats=stats, partial=stats, samples=samples, groups=groups, **sizes, **switches,
        **_named_strides(X_STRIDES, x, plan.units[0], plan.align),
        **_named_strides(Y_STRIDES, y, plan.units[1], plan.align), X_UNIT=plan.units[0], Y_UNIT=plan.units[1],
        EPS=float(options.eps), FLAT=flat, num_warps=plan.warps)
    with torch.cuda.device_of(x):
        if plan.way != APPLY.value:
            _forward_kernel[(samples * groups, )](STAGE=plan.way, **arguments)
            return y, tuple(saved)
        launch = _forward_kernel[(samples * groups * tiles, )]
        parts = x.new_empty((tiles, *context.shape), dtype=compute)
        launch(STAGE=POOL.value, **{**arguments, 'context': parts})
        torch.sum(parts, 0, out=context)
        if options.normalize is not None:
            partial = x.new_empty((samples, groups, tiles, 5), dtype=compute)
            launch(STAGE=MEASURE.value, **{**arguments, 'partial': partial})
            _conclude_kernel[(samples * groups, )](
                partial, stats, tiles, height, width, NORM=switches['NORM'], EPS=float(options.eps), FLAT=flat,
                ACC=switches['ACC'], BLOCK=128, num_warps=1)
        launch(STAGE=APPLY.value, **arguments)
    return y, tuple(saved)


def backward(grad_y: Tensor, x: Tensor, scale: Tensor, bias: Tensor, saved: tuple[Tensor, ...],
             options: CCDOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, scale and bias from that of y, (N, C, H, W) in any layout; ``saved`` as :func:`forward` gave."""
    context, stats = saved[:2]
    samples, _, height, width = x.shape
    groups = options.groups
    grad_x = torch.empty_like(x)
    if x.numel() == 0:
        return grad_x, torch.zeros_like(scale), torch.zeros_like(bias)
    plan = launch_plan((x, grad_x, grad_y), options)
    compute, switches = _switches(x, options, plan)
    totals = x.new_empty((samples, groups, 2), dtype=compute)
    grad_context = torch.empty_like(context)
    sizes = _sizes(x, plan)
    tiles = sizes['tiles']
    scale_in = scale.contiguous()
    arguments = dict(
        x=x, grad_y=grad_y, grad_x=grad_x, scale=scale_in, bias=bias.contiguous(), context=context,
        similarity=saved[-1], stats=stats, totals=totals, grad_context=grad_context, samples=samples, groups=groups,
        **sizes, **switches, **_named_strides(X_STRIDES, x, plan.units[0], plan.align),
        **_named_strides(Y_STRIDES, grad_x, plan.units[1], plan.align),
        **_named_strides(G_STRIDES, grad_y, plan.units[2], plan.align), X_UNIT=plan.units[0], Y_UNIT=plan.units[1],
        G_UNIT=plan.units[2], num_warps=plan.warps)
    with torch.cuda.device_of(x):
        if plan.way != APPLY.value:
            _backward_kernel[(samples * groups, )](STAGE=plan.way, **arguments)
        else:
            launch = _backward_kernel[(samples * groups * tiles, )]
            shares = x.new_empty((tiles, *totals.shape), dtype=compute)
            sums = x.new_empty((tiles, samples, groups, 3, context[0].numel() // groups), dtype=compute)
            launch(STAGE=SUMS.value, **{**arguments, 'totals': shares, 'grad_context': sums})
            block = 8
            at_once = min(switches['CB'], max(1, TILE_ELEMENTS // (block * switches['SB']**2)))
            _collect_kernel[(samples * groups, triton.cdiv(switches['CG'], at_once))](
                sums, shares, scale_in, stats, totals, grad_context, samples, groups, tiles, height, width,
                CF=at_once, BLOCK=block, num_warps=4,
                **{k: switches[k] for k in ('CG', 'SCALES', 'S', 'SB', 'EVEN', 'NORM', 'ACC')})
            launch(STAGE=APPLY.value, **arguments)
    grad_bias, grad_scale = totals.sum(0).unbind(1)
    return grad_x, grad_scale.to(scale.dtype), grad_bias.to(bias.dtype)


def interpreting() -> bool:
    """Whether Triton was told to interpret when this module was imported."""
    return not isinstance(_forward_kernel, triton.JITFunction)


def unavailable(x: Tensor) -> str | None:
    """Why these kernels cannot run on ``x``, or None where they can."""
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f'the Triton kernels have float16, bfloat16, float32 and float64, got {x.dtype}'
    if not interpreting():
        if x.device.type != 'cuda':
            return f'the Triton kernels need a CUDA tensor, got one on {x.device} (or set TRITON_INTERPRET=1)'
    elif x.device.type not in ('cpu', 'cuda'):
        return f'the Triton interpreter needs a tensor in memory, got one on {x.device}'
    if sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:])) >= 2**31:
        return f'the Triton kernels count positions in a sample in 32 bits, which {tuple(x.shape)} exceeds'
    return None
