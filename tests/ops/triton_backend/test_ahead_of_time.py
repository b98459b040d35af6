"""The Triton kernels compiled for cards that are not here: what they need, against what was recorded.

Spills beyond a few bytes and much shared memory are what makes a kernel slow, or not start at all. More than a tenth
above the recorded instructions is a change that somebody has to want: ``compiled.py --write`` records it.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('triton', reason='Triton is not installed')

FOLDER = Path(__file__).parent
SPILLS, SHARED = 16, 64 << 10  # bytes a thread, bytes a program
# Instructions an element, forward, of slabs that a program holds: an H100 issues 39 while it moves 4 bytes.
PER_ELEMENT = 40


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """What is needed, compiled in a process whose driver is replaced."""
    env = {**os.environ, 'TRITON_CACHE_DIR': str(tmp_path_factory.mktemp('cache')), 'CUDA_VISIBLE_DEVICES': ''}
    env.pop('TRITON_INTERPRET', None)
    command = [sys.executable, str(FOLDER / 'compiled.py'), '--json']
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.long
def test_what_kernels_need(found):
    recorded = json.loads((FOLDER / 'recorded.json').read_text())
    assert found.keys() == recorded.keys()
    assert {name.split()[0] for name in found} == {'sm_75', 'sm_80', 'sm_90', 'sm_120'}
    for name, needs in found.items():
        assert needs['stack'] <= SPILLS, name
        assert 0 < needs['shared'] <= SHARED, name
        assert 0 < needs['registers'] <= 255, name
        limit = 1.1 * recorded[name]['instructions']
        assert 0 < needs['instructions'] <= limit, f'{name}: {needs["instructions"]} instructions, at most {limit:.0f}'


@pytest.mark.long
def test_instructions_an_element(found):
    forward = [n for n in found if re.match(r'sm_[89]0 (56x56|28x28|14x14|7x7) .* alone scales \(1, 2, 4\) forward', n)]
    assert len(forward) == 16
    for name in forward:
        assert 0 < found[name]['per_element'] <= PER_ELEMENT, name
