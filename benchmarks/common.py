"""What the benchmarks share: the clock, percentiles, CSV rows."""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mmccd.checkpoints.files import write_atomically
from mmccd.env import keep_freed_memory, processor_name

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
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else processor_name()


class CpuClock:
    """Time of a call on the CPU."""

    def start(self, function: Callable[[], object]) -> Callable[[], float]:
        """Call it; what is returned gives milliseconds, after :meth:`finish`."""
        begin = time.perf_counter()
        function()
        ms = 1e3 * (time.perf_counter() - begin)
        return lambda: ms

    def finish(self) -> None:
        """Nothing is left to wait for."""


class GpuClock:
    """Time of a call on a GPU: that of its kernels, as in ``triton.testing.do_bench``.

    Before each call 256 MB are written, so that nothing is found in the L2 cache, and the GPU is busy while Python
    launches what follows: without that, small maps would show Python's time. Nothing waits between calls.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flushed = torch.empty(64 << 20, dtype=torch.int32, device=device)

    def start(self, function: Callable[[], object]) -> Callable[[], float]:
        """Launch it; what is returned gives milliseconds, after :meth:`finish`."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flushed.zero_()
        begin.record()
        function()
        end.record()
        return lambda: begin.elapsed_time(end)

    def finish(self) -> None:
        """Wait for all that was launched."""
        torch.cuda.synchronize(self.device)


def interleaved(functions: dict, device: torch.device, runs: int, warmup: int | None = None) -> dict:
    """Times of every function, in turns, so that what else the machine does meets all of them alike.

    Args:
        warmup (int, optional): Rounds that are not counted. Default: 3 on a CPU; 10 on a GPU, whose clock has to rise
            and whose kernels are compiled and tuned in the first ones.
    """
    clock: CpuClock | GpuClock = GpuClock(device) if device.type == 'cuda' else CpuClock()
    if warmup is None:
        warmup = 10 if device.type == 'cuda' else 3
    times: dict = {key: [] for key in functions}
    for i in range(warmup + runs):
        round_ = {key: clock.start(function) for key, function in functions.items()}
        clock.finish()
        if i >= warmup:
            for key, read in round_.items():
                times[key].append(read())
    return times


def percentiles(times: list[float]) -> dict[str, float]:
    """20th, 50th and 80th percentile in milliseconds."""
    q = torch.quantile(torch.tensor(times, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return {f'ms_p{p}': round(v, 4) for p, v in zip((20, 50, 80), q.tolist())}


def commit() -> str:
    """Short hash of the checkout, with '+' where it differs from that commit; '' outside of one."""
    git = ['git', '-C', str(Path(__file__).parent)]
    try:
        head = subprocess.check_output([*git, 'rev-parse', '--short', 'HEAD'], text=True, stderr=subprocess.DEVNULL)
        changed = subprocess.check_output([*git, 'status', '--porcelain', '-uno'], text=True)
    except (OSError, subprocess.CalledProcessError):
        return ''
    return head.strip() + ('+' if changed else '')


def environment(device: torch.device, args: argparse.Namespace) -> dict[str, object]:
    """Columns that say where and when a row was measured."""
    return dict(
        device=device_name(device),
        threads=torch.get_num_threads() if device.type == 'cpu' else '',
        allocator=args.allocator if device.type == 'cpu' else '',
        torch=torch.__version__,
        python=platform.python_version(),
        commit=commit(),
        date=datetime.date.today().isoformat(),
    )


def write(rows: list[dict], path: Path) -> None:
    """Write rows as CSV, the whole file or nothing; columns of the first row first, others behind."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(str(path), text.getvalue().encode())
