"""OpenMP's waiting policy: set by the tools before PyTorch is loaded, and by nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT_PYTORCH = {'check_env.py', 'demo.py', 'demo_trees.py', 'infer_onnx.py', 'make_digits.py', 'make_trees.py'}
# torchrun's processes are tools, and set it themselves.
TOOLS = [
    p.relative_to(ROOT).as_posix()
    for p in sorted((ROOT / 'tools').rglob('*.py'))
    if p.name not in WITHOUT_PYTORCH | {'dist_run.py'} and p.parent.name != 'misc'
]

# Says what the variable is when PyTorch, or what loads it, is imported, and ends there.
PROBE = """
import importlib.abc, os, runpy, sys
class Probe(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == 'torch':
            print('found', os.environ.get('OMP_WAIT_POLICY'), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Probe())
runpy.run_path(sys.argv[1], run_name='tool')
"""


def output_of(*arguments: str, policy: str | None = None) -> str:
    env = {k: v for k, v in os.environ.items() if k != 'OMP_WAIT_POLICY'}
    if policy is not None:
        env['OMP_WAIT_POLICY'] = policy
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
    assert output_of(PROBE, 'tools/train.py', policy=policy) == f'found {policy}'.strip()


@pytest.mark.parametrize('code', ['import mmccd', 'import sys; sys.modules["torch"] = sys; import mmccd.cli'])
def test_the_library_changes_nothing(code):
    assert output_of(f'{code}; import os; print(os.environ.get("OMP_WAIT_POLICY"))').splitlines()[-1] == 'None'
