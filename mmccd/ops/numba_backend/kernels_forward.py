"""The forward of CCD, one (sample, group) slab at a time."""

from __future__ import annotations

import math

import numpy as np

from .kernels_gate import factor_of, gates, statistics
from .kernels_shared import (
    dense_pool,
    expand,
    gather,
    loop,
    next_unit,
    normalise,
    norms_of_context,
    products,
    runs,
    scatter,
    segment_rows,
    sum_loop,
)
from .plan import LANES, ZSCORE
from .vectors import (
    add,
    arguments_at,
    at,
    fma,
    integers,
    load,
    mul,
    numbers,
    put,
    relu,
    rounded,
    splat,
    store,
    take_next,
)


@loop
def row_products(x, base, stride, k, h, w, pattern, row_cell, rows, wide, out, squares, out_squares):
    """out[i] = sum over channels of x * pattern[c, cell of the row, column]."""
    last = w - LANES
    grid_wide = rows * wide
    zero = splat(x.dtype.type(0))
    for i in range(h):
        cell = row_cell[i] * wide
        for block in range(0, w, LANES):
            j = min(block, last)
            acc = zero
            o = base + i * w + j
            for c in range(k):
                acc = fma(load(x, o + c * stride), load(pattern, c * grid_wide + cell + j), acc)
            store(out, i * w + j, acc)
            if squares:
                acc = zero
                for c in range(k):
                    v = load(x, o + c * stride)
                    acc = fma(v, v, acc)
                store(out_squares, i * w + j, acc)


@loop
def times_gate(x, base, stride, k, p, gate, out, out_base, out_stride):
    """out = x * gate; ``out`` may be ``x``."""
    last = max(p - LANES, 0)
    for c in range(k):
        i, o = base + c * stride, out_base + c * out_stride
        end = mul(load(x, i + last), load(gate, last))
        for j in range(0, last, LANES):
            store(out, o + j, mul(load(x, i + j), load(gate, j)))
        store(out, o + last, end)


@loop
def add_and_rectify(x, base, stride, k, p, gate, residual, out, out_base):
    """out = relu(x * gate + residual), product and sum each rounded as if they were done one after the other.

    ``out`` may be ``x``.
    """
    last = p - LANES
    for c in range(k):
        i, o = base + c * stride, out_base + c * p
        end = relu(add(rounded(mul(load(x, i + last), load(gate, last))), load(residual, o + last)))
        for j in range(0, last, LANES):
            store(out, o + j, relu(add(rounded(mul(load(x, i + j), load(gate, j))), load(residual, o + j))))
        store(out, o + last, end)


@sum_loop
def divide_by_norms(d, squares, norms, row_cells, col_cells, h, w, grid, floor):
    """d of the cosine: over the norms of the pixel, from ``squares``, and of its cell; each at least ``floor``."""
    for i in range(h):
        row = row_cells[i] * grid
        for j in range(w):
            o = i * w + j
            v = math.sqrt(np.float64(at(squares, o)))
            v = max(v, floor) if v == v else v
            put(d, o, d.dtype.type(at(d, o) / (v * norms[row + col_cells[j]])))


@loop
def forward_slabs(address):
    """Forward of slabs from the counter until none is left; ``address`` is that of a record of ARGUMENTS.

    With ``residual``, out = relu(x * gate + residual); all three contiguous then, and of at least LANES pixels. With
    ``weight``, x * weight + shift stands for x: it is written to where y will be, or to the slab's buffer.
    ``out`` may be ``x``.
    """
    a = arguments_at(address)
    n_, g_, h, w, grid = a.samples, a.groups, a.height, a.width, a.grid
    k, p, cells = a.channels // g_, h * w, grid * grid
    rows, normalize, cosine, block = a.row_segments, a.normalize, a.cosine != 0, a.block
    x, out, residual = numbers(a.x, address), numbers(a.out, address), numbers(a.residual, address)
    scale, bias = numbers(a.scale, address), numbers(a.bias, address)
    context, d, stats = numbers(a.context, address), numbers(a.d, address), numbers(a.stats, address)
    matrix = numbers(a.matrix, address)
    row_bounds, col_edges = integers(a.row_bounds), integers(a.col_edges)
    row_edges, row_cells, col_cells = integers(a.row_edges), integers(a.row_cells), integers(a.col_cells)
    real = x.dtype.type
    one = real(1)
    narrow = w < LANES
    direct = a.x_in_place != 0 and p >= LANES
    out_direct = a.out_in_place != 0 and p >= LANES
    pad = (p + LANES - 1) // LANES * LANES
    wide = (w + LANES - 1) // LANES * LANES
    cell_pad = (cells + LANES - 1) // LANES * LANES
    u = np.zeros(k * cell_pad + LANES, x.dtype)
    normalises = a.weight != 0
    affine = (
        numbers(a.weight, address),
        numbers(a.shift, address),
        a.mean != 0,
        numbers(a.mean, address),
        numbers(a.variance, address),
        real(a.norm_eps),
    )
    # Not needed where x is read in place without an affine, but kept: without it, the buffers behind lie worse (1 to
    # 4 % slower at 56 x 56).
    xb = np.zeros(block * k * pad + 2 * LANES, x.dtype)
    outb = np.zeros(1 if out_direct else block * k * pad + 2 * LANES, x.dtype)
    db = np.zeros(pad + LANES, x.dtype)
    gate = np.zeros(pad + LANES, x.dtype)
    squares = np.zeros(pad + LANES if cosine else 1, x.dtype)
    norms = np.zeros(cells)
    pattern = np.zeros(k * pad + LANES if narrow else k * grid * wide + LANES, x.dtype)
    t = np.zeros(1 if narrow else k * rows * w, x.dtype)
    blocks = (g_ + block - 1) // block
    taken, me = integers(a.taken), take_next(a) % a.threads
    owner = me
    while True:
        unit, owner = next_unit(taken, n_ * blocks, a.threads, me, owner)
        if unit < 0:
            return
        n, g0 = unit // blocks, unit % blocks * block
        many = min(block, g_ - g0)
        x_base = n * a.x_strides[0] + g0 * k * a.x_strides[1]
        out_base = n * a.out_strides[0] + g0 * k * a.out_strides[1]
        if not direct:
            gather(x, x_base, a.x_strides, many * k, h, w, xb, pad)
        for g in range(g0, g0 + many):
            source = x if direct else xb
            base = x_base + (g - g0) * k * p if direct else (g - g0) * k * pad
            stride = p if direct else pad
            slab = n * g_ + g
            if normalises:
                z = out if out_direct else xb
                z_base = out_base + (g - g0) * k * p if out_direct else (g - g0) * k * pad
                z_stride = p if out_direct else pad
                normalise(source, base, stride, k, p, affine, g * k, z, z_base, z_stride)
                source, base, stride = z, z_base, z_stride
            if narrow:
                dense_pool(source, base, stride, k, p, matrix, cell_pad, u)
                expand(u, 0, cell_pad, k, grid, col_edges, row_edges, w, pattern, pad)
                products(source, base, stride, pattern, 0, pad, k, p, db, cosine, squares)
            else:
                for c in range(k):
                    segment_rows(source, base + c * stride, gate, False, h, w, row_bounds, t, c * rows * w, rows)
                dense_pool(t, 0, rows * w, k, rows * w, matrix, cell_pad, u)
                for c in range(k):
                    for b in range(grid):
                        runs(u, c * cell_pad + b * grid, col_edges, grid, pattern, (c * grid + b) * wide)
                row_products(source, base, stride, k, h, w, pattern, row_cells, grid, wide, db, cosine, squares)
            if cosine:
                norms_of_context(u, 0, cell_pad, k, cells, a.min_norm, norms)
                divide_by_norms(db, squares, norms, row_cells, col_cells, h, w, grid, a.min_norm)
            mean_or_min, std_or_range = statistics(db, 0, p, normalize, a.flat)
            if normalize == ZSCORE:
                std_or_range = np.float64(real(std_or_range))  # what backward will read
            factor = factor_of(std_or_range, normalize, a.eps)
            gates(
                db, 0, p, real(mean_or_min), real(factor), std_or_range == 0, scale[g], bias[g], real(a.gain), one, gate
            )
            if a.residual != 0:
                add_and_rectify(source, base, stride, k, p, gate, residual, out, out_base + (g - g0) * k * p)
            elif out_direct:
                times_gate(source, base, stride, k, p, gate, out, out_base + (g - g0) * k * p, p)
            else:
                times_gate(source, base, stride, k, p, gate, outb, (g - g0) * k * pad, pad)
            if a.keep:
                stats[2 * slab], stats[2 * slab + 1] = real(mean_or_min), real(std_or_range)
                for i in range(p):
                    put(d, slab * p + i, at(db, i))
                for c in range(k):
                    for q in range(cells):
                        put(context, (slab * k + c) * cells + q, at(u, c * cell_pad + q))
        if not out_direct:
            scatter(outb, pad, out, out_base, a.out_strides, many * k, h, w)
