"""What the benchmarks share: the clock, percentiles, CSV rows."""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mmccd.env import keep_freed_memory

RESULTS = Path(__file__).parent / 'results'


def add_allocator(parser: argparse.ArgumentParser) -> None:
    """The option ``--allocator``."""
    parser.add_argument(
        '--allocator',
        choices=['kept', 'default'],
        default='kept',
        help="what the C library does with freed memory: keep it, as mmccd's tools have it do on the "
        'CPU, or its default, to give much of it back and get cleared pages again; default: kept',
    )


def use_allocator(args: argparse.Namespace) -> None:
    """Do as the option says."""
    if args.allocator == 'kept' and torch.device(args.device).type == 'cpu':
        keep_freed_memory()


def device_name(device: torch.device) -> str:
    """Model of the GPU or of the CPU."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')), platform.machine())


def milliseconds(function: Callable[[], object], device: torch.device) -> float:
    """Time of one call; on a GPU by its own events, everything before it done."""
    if device.type != 'cuda':
        start = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - start)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    function()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end)


def interleaved(functions: dict, device: torch.device, runs: int, warmup: int = 3) -> dict:
    """Times of every function, in turns, so that what else the machine does meets all of them alike."""
    times = {key: [] for key in functions}
    for i in range(warmup + runs):
        for key, function in functions.items():
            ms = milliseconds(function, device)
            if i >= warmup:
                times[key].append(ms)
    return times


def percentiles(times: list[float]) -> dict[str, float]:
    """20th, 50th and 80th percentile in milliseconds."""
    q = torch.quantile(torch.tensor(times, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return {f'ms_p{p}': round(v, 4) for p, v in zip((20, 50, 80), q.tolist())}


def environment(device: torch.device, args: argparse.Namespace) -> dict[str, object]:
    """Columns that say where and when a row was measured."""
    return dict(
        device=device_name(device),
        threads=torch.get_num_threads() if device.type == 'cpu' else '',
        allocator=args.allocator if device.type == 'cpu' else '',
        torch=torch.__version__,
        python=platform.python_version(),
        date=datetime.date.today().isoformat(),
    )


def write(rows: list[dict], path: Path) -> None:
    """Write rows as CSV; columns of the first row first, others behind."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
