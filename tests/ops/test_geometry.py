"""Cells, bins and segments: the formulas against what PyTorch does and by counting, and alike wherever they run."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmccd.ops.geometry import bin_end, bin_start, cell_of, cell_of_pixel, cell_start, context_weights, cut_axis

FORMULAS = (cell_of, cell_start, bin_start, bin_end)
SIZES = [*range(1, 20), 82, 94, 168]
SCALES = [(1,), (1, 2, 4), (1, 4, 8), (3, 5), (7, 11)]


def test_by_hand():
    # 7 positions, 4 cells of 1.75 each: borders at 0, 1.75, 3.5, 5.25, 7.
    assert [cell_of(i, 7, 4) for i in range(7)] == [0, 0, 1, 1, 2, 2, 3]
    assert [cell_start(a, 7, 4) for a in range(5)] == [0, 2, 4, 6, 7]
    assert [(bin_start(b, 7, 4), bin_end(b, 7, 4)) for b in range(4)] == [(0, 2), (1, 4), (3, 6), (5, 7)]
    # 2 positions, 4 cells: cells 1 and 3 are read by none.
    assert [cell_of(i, 2, 4) for i in range(2)] == [0, 2]
    assert [cell_start(a, 2, 4) for a in range(5)] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize('cells', [1, 2, 3, 4, 5, 8])
def test_cells_are_where_they_start(cells):
    for size in SIZES:
        readers = [[i for i in range(size) if cell_of(i, size, cells) == a] for a in range(cells)]
        assert readers == [
            list(range(cell_start(a, size, cells), cell_start(a + 1, size, cells))) for a in range(cells)
        ]


@pytest.mark.parametrize('bins', [1, 2, 3, 4, 5, 8])
def test_bins_are_those_of_adaptive_pooling(bins):
    for size in SIZES:
        pooled = F.adaptive_avg_pool1d(torch.eye(size, dtype=torch.float64), bins).T  # (bins, size)
        for b, weights in enumerate(pooled):
            assert weights.nonzero().flatten().tolist() == list(range(bin_start(b, size, bins), bin_end(b, size, bins)))


@pytest.mark.parametrize('formula', FORMULAS)
def test_same_for_all_kinds_of_integers(formula):
    numba = pytest.importorskip('numba')
    compiled = numba.njit(formula)
    i = np.arange(9)
    for size in (1, 7, 9, 50):
        for cells in (1, 3, 4, 8):
            expected = [formula(int(k), size, cells) for k in i]
            assert formula(i, size, cells).tolist() == expected
            assert formula(torch.from_numpy(i), size, cells).tolist() == expected
            assert [compiled(int(k), size, cells) for k in i] == expected


@pytest.mark.parametrize('scales', SCALES, ids=str)
def test_segments(scales):
    grid = max(scales)
    for size in SIZES:
        axis = cut_axis(size, scales)
        assert axis.bounds[0] == 0 and axis.bounds[-1] == size and axis.lengths.min() > 0
        cells = np.repeat(axis.cell, axis.lengths)
        assert cells.tolist() == [cell_of(i, size, grid) for i in range(size)]
        pool = axis.pool_by_pixel
        assert pool.shape == (len(scales), grid, size)
        assert np.allclose(pool.sum(2), 1)
        # A segment is as long as it can be: at every border something changes.
        columns = np.concatenate([pool.reshape(-1, size), cells[None]])
        assert (columns[:, 1:] != columns[:, :-1]).any(0).sum() == len(axis.cell) - 1


@pytest.mark.parametrize('scales', SCALES, ids=str)
def test_context_weights_are_the_poolings(scales):
    grid = max(scales)
    for height, width in ((1, 1), (7, 5), (13, 82)):
        x = torch.randn(1, 1, height, width, dtype=torch.float64)
        pools = [F.adaptive_avg_pool2d(x, s) for s in scales]
        index = [cell_of(torch.arange(grid), grid, s) for s in scales]
        expected = sum(p[0, 0][i][:, i] for p, i in zip(pools, index)) / len(scales)  # (S, S)
        rows, cols = cut_axis(height, scales), cut_axis(width, scales)
        weights = context_weights(rows.pool_by_pixel, cols.pool_by_pixel)
        assert np.allclose(weights @ x.flatten().numpy(), expected.flatten())
        # From sums over segments, too.
        sums = np.add.reduceat(np.add.reduceat(x[0, 0].numpy(), rows.bounds[:-1], 0), cols.bounds[:-1], 1)
        assert np.allclose(context_weights(rows.pool, cols.pool) @ sums.ravel(), expected.flatten())


def test_cell_of_pixel():
    assert cell_of_pixel(3, 4, 2).tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3]
