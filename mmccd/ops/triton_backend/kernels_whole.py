"""Kernels for slabs that a program holds in registers: read once, written once, forward and backward.

The header of the package says what cells and tiles are. Tiles are (LB, BH, LB, CB, BW): column of cells, row in a cell,
row of cells, channel, column in a cell.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels_mixing import mix, mix_back
from .kernels_shared import (
    MINMAX,
    NO_NORM,
    ZSCORE,
    add_relu,
    affine,
    bin_start,
    cell_of,
    cell_start,
    coefficients,
    conclude,
    derivatives,
    factor,
    in_elements,
    per_channel,
    rectified,
    similarity,
    slopes,
)
from .plan import G_STRIDES, SIZES, X_STRIDES, Y_STRIDES


@triton.jit
def _positions(size, B: tl.constexpr, P: tl.constexpr):
    """Positions (LB, B) of an axis, cell by cell, and which of them are in their cells."""
    k, i = tl.arange(0, P.LB), tl.arange(0, B)
    if P.EVEN:
        return (k * (size // P.L))[:, None] + i[None, :], (k < P.L)[:, None] & (i < size // P.L)[None, :]
    else:
        first, last = cell_start(k, size, P.L), cell_start(k + 1, size, P.L)
        at = first[:, None] + i[None, :]
        return at, (k < P.L)[:, None] & (at < last[:, None])


@triton.jit
def _tile(height, width, P: tl.constexpr):
    """Channels (CB,), rows (BH, LB), columns (LB, BW), which are in the map (LB, BH, LB, BW), and in the slab."""
    c = tl.arange(0, P.CB)
    h, rows = _positions(height, P.BH, P)
    w, columns = _positions(width, P.BW, P)
    h, rows = tl.trans(h), tl.trans(rows)
    pixels = rows[None, :, :, None] & columns[:, None, None, :]
    return c, h, w, rows, columns, pixels, (c < P.CG)[None, None, None, :, None] & pixels[:, :, :, None, :]


@triton.jit
def _offsets(c, h, w, s_c, s_h, s_w):
    """Offsets (LB, BH, LB, CB, BW) in a slab."""
    return (c * s_c)[None, None, None, :, None] + (h * s_h)[None, :, :, None, None] + (w * s_w)[:, None, None, None, :]


@triton.jit
def _of_tile(values):
    """(CB,) to what broadcasts to a tile."""
    return values[None, None, None, :, None]


@triton.jit
def _cell_sums(v):
    """(LB, BH, LB, CB, BW) to (CB, row of cells, column of cells); in one sum, which goes through a thread first."""
    v = tl.permute(v, (3, 2, 0, 1, 4))
    return tl.sum(tl.reshape(v, (v.shape[0], v.shape[1], v.shape[2], v.shape[3] * v.shape[4])), 3)


@triton.jit
def _over_pixels(cells):
    """(CB, LB, LB) to what broadcasts to a tile: (LB, 1, LB, CB, 1)."""
    return tl.permute(cells, (2, 1, 0))[:, None, :, :, None]


@triton.jit
def _over_channels(d):
    """(LB, BH, LB, BW) to what broadcasts to a tile: (LB, BH, LB, 1, BW)."""
    return d[:, :, :, None, :]


@triton.jit
def _channel_sums(v, SUM: tl.constexpr):
    """(LB, BH, LB, CB, BW) to (CB,)."""
    v = tl.permute(v.to(SUM), (3, 0, 1, 2, 4))
    return tl.sum(tl.reshape(v, (v.shape[0], v.shape[1] * v.shape[2] * v.shape[3] * v.shape[4])), 1)


@triton.jit
def _edges(
    x, weight, times, plus, c, h, w, rows, columns, height, width, s_c, s_h, s_w, P: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Sums over what bins have besides their cells: a row, a column, a corner; each (CB, LB, LB).

    Read once more, for these lines are few, and in a cache.
    """
    k = tl.arange(0, P.LB)
    r, q = bin_start(k, height, P.L), bin_start(k, width, P.L)
    shared_r, shared_q = (k < P.L) & (k * height % P.L != 0), (k < P.L) & (k * width % P.L != 0)
    there = (c < P.CG)[:, None, None, None]
    inside = there & shared_r[None, :, None, None] & columns[None, None, :, :]
    at = (c * s_c)[:, None, None, None] + (r * s_h)[None, :, None, None] + (w * s_w)[None, None, :, :]
    f, o = times[:, None, None, None], plus[:, None, None, None]
    row = tl.sum(affine(tl.load(x + at, inside, 0.0), inside, weight, f, o, ACC), 3)
    inside = there & rows[None, :, :, None] & shared_q[None, None, None, :]
    at = (c * s_c)[:, None, None, None] + (h * s_h)[None, :, :, None] + (q * s_w)[None, None, None, :]
    column = tl.sum(affine(tl.load(x + at, inside, 0.0), inside, weight, f, o, ACC), 1)
    f, o = times[:, None, None], plus[:, None, None]
    inside = (c < P.CG)[:, None, None] & shared_r[None, :, None] & shared_q[None, None, :]
    at = (c * s_c)[:, None, None] + (r * s_h)[None, :, None] + (q * s_w)[None, None, :]
    return row, column, affine(tl.load(x + at, inside, 0.0), inside, weight, f, o, ACC)


@triton.jit
def _at_context(c, P: tl.constexpr):
    """Offsets (CB, LB, LB) of what cells read in a slab's context, contiguous (CG, S, S); which are, which write."""
    k = tl.arange(0, P.LB)
    at = cell_of(k, P.L, P.S)
    offsets = c[:, None, None] * (P.S * P.S) + at[None, :, None] * P.S + at[None, None, :]
    reads = (c < P.CG)[:, None, None] & (k < P.L)[None, :, None] & (k < P.L)[None, None, :]
    return offsets, reads, reads & (k % (P.L // P.S) == 0)[None, :, None] & (k % (P.L // P.S) == 0)[None, None, :]


@triton.jit(do_not_specialize=[*SIZES, *X_STRIDES, *Y_STRIDES])
def forward_kernel(
    x,  # (N, C, H, W), strides x_*
    residual,  # None, or (N, C, H, W), strides y_*
    y,  # (N, C, H, W), strides y_*; written
    scale,  # (G,)
    bias,  # (G,)
    weight,  # None, or (C,)
    shift,  # None, or (C,)
    context,  # (N, C, S, S) contiguous, ACC; written if KEEP
    d_out,  # (N, G, H, W) contiguous, ACC; written if KEEP, for minmax
    stats,  # (N, G, 2), ACC; written if KEEP
    groups, height, width,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,  # in units of P.SAMPLE_ALIGN and P.ALIGN
    KEEP: tl.constexpr, P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs have neighbouring groups, which share memory sectors in channels_last.
    slab = tl.program_id(0)
    g, n = slab % groups, slab // groups
    x_n, x_c, x_h, x_w = in_elements(x_n, x_c, x_h, x_w, P.X_UNIT, P)
    x += n * x_n + g.to(tl.int64) * P.CG * x_c
    c, h, w, rows, columns, pixels, inside = _tile(height, width, P)
    times = per_channel(weight, g * P.CG + c, c < P.CG, ACC)
    plus = per_channel(shift, g * P.CG + c, c < P.CG, ACC)
    v = tl.load(x + _offsets(c, h, w, x_c, x_h, x_w), inside, 0.0)
    v = affine(v, inside, weight, _of_tile(times), _of_tile(plus), ACC)
    cells = _cell_sums(v)
    row, column, corner = cells, cells, cells
    if not P.EVEN:
        row, column, corner = _edges(
            x, weight, times, plus, c, h, w, rows, columns, height, width, x_c, x_h, x_w, P, ACC
        )
    u = mix(cells, row, column, corner, height, width, P)
    if KEEP:
        at, _, writes = _at_context(c, P)
        tl.store(context + slab.to(tl.int64) * (P.CG * P.S * P.S) + at, u, writes)
    d = similarity(v, _over_pixels(u), 3, P)  # (LB, BH, LB, BW)
    if KEEP and P.NORM == MINMAX:
        d_out += slab.to(tl.int64) * height * width
        tl.store(d_out + (h * width)[None, :, :, None] + w[:, None, None, :], d, pixels)
    if P.NORM != NO_NORM:
        count = tl.full((), height * width, ACC)
        if P.NORM == ZSCORE:
            # Two passes over registers: no difference of large squares. d is 0 outside the map.
            first = tl.sum(d) / count
            rest = tl.where(pixels, d - first, 0)
            second = tl.sum(rest * rest)
        else:
            first = tl.min(tl.where(pixels, d, float('inf')))
            second = tl.max(tl.where(pixels, d, float('-inf')))
        first, std_or_range = conclude(count, first, second, P.NORM, P.FLAT)
        if KEEP:
            tl.store(stats + slab * 2, first)
            tl.store(stats + slab * 2 + 1, std_or_range)
        d = (d - first) * factor(std_or_range, P)
    gate = P.GAIN * tl.sigmoid(tl.load(scale + g).to(ACC) * d + tl.load(bias + g).to(ACC))
    result = (v * _over_channels(gate)).to(y.dtype.element_ty)
    y_n, y_c, y_h, y_w = in_elements(y_n, y_c, y_h, y_w, P.Y_UNIT, P)
    start = n * y_n + g.to(tl.int64) * P.CG * y_c
    offsets = _offsets(c, h, w, y_c, y_h, y_w)
    if residual is not None:
        result = add_relu(result, residual + start + offsets, inside, ACC)
    tl.store(y + start + offsets, result, inside)


@triton.jit(do_not_specialize=[*SIZES, *X_STRIDES, *Y_STRIDES, *G_STRIDES])
def backward_kernel(
    x,  # (N, C, H, W), strides x_*
    grad_y,  # (N, C, H, W), strides g_*
    out,  # None, or y where there was a residual: (N, C, H, W), strides y_*
    grad_x,  # (N, C, H, W), strides y_*; written
    grad_residual,  # None, or (N, C, H, W), strides y_*; written
    scale,  # (G,)
    bias,  # (G,)
    weight,  # None, or (C,)
    shift,  # None, or (C,)
    context,  # (N, C, S, S) contiguous, ACC
    d_in,  # (N, G, H, W) contiguous, ACC; read for minmax, whose extremes must be met to the bit
    stats,  # (N, G, 2), ACC
    totals,  # (2, N, G), ACC, written: sums of a d^ (scale's gradient) and a (bias's)
    affine_sums,  # None, or (2, N, C), SUM, written: sums of the gradient times x (weight's) and alone (shift's)
    samples, groups, height, width,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w, g_n, g_c, g_h, g_w,  # in units of P.SAMPLE_ALIGN and P.ALIGN
    P: tl.constexpr, ACC: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    slab = tl.program_id(0)
    g, n = slab % groups, slab // groups
    x_n, x_c, x_h, x_w = in_elements(x_n, x_c, x_h, x_w, P.X_UNIT, P)
    y_n, y_c, y_h, y_w = in_elements(y_n, y_c, y_h, y_w, P.Y_UNIT, P)
    g_n, g_c, g_h, g_w = in_elements(g_n, g_c, g_h, g_w, P.G_UNIT, P)
    x += n * x_n + g.to(tl.int64) * P.CG * x_c
    grad_y += n * g_n + g.to(tl.int64) * P.CG * g_c
    c, h, w, _, _, pixels, inside = _tile(height, width, P)
    times = per_channel(weight, g * P.CG + c, c < P.CG, ACC)
    plus = per_channel(shift, g * P.CG + c, c < P.CG, ACC)
    raw = tl.load(x + _offsets(c, h, w, x_c, x_h, x_w), inside, 0.0)
    v = affine(raw, inside, weight, _of_tile(times), _of_tile(plus), ACC)
    start = n * y_n + g.to(tl.int64) * P.CG * y_c
    offsets = _offsets(c, h, w, y_c, y_h, y_w)
    gy = rectified(grad_y + _offsets(c, h, w, g_c, g_h, g_w), start, offsets, out, grad_residual, inside, ACC)

    at, reads, _ = _at_context(c, P)
    u = _over_pixels(tl.load(context + slab.to(tl.int64) * (P.CG * P.S * P.S) + at, reads, 0.0))
    if P.NORM == MINMAX:
        d_in += slab.to(tl.int64) * height * width
        d = tl.load(d_in + (h * width)[None, :, :, None] + w[:, None, None, :], pixels, 0.0)
    else:
        d = similarity(v, u, 3, P)  # (LB, BH, LB, BW)
    scale_g, bias_g = tl.load(scale + g).to(ACC), tl.load(bias + g).to(ACC)
    first, std_or_range = scale_g, scale_g
    if P.NORM != NO_NORM:
        first, std_or_range = tl.load(stats + slab * 2), tl.load(stats + slab * 2 + 1)
    gate, slope, normalized, one, two = slopes(tl.sum(gy * v, 3), d, pixels, scale_g, bias_g, first, std_or_range, P)
    by_v, by_u = derivatives(v, u, d, 3, P)
    total, total_d = tl.sum(slope), tl.sum(slope * normalized)
    ones, twos = total, total
    if P.NORM == MINMAX:
        ones, twos = tl.sum(one), tl.sum(two)
    tl.store(totals + slab, total_d)
    tl.store(totals + samples * groups + slab, total)

    count = tl.full((), height * width, ACC)
    alpha, beta, gamma = coefficients(total, total_d, ones, twos, scale_g, std_or_range, count, P)
    grad_d = alpha * slope
    if P.NORM != NO_NORM:
        grad_d -= beta * one + gamma * two
    grad_d = _over_channels(grad_d)
    cells = _cell_sums(grad_d * by_u)
    cells, row, column, corner = mix_back(cells, height, width, P)
    if P.AGAIN:
        # From a cache: registers do not hold everything until here.
        raw = tl.load(x + _offsets(c, h, w, x_c, x_h, x_w), inside, 0.0)
        v = affine(raw, inside, weight, _of_tile(times), _of_tile(plus), ACC)
        gy = rectified(grad_y + _offsets(c, h, w, g_c, g_h, g_w), start, offsets, out, None, inside, ACC)
        by_v, _ = derivatives(v, u, d, 3, P)
    result = gy * _over_channels(gate) + grad_d * by_v + _over_pixels(cells)
    if not P.EVEN:
        last = cell_start(tl.arange(0, P.LB) + 1, height, P.L)
        last_row = (h == last[None, :] - 1)[None, :, :, None, None]
        last = cell_start(tl.arange(0, P.LB) + 1, width, P.L)
        last_column = (w == last[:, None] - 1)[:, None, None, None, :]
        result += tl.where(last_row, _over_pixels(row), 0)
        line = _over_pixels(column) + tl.where(last_row, _over_pixels(corner), 0)
        result += tl.where(last_column, line, 0)
    if weight is not None:
        affine_sums += slab.to(tl.int64) * P.CG + c
        result = tl.where(inside, result, 0)
        tl.store(affine_sums, _channel_sums(result.to(SUM) * raw.to(SUM), SUM), c < P.CG)
        tl.store(affine_sums + samples.to(tl.int64) * groups * P.CG, _channel_sums(result, SUM), c < P.CG)
        result *= _of_tile(times)
    tl.store(grad_x + start + offsets, result.to(grad_x.dtype.element_ty), inside)
