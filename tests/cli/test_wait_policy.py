"""OpenMP's waiting policy: set by the tools before PyTorch is loaded, if the cores are busy, and by nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmccd import cli

ROOT = Path(__file__).parents[2]
MAKERS = {'make_digits.py', 'make_fashion.py', 'make_solar.py', 'make_trees.py'}
WITHOUT_PYTORCH = {'check_env.py', 'demo.py', 'demo_trees.py', 'infer_onnx.py'} | MAKERS
# torchrun's processes are tools, and set it themselves.
TOOLS = [
    p.relative_to(ROOT).as_posix()
    for p in sorted((ROOT / 'tools').rglob('*.py'))
    if p.name not in WITHOUT_PYTORCH | {'dist_run.py'} and p.parent.name != 'misc'
]

# Says what the variable is when PyTorch, or what loads it, is imported, and ends there.
PROBE = """
import importlib.abc, os, runpy, sys, time
def busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
time.sleep = busy  # this process is the one that keeps a core busy
class Probe(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == 'torch':
            print('found', os.environ.get('OMP_WAIT_POLICY'), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Probe())
runpy.run_path(sys.argv[1], run_name='tool')
"""


def output_of(*arguments: str, **variables: str) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ('OMP_WAIT_POLICY', 'OMP_NUM_THREADS')}
    env.update(variables)
    done = subprocess.run(
        [sys.executable, '-c', *arguments], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize('tool', TOOLS)
def test_tools_set_it_before_pytorch(tool):
    assert output_of(PROBE, tool) == 'found passive'


def test_these_tools_were_tried():
    assert {'tools/train.py', 'tools/test.py', 'tools/make_config.py'} < set(TOOLS)


@pytest.mark.parametrize('policy', ['active', 'PASSIVE', ''])
def test_the_users_own_stays(policy):
    assert output_of(PROBE, 'tools/train.py', OMP_WAIT_POLICY=policy) == f'found {policy}'.strip()


def test_a_number_of_threads_is_the_users_own_as_well():
    assert output_of(PROBE, 'tools/train.py', OMP_NUM_THREADS='2') == 'found None'


@pytest.mark.parametrize(
    ('ticks', 'seconds', 'expected'),
    [
        ((1000, 1000), 0.1, None),
        ((1000, 1004), 0.1, None),  # 0.4 cores
        ((1000, 1006), 0.1, 'passive'),
        ((1000, 1012), 0.2, 'passive'),  # the sleep took longer
        ((1000, 1008), 0.2, None),
        ((), 0.1, None),  # no Linux
    ],
)
def test_free_cores_change_nothing(ticks, seconds, expected, monkeypatch, tmp_path):
    """By ticks of 1/100 s, which are spread over user, nice and system; idle is the fourth number."""
    clock, left = iter([5.0, 5.0 + seconds]), list(ticks)

    def stat(path):
        assert path == '/proc/stat'
        if not left:
            raise FileNotFoundError(path)
        total = left.pop(0)
        file = tmp_path / 'stat'
        file.write_text(f'cpu  {total - 300} 100 200 {999 * total} 7 0 0 0 0 0\ncpu0 1 2 3 4\n')
        return file.open()

    monkeypatch.delitem(sys.modules, 'torch', raising=False)
    monkeypatch.delenv('OMP_WAIT_POLICY', raising=False)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(cli, 'open', stat, raising=False)
    monkeypatch.setattr(cli.os, 'sysconf', lambda name: 100)
    monkeypatch.setattr(cli, 'time', SimpleNamespace(sleep=lambda _: None, monotonic=lambda: next(clock)))
    cli._set_wait_policy()
    assert os.environ.get('OMP_WAIT_POLICY') == expected
    monkeypatch.delenv('OMP_WAIT_POLICY', raising=False)


@pytest.mark.parametrize('code', ['import mmccd', 'import sys; sys.modules["torch"] = sys; import mmccd.cli'])
def test_the_library_changes_nothing(code):
    assert output_of(f'{code}; import os; print(os.environ.get("OMP_WAIT_POLICY"))').splitlines()[-1] == 'None'
