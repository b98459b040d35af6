"""What the tools share. Each tool imports it first, before PyTorch, to set what PyTorch's threads do while they wait.

By default they spin for a while, which is fastest on cores of their own. Where another busy process wants a core,
though, a spinning thread takes it from the one that it waits for, and a training step takes several times as long.
Linux says how busy the cores are: if they are not free at the start, the threads sleep while they wait.
``OMP_WAIT_POLICY`` or ``OMP_NUM_THREADS`` of the environment win; ``import mmccd`` alone, and ``mmccd.cli`` after
PyTorch, change nothing. ``benchmarks/bench_waiting.py`` measures it.
"""

import os
import sys
import time


def _busy_cores(seconds: float = 0.1) -> float:
    """Cores that all processes together keep busy while this one sleeps; 0 where the system does not say."""

    def ticks() -> int:
        with open('/proc/stat') as f:
            user, nice, system = f.readline().split()[1:4]  # in units of SC_CLK_TCK, since the start
        return int(user) + int(nice) + int(system)

    try:
        before, begin = ticks(), time.monotonic()
        time.sleep(seconds)
        return (ticks() - before) / os.sysconf('SC_CLK_TCK') / (time.monotonic() - begin)
    except (OSError, ValueError, AttributeError):
        return 0.0


def _set_wait_policy() -> None:
    """Let OpenMP's threads sleep while they wait if other processes keep half a core or more busy."""
    if 'torch' in sys.modules or {'OMP_WAIT_POLICY', 'OMP_NUM_THREADS'} & set(os.environ):
        return  # OpenMP reads it once, when it is loaded; with a number of threads, somebody has thought of it
    if _busy_cores() >= 0.5:
        os.environ['OMP_WAIT_POLICY'] = 'passive'


_set_wait_policy()
