"""Single loops, where the operator's tests would not show which one is wrong."""

import math

import numpy as np
import pytest

pytest.importorskip('numba')
import numba

from mmccd.ops.numba_backend.kernels_gate import exp, sigmoid, statistics
from mmccd.ops.numba_backend.kernels_shared import loop
from mmccd.ops.numba_backend.plan import MINMAX, NO_NORM, ZSCORE
from mmccd.ops.numba_backend.vectors import load, relu, store, where_positive


@numba.njit
def exps(v, out):
    for i in range(len(v)):
        out[i] = exp(v[i])


@numba.njit
def sigmoids(v, one, out):
    for i in range(len(v)):
        out[i] = sigmoid(v[i], one)


@loop
def rectify(v, y, out, through):
    store(out, 0, relu(load(v, 0)))
    store(through, 0, where_positive(load(y, 0), load(v, 0)))


def test_exp_is_within_two_units_of_the_last_place():
    v = np.linspace(-87, 87, 200_001, dtype=np.float32)
    out = np.empty_like(v)
    exps(v, out)
    exact = np.exp(v.astype(np.float64))
    assert np.abs(out - exact).max() > 0
    assert (np.abs(out - exact) <= 2 * np.spacing(out)).all()


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_sigmoid_saturates_and_keeps_nan(dtype):
    v = np.array([-np.inf, -1e4, -200, -90, 0, 90, 200, 1e4, np.inf, np.nan], dtype)
    out = np.empty_like(v)
    sigmoids(v, dtype(1), out)
    assert (out[:4] < 1e-37).all() and (out[:4] >= 0).all()
    assert out[4] == 0.5
    assert (out[5:9] == 1).all()
    assert math.isnan(out[9])


def test_relu_keeps_nan_and_takes_no_gradient_where_y_is_zero():
    v = np.array([-np.inf, -1, -0.0, 0, 1, np.inf, np.nan, 3, *range(8)], np.float32)
    y = np.array([1, np.nan, 0, -0.0, 0, 2, 1, -1, *range(8)], np.float32)
    out, through = np.empty_like(v), np.empty_like(v)
    rectify(v, y, out, through)
    assert np.array_equal(out, np.array([0, 0, 0, 0, 1, np.inf, np.nan, 3, *range(8)], np.float32), equal_nan=True)
    # As torch.relu's own: what is NaN in y lets the gradient through.
    expected = np.array([-np.inf, -1, 0, 0, 0, np.inf, np.nan, 0, *range(8)], np.float32)
    assert np.array_equal(through, expected, equal_nan=True)


def test_statistics_of_hand_worked_maps():
    d = np.array([9, 1, 2, 3, 4, 9], np.float32)  # four numbers from the second on
    assert statistics(d, 1, 4, ZSCORE, 0.0) == (2.5, math.sqrt(5 / 3))
    assert statistics(d, 1, 4, MINMAX, 0.0) == (1, 3)
    assert statistics(d, 1, 4, NO_NORM, 0.0) == (0, 1)
    assert statistics(d, 1, 1, ZSCORE, 0.0) == (1, 0)  # a single pixel is flat
    # Flat up to the tolerance, relative to the mean or the larger end.
    assert statistics(d, 1, 4, ZSCORE, 0.52)[1] == 0 and statistics(d, 1, 4, ZSCORE, 0.51)[1] > 0
    assert statistics(d, 1, 4, MINMAX, 0.75)[1] == 0 and statistics(d, 1, 4, MINMAX, 0.74)[1] > 0


@pytest.mark.parametrize('normalize', [ZSCORE, MINMAX])
def test_one_nan_makes_statistics_nan(normalize):
    for place in range(4):
        d = np.arange(4, dtype=np.float32)
        d[place] = np.nan
        assert all(map(math.isnan, statistics(d, 0, 4, normalize, 1e-5)))
