"""Compiled loops of CCD for CPUs, one (sample, group) slab at a time; only ``ccd_cpu`` imports it, at its first call.

What is unusual here, and why:

* Vectors are written out, 16 numbers each (:class:`Vector`; LLVM splits them where registers are shorter): rows of 7
  or 14 numbers are too short for the automatic vectoriser, which leaves most of them to its scalar remainder loop.
  A last block that does not fill a vector begins earlier and overlaps the one before, which changes nothing since
  every such loop only assigns; sums read on into the next row and drop those lanes.
* The functions are C callbacks that take slabs from a shared counter until none is left, so that any number of
  threads of any pool can share the work: ``ccd_cpu`` runs them in PyTorch's own OpenMP threads.
* Fast-math flags are only those that reorder and fuse sums, so that NaN and Inf pass through as everywhere else.
  Statistics and the gradients of scale and bias are summed in float64.

All arrays are flat. K = channels of a group, P = H * W, S = max(scales), RS and CS = segments of rows and columns
(``ccd_torch.cut_axis``). Narrow maps (W < 16) are pooled by a product with a dense (P, S * S) matrix; in wide ones,
rows are summed over segments first, which leaves a map of RS x W for the product.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, overload, register_model

LANES = 16
_SUMS = {'reassoc', 'contract', 'nsz'}


class Vector(types.Type):
    """LANES numbers of one floating type, in registers."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f'Vector({dtype})')


def _llvm(dtype: types.Float) -> ir.Type:
    return ir.FloatType() if dtype == types.float32 else ir.DoubleType()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind) -> None:
        super().__init__(manager, kind, ir.VectorType(_llvm(kind.dtype), LANES))


def _element(context, builder, array_type, array, index):
    """Pointer to array[index], without the check for negative indices that would keep loops from vectors."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


@intrinsic
def at(typingctx, array, index):
    """``array[index]``, index at least 0."""

    def generate(context, builder, signature, args):
        return builder.load(_element(context, builder, signature.args[0], *args))

    return array.dtype(array, types.intp), generate


@intrinsic
def put(typingctx, array, index, value):
    """``array[index] = value``, index at least 0, value of the array's dtype."""

    def generate(context, builder, signature, args):
        builder.store(args[2], _element(context, builder, signature.args[0], *args[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), generate


@intrinsic
def load(typingctx, array, index):
    """``array[index:index + LANES]``."""
    kind = Vector(array.dtype)

    def generate(context, builder, signature, args):
        pointer = _element(context, builder, signature.args[0], *args)
        vector = ir.VectorType(_llvm(kind.dtype), LANES)
        value = builder.load(builder.bitcast(pointer, vector.as_pointer()))
        value.align = 4 if kind.dtype == types.float32 else 8
        return value

    return kind(array, types.intp), generate


@intrinsic
def store(typingctx, array, index, value):
    """``array[index:index + LANES] = value``."""

    def generate(context, builder, signature, args):
        pointer = _element(context, builder, signature.args[0], *args[:2])
        vector = ir.VectorType(_llvm(signature.args[2].dtype), LANES)
        instruction = builder.store(args[2], builder.bitcast(pointer, vector.as_pointer()))
        instruction.align = 4 if signature.args[2].dtype == types.float32 else 8
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def splat(typingctx, value):
    """A vector of one number."""
    kind = Vector(value)

    def generate(context, builder, signature, args):
        vector = ir.VectorType(_llvm(value), LANES)
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), args[0], ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)

    return kind(value), generate


@intrinsic
def mul(typingctx, a, b):
    """a * b of vectors."""

    def generate(context, builder, signature, args):
        return builder.fmul(*args)

    return a(a, b), generate


@intrinsic
def add(typingctx, a, b):
    """a + b of vectors."""

    def generate(context, builder, signature, args):
        return builder.fadd(*args)

    return a(a, b), generate


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c of vectors, rounded once where the processor can."""

    def generate(context, builder, signature, args):
        kind = ir.VectorType(_llvm(signature.args[0].dtype), LANES)
        name = f'llvm.fmuladd.v{LANES}f{32 if signature.args[0].dtype == types.float32 else 64}'
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        return builder.call(function, args)

    return a(a, b, c), generate


@intrinsic
def rounded(typingctx, v):
    """v of vectors, kept from being joined with what follows: a product and a sum stay two roundings."""

    def generate(context, builder, signature, args):
        kind = args[0].type
        name = f'llvm.arithmetic.fence.v{LANES}f{32 if signature.args[0].dtype == types.float32 else 64}'
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name)
        return builder.call(function, args)

    return v(v), generate


@intrinsic
def relu(typingctx, v):
    """Zero where a vector is below zero; NaN stays."""

    def generate(context, builder, signature, args):
        zero = ir.Constant(ir.VectorType(_llvm(signature.args[0].dtype), LANES), None)
        return builder.select(builder.fcmp_ordered('<', args[0], zero), zero, args[0])

    return v(v), generate


@intrinsic
def where_positive(typingctx, y, v):
    """v of vectors, but zero where y is zero or less."""

    def generate(context, builder, signature, args):
        zero = ir.Constant(ir.VectorType(_llvm(signature.args[0].dtype), LANES), None)
        return builder.select(builder.fcmp_ordered('<=', args[0], zero), zero, args[1])

    return v(y, v), generate


@intrinsic
def pointer(typingctx, address, like):
    """Address in an int64 to a pointer of the type of ``like``."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return like(types.int64, like), generate


def _to_pointer(dtype):
    def typed(typingctx, address):
        def generate(context, builder, signature, args):
            kind = context.get_value_type(signature.return_type)
            return (builder.bitcast if isinstance(address, types.CPointer) else builder.inttoptr)(args[0], kind)

        return types.CPointer(dtype)(address), generate

    return typed


integers = intrinsic(_to_pointer(types.int64))  # address or other pointer to a pointer to int64
doubles = intrinsic(_to_pointer(types.float64))  # the same to float64


@intrinsic
def take_next(typingctx, array):
    """Add one to ``array[0]`` (int64) as one indivisible step; the value before."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw('add', data, ir.Constant(ir.IntType(64), 1), 'monotonic')

    return types.int64(array), generate


@intrinsic
def as_float(typingctx, value):
    """The float32 of these 32 bits."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def as_int(typingctx, value):
    """The bits of a float32."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), generate


def exp(v):
    """e ** v of one number; see the overload."""
    raise NotImplementedError


@overload(exp, jit_options=dict(fastmath={'contract'}, error_model='numpy'), inline='never')
def _exp_of_dtype(v):
    if v != types.float32:
        return lambda v: math.exp(v)

    one, magic, log2e = np.float32(1), np.float32(12582912), np.float32(1.44269504088896)
    high, low, top = np.float32(0.693359375), np.float32(-2.12194440e-4), np.float32(88)
    c0, c1, c2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
    c3, c4, c5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)

    def polynomial(v):
        """Cephes' expf (Moshier 1992), which becomes vector code; libm's does not. Arguments beyond 88 are cut."""
        v = top if v > top else v
        v = -top if v < -top else v
        t = v * log2e + magic  # rounds to the nearest integer, which stands in the low bits
        n = t - magic
        r = v - n * high
        r = r - n * low
        p = ((((c0 * r + c1) * r + c2) * r + c3) * r + c4) * r + c5
        p = p * (r * r) + r + one
        return p * as_float(np.int32(np.int32(as_int(t) << np.int32(23)) + np.int32(0x3F800000)))

    return polynomial


@njit(fastmath={'contract'}, error_model='numpy')
def sigmoid(v, one):
    """1 / (1 + exp(-v)); NaN stays NaN."""
    s = one / (one + exp(-v))
    return s if v == v else v


@njit(fastmath=_SUMS, error_model='numpy')
def gather(source, base, sc, sh, sw, channels, h, w, out, stride):
    """Channels of one sample, any strides, to ``out`` with one channel every ``stride`` numbers."""
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


@njit(fastmath=_SUMS, error_model='numpy')
def scatter(source, stride, out, base, sc, sh, sw, channels, h, w):
    """The other way round."""
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


@njit(fastmath=_SUMS, error_model='numpy')
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


@njit(fastmath=_SUMS, error_model='numpy')
def runs(value, first, bounds, count, out, base):
    """Row pattern: out[base + bounds[s]:base + bounds[s + 1]] = value[first + s]; writes up to LANES numbers more."""
    for s in range(count):
        v = splat(at(value, first + s))
        for j in range(bounds[s], bounds[s + 1], LANES):
            store(out, base + j, v)


@njit(fastmath=_SUMS, error_model='numpy')
def expand(u, first, stride, k, grid, edges, row_cell, h, w, pattern, full, pad):
    """full[c, pixel] = u[c, cell of the pixel], for rows shorter than a vector."""
    for c in range(k):
        for b in range(grid):
            runs(u, first + c * stride + b * grid, edges, grid, pattern, (c * grid + b) * LANES)
    for c in range(k):
        for i in range(h):
            store(full, c * pad + i * w, load(pattern, (c * grid + row_cell[i]) * LANES))


@njit(fastmath=_SUMS, error_model='numpy')
def dense_unpool(gu, cell_pad, cells, k, matrix_t, p, pad, v):
    """v[c, pixel] = sum over cells of gu[c, cell] * matrix[pixel, cell]."""
    for block in range(0, p, LANES):
        for c in range(k):
            acc = splat(gu.dtype.type(0))
            for q in range(cells):
                acc = fma(splat(at(gu, c * cell_pad + q)), load(matrix_t, q * pad + block), acc)
            store(v, c * pad + block, acc)


@njit(fastmath=_SUMS, error_model='numpy')
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


@njit(fastmath=_SUMS, error_model='numpy')
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


@njit(fastmath=_SUMS, error_model='numpy')
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


@njit(fastmath=_SUMS, error_model='numpy')
def times_gate(x, base, stride, k, p, gate, out, out_base, out_stride):
    """out = x * gate."""
    last = max(p - LANES, 0)
    for block in range(0, p, LANES):
        j = min(block, last)
        v = load(gate, j)
        for c in range(k):
            store(out, out_base + c * out_stride + j, mul(load(x, base + c * stride + j), v))


@njit(fastmath=_SUMS, error_model='numpy')
def add_and_rectify(x, base, stride, k, p, gate, residual, out, out_base):
    """out = relu(x * gate + residual), product and sum each rounded as if they were done one after the other."""
    last = p - LANES
    for block in range(0, p, LANES):
        j = min(block, last)
        v = load(gate, j)
        for c in range(k):
            q = out_base + c * p + j
            store(out, q, relu(add(rounded(mul(load(x, base + c * stride + j), v)), load(residual, q))))


@njit(fastmath=_SUMS, error_model='numpy')
def through_relu(grad, y, base, count, out):
    """out = grad where y is above zero, else 0."""
    last = base + count - LANES
    for block in range(base, base + count, LANES):
        j = min(block, last)
        store(out, j, where_positive(load(y, j), load(grad, j)))


@njit(fastmath=_SUMS, error_model='numpy')
def lengths_of_context(u, stride, k, cells, floor, out):
    """out[cell] = length of u over channels, at least ``floor``; float64 sums."""
    for q in range(cells):
        acc = 0.0
        for c in range(k):
            v = np.float64(at(u, c * stride + q))
            acc += v * v
        out[q] = max(math.sqrt(acc), floor) if acc == acc else acc


@njit(fastmath=_SUMS, error_model='numpy')
def statistics(d, base, p, normalize, tolerance):
    """(centre, spread) of d, spread 0 where flat; two passes in float64 for the z-score."""
    if normalize == 0:
        return 0.0, 1.0
    if p == 1:
        return np.float64(at(d, base)), 0.0
    if normalize == 1:
        total = 0.0
        for i in range(p):
            total += at(d, base + i)
        mean = total / p
        total = 0.0
        for i in range(p):
            v = at(d, base + i) - mean
            total += v * v
        std = math.sqrt(total / (p - 1))
        return mean, 0.0 if std <= tolerance * abs(mean) else std
    low = high = at(d, base)
    nan = low != low
    for i in range(p):
        v = at(d, base + i)
        low, high = min(low, v), max(high, v)
        nan |= v != v
    if nan:
        return np.nan, np.nan
    spread = np.float64(high - low)
    return np.float64(low), 0.0 if spread <= tolerance * max(abs(low), abs(high)) else spread


@njit(fastmath={'contract'}, error_model='numpy')
def gates(d, base, p, centre, factor, flat, scale, bias, gain, one, gate):
    """gate[i] = gain * sigmoid(scale * dhat + bias); factor 0 and flat where the map is flat."""
    for i in range(p):
        dhat = (at(d, base + i) - centre) * factor
        dhat = one - one if flat else dhat
        put(gate, i, gain * sigmoid(scale * dhat + bias, one))


@njit(fastmath={'contract'}, error_model='numpy')
def through_gate(q, d, base, p, centre, factor, flat, scale, bias, gain, one, gate, dhats):
    """gate as above; q becomes the gradient of the logit, dhats the normalised similarity."""
    for i in range(p):
        dhat = (at(d, base + i) - centre) * factor
        dhat = one - one if flat else dhat
        s = sigmoid(scale * dhat + bias, one)
        put(dhats, i, dhat)
        put(gate, i, gain * s)
        put(q, i, at(q, i) * (gain * (s * (one - s))))


@njit(fastmath=_SUMS, error_model='numpy')
def two_sums(q, dhats, p):
    """sum of q and of q * dhat, float64."""
    total, along = 0.0, 0.0
    for i in range(p):
        v = np.float64(at(q, i))
        total += v
        along += v * at(dhats, i)
    return total, along


@njit(fastmath=_SUMS, error_model='numpy')
def through_normalization(q, dhats, d, base, p, normalize, scale, total, along, spread, eps, factor, gd):
    """gd[i], gradient of d; q is that of the logit."""
    one = q.dtype.type(1)
    if normalize == 0:
        for i in range(p):
            put(gd, i, scale * at(q, i))
    elif spread == 0:
        for i in range(p):
            put(gd, i, one - one)
    elif normalize == 1:
        a = q.dtype.type(factor * scale)
        b = q.dtype.type(factor * scale * total / p)
        c = q.dtype.type(factor * scale * along * ((spread + eps) / spread) / (p - 1))
        for i in range(p):
            put(gd, i, a * at(q, i) - b - c * at(dhats, i))
    else:
        a = q.dtype.type(factor * scale)
        low = high = at(d, base)
        for i in range(p):
            low, high = min(low, at(d, base + i)), max(high, at(d, base + i))
        lows, highs = 0, 0
        for i in range(p):
            lows += at(d, base + i) == low
            highs += at(d, base + i) == high
        to_low = q.dtype.type(factor * scale * (along - total) / max(lows, 1))
        to_high = q.dtype.type(-factor * scale * along / max(highs, 1))
        for i in range(p):
            v = a * at(q, i)
            if at(d, base + i) == low:
                v += to_low
            if at(d, base + i) == high:
                v += to_high
            put(gd, i, v)


# What a call of the callbacks needs, all in one int64 array: addresses, sizes, strides. The first is the counter.
(
    NEXT,
    X,
    Y,
    SCALE,
    BIAS,
    CONTEXT,
    D,
    STATS,
    GRAD_Y,
    GRAD_SCALE,
    GRAD_BIAS,
    ROWS,
    COLS,
    MATRIX,
    MATRIX_T,
    CELLS_T,
    FLOATS,
    N,
    C,
    G,
    H,
    W,
    GRID,
    RS,
    CS,
    COSINE,
    NORMALIZE,
    KEEP,
    NEED_X,
    BLOCK,
    X_DIRECT,
    Y_DIRECT,
    GY_DIRECT,
    XN,
    XC,
    XH,
    XW,
    YN,
    YC,
    YH,
    YW,
    GN,
    GC,
    GH,
    GW,
    RESIDUAL,
    OUT,
    GRAD_RESIDUAL,
) = range(48)
COUNT = 48


def forward_slabs(address):
    """Forward of slabs from the counter until none is left; ``address`` is that of the arguments above.

    With RESIDUAL, y = relu(x * gate + residual); all three contiguous then, and of at least LANES pixels.
    """
    a = carray(integers(address), (COUNT,), np.int64)
    n_, c_, g_, h, w, grid = a[N], a[C], a[G], a[H], a[W], a[GRID]
    k, p, cells = c_ // g_, h * w, grid * grid
    rows, normalize = a[RS], a[NORMALIZE]
    x = carray(pointer(a[X], address), (1,))
    y = carray(pointer(a[Y], address), (1,))
    residual = carray(pointer(a[RESIDUAL], address), (1,))
    scale = carray(pointer(a[SCALE], address), (g_,))
    bias = carray(pointer(a[BIAS], address), (g_,))
    context = carray(pointer(a[CONTEXT], address), (1,))
    d = carray(pointer(a[D], address), (1,))
    stats = carray(pointer(a[STATS], address), (1,))
    matrix = carray(pointer(a[MATRIX], address), (1,))
    row_bounds = carray(integers(a[ROWS]), (rows + 1,), np.int64)
    floats = carray(doubles(a[FLOATS]), (4,), np.float64)
    real = x.dtype.type
    one = real(1)
    eps, gain, tolerance, floor = floats[0], floats[1], floats[2], floats[3]
    block = a[BLOCK]
    narrow = w < LANES
    pad = (p + LANES - 1) // LANES * LANES
    wide = (w + LANES - 1) // LANES * LANES
    cell_pad = (cells + LANES - 1) // LANES * LANES
    u = np.zeros(k * cell_pad + LANES, x.dtype)
    xb = np.zeros(block * k * pad + 2 * LANES, x.dtype)
    yb = np.zeros(block * k * pad + 2 * LANES if a[Y_DIRECT] == 0 or p < LANES else 1, x.dtype)
    db = np.zeros(pad + LANES, x.dtype)
    gate = np.zeros(pad + LANES, x.dtype)
    squares = np.zeros(pad + LANES if a[COSINE] else 1, x.dtype)
    lengths = np.zeros(cells)
    pattern = np.zeros(k * pad + LANES if narrow else k * grid * wide + LANES, x.dtype)
    rows_pattern = np.zeros(k * grid * LANES + LANES if narrow else 1, x.dtype)
    t = np.zeros(1 if narrow else k * rows * w, x.dtype)
    row_cell = np.empty(h, np.int64)
    for i in range(h):
        row_cell[i] = i * grid // h
    col_cell = np.empty(w, np.int64)
    for j in range(w):
        col_cell[j] = j * grid // w
    edges = np.empty(grid + 1, np.int64)
    for i in range(grid + 1):
        edges[i] = (i * w + grid - 1) // grid
    cell = np.empty(p, np.int32)
    for i in range(h):
        for j in range(w):
            cell[i * w + j] = row_cell[i] * grid + col_cell[j]
    blocks = (g_ + block - 1) // block
    while True:
        unit = take_next(a)
        if unit >= n_ * blocks:
            return
        n, g0 = unit // blocks, unit % blocks * block
        many = min(block, g_ - g0)
        # Reads go on beyond a row's end, so the tensor's last slab is read from a longer copy.
        direct = a[X_DIRECT] != 0 and p >= LANES and unit != n_ * blocks - 1
        out_direct = a[Y_DIRECT] != 0 and p >= LANES
        x_base = n * a[XN] + g0 * k * a[XC]
        y_base = n * a[YN] + g0 * k * a[YC]
        if not direct:
            gather(x, x_base, a[XC], a[XH], a[XW], many * k, h, w, xb, pad)
        for g in range(g0, g0 + many):
            source = x if direct else xb
            base = x_base + (g - g0) * k * p if direct else (g - g0) * k * pad
            stride = p if direct else pad
            slab = n * g_ + g
            if narrow:
                dense_pool(source, base, stride, k, p, matrix, cell_pad, u)
                expand(u, 0, cell_pad, k, grid, edges, row_cell, h, w, rows_pattern, pattern, pad)
                products(source, base, stride, pattern, 0, pad, k, p, db, a[COSINE] != 0, squares)
            else:
                for c in range(k):
                    segment_rows(source, base + c * stride, gate, False, h, w, row_bounds, t, c * rows * w, rows)
                dense_pool(t, 0, rows * w, k, rows * w, matrix, cell_pad, u)
                for c in range(k):
                    for b in range(grid):
                        runs(u, c * cell_pad + b * grid, edges, grid, pattern, (c * grid + b) * wide)
                row_products(source, base, stride, k, h, w, pattern, row_cell, grid, wide, db, a[COSINE] != 0, squares)
            if a[COSINE]:
                lengths_of_context(u, cell_pad, k, cells, floor, lengths)
                for i in range(p):
                    v = math.sqrt(np.float64(at(squares, i)))
                    v = max(v, floor) if v == v else v
                    put(db, i, real(at(db, i) / (v * lengths[cell[i]])))
            centre, spread = statistics(db, 0, p, normalize, tolerance)
            if normalize == 1:
                spread = np.float64(real(spread))
                factor = 0.0 if spread == 0 else 1 / (spread + eps)
            else:
                factor = 0.0 if spread == 0 else 1 / spread
            if normalize == 0:
                centre, factor = 0.0, 1.0
            gates(db, 0, p, real(centre), real(factor), spread == 0, scale[g], bias[g], real(gain), one, gate)
            if a[RESIDUAL] != 0:
                add_and_rectify(source, base, stride, k, p, gate, residual, y, y_base + (g - g0) * k * p)
            elif out_direct:
                times_gate(source, base, stride, k, p, gate, y, y_base + (g - g0) * k * p, p)
            else:
                times_gate(source, base, stride, k, p, gate, yb, (g - g0) * k * pad, pad)
            if a[KEEP]:
                stats[2 * slab], stats[2 * slab + 1] = real(centre), real(spread)
                for i in range(p):
                    put(d, slab * p + i, at(db, i))
                for c in range(k):
                    for q in range(cells):
                        put(context, (slab * k + c) * cells + q, at(u, c * cell_pad + q))
        if not out_direct:
            scatter(yb, pad, y, y_base, a[YC], a[YH], a[YW], many * k, h, w)


def backward_slabs(address):
    """Backward of slabs from the counter until none is left; grad_scale and grad_bias are (N, G), float64.

    With OUT, the y of a forward with RESIDUAL, the gradient of y goes through the ReLU first, into GRAD_RESIDUAL.
    """
    a = carray(integers(address), (COUNT,), np.int64)
    n_, c_, g_, h, w, grid = a[N], a[C], a[G], a[H], a[W], a[GRID]
    k, p, cells = c_ // g_, h * w, grid * grid
    rows, cols, normalize = a[RS], a[CS], a[NORMALIZE]
    x = carray(pointer(a[X], address), (1,))
    gx = carray(pointer(a[Y], address), (1,))
    grad_y = carray(pointer(a[GRAD_Y], address), (1,))
    out = carray(pointer(a[OUT], address), (1,))
    gy = carray(pointer(a[GRAD_RESIDUAL] if a[OUT] != 0 else a[GRAD_Y], address), (1,))
    scale = carray(pointer(a[SCALE], address), (g_,))
    bias = carray(pointer(a[BIAS], address), (g_,))
    context = carray(pointer(a[CONTEXT], address), (n_ * c_ * cells,))
    d = carray(pointer(a[D], address), (1,))
    stats = carray(pointer(a[STATS], address), (1,))
    matrix_t = carray(pointer(a[MATRIX_T], address), (1,))
    cells_t = carray(pointer(a[CELLS_T], address), (1,))
    grad_scale = carray(doubles(a[GRAD_SCALE]), (n_ * g_,), np.float64)
    grad_bias = carray(doubles(a[GRAD_BIAS]), (n_ * g_,), np.float64)
    row_bounds = carray(integers(a[ROWS]), (rows + 1,), np.int64)
    col_bounds = carray(integers(a[COLS]), (cols + 1,), np.int64)
    floats = carray(doubles(a[FLOATS]), (4,), np.float64)
    real = x.dtype.type
    one = real(1)
    eps, gain, floor = floats[0], floats[1], floats[3]
    block, cosine = a[BLOCK], a[COSINE] != 0
    narrow = w < LANES
    pad = (p + LANES - 1) // LANES * LANES
    wide = (w + LANES - 1) // LANES * LANES
    cell_pad = (cells + LANES - 1) // LANES * LANES
    size = block * k * pad + 2 * LANES
    xb = np.zeros(size, x.dtype)
    gyb = np.zeros(size, x.dtype)
    gxb = np.zeros(size if a[Y_DIRECT] == 0 or p < LANES else 1, x.dtype)
    q = np.zeros(pad + LANES, x.dtype)
    gate = np.zeros(pad + LANES, x.dtype)
    dhats = np.zeros(pad + LANES, x.dtype)
    gd = np.zeros(pad + 2 * LANES, x.dtype)
    product = np.zeros(pad + 2 * LANES, x.dtype)  # factor of u in gx, and of x in gu
    per_x = np.zeros(pad + LANES if cosine else 1, x.dtype)
    squares = np.zeros(pad + LANES if cosine else 1, x.dtype)
    lengths = np.zeros(cells)
    weight = np.zeros(cells)
    per_u = np.zeros(cells)
    seg_pad = (rows * cols + LANES - 1) // LANES * LANES
    gu = np.zeros(k * cell_pad + LANES, x.dtype)
    room = np.zeros(k * pad + LANES if narrow else 1, x.dtype)
    v = np.zeros(1 if narrow else k * seg_pad, x.dtype)
    t = np.zeros(1 if narrow else k * grid * w, x.dtype)
    u_pattern = np.zeros(k * grid * wide + LANES, x.dtype)
    v_pattern = np.zeros(1 if narrow else k * rows * wide + LANES, x.dtype)
    row_cell = np.empty(h, np.int64)
    for i in range(h):
        row_cell[i] = i * grid // h
    row_edges = np.empty(grid + 1, np.int64)
    edges = np.empty(grid + 1, np.int64)
    for i in range(grid + 1):
        row_edges[i] = (i * h + grid - 1) // grid
        edges[i] = (i * w + grid - 1) // grid
    cell = np.empty(p, np.int32)
    for i in range(h):
        for j in range(w):
            cell[i * w + j] = i * grid // h * grid + j * grid // w
    blocks = (g_ + block - 1) // block
    while True:
        unit = take_next(a)
        if unit >= n_ * blocks:
            return
        n, g0 = unit // blocks, unit % blocks * block
        many = min(block, g_ - g0)
        last_unit = unit == n_ * blocks - 1
        direct = a[X_DIRECT] != 0 and p >= LANES and not last_unit
        gy_direct = a[GY_DIRECT] != 0 and p >= LANES and not last_unit
        out_direct = a[Y_DIRECT] != 0 and p >= LANES
        x_base = n * a[XN] + g0 * k * a[XC]
        gy_base = n * a[GN] + g0 * k * a[GC]
        gx_base = n * a[YN] + g0 * k * a[YC]
        if not direct:
            gather(x, x_base, a[XC], a[XH], a[XW], many * k, h, w, xb, pad)
        if a[OUT] != 0:
            through_relu(grad_y, out, gy_base, many * k * p, gy)
        if not gy_direct:
            gather(gy, gy_base, a[GC], a[GH], a[GW], many * k, h, w, gyb, pad)
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
            products(xs, xo, x_stride, gys, gyo, gy_stride, k, p, q, cosine, squares)
            centre, spread = np.float64(stats[2 * slab]), np.float64(stats[2 * slab + 1])
            if normalize == 0:
                centre, factor = 0.0, 1.0
            elif normalize == 1:
                factor = 0.0 if spread == 0 else 1 / (spread + eps)
            else:
                factor = 0.0 if spread == 0 else 1 / spread
            through_gate(
                q,
                d,
                slab * p,
                p,
                real(centre),
                real(factor),
                spread == 0,
                scale[g],
                bias[g],
                real(gain),
                one,
                gate,
                dhats,
            )
            total, along = two_sums(q, dhats, p)
            grad_bias[slab], grad_scale[slab] = total, along
            if a[NEED_X] == 0:
                continue
            through_normalization(q, dhats, d, slab * p, p, normalize, scale[g], total, along, spread, eps, factor, gd)
            u_base = slab * k * cells
            if cosine:
                lengths_of_context(context[u_base:], cells, k, cells, floor, lengths)
                weight[:] = 0
                for i in range(p):
                    length = math.sqrt(np.float64(at(squares, i)))
                    safe = max(length, floor) if length == length else length
                    gdd = np.float64(at(gd, i)) * at(d, slab * p + i)
                    weight[cell[i]] += gdd
                    put(product, i, real(at(gd, i) / (safe * lengths[cell[i]])))
                    put(per_x, i, real(-gdd / (safe * safe)) if length >= floor else one - one)
                for i in range(cells):
                    per_u[i] = -weight[i] / (lengths[i] * lengths[i]) if lengths[i] > floor else 0.0
            else:
                for i in range(p):
                    put(product, i, at(gd, i))
            if narrow:
                for c in range(k):
                    for part in range(0, p, LANES):
                        j = min(part, max(p - LANES, 0))
                        store(room, c * pad + j, mul(load(product, j), load(xs, xo + c * x_stride + j)))
                dense_pool(room, 0, pad, k, p, cells_t, cell_pad, gu)
                if cosine:
                    add_lengths(gu, cell_pad, per_u, context, u_base, cells, k)
                expand(context, u_base, cells, k, grid, edges, row_cell, h, w, u_pattern, room, pad)
                narrow_gradient(
                    gys,
                    gyo,
                    gy_stride,
                    gate,
                    product,
                    room,
                    cells,
                    gu,
                    cell_pad,
                    matrix_t,
                    pad,
                    k,
                    p,
                    gxs,
                    gxo,
                    gx_stride,
                )
            else:
                for c in range(k):
                    segment_rows(xs, xo + c * x_stride, product, True, h, w, row_edges, t, c * grid * w, grid)
                dense_pool(t, 0, grid * w, k, grid * w, cells_t, cell_pad, gu)
                if cosine:
                    add_lengths(gu, cell_pad, per_u, context, u_base, cells, k)
                dense_unpool(gu, cell_pad, cells, k, matrix_t, rows * cols, seg_pad, v)
                for c in range(k):
                    for r in range(rows):
                        runs(v, c * seg_pad + r * cols, col_bounds, cols, v_pattern, (c * rows + r) * wide)
                    for b in range(grid):
                        runs(context, u_base + c * cells + b * grid, edges, grid, u_pattern, (c * grid + b) * wide)
                wide_gradient(
                    gys,
                    gyo,
                    gy_stride,
                    gate,
                    product,
                    u_pattern,
                    v_pattern,
                    row_bounds,
                    rows,
                    grid,
                    h,
                    w,
                    wide,
                    k,
                    gxs,
                    gxo,
                    gx_stride,
                )
            if cosine:
                for c in range(k):
                    for i in range(p):
                        o = gxo + c * gx_stride + i
                        put(gxs, o, at(gxs, o) + at(per_x, i) * at(xs, xo + c * x_stride + i))
        if a[NEED_X] != 0 and not out_direct:
            scatter(gxb, pad, gx, gx_base, a[YC], a[YH], a[YW], many * k, h, w)


@njit(fastmath=_SUMS, error_model='numpy')
def add_lengths(gu, cell_pad, per_u, context, base, cells, k):
    """gu[c, cell] += per_u[cell] * context[c, cell]."""
    for c in range(k):
        for i in range(cells):
            o = c * cell_pad + i
            put(gu, o, gu.dtype.type(at(gu, o) + per_u[i] * at(context, base + c * cells + i)))


@njit(fastmath=_SUMS, error_model='numpy')
def narrow_gradient(
    gy, gy_base, gy_stride, gate, product, full, cells, gu, cell_pad, matrix_t, pad, k, p, gx, gx_base, gx_stride
):
    """gx = gy * gate + product * u + matrix^T gu; ``full`` is u at full size."""
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


@njit(fastmath=_SUMS, error_model='numpy')
def wide_gradient(
    gy, gy_base, gy_stride, gate, product, u, v, row_bounds, rows, grid, h, w, wide, k, gx, gx_base, gx_stride
):
    """gx = gy * gate + product * u[cell of the row] + v[segment of the row]."""
    last = w - LANES
    for r in range(rows):
        for i in range(row_bounds[r], row_bounds[r + 1]):
            cell = i * grid // h
            for block in range(0, w, LANES):
                j = min(block, last)
                o = i * w + j
                vg, vp = load(gate, o), load(product, o)
                for c in range(k):
                    value = fma(vp, load(u, (c * grid + cell) * wide + j), load(v, (c * rows + r) * wide + j))
                    store(gx, gx_base + c * gx_stride + o, fma(load(gy, gy_base + c * gy_stride + o), vg, value))


def compile_loops(direction: str, double: bool):
    """C callback void(void*) of one direction, in float64 or float32; from numba's cache where that has it."""
    # One argument is all that a thread pool hands on: its type says which dtype the loops are for.
    signature = types.void(types.CPointer(types.float64 if double else types.float32))
    function = dict(forward=forward_slabs, backward=backward_slabs)[direction]
    try:
        return cfunc(signature, cache=True, fastmath=_SUMS, error_model='numpy')(function)
    except RuntimeError:  # no folder that a cache could be written to
        return cfunc(signature, fastmath=_SUMS, error_model='numpy')(function)
