"""Kernels of the backward; see the header of the package."""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels_shared import (
    APPLY,
    MINMAX,
    NO_NORM,
    SUMS,
    UNIT_CHANNEL,
    UNIT_COLUMN,
    WHOLE,
    ZSCORE,
    at_cells,
    at_context,
    cell_start,
    cell_sums,
    factor,
    mix_back,
    over_channels,
    over_pixels,
    positions,
    similarity,
    tile,
)
from .plan import G_STRIDES, SIZES, X_STRIDES, Y_STRIDES


@triton.jit
def _derivatives(v, u, d, COSINE: tl.constexpr, MIN: tl.constexpr):
    """Derivatives of d by x and by u: (LB, BH, A, CB, BW), or what broadcasts to it."""
    if COSINE:
        norm_v, norm_u = tl.sqrt(tl.sum(v * v, 3)), tl.sqrt(tl.sum(u * u, 3))
        # A norm below MIN was replaced by a constant.
        long_v, long_u = norm_v >= MIN, norm_u >= MIN
        norm_v, norm_u = tl.maximum(norm_v, MIN), tl.maximum(norm_u, MIN)
        product = norm_v * norm_u
        product = over_channels(product)
        by_x = u / product - v * over_channels(tl.where(long_v, d / (norm_v * norm_v), 0))
        by_u = v / product - u * over_channels(tl.where(long_u, d / (norm_u * norm_u), 0))
        return by_x, by_u
    else:
        return u, v


@triton.jit
def _slopes(
    v, gy, d, pixels, scale_g, bias_g, shift, std_or_range, GAIN: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr
):
    """Of every pixel of a tile, (LB, BH, A, BW): the gate, a, d^, m and m' (None: anything)."""
    if NORM == NO_NORM:
        normalized, one, two = d, d, d
    else:
        normalized = (d - shift) * factor(std_or_range, NORM, EPS)
        if NORM == ZSCORE:
            one, two = pixels.to(d.dtype), tl.where(pixels, normalized, 0)
        else:
            one, two = (pixels & (d == shift)).to(d.dtype), (pixels & (d - shift == std_or_range)).to(d.dtype)
    gate = tl.sigmoid(scale_g * normalized + bias_g)
    slope = GAIN * gate * (1 - gate) * tl.sum(gy * v, 3)  # 0 outside the map
    return GAIN * gate, slope, normalized, one, two


@triton.jit
def _coefficients(total, total_d, ones, twos, scale_g, std_or_range, count, NORM: tl.constexpr, EPS: tl.constexpr):
    """alpha * scale, beta and gamma of a slab."""
    if NORM == NO_NORM:
        return scale_g, scale_g * 0, scale_g * 0
    else:
        alpha = scale_g * factor(std_or_range, NORM, EPS)
        if NORM == ZSCORE:
            gamma = scale_g * total_d / (tl.where(std_or_range == 0, 1, std_or_range) * tl.maximum(count - 1, 1))
            return alpha, alpha * total / count, tl.where(std_or_range == 0, 0, gamma)
        else:
            return alpha, alpha * (total - total_d) / tl.maximum(ones, 1), alpha * total_d / tl.maximum(twos, 1)


@triton.jit(do_not_specialize=[*SIZES, *X_STRIDES, *Y_STRIDES, *G_STRIDES])
def backward_kernel(
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
    # APPLY reads (N, G, 1 if EVEN else 4, C/G, L, L), of mix_back; ACC
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
    CG: tl.constexpr,  # from here on as in forward_kernel
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
    x += n.to(tl.int64) * x_n * ALIGN + g.to(tl.int64) * CG * x_c
    grad_y += n.to(tl.int64) * g_n * ALIGN + g.to(tl.int64) * CG * g_c
    c = tl.arange(0, CB)
    a, h, w, rows, columns = positions(t, tiles_h, tiles_w, height, width, cell_w, A, BH, BW, L, LB, EVEN)
    pixels = rows[None, :, :, None] & columns[:, None, None, :]  # (LB, BH, A, BW)
    inside = (c < CG)[None, None, None, :, None] & over_channels(pixels)
    v = tl.load(x + tile(c, h, w, x_c, x_h * ALIGN, x_w), inside, 0.0).to(ACC)
    gy = tl.load(grad_y + tile(c, h, w, g_c, g_h * ALIGN, g_w), inside, 0.0).to(ACC)

    at, reads, _ = at_context(c, a, CG, S, L, LB)
    u = over_pixels(tl.load(context + slab.to(tl.int64) * (CG * S * S) + at, reads, 0.0))
    if NORM == MINMAX:
        d_in += slab.to(tl.int64) * (height * width)
        d = tl.load(d_in + (h * width)[None, :, :, None] + w[:, None, None, :], pixels, 0.0)
    else:
        d = similarity(v, u, COSINE, MIN)  # (LB, BH, A, BW)
    scale_g, bias_g = tl.load(scale + g).to(ACC), tl.load(bias + g).to(ACC)
    shift, std_or_range = scale_g, scale_g
    if NORM != NO_NORM:
        shift, std_or_range = tl.load(stats + slab * 2), tl.load(stats + slab * 2 + 1)
    gate, slope, normalized, one, two = _slopes(v, gy, d, pixels, scale_g, bias_g, shift, std_or_range, GAIN, NORM, EPS)
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

    offsets, mask = at_cells(c, a, CG, L, LB)
    size: tl.constexpr = CG * L * L
    if STAGE == SUMS:
        part = t % (tiles_h * tiles_w)
        spread_out += ((part * samples + n).to(tl.int64) * groups + g) * (3 * size)
        tl.store(spread_out + offsets, cell_sums(over_channels(slope) * by_u), mask)
        if NORM != NO_NORM:
            tl.store(spread_out + size + offsets, cell_sums(over_channels(one) * by_u), mask)
            tl.store(spread_out + 2 * size + offsets, cell_sums(over_channels(two) * by_u), mask)
    else:
        count = (height * width).to(ACC)
        alpha, beta, gamma = _coefficients(total, total_d, ones, twos, scale_g, std_or_range, count, NORM, EPS)
        grad_d = alpha * slope
        if NORM != NO_NORM:
            grad_d -= beta * one + gamma * two
        if STAGE == WHOLE:
            cells = cell_sums(over_channels(grad_d) * by_u)
            cells, row, column, corner = mix_back(cells, height, width, SCALES, S, L, LB, EVEN)
        else:
            spread_out += slab.to(tl.int64) * ((1 if EVEN else 4) * size)
            cells = tl.load(spread_out + offsets, mask, 0.0)
            row, column, corner = cells, cells, cells
            if not EVEN:
                row = tl.load(spread_out + size + offsets, mask, 0.0)
                column = tl.load(spread_out + 2 * size + offsets, mask, 0.0)
                corner = tl.load(spread_out + 3 * size + offsets, mask, 0.0)
        result = gy * over_channels(gate) + over_channels(grad_d) * by_x + over_pixels(cells)
        if not EVEN:
            last = cell_start(a + 1, height, L)
            last_row = (h == last[None, :] - 1)[None, :, :, None, None]
            last = cell_start(tl.arange(0, LB) + 1, width, L)
            last_column = (w == last[:, None] - 1)[:, None, None, None, :]
            result += tl.where(last_row, over_pixels(row), 0)  # (LB, BH, A, CB, 1)
            line = over_pixels(column) + tl.where(last_row, over_pixels(corner), 0)
            result += tl.where(last_column, line, 0)
        y_c = 1 if Y_UNIT == UNIT_CHANNEL else y_c * ALIGN
        y_w = 1 if Y_UNIT == UNIT_COLUMN else y_w * ALIGN
        grad_x += n.to(tl.int64) * y_n * ALIGN + g.to(tl.int64) * CG * y_c
        tl.store(grad_x + tile(c, h, w, y_c, y_h * ALIGN, y_w), result.to(grad_x.dtype.element_ty), inside)


@triton.jit(do_not_specialize=['samples', 'groups', 'parts', 'tiles', 'height', 'width'])
def collect_kernel(
    sums,  # (parts, N, G, 3, C/G, L, L), of backward_kernel's SUMS
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
    offsets, mask = at_cells(c, a, CG, L, LB)
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
    std_or_range = scale_g
    if NORM != NO_NORM:
        std_or_range = tl.load(stats + slab * 2 + 1)
    count = (height * width).to(ACC)
    alpha, beta, gamma = _coefficients(total, total_d, ones, twos, scale_g, std_or_range, count, NORM, EPS)
    cells, row, column, corner = mix_back(
        alpha * by_slope - beta * by_one - gamma * by_two, height, width, SCALES, S, L, LB, EVEN
    )
    spread_out += slab * ((1 if EVEN else 4) * size)
    tl.store(spread_out + offsets, cells, mask)
    if not EVEN:
        tl.store(spread_out + size + offsets, row, mask)
        tl.store(spread_out + 2 * size + offsets, column, mask)
        tl.store(spread_out + 3 * size + offsets, corner, mask)
