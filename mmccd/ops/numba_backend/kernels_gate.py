"""Loops over the similarity d of one slab: its statistics, the gate, and the way back through both."""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from .kernels_shared import EXACT, exact_loop, loop, sum_loop
from .plan import NO_NORM, ZSCORE
from .vectors import as_float, as_int, at, put


def exp(v):
    """e ** v of one number; see the overload."""
    raise NotImplementedError


@overload(exp, jit_options=EXACT, inline='never')
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


@exact_loop
def sigmoid(v, one):
    """1 / (1 + exp(-v)); NaN stays NaN."""
    s = one / (one + exp(-v))
    return s if v == v else v


@loop  # inlined, it takes the forward 4 % longer; its sums are the same in every copy
def statistics(d, base, p, normalize, tolerance):
    """(mean_or_min, std_or_range) of d, the second 0 where flat; two passes in float64 for the z-score."""
    if normalize == NO_NORM:
        return 0.0, 1.0
    if p == 1:
        return np.float64(at(d, base)), 0.0
    if normalize == ZSCORE:
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
    std_or_range = np.float64(high - low)
    return np.float64(low), 0.0 if std_or_range <= tolerance * max(abs(low), abs(high)) else std_or_range


@sum_loop
def factor_of(std_or_range, normalize, eps):
    """What the distance from mean_or_min is multiplied by; 0 where the map is flat."""
    if normalize == NO_NORM:
        return 1.0
    if std_or_range == 0:
        return 0.0
    return 1 / (std_or_range + eps) if normalize == ZSCORE else 1 / std_or_range


@exact_loop
def gates(d, base, p, mean_or_min, factor, flat, scale, bias, gain, one, gate):
    """gate[i] = gain * sigmoid(scale * dhat + bias); factor 0 and flat where the map is flat."""
    for i in range(p):
        dhat = (at(d, base + i) - mean_or_min) * factor
        dhat = one - one if flat else dhat
        put(gate, i, gain * sigmoid(scale * dhat + bias, one))


@exact_loop
def through_gate(q, d, base, p, mean_or_min, factor, flat, scale, bias, gain, one, gate, dhats):
    """gate as above; q becomes the gradient of the logit, dhats the normalised similarity."""
    for i in range(p):
        dhat = (at(d, base + i) - mean_or_min) * factor
        dhat = one - one if flat else dhat
        s = sigmoid(scale * dhat + bias, one)
        put(dhats, i, dhat)
        put(gate, i, gain * s)
        put(q, i, at(q, i) * (gain * (s * (one - s))))


@sum_loop
def two_sums(q, dhats, p):
    """sum of q and of q * dhat, float64."""
    total, along = 0.0, 0.0
    for i in range(p):
        v = np.float64(at(q, i))
        total += v
        along += v * at(dhats, i)
    return total, along


@exact_loop
def zscore_coefficients(factor, scale, total, along, std_or_range, eps, p):
    """a, b and c of the gradient of d, a * q - b - c * dhat."""
    a = factor * scale
    return a, a * total / p, (std_or_range + eps) * along * a / std_or_range / (p - 1)


@sum_loop
def through_normalization(q, dhats, d, base, p, normalize, scale, total, along, std_or_range, eps, factor, gd):
    """gd[i], gradient of d; q is that of the logit."""
    one = q.dtype.type(1)
    if normalize == NO_NORM:
        for i in range(p):
            put(gd, i, scale * at(q, i))
    elif std_or_range == 0:
        for i in range(p):
            put(gd, i, one - one)
    elif normalize == ZSCORE:
        a, b, c = zscore_coefficients(factor, scale, total, along, std_or_range, eps, p)
        a, b, c = q.dtype.type(a), q.dtype.type(b), q.dtype.type(c)
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
