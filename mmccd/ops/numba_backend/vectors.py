"""Vectors of numbers in registers, and what numba lacks for reading memory by address.

A loop over rows of 7 or 14 numbers is too short for LLVM's automatic vectoriser, which leaves most of it to a scalar
remainder loop. So vectors of :data:`LANES` numbers are written out; LLVM splits them where registers are shorter.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from .plan import ARGUMENTS, LANES


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
def from_lane(typingctx, first, a, b):
    """The vector ``b`` from lane ``first`` on, ``a`` before."""

    def generate(context, builder, signature, args):
        kind = ir.VectorType(ir.IntType(32), LANES)
        lanes = ir.Constant(kind, list(range(LANES)))
        start = ir.Constant(kind, ir.Undefined)
        zero = ir.IntType(32)(0)
        start = builder.insert_element(start, builder.trunc(args[0], ir.IntType(32)), zero)
        start = builder.shuffle_vector(start, start, ir.Constant(kind, None))
        return builder.select(builder.icmp_signed('>=', lanes, start), args[2], args[1])

    return a(types.int64, a, b), generate


@intrinsic
def where_positive(typingctx, y, v):
    """v of vectors, but zero where y is zero or less."""

    def generate(context, builder, signature, args):
        zero = ir.Constant(ir.VectorType(_llvm(signature.args[0].dtype), LANES), None)
        return builder.select(builder.fcmp_ordered('<=', args[0], zero), zero, args[1])

    return v(y, v), generate


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


@intrinsic
def _pointer(typingctx, address, like):
    """An address, an int64, as a pointer of the type of ``like``."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return like(types.int64, like), generate


@intrinsic
def _untyped(typingctx, address):
    """An address, an int64 or a pointer of any type, as a pointer without a type."""

    def generate(context, builder, signature, args):
        kind = context.get_value_type(types.voidptr)
        return (builder.bitcast if isinstance(address, types.CPointer) else builder.inttoptr)(args[0], kind)

    return types.voidptr(address), generate


@njit
def arguments_at(address):
    """The record that a callback was given the address of."""
    return carray(_untyped(address), (1,), ARGUMENTS)[0]


@njit
def numbers(address, like):
    """A flat array at an address, of the type that ``like`` points to; nothing checks its length."""
    return carray(_pointer(address, like), (1,))


@njit
def integers(address):
    """A flat array of int64 at an address."""
    return carray(_untyped(address), (1,), np.int64)


@njit
def doubles(address):
    """A flat array of float64 at an address."""
    return carray(_untyped(address), (1,), np.float64)


@intrinsic
def take_next(typingctx, record):
    """Add one to the field ``next`` as one indivisible step; the value before."""

    def generate(context, builder, signature, args):
        counter = cgutils.get_record_member(builder, args[0], record.offset('next'), ir.IntType(64))
        return builder.atomic_rmw('add', counter, ir.Constant(ir.IntType(64), 1), 'monotonic')

    return types.int64(record), generate


@intrinsic
def take(typingctx, array, index):
    """Add one to ``array[index]``, an int64, as one indivisible step; the value before."""

    def generate(context, builder, signature, args):
        counter = _element(context, builder, signature.args[0], *args)
        return builder.atomic_rmw('add', counter, ir.Constant(ir.IntType(64), 1), 'monotonic')

    return types.int64(array, types.intp), generate
