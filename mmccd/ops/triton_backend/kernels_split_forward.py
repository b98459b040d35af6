"""Forward kernels for slabs of several tiles: pool, mix, measure, conclude, apply; x is read three times.

Tiles are (BH, GB, CB, BW): rows of one row of cells, groups, channels of a group, columns. Programs that sum over cells
have one, and others a tile whose columns cross cells, so that it begins at a multiple of vectors.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels_mixing import mix
from .kernels_shared import (
    MINMAX,
    NO_NORM,
    UNIT_COLUMN,
    ZSCORE,
    add_relu,
    affine,
    bin_start,
    cell_of,
    cell_start,
    conclude,
    factor,
    in_elements,
    per_channel,
    similarity,
)
from .plan import SIZES, TILES, X_STRIDES, Y_STRIDES


@triton.jit
def place(groups, height, width, tiles_h, tiles_w, P: tl.constexpr):
    """Where this program is. Neighbouring ones have neighbouring groups, which share memory sectors in channels_last.

    Returns:
        Sample, tile, its row of cells; groups (GB,), channels (GB, CB), rows (BH,), columns (BW,); which of these four
        are in the map.
    """
    pid = tl.program_id(0)
    blocks = (groups + P.GB - 1) // P.GB
    g = pid % blocks * P.GB + tl.arange(0, P.GB)
    t, n = pid // blocks % (P.L * tiles_h * tiles_w), pid // blocks // (P.L * tiles_h * tiles_w)
    a, k = t // (tiles_h * tiles_w), tl.arange(0, P.CB)
    h = cell_start(a, height, P.L) + t // tiles_w % tiles_h * P.BH + tl.arange(0, P.BH)
    w = t % tiles_w * P.BW + tl.arange(0, P.BW)
    if P.X_UNIT == UNIT_COLUMN:
        width = width // P.ALIGN * P.ALIGN  # the same, and the compiler knows that vectors are in or out as a whole
    rows, columns = h < cell_start(a + 1, height, P.L), w < width
    return (
        n,
        t,
        a,
        g,
        g[:, None] * P.CG + k[None, :],
        h,
        w,
        g < groups,
        (g < groups)[:, None] & (k < P.CG)[None, :],
        rows,
        columns,
    )


@triton.jit
def offsets_of(c, h, w, s_c, s_h, s_w):
    """Offsets (BH, GB, CB, BW) in a sample."""
    return (c * s_c)[None, :, :, None] + (h * s_h)[:, None, None, None] + (w * s_w)[None, None, None, :]


@triton.jit
def mask_of(channels, rows, columns):
    """Mask (BH, GB, CB, BW)."""
    return channels[None, :, :, None] & rows[:, None, None, None] & columns[None, None, None, :]


@triton.jit
def of_tile(values):
    """(GB, CB) to what broadcasts to a tile."""
    return values[None, :, :, None]


@triton.jit
def at_columns(values, n, a, c, w, groups, width, channels, columns, GRID: tl.constexpr, P: tl.constexpr):
    """Of values (N, C, GRID, GRID), what the columns (BW,) of a row of cells a read: (1, GB, CB, BW)."""
    values += n.to(tl.int64) * groups * P.CG * (GRID * GRID) + a * GRID
    at = c[:, :, None] * (GRID * GRID) + cell_of(w, width, GRID)[None, None, :]
    return tl.load(values + at, channels[:, :, None] & columns[None, None, :], 0.0)[None, :, :, :]


@triton.jit
def part_of_cell(groups, height, width, rows, P: tl.constexpr):
    """Where this program is, whose second number is the part of a cell, some rows, that it has.

    Returns:
        Sample and cell; groups (GB,), channels (GB, CB), which of the last two there are; the first row and column, and
        those after the last ones.
    """
    pid = tl.program_id(0)
    blocks = (groups + P.GB - 1) // P.GB
    g, k = pid % blocks * P.GB + tl.arange(0, P.GB), tl.arange(0, P.CB)
    cell, n = pid // blocks % (P.L * P.L), pid // blocks // (P.L * P.L)
    a, b = cell // P.L, cell % P.L
    channels = (g < groups)[:, None] & (k < P.CG)[None, :]
    top = cell_start(a, height, P.L) + tl.program_id(1) * rows
    bottom = tl.minimum(top + rows, cell_start(a + 1, height, P.L))
    left, right = cell_start(b, width, P.L), cell_start(b + 1, width, P.L)
    return n, cell, g, g[:, None] * P.CG + k[None, :], g < groups, channels, top, bottom, left, right


@triton.jit
def _pooled(
    x, weight, times, plus, c, channels, top, bottom, left, right, s_c, s_h, s_w,
    BH: tl.constexpr, BW: tl.constexpr, P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums (GB, CB) of x over the pixels from top and left on to before bottom and right."""
    GB: tl.constexpr = P.GB
    CB: tl.constexpr = P.CB
    total = tl.zeros((BH, GB, CB, BW), ACC)
    r = top + tl.zeros((), tl.int32)
    while r < bottom:  # `while`, here and below, because the interpreter's range() fails with NumPy 2
        q = left + tl.zeros((), tl.int32)
        while q < right:
            h, w = r + tl.arange(0, BH), q + tl.arange(0, BW)
            inside = mask_of(channels, h < bottom, w < right)
            v = tl.load(x + offsets_of(c, h, w, s_c, s_h, s_w), inside, 0.0)
            total += affine(v, inside, weight, of_tile(times), of_tile(plus), ACC)
            q += BW
        r += BH
    return tl.sum(tl.sum(total, 3), 0)


@triton.jit(do_not_specialize=[*SIZES, 'rows', *X_STRIDES])
def pool_kernel(
    x,  # (N, C, H, W), strides x_*
    weight,  # None, or (C,)
    shift,  # None, or (C,)
    sums,  # (parts, 4, N, C, L, L), ACC, written: of cells, and of the row, column and corner that bins have besides
    samples, groups, height, width, rows,
    x_n, x_c, x_h, x_w,  # in units of P.SAMPLE_ALIGN and P.ALIGN
    P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n, cell, _, c, _, channels, top, bottom, left, right = part_of_cell(groups, height, width, rows, P)
    x_n, x_c, x_h, x_w = in_elements(x_n, x_c, x_h, x_w, P.X_UNIT, P)
    x += n * x_n
    times, plus = per_channel(weight, c, channels, ACC), per_channel(shift, c, channels, ACC)
    size = samples.to(tl.int64) * groups * P.CG * (P.L * P.L)
    part = tl.program_id(1)
    sums += part * 4 * size + n.to(tl.int64) * groups * P.CG * (P.L * P.L) + c * (P.L * P.L) + cell
    total = _pooled(
        x, weight, times, plus, c, channels, top, bottom, left, right, x_c, x_h, x_w, P.CELL_H, P.CELL_W, P, ACC
    )
    tl.store(sums, total, channels)
    if (height % P.L != 0) | (width % P.L != 0):
        r, q = bin_start(cell // P.L, height, P.L), bin_start(cell % P.L, width, P.L)
        r_end = r + ((cell // P.L * height % P.L != 0) & (part == 0)).to(tl.int32)
        q_end = q + (cell % P.L * width % P.L != 0).to(tl.int32)
        row = _pooled(x, weight, times, plus, c, channels, r, r_end, left, right, x_c, x_h, x_w, 1, P.CELL_W, P, ACC)
        column = _pooled(x, weight, times, plus, c, channels, top, bottom, q, q_end, x_c, x_h, x_w, P.CELL_H, 1, P, ACC)
        corner = _pooled(x, weight, times, plus, c, channels, r, r_end, q, q_end, x_c, x_h, x_w, 1, 1, P, ACC)
        tl.store(sums + size, row, channels)
        tl.store(sums + 2 * size, column, channels)
        tl.store(sums + 3 * size, corner, channels)


@triton.jit
def at_cells(channels, P: tl.constexpr):
    """Channels (CF,) of this program, and offsets (CF, LB, LB) and mask of their cells in (C, L, L)."""
    c, k = tl.program_id(1) * P.CF + tl.arange(0, P.CF), tl.arange(0, P.LB)
    offsets = c[:, None, None] * (P.L * P.L) + k[None, :, None] * P.L + k[None, None, :]
    return c, offsets, (c < channels)[:, None, None] & (k < P.L)[None, :, None] & (k < P.L)[None, None, :]


@triton.jit(do_not_specialize=['samples', 'channels', 'height', 'width', 'parts'])
def mix_kernel(
    sums,  # (parts, 4, N, C, L, L), of pool_kernel
    context,  # (N, C, S, S), written
    samples, channels, height, width, parts,
    P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    c, offsets, mask = at_cells(channels, P)
    size = samples.to(tl.int64) * channels * (P.L * P.L)
    sums += n * channels * (P.L * P.L) + offsets
    uneven = mask & ((height % P.L != 0) | (width % P.L != 0))
    CF: tl.constexpr = P.CF
    LB: tl.constexpr = P.LB
    cells = tl.zeros((CF, LB, LB), ACC)
    row, column, corner = cells, cells, cells
    part = tl.zeros((), tl.int32)
    while part < parts:
        cells += tl.load(sums, mask, 0.0)
        row += tl.load(sums + size, uneven, 0.0)
        column += tl.load(sums + 2 * size, uneven, 0.0)
        corner += tl.load(sums + 3 * size, uneven, 0.0)
        sums += 4 * size
        part += 1
    u = mix(cells, row, column, corner, height, width, P)
    k = tl.arange(0, P.LB)
    at = cell_of(k, P.L, P.S)
    at = c[:, None, None] * (P.S * P.S) + at[None, :, None] * P.S + at[None, None, :]
    first = k % (P.L // P.S) == 0
    tl.store(context + n * channels * (P.S * P.S) + at, u, mask & first[None, :, None] & first[None, None, :])


@triton.jit
def normed_and_similarity(x, u, weight, shift, c, inside, channels, P: tl.constexpr, ACC: tl.constexpr):
    """A tile at the pointers x, after the affine, and its similarity to the context u, (BH, GB, BW)."""
    times, plus = per_channel(weight, c, channels, ACC), per_channel(shift, c, channels, ACC)
    v = affine(tl.load(x, inside, 0.0), inside, weight, of_tile(times), of_tile(plus), ACC)
    return v, similarity(v, u, 2, P)


@triton.jit(do_not_specialize=[*SIZES, *TILES, *X_STRIDES])
def measure_kernel(
    x,  # (N, C, H, W), strides x_*
    weight,  # None, or (C,)
    shift,  # None, or (C,)
    context,  # (N, C, S, S) contiguous, ACC
    d_out,  # (N, G, H, W) contiguous, ACC, written if KEEP
    partial,  # (N, G, tiles, 3), ACC, written: pixels; mean and sum of squares about it, or minimum and maximum
    samples, groups, height, width, tiles_h, tiles_w,
    x_n, x_c, x_h, x_w,  # in units of P.SAMPLE_ALIGN and P.ALIGN
    KEEP: tl.constexpr, P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n, t, a, g, c, h, w, some, channels, rows, columns = place(groups, height, width, tiles_h, tiles_w, P)
    x_n, x_c, x_h, x_w = in_elements(x_n, x_c, x_h, x_w, P.X_UNIT, P)
    inside = mask_of(channels, rows, columns)
    x += n * x_n + offsets_of(c, h, w, x_c, x_h, x_w)
    u = at_columns(context, n, cell_of(a, P.L, P.S), c, w, groups, width, channels, columns, P.S, P)
    _, d = normed_and_similarity(x, u, weight, shift, c, inside, channels, P, ACC)
    pixels = rows[:, None, None] & columns[None, None, :]
    slab = n.to(tl.int64) * groups + g
    if KEEP:
        at = (slab * height * width)[None, :, None] + (h * width)[:, None, None] + w[None, None, :]
        tl.store(d_out + at, d, pixels & some[None, :, None])
    if P.NORM == ZSCORE:
        count = tl.sum(rows.to(ACC)) * tl.sum(columns.to(ACC))
        # Two passes over registers: no difference of large squares. d is 0 outside the map.
        first = tl.sum(tl.sum(d, 2), 0) / tl.maximum(count, 1)
        rest = tl.where(pixels, d - first[None, :, None], 0)
        second = tl.sum(tl.sum(rest * rest, 2), 0)
    else:
        count = 0.0
        first = tl.min(tl.min(tl.where(pixels, d, float('inf')), 2), 0)
        second = tl.max(tl.max(tl.where(pixels, d, float('-inf')), 2), 0)
    partial += (slab * (P.L * tiles_h * tiles_w) + t) * 3
    tl.store(partial, tl.zeros_like(first) + count, some)
    tl.store(partial + 1, first, some)
    tl.store(partial + 2, second, some)


@triton.jit(do_not_specialize=['tiles', 'height', 'width'])
def conclude_kernel(
    partial,  # (N, G, tiles, 3), of measure_kernel
    stats,  # (N, G, 2), written
    tiles, height, width,
    NORM: tl.constexpr, FLAT: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
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
    first, std_or_range = conclude(count, first, second, NORM, FLAT)
    tl.store(stats + slab * 2, first)
    tl.store(stats + slab * 2 + 1, std_or_range)


@triton.jit(do_not_specialize=[*SIZES, *TILES, *X_STRIDES, *Y_STRIDES])
def apply_kernel(
    x,  # (N, C, H, W), strides x_*
    residual,  # None, or (N, C, H, W), strides y_*
    y,  # (N, C, H, W), strides y_*; written
    scale,  # (G,)
    bias,  # (G,)
    weight,  # None, or (C,)
    shift,  # None, or (C,)
    context,  # (N, C, S, S) contiguous, ACC
    stats,  # (N, G, 2), ACC
    samples, groups, height, width, tiles_h, tiles_w,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,  # in units of P.SAMPLE_ALIGN and P.ALIGN
    P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n, _, a, g, c, h, w, some, channels, rows, columns = place(groups, height, width, tiles_h, tiles_w, P)
    x_n, x_c, x_h, x_w = in_elements(x_n, x_c, x_h, x_w, P.X_UNIT, P)
    y_n, y_c, y_h, y_w = in_elements(y_n, y_c, y_h, y_w, P.Y_UNIT, P)
    inside = mask_of(channels, rows, columns)
    x += n * x_n + offsets_of(c, h, w, x_c, x_h, x_w)
    u = at_columns(context, n, cell_of(a, P.L, P.S), c, w, groups, width, channels, columns, P.S, P)
    v, d = normed_and_similarity(x, u, weight, shift, c, inside, channels, P, ACC)
    if P.NORM != NO_NORM:
        stats += (n.to(tl.int64) * groups + g) * 2
        first, std_or_range = tl.load(stats, some, 0.0), tl.load(stats + 1, some, 0.0)
        d = (d - first[None, :, None]) * factor(std_or_range, P)[None, :, None]
    scale_g, bias_g = tl.load(scale + g, some, 0.0).to(ACC), tl.load(bias + g, some, 0.0).to(ACC)
    gate = P.GAIN * tl.sigmoid(scale_g[None, :, None] * d + bias_g[None, :, None])
    result = (v * gate[:, :, None, :]).to(y.dtype.element_ty)
    offsets = offsets_of(c, h, w, y_c, y_h, y_w)
    if residual is not None:
        result = add_relu(result, residual + n * y_n + offsets, inside, ACC)
    tl.store(y + n * y_n + offsets, result, inside)
