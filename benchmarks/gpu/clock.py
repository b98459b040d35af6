"""Time of the GPU and time of the host, apart.

An event on either side of one call shows whichever of the two is longer. Here calls are captured in a CUDA graph, which
replays their kernels without Python in between; and the host is timed on so little data that the GPU keeps up.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import torch
from common import interleaved, percentiles

CALLS = 20  # in a graph, at most
GRAPH_MS = 2.0  # of a graph, about: fewer calls of what takes long
HOST_SECONDS = 0.05  # for one host time, about


class GpuTime(NamedTuple):
    """Microseconds of one call: percentiles of the runs; and whether they come from a graph or from single calls."""

    p20: float
    p50: float
    p80: float
    clock: str


def inputs_for_cold_cache(size: int, device: torch.device) -> int:
    """How many inputs of ``size`` bytes, taken in turns, are three times the L2 cache; 1 on a CPU."""
    if device.type != 'cuda':
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(CALLS, math.ceil(3 * cache / size)))


class Prepared(NamedTuple):
    """What is timed: a graph of ``count`` calls, or, with a count of 0, single calls."""

    function: Callable[[], object]
    count: int


def gpu_times(calls: Mapping[Hashable, Callable[[int], object]], device: torch.device) -> dict[Hashable, GpuTime]:
    """Times of functions that take the number of a call, which have been called before, so that all is compiled."""
    return in_turns({key: prepare(call, device) for key, call in calls.items()}, device)


def prepare(call: Callable[[int], object], device: torch.device) -> Prepared:
    """Capture calls 0, 1, ...; what cannot be captured is timed call by call, with Python's gaps between kernels."""
    count = max(1, min(CALLS, int(GRAPH_MS / _once(call, device))))
    try:
        return Prepared(_capture(call, count).replay, count)
    except RuntimeError:  # something in it cannot be captured, such as a wait for the GPU
        torch.cuda.synchronize(device)
        return Prepared(lambda: call(0), 0)


def in_turns(prepared: Mapping[Hashable, Prepared], device: torch.device, runs: int = 20) -> dict[Hashable, GpuTime]:
    """Times of all, in turns, run by run."""
    measured = interleaved({key: p.function for key, p in prepared.items()}, device, runs, warmup=2)
    result = {}
    for key, times in measured.items():
        count = prepared[key].count
        us = percentiles([1e3 * ms / max(1, count) for ms in times])
        result[key] = GpuTime(us['ms_p20'], us['ms_p50'], us['ms_p80'], 'graph' if count else 'calls')
    return result


def _once(call: Callable[[int], object], device: torch.device) -> float:
    """Milliseconds of a call, roughly."""
    call(0)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call(1)
    end.record()
    torch.cuda.synchronize(device)
    return max(1e-3, begin.elapsed_time(end))


def _capture(call: Callable[[int], object], count: int) -> torch.cuda.CUDAGraph:
    """A graph of ``count`` calls."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        call(0)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            call(i)
    return graph


def host_time(call: Callable[[int], object], device: torch.device) -> float:
    """Microseconds until a call returns: the median of up to ten rounds of 20 calls, without a wait inside a round."""
    call(0)
    torch.cuda.synchronize(device)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 10 and (len(times) < 3 or time.perf_counter() - begin < HOST_SECONDS):
        start = time.perf_counter()
        for i in range(CALLS):
            call(i)
        times.append((time.perf_counter() - start) / CALLS)
        torch.cuda.synchronize(device)
    return round(1e6 * statistics.median(times), 2)
