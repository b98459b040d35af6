"""What the tools share. Each tool imports it first, before PyTorch, to set what PyTorch's threads do while they wait.

By default they spin for a while. Where more threads want to run than there are cores, because of another busy process,
say, a spinning thread takes the core from the one that it waits for, and a training step takes several times as long.
``OMP_WAIT_POLICY`` of the environment wins; ``import mmccd`` alone, and ``mmccd.cli`` after PyTorch, change nothing.
``benchmarks/bench_waiting.py`` measures it.
"""

import os
import sys

if 'torch' not in sys.modules:  # OpenMP reads it once, when it is loaded
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
