"""What kernels of both ways and directions are made of: the geometry, loads with the affine, the maths of a pixel.

In shapes, CB is a group's channels rounded up to a power of two.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import triton
import triton.language as tl

from mmccd.ops import geometry

from . import plan

# Triton wants constants that kernels see to be of this type.
UNIT_CHANNEL, UNIT_COLUMN = tl.constexpr(plan.UNIT_CHANNEL), tl.constexpr(plan.UNIT_COLUMN)
ZSCORE, MINMAX, NO_NORM = (tl.constexpr(plan.NORMALIZE[name]) for name in ('zscore', 'minmax', None))


def _for_kernels(function: Callable) -> Any:
    """A function of geometry, among this module's names: the interpreter looks there for Triton's language."""
    return triton.jit(FunctionType(function.__code__, globals(), function.__name__))


cell_of, cell_start = _for_kernels(geometry.cell_of), _for_kernels(geometry.cell_start)
bin_start, bin_end = _for_kernels(geometry.bin_start), _for_kernels(geometry.bin_end)


@triton.jit
def in_elements(n, c, h, w, UNIT: tl.constexpr, P: tl.constexpr):
    """Strides of sample, channel, row and column, that the compiler knows to be 1 or multiples of ALIGN."""
    c = 1 if UNIT == UNIT_CHANNEL else c * P.ALIGN
    w = 1 if UNIT == UNIT_COLUMN else w * P.ALIGN
    return tl.cast(n, tl.int64) * P.SAMPLE_ALIGN, c, h * P.ALIGN, w


@triton.jit
def affine(v, inside, weight, factor, offset, ACC: tl.constexpr):
    """v * factor + offset, rounded once, then as PyTorch's norm does to the dtype of v; 0 outside. In ACC.

    Without a weight it is v, and the next two may be anything.
    """
    if weight is None:
        return v.to(ACC)
    else:
        return tl.where(inside, tl.fma(v.to(ACC), factor, offset).to(v.dtype).to(ACC), 0)


@triton.jit
def per_channel(values, c, some, ACC: tl.constexpr):
    """Weight or shift of channels c, of which there are some; without one, 0."""
    if values is None:
        return tl.zeros(c.shape, ACC)
    else:
        return tl.load(values + c, some, 0.0).to(ACC)


@triton.jit
def add_relu(result, residual, inside, ACC: tl.constexpr):
    """relu(result + residual), as PyTorch adds in place: in the wider dtype, rounded to that of result, NaN kept."""
    r = tl.load(residual, inside, 0.0)
    if r.dtype == tl.float64:
        total = result.to(tl.float64) + r
    else:
        total = result.to(ACC) + r.to(ACC)
    return tl.where(total <= 0, 0, total).to(result.dtype)


@triton.jit
def similarity(v, u, AXIS: tl.constexpr, P: tl.constexpr):
    """d of v and the u that it reads, whose channels are along AXIS."""
    d = tl.sum(v * u, AXIS)
    if P.COSINE:
        norm_v, norm_u = tl.sqrt(tl.sum(v * v, AXIS)), tl.sqrt(tl.sum(u * u, AXIS))
        d = d / (tl.maximum(norm_v, P.MIN) * tl.maximum(norm_u, P.MIN))
    return d


@triton.jit
def derivatives(v, u, d, AXIS: tl.constexpr, P: tl.constexpr):
    """Derivatives of d by v and by u, of the shape of v, or what broadcasts to it."""
    if P.COSINE:
        norm_v, norm_u = tl.sqrt(tl.sum(v * v, AXIS)), tl.sqrt(tl.sum(u * u, AXIS))
        # A norm below MIN was replaced by a constant.
        long_v, long_u = norm_v >= P.MIN, norm_u >= P.MIN
        norm_v, norm_u = tl.maximum(norm_v, P.MIN), tl.maximum(norm_u, P.MIN)
        product = tl.expand_dims(norm_v * norm_u, AXIS)
        by_v = u / product - v * tl.expand_dims(tl.where(long_v, d / (norm_v * norm_v), 0), AXIS)
        by_u = v / product - u * tl.expand_dims(tl.where(long_u, d / (norm_u * norm_u), 0), AXIS)
        return by_v, by_u
    else:
        return u, v


@triton.jit
def conclude(count, first, second, NORM: tl.constexpr, FLAT: tl.constexpr):
    """Mean and deviation or minimum and range of a slab, the second 0 where it is flat.

    From mean and sum of squares about it (zscore), or minimum and maximum.
    """
    if NORM == ZSCORE:
        std_or_range = tl.sqrt(second / tl.maximum(count - 1, 1))
        size = tl.abs(first)
    else:
        std_or_range = second - first
        size = tl.maximum(tl.abs(first), tl.abs(second))
    return first, tl.where((count == 1) | (std_or_range <= FLAT * size), 0, std_or_range)


@triton.jit
def factor(std_or_range, P: tl.constexpr):
    """From a deviation or range, which is 0 where the map is flat."""
    if P.NORM == ZSCORE:
        return tl.where(std_or_range == 0, 0, 1 / (std_or_range + P.EPS))
    else:
        return tl.where(std_or_range == 0, 0, 1 / tl.where(std_or_range == 0, 1, std_or_range))


@triton.jit
def slopes(products, d, pixels, scale, bias, shift, std_or_range, P: tl.constexpr):
    """Of every pixel, in the shape of d: the gate, a, d^, m and m' (None: anything).

    ``products`` are sums of grad_y * x over a group's channels, 0 outside the map; the next four broadcast to d.
    """
    if P.NORM == NO_NORM:
        normalized, one, two = d, d, d
    else:
        normalized = (d - shift) * factor(std_or_range, P)
        if P.NORM == ZSCORE:
            one, two = pixels.to(d.dtype), tl.where(pixels, normalized, 0)
        else:
            one, two = (pixels & (d == shift)).to(d.dtype), (pixels & (d - shift == std_or_range)).to(d.dtype)
    gate = tl.sigmoid(scale * normalized + bias)
    return P.GAIN * gate, P.GAIN * gate * (1 - gate) * products, normalized, one, two


@triton.jit
def coefficients(total, total_d, ones, twos, scale, std_or_range, count, P: tl.constexpr):
    """alpha * scale, beta and gamma of slabs."""
    if P.NORM == NO_NORM:
        return scale, scale * 0, scale * 0
    else:
        alpha = scale * factor(std_or_range, P)
        if P.NORM == ZSCORE:
            gamma = scale * total_d / (tl.where(std_or_range == 0, 1, std_or_range) * tl.maximum(count - 1, 1))
            return alpha, alpha * total / count, tl.where(std_or_range == 0, 0, gamma)
        else:
            return alpha, alpha * (total - total_d) / tl.maximum(ones, 1), alpha * total_d / tl.maximum(twos, 1)


@triton.jit
def rectified(grad_y, start, offsets, out, grad_residual, inside, ACC: tl.constexpr):
    """Gradient of what leads to y: grad_y, or where there was a residual its gradient, which is stored."""
    gy = tl.load(grad_y, inside, 0.0)
    if out is not None:
        gy = tl.where(tl.load(out + start + offsets, inside, 0.0).to(ACC) <= 0, 0, gy)
        if grad_residual is not None:
            tl.store(grad_residual + start + offsets, gy, inside)
    return gy.to(ACC)
