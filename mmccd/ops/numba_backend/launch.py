"""CCD on CPUs: compiled loops over slabs that fit in a core's cache. What a backend is: ``mmccd.ops.backends``.

A slab is what one group of one sample holds. The loops (``kernels_*``) are imported and compiled at the first call,
which takes some seconds, and kept in a cache folder if one can be written to. Here are the choice between reading a
tensor in place and slab by slab through a buffer, and the threads; ``plan`` has the tables.

**Memory layouts.** Contiguous samples are read and written in place. Any other strides (channels_last, slices,
expanded gradients) are gathered slab by slab into a buffer in cache, several groups together where a group's channels
are less than a cache line; no copy of a whole tensor is made. Half precision is converted to float32 as a whole.

**Threads.** The loops run in PyTorch's own OpenMP threads, as many as ``torch.get_num_threads()`` says: a second pool
would compete with the first one's threads, which keep spinning for a while after each operator. OpenMP's entry point
is looked up among the libraries that PyTorch itself is linked to; where there is none (macOS, Windows), Python threads
call the loops, which hold no lock. Each thread has a share of the slabs, and then helps the others. Calls may come
from several threads at once: a call shares nothing with another one but the tables, which are only read. Results do not
depend on the number of threads: statistics and the gradients of scale and bias are sums in float64, in a fixed order.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from mmccd.ops.backends import Gradients, Inputs, RunningNorm, Saved, add_relu_, compute_dtype, relu_gradient
from mmccd.ops.options import Options

from .plan import LANES, Arguments, plan, samples_are_contiguous

# The loops normalise a slab while it is in cache.
fuses_affine = reads_norms = True
_LOCK = Lock()


@lru_cache(maxsize=1)
def _no_numba() -> str | None:
    if 'numba' in sys.modules:
        return None if sys.modules['numba'] is not None else 'numba is not installed'
    return None if importlib.util.find_spec('numba') is not None else 'numba is not installed'


def unavailable(x: Tensor, options: Options) -> str | None:
    """Why these loops cannot run on ``x``; None if they can. They have all options."""
    if x.device.type != 'cpu':
        return f'it runs on the CPU, x is on {x.device}'
    if x.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        return f'it has no loops for {x.dtype}'
    return _no_numba()


def _in_one_pass(x: Tensor, other: Tensor) -> bool:
    """Whether the loops themselves add ``other`` and rectify, or read it as y on the way back."""
    return (
        x.dtype in (torch.float32, torch.float64)
        and other.dtype == x.dtype
        and x.is_contiguous()
        and other.is_contiguous()
        and x.shape[2] * x.shape[3] >= LANES
    )


@lru_cache(maxsize=8)
def _compiled(direction: str, double: bool) -> Any:
    with _LOCK:
        from .callbacks import compile_loops

        return compile_loops(direction, double)


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


def _run(callback: Any, arguments: Arguments, threads: int) -> None:
    """Call the loops in so many threads; returns when all slabs are done."""
    address = arguments.address
    if threads <= 1:
        callback.ctypes(ctypes.cast(address, callback.ctypes.argtypes[0]))
    elif _openmp() is not None:
        _openmp()(callback.address, address, threads, 0)
    else:
        pointer = ctypes.cast(address, callback.ctypes.argtypes[0])
        for done in [_python_threads(threads).submit(callback.ctypes, pointer) for _ in range(threads)]:
            done.result()


def _arguments(
    x: Tensor,
    out: Tensor,
    scale: Tensor,
    bias: Tensor,
    saved: Saved,
    options: Options,
) -> tuple[Arguments, int]:
    """(record of what forward and backward share, threads); out is the tensor written to."""
    shared = plan(x.shape, x.stride(), out.stride(), options, x.dtype)
    a = shared.arguments()
    context, d, stats = saved
    a.set(
        x=x.data_ptr(),
        out=out.data_ptr(),
        scale=scale.data_ptr(),
        bias=bias.data_ptr(),
        context=context.data_ptr(),
        d=d.data_ptr(),
        stats=stats.data_ptr(),
    )
    threads = min(torch.get_num_threads(), shared.threads)
    a.share(threads)
    return a, threads


@lru_cache(maxsize=2)
def _nothing(dtype: torch.dtype) -> Saved:
    """What is saved where nothing is."""
    nothing = torch.empty(0, dtype=dtype)
    return nothing, nothing, nothing


def _plain(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t`` of this dtype, without a pending negation."""
    t = t if t.dtype == dtype else t.to(dtype)
    return t.resolve_neg() if t.is_neg() else t


def _in_loops(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A vector of numbers as the loops read it."""
    return t if t.dtype == dtype and t.is_contiguous() and not t.is_neg() else _plain(t, dtype).contiguous()


def _affine_in_loops(inputs: Inputs, norm: RunningNorm | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """The vectors of the affine, by their names in the record; none without one."""
    if norm is not None:
        vectors = dict(weight=norm.weight, shift=norm.bias, mean=norm.mean, variance=norm.variance)
    elif inputs.weight is not None and inputs.shift is not None:
        vectors = dict(weight=inputs.weight, shift=inputs.shift)
    else:
        return {}
    return {name: _in_loops(t, dtype) for name, t in vectors.items()}


def _addresses(tensors: dict[str, Tensor]) -> dict[str, int]:
    return {name: t.data_ptr() for name, t in tensors.items()}


def forward(
    inputs: Inputs, options: Options, keep: bool, overwrite: bool = False, norm: RunningNorm | None = None
) -> tuple[Tensor, Saved]:
    """See :class:`mmccd.ops.backends.Backend`."""
    x, residual, scale, bias, *_ = inputs
    if residual is not None and not _in_one_pass(x, residual):
        y, saved = forward(inputs._replace(residual=None), options, keep, overwrite, norm)
        return add_relu_(y, residual), saved
    dtype, compute = x.dtype, compute_dtype(x.dtype)
    x = _plain(x, compute)
    n, c, h, w = x.shape
    g, grid = options.groups, max(options.scales)
    # y over x only where its strides are those that y has.
    y = x if overwrite and x.dtype == dtype and x.is_contiguous() and not keep else torch.empty_like(x)
    if keep:
        saved = (x.new_empty(n, c, grid, grid), x.new_empty(n, g, h, w), x.new_empty(n, g, 2))
    else:
        saved = _nothing(compute)
    if x.numel() == 0:
        for s in saved:
            s.zero_()
        return y.to(dtype), saved
    callback = _compiled('forward', compute == torch.float64)
    scale, bias = _in_loops(scale, compute), _in_loops(bias, compute)
    affine = _affine_in_loops(inputs, norm, compute)
    a, threads = _arguments(x, y, scale, bias, saved, options)
    a.set(keep=keep, **_addresses(affine))
    if norm is not None:
        a.set(norm_eps=float(norm.eps))
    if residual is not None:
        residual = _plain(residual, compute)
        a.set(residual=residual.data_ptr())
    _run(callback, a, threads)
    return y if dtype == compute else y.to(dtype), saved


def backward(
    grad_y: Tensor, y: Tensor | None, inputs: Inputs, saved: Saved, options: Options, need_x: bool
) -> Gradients:
    """See :class:`mmccd.ops.backends.Backend`."""
    x, _, scale, bias, weight, shift = inputs
    grad_residual = None
    if y is not None and not _in_one_pass(x, y):
        grad_y = grad_residual = relu_gradient(grad_y, y)
        y = None
    dtype, compute = x.dtype, compute_dtype(x.dtype)
    x, grad_y = _plain(x, compute), _plain(grad_y, compute)
    if y is not None:
        grad_y, grad_residual = grad_y.contiguous(), torch.empty_like(x)
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    if x.numel() == 0:
        zeros = [None if t is None else torch.zeros_like(t) for t in (weight, shift)]
        return grad_x.to(dtype), grad_residual, torch.zeros_like(scale), torch.zeros_like(bias), zeros[0], zeros[1]
    callback = _compiled('backward', compute == torch.float64)
    own_scale, own_bias = _in_loops(scale, compute), _in_loops(bias, compute)
    affine = _affine_in_loops(inputs, None, compute)
    context, d, stats = (s.contiguous() for s in saved)
    sums = torch.empty(2, x.shape[0], options.groups, dtype=torch.float64)
    a, threads = _arguments(x, grad_x if need_x else x, own_scale, own_bias, (context, d, stats), options)
    a.set(
        grad_y=grad_y.data_ptr(),
        grad_y_in_place=samples_are_contiguous(grad_y.shape, grad_y.stride()),
        grad_y_strides=grad_y.stride(),
        grad_scale=sums[0].data_ptr(),
        grad_bias=sums[1].data_ptr(),
        need_x=need_x,
        **_addresses(affine),
    )
    if y is not None and grad_residual is not None:
        a.set(y=y.data_ptr(), grad_residual=grad_residual.data_ptr())
    channel_sums = None
    if affine:
        channel_sums = torch.zeros(2, *x.shape[:2], dtype=torch.float64)
        a.set(grad_weight=channel_sums[0].data_ptr(), grad_shift=channel_sums[1].data_ptr())
    _run(callback, a, threads)
    return (
        grad_x if dtype == compute else grad_x.to(dtype),
        grad_residual,
        sums[0].sum(0).to(scale.dtype),
        sums[1].sum(0).to(bias.dtype),
        None if channel_sums is None or weight is None else channel_sums[0].sum(0).to(weight.dtype),
        None if channel_sums is None or shift is None else channel_sums[1].sum(0).to(shift.dtype),
    )
