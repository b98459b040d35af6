"""Backward kernels for slabs of several tiles: sums, collect, apply; x and the gradient are read twice.

Tiles are those of the forward, (BH, GB, CB, BW).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels_mixing import mix_back
from .kernels_shared import (
    MINMAX,
    NO_NORM,
    affine,
    cell_of,
    cell_start,
    coefficients,
    derivatives,
    in_elements,
    per_channel,
    rectified,
    similarity,
    slopes,
)
from .kernels_split_forward import at_cells, at_columns, mask_of, of_tile, offsets_of, part_of_cell, place
from .plan import G_STRIDES, SIZES, TILES, X_STRIDES, Y_STRIDES


@triton.jit
def _pixels(
    v, u, gy, d_in, scale, bias, stats, n, g, h, w, some, rows, columns, groups, height, width,
    P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What slopes and derivatives give for a tile, then scale and deviation or range of its groups, (GB,)."""
    pixels = rows[:, None, None] & some[None, :, None] & columns[None, None, :]
    slab = n.to(tl.int64) * groups + g
    if P.NORM == MINMAX:
        at = (slab * height * width)[None, :, None] + (h * width)[:, None, None] + w[None, None, :]
        d = tl.load(d_in + at, pixels, 0.0)
    else:
        d = similarity(v, u, 2, P)  # (BH, GB, BW)
    scale_g, bias_g = tl.load(scale + g, some, 0.0).to(ACC), tl.load(bias + g, some, 0.0).to(ACC)
    first, std_or_range = scale_g, scale_g
    if P.NORM != NO_NORM:
        first, std_or_range = tl.load(stats + slab * 2, some, 0.0), tl.load(stats + slab * 2 + 1, some, 0.0)
    scale_d, bias_d, range_d = scale_g[None, :, None], bias_g[None, :, None], std_or_range[None, :, None]
    gate, slope, normalized, one, two = slopes(
        tl.sum(gy * v, 2), d, pixels, scale_d, bias_d, first[None, :, None], range_d, P
    )
    by_v, by_u = derivatives(v, u, d, 2, P)
    return gate, slope, normalized, one, two, by_v, by_u, scale_g, std_or_range


@triton.jit(do_not_specialize=[*SIZES, 'rows', *X_STRIDES, *Y_STRIDES, *G_STRIDES])
def sums_kernel(
    x,  # (N, C, H, W), strides x_*
    grad_y,  # (N, C, H, W), strides g_*
    out,  # None, or y where there was a residual: (N, C, H, W), strides y_*
    grad_residual,  # None, or (N, C, H, W), strides y_*; written
    scale,  # (G,)
    bias,  # (G,)
    weight,  # None, or (C,)
    shift,  # None, or (C,)
    context,  # (N, C, S, S) contiguous, ACC
    d_in,  # (N, G, H, W) contiguous, ACC; read for minmax, whose extremes must be met to the bit
    stats,  # (N, G, 2), ACC
    shares,  # (parts, L * L, 4, N, G), ACC, written: sums of a d^, a, m, m'
    spread,  # (parts, 3, N, C, L, L), ACC, written: sums of a, m, m' times the derivative by u
    samples, groups, height, width, rows,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w, g_n, g_c, g_h, g_w,  # in units of P.SAMPLE_ALIGN and P.ALIGN
    P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n, cell, g, c, some, channels, top, bottom, left, right = part_of_cell(groups, height, width, rows, P)
    x_n, x_c, x_h, x_w = in_elements(x_n, x_c, x_h, x_w, P.X_UNIT, P)
    y_n, y_c, y_h, y_w = in_elements(y_n, y_c, y_h, y_w, P.Y_UNIT, P)
    g_n, g_c, g_h, g_w = in_elements(g_n, g_c, g_h, g_w, P.G_UNIT, P)
    at = (
        n.to(tl.int64) * groups * P.CG * (P.S * P.S)
        + cell_of(cell // P.L, P.L, P.S) * P.S
        + cell_of(cell % P.L, P.L, P.S)
    )
    u = of_tile(tl.load(context + at + c * (P.S * P.S), channels, 0.0))
    times, plus = per_channel(weight, c, channels, ACC), per_channel(shift, c, channels, ACC)
    CELL_H: tl.constexpr = P.CELL_H
    CELL_W: tl.constexpr = P.CELL_W
    GB: tl.constexpr = P.GB
    CB: tl.constexpr = P.CB
    by_slope = tl.zeros((CELL_H, GB, CB, CELL_W), ACC)
    by_one, by_two = by_slope, by_slope
    total_d = tl.zeros((CELL_H, GB, CELL_W), ACC)
    total, ones, twos = total_d, total_d, total_d
    r = top + tl.zeros((), tl.int32)
    while r < bottom:
        q = left + tl.zeros((), tl.int32)
        while q < right:
            h, w = r + tl.arange(0, P.CELL_H), q + tl.arange(0, P.CELL_W)
            inside = mask_of(channels, h < bottom, w < right)
            v = tl.load(x + n * x_n + offsets_of(c, h, w, x_c, x_h, x_w), inside, 0.0)
            v = affine(v, inside, weight, of_tile(times), of_tile(plus), ACC)
            gy = grad_y + n * g_n + offsets_of(c, h, w, g_c, g_h, g_w)
            gy = rectified(gy, n * y_n, offsets_of(c, h, w, y_c, y_h, y_w), out, grad_residual, inside, ACC)
            _, slope, normalized, one, two, _, by_u, _, _ = _pixels(
                v, u, gy, d_in, scale, bias, stats, n, g, h, w, some, h < bottom, w < right, groups, height, width,
                P, ACC,
            )  # fmt: skip
            total_d += slope * normalized
            total += slope
            by_slope += slope[:, :, None, :] * by_u
            if P.NORM != NO_NORM:
                by_one += one[:, :, None, :] * by_u
                by_two += two[:, :, None, :] * by_u
            if P.NORM == MINMAX:
                ones += one
                twos += two
            q += P.CELL_W
        r += P.CELL_H
    line = samples.to(tl.int64) * groups
    part = tl.program_id(1)
    shares += (part * (P.L * P.L) + cell) * 4 * line + n.to(tl.int64) * groups + g
    tl.store(shares, tl.sum(tl.sum(total_d, 2), 0), some)
    tl.store(shares + line, tl.sum(tl.sum(total, 2), 0), some)
    if P.NORM == MINMAX:
        tl.store(shares + 2 * line, tl.sum(tl.sum(ones, 2), 0), some)
        tl.store(shares + 3 * line, tl.sum(tl.sum(twos, 2), 0), some)
    line *= P.CG * (P.L * P.L)
    spread += part * 3 * line + n.to(tl.int64) * groups * P.CG * (P.L * P.L) + c * (P.L * P.L) + cell
    tl.store(spread, tl.sum(tl.sum(by_slope, 3), 0), channels)
    if P.NORM != NO_NORM:
        tl.store(spread + line, tl.sum(tl.sum(by_one, 3), 0), channels)
        tl.store(spread + 2 * line, tl.sum(tl.sum(by_two, 3), 0), channels)


@triton.jit(do_not_specialize=[*SIZES, 'channels', 'parts'])
def collect_kernel(
    spread,  # (parts, 3, N, C, L, L), of sums_kernel
    shares,  # (parts, L * L, 4, N, G), of the same
    scale,  # (G,)
    stats,  # (N, G, 2)
    totals,  # (4, N, G), written: sums of a d^, a, m, m'
    mixed,  # (4, N, C, L, L), written: of mix_back
    samples, groups, channels, height, width, parts,
    P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    c, offsets, mask = at_cells(channels, P)
    g, some = c // P.CG, c < channels
    line = samples.to(tl.int64) * groups
    size = samples.to(tl.int64) * channels * (P.L * P.L)
    spread += n * channels * (P.L * P.L) + offsets
    cell = tl.arange(0, P.LB * P.LB)
    shares += cell[:, None] * 4 * line + (n * groups + g)[None, :]
    there = (cell < P.L * P.L)[:, None] & some[None, :]
    CF: tl.constexpr = P.CF
    LB: tl.constexpr = P.LB
    total_d = tl.zeros((CF,), ACC)  # of every channel's slab, from all parts of all cells
    total, ones, twos = total_d, total_d, total_d
    by_slope = tl.zeros((CF, LB, LB), ACC)
    by_one, by_two = by_slope, by_slope
    part = tl.zeros((), tl.int32)
    while part < parts:
        total_d += tl.sum(tl.load(shares, there, 0.0), 0)
        total += tl.sum(tl.load(shares + line, there, 0.0), 0)
        by_slope += tl.load(spread, mask, 0.0)
        if P.NORM != NO_NORM:
            by_one += tl.load(spread + size, mask, 0.0)
            by_two += tl.load(spread + 2 * size, mask, 0.0)
        if P.NORM == MINMAX:
            ones += tl.sum(tl.load(shares + 2 * line, there, 0.0), 0)
            twos += tl.sum(tl.load(shares + 3 * line, there, 0.0), 0)
        shares += 4 * (P.L * P.L) * line
        spread += 3 * size
        part += 1
    totals += n * groups + g
    first = some & (c % P.CG == 0)
    tl.store(totals, total_d, first)
    tl.store(totals + line, total, first)
    if P.NORM == MINMAX:
        tl.store(totals + 2 * line, ones, first)
        tl.store(totals + 3 * line, twos, first)

    scale_g = tl.load(scale + g, some, 0.0).to(ACC)
    std_or_range = scale_g
    if P.NORM != NO_NORM:
        std_or_range = tl.load(stats + (n * groups + g) * 2 + 1, some, 0.0)
    count = (height * width).to(ACC)
    alpha, beta, gamma = coefficients(total, total_d, ones, twos, scale_g, std_or_range, count, P)
    grad = alpha[:, None, None] * by_slope - beta[:, None, None] * by_one - gamma[:, None, None] * by_two
    cells, row, column, corner = mix_back(grad, height, width, P)
    mixed += n * channels * (P.L * P.L) + offsets
    tl.store(mixed, cells, mask)
    tl.store(mixed + size, row, mask)
    tl.store(mixed + 2 * size, column, mask)
    tl.store(mixed + 3 * size, corner, mask)


@triton.jit(do_not_specialize=[*SIZES, *TILES, *X_STRIDES, *Y_STRIDES, *G_STRIDES])
def apply_back_kernel(
    x,  # (N, C, H, W), strides x_*
    grad_y,  # (N, C, H, W), strides g_*
    out,  # None, or y where there was a residual: (N, C, H, W), strides y_*
    grad_x,  # (N, C, H, W), strides y_*; written
    scale,  # (G,)
    bias,  # (G,)
    weight,  # None, or (C,)
    shift,  # None, or (C,)
    context,  # (N, C, S, S) contiguous, ACC
    d_in,  # (N, G, H, W) contiguous, ACC; read for minmax
    stats,  # (N, G, 2), ACC
    totals,  # (4, N, G), of collect_kernel
    mixed,  # (4, N, C, L, L), of collect_kernel
    affine_sums,  # None, or (2, tiles, N, C), SUM, written: sums of the gradient times x, and alone
    samples, groups, height, width, tiles_h, tiles_w,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w, g_n, g_c, g_h, g_w,  # in units of P.SAMPLE_ALIGN and P.ALIGN
    P: tl.constexpr, ACC: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    n, t, a, g, c, h, w, some, channels, rows, columns = place(groups, height, width, tiles_h, tiles_w, P)
    x_n, x_c, x_h, x_w = in_elements(x_n, x_c, x_h, x_w, P.X_UNIT, P)
    y_n, y_c, y_h, y_w = in_elements(y_n, y_c, y_h, y_w, P.Y_UNIT, P)
    g_n, g_c, g_h, g_w = in_elements(g_n, g_c, g_h, g_w, P.G_UNIT, P)
    inside = mask_of(channels, rows, columns)
    times, plus = per_channel(weight, c, channels, ACC), per_channel(shift, c, channels, ACC)
    raw = tl.load(x + n * x_n + offsets_of(c, h, w, x_c, x_h, x_w), inside, 0.0)
    v = affine(raw, inside, weight, of_tile(times), of_tile(plus), ACC)
    offsets = offsets_of(c, h, w, y_c, y_h, y_w)
    gy = grad_y + n * g_n + offsets_of(c, h, w, g_c, g_h, g_w)
    gy = rectified(gy, n * y_n, offsets, out, None, inside, ACC)
    u = at_columns(context, n, cell_of(a, P.L, P.S), c, w, groups, width, channels, columns, P.S, P)
    gate, slope, _, one, two, by_v, _, scale_g, std_or_range = _pixels(
        v, u, gy, d_in, scale, bias, stats, n, g, h, w, some, rows, columns, groups, height, width,
        P, ACC,
    )  # fmt: skip
    line = samples.to(tl.int64) * groups
    totals += n.to(tl.int64) * groups + g
    total_d, total = tl.load(totals, some, 0.0), tl.load(totals + line, some, 0.0)
    ones, twos = total, total
    if P.NORM == MINMAX:
        ones, twos = tl.load(totals + 2 * line, some, 0.0), tl.load(totals + 3 * line, some, 0.0)
    count = (height * width).to(ACC)
    alpha, beta, gamma = coefficients(total, total_d, ones, twos, scale_g, std_or_range, count, P)
    grad_d = alpha[None, :, None] * slope
    if P.NORM != NO_NORM:
        grad_d -= beta[None, :, None] * one + gamma[None, :, None] * two
    cells = at_columns(mixed, n, a, c, w, groups, width, channels, columns, P.L, P)
    result = gy * gate[:, :, None, :] + grad_d[:, :, None, :] * by_v + cells
    if (height % P.L != 0) | (width % P.L != 0):
        line *= P.CG * (P.L * P.L)
        last_row = (h == cell_start(a + 1, height, P.L) - 1)[:, None, None, None]
        last_column = w == cell_start(cell_of(w, width, P.L) + 1, width, P.L) - 1
        row = at_columns(mixed + line, n, a, c, w, groups, width, channels, columns, P.L, P)
        column = at_columns(mixed + 2 * line, n, a, c, w, groups, width, channels, columns & last_column, P.L, P)
        corner = at_columns(mixed + 3 * line, n, a, c, w, groups, width, channels, columns & last_column, P.L, P)
        result += column + tl.where(last_row, row + corner, 0)
    if weight is not None:
        result = tl.where(inside, result, 0)
        affine_sums += (t * samples + n).to(tl.int64) * groups * P.CG + c
        line = (P.L * tiles_h * tiles_w * samples).to(tl.int64) * groups * P.CG
        tl.store(affine_sums, tl.sum(tl.sum(result.to(SUM) * raw.to(SUM), 3), 0), channels)
        tl.store(affine_sums + line, tl.sum(tl.sum(result.to(SUM), 3), 0), channels)
        result *= of_tile(times)
    tl.store(grad_x + n * y_n + offsets, result.to(grad_x.dtype.element_ty), inside)
