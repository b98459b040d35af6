"""The record that the loops are told by, and the tables: what Python writes is what they read."""

import ctypes
import threading

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from mmccd.ops.numba_backend.plan import ARGUMENTS, LANES, padded, plan, tables
from mmccd.ops.options import Options

pytest.importorskip('numba')
import numba

from mmccd.ops.numba_backend.kernels_shared import next_unit
from mmccd.ops.numba_backend.vectors import arguments_at, integers, take_next


@numba.njit
def by_address(address):
    return integers(address)


@numba.njit
def read(address):
    a = arguments_at(address)
    return a.next, a.x, a.cells_t, a.samples, a.x_strides[3], a.grad_y_strides[0], a.eps, a.min_norm, a.need_x


@numba.njit(nogil=True)
def take(address, times):
    a = arguments_at(address)
    total = 0
    for _ in range(times):
        total += take_next(a)
    return total


def record(arguments):
    """What stands at the address that the loops are given."""
    return np.frombuffer(ctypes.string_at(arguments.address, ARGUMENTS.itemsize), ARGUMENTS)[0]


def test_fields_are_read_by_name_where_they_were_written():
    assert ARGUMENTS.isalignedstruct
    a = np.zeros(1, ARGUMENTS)
    values = dict(next=3, x=2**40, cells_t=-7, samples=5, eps=0.25, min_norm=1e-8, need_x=1)
    for name, value in values.items():
        a[name] = value
    a['x_strides'], a['grad_y_strides'] = (1, 2, 3, 4), (5, 6, 7, 8)
    assert read(a.ctypes.data) == (3, 2**40, -7, 5, 4, 5, 0.25, 1e-8, 1)


def test_every_slab_is_taken_once_by_threads_at_once():
    a = np.zeros(1, ARGUMENTS)
    count, times = 4, 50_000
    totals = []
    take(a.ctypes.data, 0)  # compiled before the threads begin

    def work():
        totals.append(take(a.ctypes.data, times))

    threads = [threading.Thread(target=work) for _ in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert a['next'] == count * times
    assert sum(totals) == sum(range(count * times))


@numba.njit(nogil=True)
def work_off(address, total, seen):
    a = arguments_at(address)
    taken, me = integers(a.taken), take_next(a) % a.threads
    owner = me
    while True:
        unit, owner = next_unit(taken, total, a.threads, me, owner)
        if unit < 0:
            return me
        seen[unit, me] += 1


@pytest.mark.parametrize(('shares', 'come'), [(1, 1), (2, 2), (3, 1), (5, 3), (2, 4)])
@pytest.mark.parametrize('total', [0, 1, 7, 1000])
def test_each_unit_is_taken_once_however_many_come(shares, come, total):
    x = torch.empty(2, 8, 7, 7)
    arguments = plan(x.shape, x.stride(), x.stride(), Options(4), x.dtype).arguments()
    arguments.share(shares)
    seen = np.zeros((max(total, 1), shares), np.int64)
    threads = [threading.Thread(target=work_off, args=(arguments.address, total, seen)) for _ in range(come)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert seen.sum(1).tolist() == [1] * total + [0] * (len(seen) - total)


def test_a_thread_alone_begins_with_its_own_share():
    x = torch.empty(2, 8, 7, 7)
    arguments = plan(x.shape, x.stride(), x.stride(), Options(4), x.dtype).arguments()
    arguments.share(3)
    arguments.set(next=1)
    order = []
    owner = 1
    while True:
        unit, owner = next_unit(by_address(record(arguments)['taken']), 7, 3, 1, owner)
        if unit < 0:
            break
        order.append(unit)
    assert order == [2, 3, 4, 5, 6, 0, 1]


def test_a_call_has_a_record_of_its_own():
    x = torch.empty(2, 8, 7, 7)
    shared = plan(x.shape, x.stride(), x.stride(), Options(4), x.dtype)
    first, second = shared.arguments(), shared.arguments()
    first.set(next=9, x=2**40, norm_eps=0.25, keep=True, grad_y_strides=(5, 6, 7, 8))
    written = record(first)
    assert (written['next'], written['x'], written['norm_eps'], written['keep']) == (9, 2**40, 0.25, 1)
    assert written['grad_y_strides'].tolist() == [5, 6, 7, 8]
    untouched = record(second)
    assert untouched['next'] == untouched['x'] == untouched['norm_eps'] == untouched['keep'] == 0
    assert (untouched['samples'], untouched['channels'], untouched['groups']) == (2, 8, 4)
    assert untouched['matrix'] == shared.tables.matrix.ctypes.data
    assert untouched['x_strides'].tolist() == list(x.stride())


@pytest.mark.parametrize(('layout', 'per_group', 'block'), [('contiguous', 4, 1), ('channels_last', 4, 4)])
def test_slabs_are_gathered_by_the_cache_line(layout, per_group, block):
    x = torch.empty(2, 8 * per_group, 7, 7)
    if layout == 'channels_last':
        x = x.to(memory_format=torch.channels_last)
    shared = plan(x.shape, x.stride(), x.stride(), Options(8), x.dtype)
    assert record(shared.arguments())['x_in_place'] == (layout == 'contiguous')
    assert record(shared.arguments())['block'] == block  # of 64 bytes


@pytest.mark.parametrize('scales', [(1,), (1, 2, 4), (3, 5)])
@pytest.mark.parametrize('size', [(5, 7), (9, 15), (2, 18), (30, 41)])
def test_tables_pool_and_read_as_pytorch_does(size, scales):
    h, w = size
    grid = max(scales)
    t = tables(h, w, scales, torch.float64)
    x = torch.randn(1, 1, h, w, dtype=torch.float64)
    cells = torch.arange(grid)
    expected = sum(
        adaptive_avg_pool2d(x, s)[0, 0][cells * s // grid][:, cells * s // grid] for s in scales
    ) / len(scales)  # fmt: skip
    by_rows = np.add.reduceat(x[0, 0].numpy(), t.row_bounds[:-1]) if w >= LANES else x[0, 0].numpy()
    context = by_rows.ravel() @ t.matrix
    assert t.matrix.shape[1] == padded(grid * grid)
    assert np.allclose(context[: grid * grid], expected.numpy().ravel(), rtol=1e-12)
    assert not context[grid * grid :].any()
    for cell, edges, pixels in ((t.row_cells, t.row_edges, h), (t.col_cells, t.col_edges, w)):
        assert cell.tolist() == [i * grid // pixels for i in range(pixels)]
        for a in range(grid):
            assert np.flatnonzero(cell == a).tolist() == list(range(edges[a], edges[a + 1]))
