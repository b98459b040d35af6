"""The tests that use a GPU, by pytest in a process of its own; ``tests.xml`` has one entry a test."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from gpu.schedule import TIME_IS_UP
from gpu.task import Task, note

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    'tests/ops/triton_backend',
    'tests/ops/test_backends.py',
    'tests/models/layers/test_half_range.py',
    'tests/compat',
    'tests/analysis/cam',
)
# Tests in Triton's interpreter need no GPU, and those marked long start processes or compile for other cards.
SELECTION = ('-m', 'not long', '-k', 'not interpreter')
DRY = ('tests/ops/triton_backend', '-m', 'not long', '-k', 'dtypes and whole')
WORKERS = 4


def command(task: Task) -> list[str]:
    """What is run; notes what of TESTS is not there any more."""
    chosen = list(DRY)
    if not task.dry:
        chosen = [path for path in TESTS if (ROOT / path).exists()]
        if len(chosen) < len(TESTS):
            note(f'no such tests: {", ".join(sorted(set(TESTS) - set(chosen)))}; see benchmarks/gpu/testing.py')
        chosen += SELECTION
        if find_spec('xdist') is not None:
            chosen += ['-n', str(WORKERS)]
    xml = (task.out / 'tests.xml').resolve()
    return [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--junitxml', str(xml), *chosen]


def run(task: Task) -> None:
    """Run them; interrupted when time is up, pytest still writes what it has, and says so in its exit code."""
    process = subprocess.Popen(command(task), cwd=ROOT)
    try:
        code = process.wait(timeout=max(1, task.left - 4))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()  # schedule.py ends both if this takes long
        raise SystemExit(TIME_IS_UP) from None
    if code not in (0, 1):  # 1: some failed, which tests.xml names
        raise SystemExit(f'pytest ended with exit code {code}')
