"""Loops that forward and backward share: reading and writing slabs, pooling, products over channels.

Arrays are flat. K = channels of a group, P = H * W, S = max(scales), R = segments of rows (:mod:`mmccd.ops.geometry`).
Narrow maps (W < LANES) are pooled by a product with a dense (P, S * S) matrix; in wide ones, rows are summed over
segments first, which leaves a map of R x W for the product.

A last block that does not fill a vector begins earlier and overlaps the one before, which changes nothing since every
such loop only assigns. So nothing is read or written beyond a tensor's end; our own buffers are padded. Where a loop
may write over what it reads, it reads the overlapping vector first.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .plan import CACHE_LINE, LANES
from .vectors import add, at, fma, from_lane, load, put, splat, store, take

# Flags that reorder and fuse sums, and no others, so that NaN and Inf pass through as everywhere else.
SUMS = dict(fastmath={'reassoc', 'contract', 'nsz'}, error_model='numpy')
# Loops whose vectors are written out, and with them the order of sums.
loop = njit(**SUMS)
# Loops that LLVM makes vectors of, and orders. Inlined: else a callback from the cache is linked to another copy of
# them than one that was compiled in this process, and the last bits differ from one process to the next.
sum_loop = njit(**SUMS, forceinline=True)
# Those that only assign, and keep the order that is written.
EXACT = dict(fastmath={'contract'}, error_model='numpy')
exact_loop = njit(**EXACT)


@njit
def next_unit(taken, total, threads, me, owner):
    """(unit of work, whose share it is of), or (-1, -1) where all ``total`` are taken.

    Every thread has a share of neighbouring units, which it may find in its cache, since PyTorch divides its loops in
    the same way; who has finished helps the next. ``me`` is the thread's number, ``owner`` whose share it works on.
    """
    while True:
        first, last = owner * total // threads, (owner + 1) * total // threads
        unit = first + take(taken, owner * (CACHE_LINE // 8))
        if unit < last:
            return unit, owner
        owner = (owner + 1) % threads
        if owner == me:
            return -1, -1


@loop
def gather(source, base, strides, channels, h, w, out, stride):
    """Channels of one sample, any strides, to ``out`` with one channel every ``stride`` numbers."""
    sc, sh, sw = strides[1], strides[2], strides[3]
    if sc == 1:
        for i in range(h):
            for j in range(w):
                o = base + i * sh + j * sw
                for c in range(channels):
                    put(out, c * stride + i * w + j, at(source, o + c))
    else:
        for c in range(channels):
            for i in range(h):
                o = base + c * sc + i * sh
                for j in range(w):
                    put(out, c * stride + i * w + j, at(source, o + j * sw))


@loop
def scatter(source, stride, out, base, strides, channels, h, w):
    """The other way round."""
    sc, sh, sw = strides[1], strides[2], strides[3]
    if sc == 1:
        for i in range(h):
            for j in range(w):
                o = base + i * sh + j * sw
                for c in range(channels):
                    put(out, o + c, at(source, c * stride + i * w + j))
    else:
        for c in range(channels):
            for i in range(h):
                o = base + c * sc + i * sh
                for j in range(w):
                    put(out, o + j * sw, at(source, c * stride + i * w + j))


@exact_loop
def affine_of_norm(weight, bias, mean, variance, eps, one):
    """(weight, shift) of x * weight + shift, rounded as PyTorch's batch norm rounds them."""
    factor = one / math.sqrt(variance + eps) * weight
    return factor, bias - mean * factor


@loop
def normalise(source, base, stride, k, p, affine, first, out, out_base, out_stride):
    """out = source * weight + shift, with the numbers of channels from ``first`` on; ``out`` may be ``source``.

    ``affine`` is weight, shift, whether these two are a batch norm's, and then its mean, variance and eps.
    """
    weight, shift, is_norm, mean, variance, eps = affine
    last, one = max(p - LANES, 0), source.dtype.type(1)
    for c in range(k):
        w, s = at(weight, first + c), at(shift, first + c)
        if is_norm:
            w, s = affine_of_norm(w, s, at(mean, first + c), at(variance, first + c), eps, one)
        factor, offset = splat(w), splat(s)
        i, o = base + c * stride, out_base + c * out_stride
        end = fma(load(source, i + last), factor, offset)
        for j in range(0, last, LANES):
            store(out, o + j, fma(load(source, i + j), factor, offset))
        store(out, o + last, end)


@loop
def segment_rows(x, base, weight, weighted, h, w, row_of, t, t_base, segments):
    """t[t_base + (row segment, column)] = sum over its rows of x, or of weight * x; w at least LANES."""
    zero = splat(x.dtype.type(0))
    for s in range(segments):
        begin, end = row_of[s], row_of[s + 1]
        for block in range(0, w, LANES):
            j = min(block, w - LANES)
            acc = zero
            if weighted:
                for i in range(begin, end):
                    acc = fma(load(weight, i * w + j), load(x, base + i * w + j), acc)
            else:
                for i in range(begin, end):
                    acc = add(acc, load(x, base + i * w + j))
            store(t, t_base + s * w + j, acc)


@loop
def runs(value, first, bounds, count, out, base):
    """Row pattern: out[base + bounds[s]:base + bounds[s + 1]] = value[first + s]; writes up to LANES numbers more."""
    for s in range(count):
        v = splat(at(value, first + s))
        for j in range(bounds[s], bounds[s + 1], LANES):
            store(out, base + j, v)


@loop
def expand(u, first, stride, k, grid, col_edges, row_edges, w, full, pad):
    """full[c, pixel] = u[c, cell of the pixel], for rows shorter than a vector."""
    for c in range(k):
        for b in range(grid):
            at_row = first + c * stride + b * grid
            row = splat(at(u, at_row))
            for s in range(1, grid):
                row = from_lane(col_edges[s], row, splat(at(u, at_row + s)))
            for i in range(row_edges[b], row_edges[b + 1]):
                store(full, c * pad + i * w, row)


@loop
def dense_pool(source, o, stride, k, p, matrix, cells, u):
    """u[c, cell] = sum over pixels of source[c, pixel] * matrix[pixel, cell]; ``cells`` a multiple of LANES."""
    zero = splat(source.dtype.type(0))
    for q in range(0, cells, LANES):
        c = 0
        while c + 4 <= k:
            a0, a1, a2, a3, b0, b1, b2, b3 = zero, zero, zero, zero, zero, zero, zero, zero
            o0 = o + c * stride
            o1, o2, o3 = o0 + stride, o0 + 2 * stride, o0 + 3 * stride
            i = 0
            while i + 2 <= p:
                m = load(matrix, i * cells + q)
                a0 = fma(splat(at(source, o0 + i)), m, a0)
                a1 = fma(splat(at(source, o1 + i)), m, a1)
                a2 = fma(splat(at(source, o2 + i)), m, a2)
                a3 = fma(splat(at(source, o3 + i)), m, a3)
                m = load(matrix, (i + 1) * cells + q)
                b0 = fma(splat(at(source, o0 + i + 1)), m, b0)
                b1 = fma(splat(at(source, o1 + i + 1)), m, b1)
                b2 = fma(splat(at(source, o2 + i + 1)), m, b2)
                b3 = fma(splat(at(source, o3 + i + 1)), m, b3)
                i += 2
            if i < p:
                m = load(matrix, i * cells + q)
                a0 = fma(splat(at(source, o0 + i)), m, a0)
                a1 = fma(splat(at(source, o1 + i)), m, a1)
                a2 = fma(splat(at(source, o2 + i)), m, a2)
                a3 = fma(splat(at(source, o3 + i)), m, a3)
            store(u, c * cells + q, add(a0, b0))
            store(u, (c + 1) * cells + q, add(a1, b1))
            store(u, (c + 2) * cells + q, add(a2, b2))
            store(u, (c + 3) * cells + q, add(a3, b3))
            c += 4
        while c < k:
            a0 = zero
            for i in range(p):
                a0 = fma(splat(at(source, o + c * stride + i)), load(matrix, i * cells + q), a0)
            store(u, c * cells + q, a0)
            c += 1


@loop
def products(a, a_base, a_stride, b, b_base, b_stride, k, p, out, squares, out_squares):
    """out[i] = sum over channels of a * b; with ``squares`` also out_squares[i] = sum of a * a."""
    last = max(p - LANES, 0)
    zero = splat(a.dtype.type(0))
    for block in range(0, p, LANES):
        j = min(block, last)
        acc = zero
        for c in range(k):
            acc = fma(load(a, a_base + c * a_stride + j), load(b, b_base + c * b_stride + j), acc)
        store(out, j, acc)
        if squares:
            acc = zero
            for c in range(k):
                v = load(a, a_base + c * a_stride + j)
                acc = fma(v, v, acc)
            store(out_squares, j, acc)


@sum_loop
def norms_of_context(u, base, stride, k, cells, floor, out):
    """out[cell] = norm of u over channels, at least ``floor``; float64 sums."""
    for q in range(cells):
        acc = 0.0
        for c in range(k):
            v = np.float64(at(u, base + c * stride + q))
            acc += v * v
        out[q] = max(math.sqrt(acc), floor) if acc == acc else acc
