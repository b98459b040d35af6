"""Kernels of the forward; see the header of the package."""

# ruff: noqa: SIM109  (Triton's language has no `in`)
from __future__ import annotations

import triton
import triton.language as tl

from .kernels_shared import (
    APPLY,
    MEASURE,
    MINMAX,
    NO_NORM,
    POOL,
    UNIT_CHANNEL,
    UNIT_COLUMN,
    WHOLE,
    ZSCORE,
    at_cells,
    at_context,
    cell_sums,
    edges,
    factor,
    mix,
    over_channels,
    over_pixels,
    positions,
    similarity,
    tile,
)
from .plan import SIZES, X_STRIDES, Y_STRIDES


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
def _conclude(count, first, second, NORM: tl.constexpr, FLAT: tl.constexpr):
    """Mean and deviation or minimum and range of a slab, the second 0 where it is flat, from what _measure gives."""
    if NORM == ZSCORE:
        std_or_range = tl.sqrt(second / tl.maximum(count - 1, 1))
        size = tl.abs(first)
    else:
        std_or_range = second - first
        size = tl.maximum(tl.abs(first), tl.abs(second))
    return first, tl.where((count == 1) | (std_or_range <= FLAT * size), 0, std_or_range)


@triton.jit(do_not_specialize=[*SIZES, *X_STRIDES, *Y_STRIDES])
def forward_kernel(
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
    x += n.to(tl.int64) * x_n * ALIGN + g.to(tl.int64) * CG * x_c
    c = tl.arange(0, CB)
    a, h, w, rows, columns = positions(t, tiles_h, tiles_w, height, width, cell_w, A, BH, BW, L, LB, EVEN)
    pixels = rows[None, :, :, None] & columns[:, None, None, :]  # (LB, BH, A, BW)
    inside = (c < CG)[None, None, None, :, None] & over_channels(pixels)
    v = tl.load(x + tile(c, h, w, x_c, x_h, x_w), inside, 0.0).to(ACC)
    context += slab.to(tl.int64) * (CG * S * S)
    at, reads, writes = at_context(c, a, CG, S, L, LB)

    if STAGE == WHOLE or STAGE == POOL:
        cells = cell_sums(v)  # (CB, A, LB)
        row, column, corner = cells, cells, cells
        if not EVEN:
            # The tile with a cell's first row has the row before it, likewise the column.
            top, left = t // tiles_w % tiles_h == 0, t % tiles_w == 0
            row, column, corner = edges(x, c, a, h, w, rows, columns, height, width, x_c, x_h, x_w, CG, L, LB, ACC)
            row, column = tl.where(top, row, 0), tl.where(left, column, 0)
            corner = tl.where(top & left, corner, 0)
        if STAGE == POOL:
            offsets, mask = at_cells(c, a, CG, L, LB)
            size: tl.constexpr = CG * L * L
            part = t % (tiles_h * tiles_w)
            partial += ((part * samples + n).to(tl.int64) * groups + g) * ((1 if EVEN else 4) * size)
            tl.store(partial + offsets, cells, mask)
            if not EVEN:
                tl.store(partial + size + offsets, row, mask)
                tl.store(partial + 2 * size + offsets, column, mask)
                tl.store(partial + 3 * size + offsets, corner, mask)
        else:
            u = mix(cells, row, column, corner, height, width, SCALES, S, L, LB, EVEN)
            if KEEP:
                tl.store(context + at, u, writes)
    else:
        u = tl.load(context + at, reads, 0.0)
    if STAGE != POOL:
        d = similarity(v, over_pixels(u), COSINE, MIN)  # (LB, BH, A, BW)
        stats += slab * 2
        if KEEP and STAGE != APPLY:
            d_out += slab.to(tl.int64) * (height * width)
            tl.store(d_out + (h * width)[None, :, :, None] + w[:, None, None, :], d, pixels)
        if NORM != NO_NORM:
            if STAGE == APPLY:
                shift, std_or_range = tl.load(stats), tl.load(stats + 1)
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
                    shift, std_or_range = _conclude(count, first, second, NORM, FLAT)
                    if KEEP:
                        tl.store(stats, shift)
                        tl.store(stats + 1, std_or_range)
        if STAGE != MEASURE:
            if NORM != NO_NORM:
                d = (d - shift) * factor(std_or_range, NORM, EPS)
            gate = GAIN * tl.sigmoid(tl.load(scale + g).to(ACC) * d + tl.load(bias + g).to(ACC))
            y_c = 1 if Y_UNIT == UNIT_CHANNEL else y_c * ALIGN
            y_w = 1 if Y_UNIT == UNIT_COLUMN else y_w * ALIGN
            y += n.to(tl.int64) * y_n * ALIGN + g.to(tl.int64) * CG * y_c
            result = v * over_channels(gate)
            tl.store(y + tile(c, h, w, y_c, y_h * ALIGN, y_w), result.to(y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=['samples', 'groups', 'parts', 'height', 'width'])
def mix_kernel(
    partial,  # (parts, N, G, 1 if EVEN else 4, C/G, L, L), of forward_kernel's POOL
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
    offsets, mask = at_cells(c, a, CG, L, LB)
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
    u = mix(cells, row, column, corner, height, width, SCALES, S, L, LB, EVEN)
    at, _, writes = at_context(c, a, CG, S, L, LB)
    tl.store(context + slab * (CG * S * S) + at, u, writes)


@triton.jit(do_not_specialize=['tiles', 'height', 'width'])
def conclude_kernel(
    partial,  # (N, G, tiles, 3), of forward_kernel's MEASURE
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
    shift, std_or_range = _conclude(count, first, second, NORM, FLAT)
    tl.store(stats + slab * 2, shift)
    tl.store(stats + slab * 2 + 1, std_or_range)
