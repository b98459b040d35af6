"""The backward of CCD, one (sample, group) slab at a time."""

from __future__ import annotations

import math

import numpy as np

from .kernels_gate import factor_of, through_gate, through_normalization, two_sums
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
from .plan import LANES, NO_NORM
from .vectors import (
    arguments_at,
    at,
    doubles,
    fma,
    integers,
    load,
    mul,
    numbers,
    put,
    splat,
    store,
    take_next,
    where_positive,
)


@loop
def through_relu(grad, y, base, count, out):
    """out = grad where y is above zero, else 0."""
    last = base + count - LANES
    for block in range(base, base + count, LANES):
        j = min(block, last)
        store(out, j, where_positive(load(y, j), load(grad, j)))


@sum_loop
def through_cosine(
    gd, d, d_base, squares, norms, row_cells, col_cells, h, w, grid, floor, product, per_x, weight, per_u
):
    """The cosine's derivative, from gd, that of d: by x it is product * u + per_x * x, by u product * x + per_u * u."""
    one = gd.dtype.type(1)
    weight[:] = 0
    for i in range(h):
        row = row_cells[i] * grid
        for j in range(w):
            o, cell = i * w + j, row + col_cells[j]
            norm = math.sqrt(np.float64(at(squares, o)))
            safe = max(norm, floor) if norm == norm else norm
            gdd = np.float64(at(gd, o)) * at(d, d_base + o)
            weight[cell] += gdd
            put(product, o, gd.dtype.type(at(gd, o) / (safe * norms[cell])))
            put(per_x, o, gd.dtype.type(-gdd / (safe * safe)) if norm >= floor else one - one)
    for i in range(grid * grid):
        per_u[i] = -weight[i] / (norms[i] * norms[i]) if norms[i] > floor else 0.0


@sum_loop
def add_multiples(x, x_base, x_stride, factor, k, p, gx, gx_base, gx_stride):
    """gx += factor * x, factor one a pixel."""
    for c in range(k):
        for i in range(p):
            o = gx_base + c * gx_stride + i
            put(gx, o, at(gx, o) + at(factor, i) * at(x, x_base + c * x_stride + i))


@loop
def times_factor(x, base, stride, factor, k, p, out, pad):
    """out = x * factor, factor one a pixel, for rows shorter than a vector."""
    last = max(p - LANES, 0)
    for c in range(k):
        for block in range(0, p, LANES):
            j = min(block, last)
            store(out, c * pad + j, mul(load(factor, j), load(x, base + c * stride + j)))


@sum_loop
def add_norms(gu, cell_pad, per_u, context, base, cells, k):
    """gu[c, cell] += per_u[cell] * context[c, cell]."""
    for c in range(k):
        for i in range(cells):
            o = c * cell_pad + i
            put(gu, o, gu.dtype.type(at(gu, o) + per_u[i] * at(context, base + c * cells + i)))


@sum_loop
def through_affine(x, base, stride, k, p, weight, first, gx, gx_base, gx_stride, grad_weight, grad_shift, row):
    """gx *= weight, and the sums of gx and gx * x before that, float64, at ``row`` of the two gradients."""
    for c in range(k):
        factor = at(weight, first + c)
        i, o = base + c * stride, gx_base + c * gx_stride
        total, along = 0.0, 0.0
        for j in range(p):
            g = np.float64(at(gx, o + j))
            total += g
            along += g * np.float64(at(x, i + j))
        for j in range(p):
            put(gx, o + j, at(gx, o + j) * factor)
        put(grad_shift, row + c, total)
        put(grad_weight, row + c, along)


@loop
def dense_unpool(gu, cell_pad, cells, k, matrix_t, p, pad, v):
    """v[c, pixel] = sum over cells of gu[c, cell] * matrix[pixel, cell]."""
    for block in range(0, p, LANES):
        for c in range(k):
            acc = splat(gu.dtype.type(0))
            for q in range(cells):
                acc = fma(splat(at(gu, c * cell_pad + q)), load(matrix_t, q * pad + block), acc)
            store(v, c * pad + block, acc)


@loop
def narrow_gradient(gradient, full, cells, gu, cell_pad, matrix_t, pad, k, p):
    """gx = gy * gate + product * u + matrix^T gu; ``full`` is u at full size."""
    gy, gy_base, gy_stride, gx, gx_base, gx_stride, gate, product = gradient
    last = max(p - LANES, 0)
    for block in range(0, p, LANES):
        j = min(block, last)
        vg, vp = load(gate, j), load(product, j)
        c = 0
        while c + 4 <= k:
            a0 = mul(vp, load(full, c * pad + j))
            a1 = mul(vp, load(full, (c + 1) * pad + j))
            a2 = mul(vp, load(full, (c + 2) * pad + j))
            a3 = mul(vp, load(full, (c + 3) * pad + j))
            for q in range(cells):
                m = load(matrix_t, q * pad + j)
                o = c * cell_pad + q
                a0 = fma(splat(at(gu, o)), m, a0)
                a1 = fma(splat(at(gu, o + cell_pad)), m, a1)
                a2 = fma(splat(at(gu, o + 2 * cell_pad)), m, a2)
                a3 = fma(splat(at(gu, o + 3 * cell_pad)), m, a3)
            i, o = gy_base + c * gy_stride + j, gx_base + c * gx_stride + j
            store(gx, o, fma(load(gy, i), vg, a0))
            store(gx, o + gx_stride, fma(load(gy, i + gy_stride), vg, a1))
            store(gx, o + 2 * gx_stride, fma(load(gy, i + 2 * gy_stride), vg, a2))
            store(gx, o + 3 * gx_stride, fma(load(gy, i + 3 * gy_stride), vg, a3))
            c += 4
        while c < k:
            a0 = mul(vp, load(full, c * pad + j))
            for q in range(cells):
                a0 = fma(splat(at(gu, c * cell_pad + q)), load(matrix_t, q * pad + j), a0)
            store(gx, gx_base + c * gx_stride + j, fma(load(gy, gy_base + c * gy_stride + j), vg, a0))
            c += 1


@loop
def wide_gradient(gradient, u, v, row_bounds, row_cells, rows, grid, w, wide, k):
    """gx = gy * gate + product * u[cell of the row] + v[segment of the row]."""
    gy, gy_base, gy_stride, gx, gx_base, gx_stride, gate, product = gradient
    last = w - LANES
    for first in range(0, k, 2):  # more streams at once are slower
        for r in range(rows):
            for i in range(row_bounds[r], row_bounds[r + 1]):
                cell = row_cells[i]
                for block in range(0, w, LANES):
                    j = min(block, last)
                    o = i * w + j
                    vg, vp = load(gate, o), load(product, o)
                    for c in range(first, min(first + 2, k)):
                        value = fma(vp, load(u, (c * grid + cell) * wide + j), load(v, (c * rows + r) * wide + j))
                        store(gx, gx_base + c * gx_stride + o, fma(load(gy, gy_base + c * gy_stride + o), vg, value))


@loop
def backward_slabs(address):
    """Backward of slabs from the counter until none is left; ``address`` is that of a record of ARGUMENTS.

    With ``y``, that of a forward with ``residual``, the gradient goes through the ReLU first, into ``grad_residual``.
    With ``weight``, x * weight + shift stands for x, and is computed once more.
    """
    a = arguments_at(address)
    n_, g_, h, w, grid = a.samples, a.groups, a.height, a.width, a.grid
    k, p, cells = a.channels // g_, h * w, grid * grid
    rows, cols, normalize, cosine = a.row_segments, a.col_segments, a.normalize, a.cosine != 0
    need_x, block = a.need_x != 0, a.block
    x, gx, grad_y, y = numbers(a.x, address), numbers(a.out, address), numbers(a.grad_y, address), numbers(a.y, address)
    gy = numbers(a.grad_residual if a.y != 0 else a.grad_y, address)
    scale, bias = numbers(a.scale, address), numbers(a.bias, address)
    weight, shift = numbers(a.weight, address), numbers(a.shift, address)
    context, d, stats = numbers(a.context, address), numbers(a.d, address), numbers(a.stats, address)
    matrix_t, cells_t = numbers(a.matrix_t, address), numbers(a.cells_t, address)
    grad_scale, grad_bias = doubles(a.grad_scale), doubles(a.grad_bias)
    grad_weight, grad_shift = doubles(a.grad_weight), doubles(a.grad_shift)
    row_bounds, col_bounds = integers(a.row_bounds), integers(a.col_bounds)
    row_edges, col_edges = integers(a.row_edges), integers(a.col_edges)
    row_cells, col_cells = integers(a.row_cells), integers(a.col_cells)
    real = x.dtype.type
    one = real(1)
    narrow = w < LANES
    direct = a.x_in_place != 0 and p >= LANES
    gy_direct = a.grad_y_in_place != 0 and p >= LANES
    out_direct = a.out_in_place != 0 and p >= LANES
    pad = (p + LANES - 1) // LANES * LANES
    wide = (w + LANES - 1) // LANES * LANES
    cell_pad = (cells + LANES - 1) // LANES * LANES
    seg_pad = (rows * cols + LANES - 1) // LANES * LANES
    size = block * k * pad + 2 * LANES
    xb = np.zeros(1 if direct else size, x.dtype)
    affine = a.weight != 0
    zb = np.zeros(k * pad + 2 * LANES if affine else 1, x.dtype)
    gyb = np.zeros(1 if gy_direct else size, x.dtype)
    gxb = np.zeros(1 if out_direct else size, x.dtype)
    q = np.zeros(pad + LANES, x.dtype)
    gate = np.zeros(pad + LANES, x.dtype)
    dhats = np.zeros(pad + LANES, x.dtype)
    gd = np.zeros(pad + LANES, x.dtype)
    product = np.zeros(pad + LANES if cosine else 1, x.dtype)
    per_x = np.zeros(pad + LANES if cosine else 1, x.dtype)
    squares = np.zeros(pad + LANES if cosine else 1, x.dtype)
    norms, along_u, per_u = np.zeros(cells), np.zeros(cells), np.zeros(cells)
    gu = np.zeros(k * cell_pad + LANES, x.dtype)
    room = np.zeros(k * pad + LANES if narrow else 1, x.dtype)
    v = np.zeros(1 if narrow else k * seg_pad, x.dtype)
    t = np.zeros(1 if narrow else k * grid * w, x.dtype)
    u_pattern = np.zeros(1 if narrow else k * grid * wide + LANES, x.dtype)
    v_pattern = np.zeros(1 if narrow else k * rows * wide + LANES, x.dtype)
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
        gy_base = n * a.grad_y_strides[0] + g0 * k * a.grad_y_strides[1]
        gx_base = n * a.out_strides[0] + g0 * k * a.out_strides[1]
        if not direct:
            gather(x, x_base, a.x_strides, many * k, h, w, xb, pad)
        if a.y != 0:
            through_relu(grad_y, y, gy_base, many * k * p, gy)
        if not gy_direct:
            gather(gy, gy_base, a.grad_y_strides, many * k, h, w, gyb, pad)
        for g in range(g0, g0 + many):
            xs = x if direct else xb
            xo = x_base + (g - g0) * k * p if direct else (g - g0) * k * pad
            x_stride = p if direct else pad
            gys = gy if gy_direct else gyb
            gyo = gy_base + (g - g0) * k * p if gy_direct else (g - g0) * k * pad
            gy_stride = p if gy_direct else pad
            gxs = gx if out_direct else gxb
            gxo = gx_base + (g - g0) * k * p if out_direct else (g - g0) * k * pad
            gx_stride = p if out_direct else pad
            slab = n * g_ + g
            raw, raw_base, raw_stride = xs, xo, x_stride
            if affine:
                factors = (weight, shift, False, weight, shift, one)
                normalise(raw, raw_base, raw_stride, k, p, factors, g * k, zb, 0, pad)
                xs, xo, x_stride = zb, 0, pad
            products(xs, xo, x_stride, gys, gyo, gy_stride, k, p, q, cosine, squares)
            mean_or_min, std_or_range = np.float64(stats[2 * slab]), np.float64(stats[2 * slab + 1])
            if normalize == NO_NORM:
                mean_or_min, std_or_range = 0.0, 1.0
            factor, flat, s = factor_of(std_or_range, normalize, a.eps), std_or_range == 0, scale[g]
            d_base, gain = slab * p, real(a.gain)
            through_gate(q, d, d_base, p, real(mean_or_min), real(factor), flat, s, bias[g], gain, one, gate, dhats)
            total, along = two_sums(q, dhats, p)
            grad_bias[slab], grad_scale[slab] = total, along
            if not need_x:
                continue
            through_normalization(q, dhats, d, d_base, p, normalize, s, total, along, std_or_range, a.eps, factor, gd)
            u_base = slab * k * cells
            by_u = gd  # factor of u in gx, and of x in gu
            if cosine:
                by_u = product
                norms_of_context(context, u_base, cells, k, cells, a.min_norm, norms)
                through_cosine(
                    gd,
                    d,
                    d_base,
                    squares,
                    norms,
                    row_cells,
                    col_cells,
                    h,
                    w,
                    grid,
                    a.min_norm,
                    by_u,
                    per_x,
                    along_u,
                    per_u,
                )
            if narrow:
                times_factor(xs, xo, x_stride, by_u, k, p, room, pad)
                dense_pool(room, 0, pad, k, p, cells_t, cell_pad, gu)
            else:
                for c in range(k):
                    segment_rows(xs, xo + c * x_stride, by_u, True, h, w, row_edges, t, c * grid * w, grid)
                dense_pool(t, 0, grid * w, k, grid * w, cells_t, cell_pad, gu)
            if cosine:
                add_norms(gu, cell_pad, per_u, context, u_base, cells, k)
            gradient = (gys, gyo, gy_stride, gxs, gxo, gx_stride, gate, by_u)
            if narrow:
                expand(context, u_base, cells, k, grid, col_edges, row_edges, w, room, pad)
                narrow_gradient(gradient, room, cells, gu, cell_pad, matrix_t, pad, k, p)
            else:
                dense_unpool(gu, cell_pad, cells, k, matrix_t, rows * cols, seg_pad, v)
                for c in range(k):
                    for r in range(rows):
                        runs(v, c * seg_pad + r * cols, col_bounds, cols, v_pattern, (c * rows + r) * wide)
                    for b in range(grid):
                        runs(context, u_base + c * cells + b * grid, col_edges, grid, u_pattern, (c * grid + b) * wide)
                wide_gradient(gradient, u_pattern, v_pattern, row_bounds, row_cells, rows, grid, w, wide, k)
            if cosine:
                add_multiples(xs, xo, x_stride, per_x, k, p, gxs, gxo, gx_stride)
            if affine:
                to = (gxs, gxo, gx_stride, grad_weight, grad_shift, slab * k)
                through_affine(raw, raw_base, raw_stride, k, p, weight, g * k, *to)
        if need_x and not out_direct:
            scatter(gxb, pad, gx, gx_base, a.out_strides, many * k, h, w)
