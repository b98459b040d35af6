"""CCD on CPUs: compiled loops over slabs that fit in a core's cache. The interface is described in ``ccd_torch``.

The loops are in ``ccd_numba``, which is imported and compiled at the first call (some seconds; kept in numba's cache
folder if that can be written to). Here are the tables that they read, the choice between reading a tensor in place and
slab by slab through a buffer, and the threads.

**Memory layouts.** Contiguous samples are read and written in place. Any other strides (channels_last, slices,
expanded gradients) are gathered slab by slab into a buffer in cache, several groups together where a group's channels
are less than a cache line; no copy of a whole tensor is made. Half precision is converted to float32 as a whole.

**Threads.** The loops run in PyTorch's own OpenMP threads, as many as ``torch.get_num_threads()`` says: a second pool
would compete with the first one's threads, which keep spinning for a while after each operator. OpenMP's entry point
is looked up among the libraries that PyTorch itself is linked to; where there is none (macOS, Windows), Python threads
call the loops, which hold no lock. Slabs are handed out one by one from a shared counter. Calls may come from several
threads at once: a call shares nothing with another one but the tables, which are only read. Results do not depend on
the number of threads.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmccd.ops.functional import FLATNESS, MIN_NORM, CCDOptions
from mmccd.ops.torch_backend import compute_dtype, cut_axis

# Numbers for which waking another thread pays, as in PyTorch's own loops.
GRAIN = 32768
_LANES = 16  # of ccd_numba, which must not be imported here
_LOCK = Lock()


@lru_cache(maxsize=1)
def _no_numba() -> str | None:
    if 'numba' in sys.modules:
        return None if sys.modules['numba'] is not None else 'numba is not installed'
    return None if importlib.util.find_spec('numba') is not None else 'numba is not installed'


def unavailable(x: Tensor) -> str | None:
    """Why these loops cannot run on ``x``; None if they can."""
    if x.device.type != 'cpu':
        return f'it runs on the CPU, x is on {x.device}'
    if x.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        return f'it has no loops for {x.dtype}'
    return _no_numba()


class _Tables(NamedTuple):
    """What depends on the size of the map alone; see ``ccd_numba``.

    Narrow maps (W < 16) are tabled pixel by pixel, wide ones by segments of rows (R of them) and, where the context is
    written back, of columns (K).
    """

    rows: np.ndarray  # (row segments + 1,) int64
    cols: np.ndarray  # (column segments + 1,) int64
    matrix: np.ndarray  # (H * W or R * W, S * S padded): weight of a sum in a cell's context
    matrix_t: np.ndarray  # (S * S, H * W or R * K padded): weight of a cell in a pixel, or in a segment
    cells_t: np.ndarray  # (H * W or S * W, S * S padded): 1 where the pixel, or sum over a cell's rows, reads the cell


@lru_cache(maxsize=512)
def _tables(h: int, w: int, scales: tuple[int, ...], dtype: torch.dtype) -> _Tables:
    rows, cols = cut_axis(h, scales), cut_axis(w, scales)
    grid, narrow = max(scales), w < _LANES
    row_pool, col_pool = np.array(rows.pool) / len(scales), np.array(cols.pool)  # (scales, S, segments)
    by_column = np.repeat(col_pool, np.diff(cols.bounds), 2)
    if narrow:
        row_pool, col_pool = np.repeat(row_pool, np.diff(rows.bounds), 2), by_column
    weights, back = (
        np.einsum('sai,sbj->abij', row_pool, pool).reshape(grid * grid, -1) for pool in (by_column, col_pool)
    )
    row_cell = np.arange(h) * grid // h if narrow else np.arange(grid)
    cell = (row_cell[:, None] * grid + np.arange(w) * grid // w).ravel()
    real = np.float64 if dtype == torch.float64 else np.float32
    padded = -(-grid * grid // _LANES) * _LANES
    matrix, cells_t = np.zeros((weights.shape[1], padded), real), np.zeros((len(cell), padded), real)
    matrix[:, : grid * grid] = weights.T
    cells_t[np.arange(len(cell)), cell] = 1
    matrix_t = np.zeros((grid * grid, -(-back.shape[1] // _LANES) * _LANES), real)
    matrix_t[:, : back.shape[1]] = back
    return _Tables(np.array(rows.bounds), np.array(cols.bounds), matrix, matrix_t, cells_t)


@lru_cache(maxsize=8)
def _compiled(direction: str, double: bool) -> Any:
    with _LOCK:
        from . import kernels

        return kernels.compile_loops(direction, double)


@lru_cache(maxsize=1)
def _openmp() -> Any:
    """OpenMP's ``GOMP_parallel(function, data, threads, flags)`` as PyTorch uses it, or None."""
    try:
        entry = ctypes.CDLL(torch._C.__file__).GOMP_parallel  # looks through what the library depends on, too
    except (AttributeError, OSError):
        return None
    entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    entry.restype = None
    return entry


@lru_cache(maxsize=1)
def _python_threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix='ccd')


def _run(callback: Any, arguments: np.ndarray, threads: int) -> None:
    """Call the loops in so many threads; returns when all slabs are done."""
    address = arguments.ctypes.data
    if threads <= 1:
        callback.ctypes(ctypes.cast(address, callback.ctypes.argtypes[0]))
    elif _openmp() is not None:
        _openmp()(callback.address, address, threads, 0)
    else:
        pointer = ctypes.cast(address, callback.ctypes.argtypes[0])
        for done in [_python_threads(threads).submit(callback.ctypes, pointer) for _ in range(threads)]:
            done.result()


def _in_place(t: Tensor) -> bool:
    """Whether every sample of t (N, C, H, W) is contiguous."""
    _, c, h, w = t.shape
    _, sc, sh, sw = t.stride()
    return (sw == 1 or w == 1) and (sh == w or h == 1) and (sc == h * w or c == 1)


class _Template(NamedTuple):
    """What the calls for one size and layout share."""

    arguments: np.ndarray  # to be copied
    threads: int  # for which there is work
    kept: tuple  # arrays that the addresses in it are those of


@lru_cache(maxsize=1024)
def _template(
    shape: torch.Size,
    x_stride: tuple[int, ...],
    y_stride: tuple[int, ...],
    x_in_place: bool,
    y_in_place: bool,
    options: CCDOptions,
    dtype: torch.dtype,
) -> _Template:
    """Arguments without the addresses of tensors; y is the one written to."""
    n, c, h, w = shape
    from . import kernels as loops

    a = np.zeros(loops.COUNT, np.int64)
    tables = _tables(h, w, options.scales, dtype)
    for place, table in zip((loops.ROWS, loops.COLS, loops.MATRIX, loops.MATRIX_T, loops.CELLS_T), tables):
        a[place] = table.ctypes.data
    floats = np.array([options.eps, options.gain, FLATNESS * torch.finfo(dtype).eps, MIN_NORM])
    a[loops.FLOATS] = floats.ctypes.data
    a[loops.N : loops.W + 1] = n, c, options.groups, h, w
    a[loops.GRID] = max(options.scales)
    a[loops.RS], a[loops.CS] = len(tables.rows) - 1, len(tables.cols) - 1
    a[loops.COSINE] = options.similarity == 'cosine'
    a[loops.NORMALIZE] = {None: 0, 'zscore': 1, 'minmax': 2}[options.normalize]
    a[loops.X_DIRECT], a[loops.Y_DIRECT] = x_in_place, y_in_place
    # A cache line of channels together, where a pixel's channels are neighbours in memory.
    line = -(-64 // (c // options.groups * dtype.itemsize))
    a[loops.BLOCK] = 1 if x_in_place else min(options.groups, line)
    a[loops.XN : loops.XW + 1] = x_stride
    a[loops.YN : loops.YW + 1] = y_stride
    slabs = n * -(-options.groups // int(a[loops.BLOCK]))
    return _Template(a, min(slabs, -(-n * c * h * w // GRAIN)), (tables, floats))


def _arguments(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, options: CCDOptions) -> tuple[np.ndarray, int]:
    """(array of the callbacks' arguments with what forward and backward share, threads); y is the one written to."""
    template = _template(x.shape, x.stride(), y.stride(), _in_place(x), _in_place(y), options, x.dtype)
    from . import kernels as loops

    a = template.arguments.copy()
    a[loops.X : loops.BIAS + 1] = x.data_ptr(), y.data_ptr(), scale.data_ptr(), bias.data_ptr()
    return a, min(torch.get_num_threads(), template.threads)


def _plain(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t`` of this dtype, without a pending negation."""
    t = t if t.dtype == dtype else t.to(dtype)
    return t.resolve_neg() if t.is_neg() else t


def adds_residual(x: Tensor, residual: Tensor) -> bool:
    """Whether ``forward`` can add ``residual`` and rectify in the same pass."""
    return (
        unavailable(x) is None
        and x.dtype in (torch.float32, torch.float64)
        and residual.dtype == x.dtype
        and residual.shape == x.shape
        and residual.device == x.device
        and x.is_contiguous()
        and residual.is_contiguous()
        and x.shape[2] * x.shape[3] >= _LANES
        and x.numel() > 0
    )


def forward(
    x: Tensor, scale: Tensor, bias: Tensor, options: CCDOptions, keep: bool = True, residual: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """See ``ccd_torch``; with a ``residual``, for which :func:`adds_residual`, y is relu(gated x + residual)."""
    dtype, compute = x.dtype, compute_dtype(x.dtype)
    x = _plain(x, compute)
    n, c, h, w = x.shape
    g, grid = options.groups, max(options.scales)
    y = torch.empty_like(x)
    if keep:
        saved = (x.new_empty(n, c, grid, grid), x.new_empty(n, g, h, w), x.new_empty(n, g, 2))
    else:
        saved = (x.new_empty(0), x.new_empty(0), x.new_empty(0))
    if x.numel() == 0:
        return y.to(dtype), tuple(s.zero_() for s in saved)
    callback = _compiled('forward', compute == torch.float64)
    from . import kernels as loops

    scale, bias = _plain(scale, compute).contiguous(), _plain(bias, compute).contiguous()
    a, threads = _arguments(x, y, scale, bias, options)
    a[loops.KEEP] = keep
    a[loops.CONTEXT], a[loops.D], a[loops.STATS] = (s.data_ptr() for s in saved)
    if residual is not None:
        a[loops.RESIDUAL] = residual.data_ptr()
    _run(callback, a, threads)
    return y if dtype == compute else y.to(dtype), saved


def backward(
    grad_y: Tensor,
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    options: CCDOptions,
    need_x: bool = True,
    y: Tensor | None = None,
    grad_residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``ccd_torch``; with the ``y`` of a forward with a residual, ``grad_residual`` (contiguous) is written to."""
    dtype, compute = x.dtype, compute_dtype(x.dtype)
    x, grad_y = _plain(x, compute), _plain(grad_y, compute)
    if y is not None:
        grad_y = grad_y.contiguous()
    g = options.groups
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    if x.numel() == 0:
        return grad_x.to(dtype), torch.zeros_like(scale), torch.zeros_like(bias)
    callback = _compiled('backward', compute == torch.float64)
    from . import kernels as loops

    own_scale, own_bias = _plain(scale, compute).contiguous(), _plain(bias, compute).contiguous()
    saved = tuple(s.contiguous() for s in saved)
    sums = torch.empty(2, x.shape[0], g, dtype=torch.float64)
    a, threads = _arguments(x, grad_x if need_x else x, own_scale, own_bias, options)
    a[loops.CONTEXT], a[loops.D], a[loops.STATS] = (s.data_ptr() for s in saved)
    a[loops.GRAD_Y], a[loops.GY_DIRECT] = grad_y.data_ptr(), _in_place(grad_y)
    a[loops.GN : loops.GW + 1] = grad_y.stride()
    if y is not None:
        a[loops.OUT], a[loops.GRAD_RESIDUAL] = y.data_ptr(), grad_residual.data_ptr()
    a[loops.GRAD_SCALE], a[loops.GRAD_BIAS] = sums[0].data_ptr(), sums[1].data_ptr()
    a[loops.NEED_X] = need_x
    _run(callback, a, threads)
    return (
        grad_x if dtype == compute else grad_x.to(dtype),
        sums[0].sum(0).to(scale.dtype),
        sums[1].sum(0).to(bias.dtype),
    )
