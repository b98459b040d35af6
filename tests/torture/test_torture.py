"""The short form of the torture test: real processes, real signals. The long one is ``make torture``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


@pytest.mark.slow
def test_a_few_faults(root, tmp_path):
    """After kills, a full disk and damaged checkpoints, a training has the bits of one that nobody touched."""
    script = Path(__file__).with_name('torture.py')
    done = subprocess.run(
        [sys.executable, script, '--faults', '6', '--seed', '1', '--folder', tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(root)},
        cwd=tmp_path,
        timeout=580,
    )
    rows = dict(
        line.strip('| ').split(' | ') for line in done.stdout.splitlines() if line.startswith('| ') and line.strip('| ')
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(rows['faults']) >= 6
    assert int(rows['of them resumed']) > 0
    assert int(rows['trainings brought to their end']) > 0
    assert rows['saved epochs lost'] == rows['problems'] == '0'
    for path in tmp_path.rglob('*.pth'):  # there are many
        path.unlink()
