"""numba's cache on disk: it is used, gives the same bits, and never what other sources were compiled to."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mmccd

pytest.importorskip('numba')
from mmccd.ops.numba_backend import callbacks

PACKAGE = Path(mmccd.__file__).parent
SCRIPT = """
import sys
import torch
from mmccd.ops import ccd
from mmccd.ops.numba_backend import launch
torch.manual_seed(0)
x, scale, bias = torch.randn(1, 8, 7, 9), torch.randn(2), torch.randn(2)
backward = sys.argv[1] == 'backward'
x.requires_grad_(backward)
y = ccd(x, scale, bias, 2, impl='cpu')
results = [y.detach()]
if backward:
    y.square().sum().backward()
    results.append(x.grad)
hits = launch._compiled('forward', False).cache_hits
print(hits, *(v.hex() for t in results for v in t.flatten().tolist()))
"""


@pytest.fixture
def copy(tmp_path):
    """A copy of the package that has been compiled by nobody."""
    shutil.copytree(PACKAGE, tmp_path / 'mmccd', ignore=shutil.ignore_patterns('__pycache__'))
    return tmp_path / 'mmccd' / 'ops' / 'numba_backend'


def run(copy, direction):
    """Hits in the cache, and the results to the bit, of a process of its own."""
    root = str(copy.parents[2])
    env = {k: v for k, v in os.environ.items() if not k.startswith('NUMBA_')}
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, direction],
        env={**env, 'PYTHONPATH': root},
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    hits, *results = done.stdout.split()
    return int(hits), results


def edit(path, old, new):
    """Another text in a file, whose time of change stays."""
    text, times = path.read_text(), path.stat()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.long  # compiles three callbacks
def test_what_is_compiled_is_used_again_until_any_of_its_files_is_edited(copy):
    hits, compiled = run(copy, 'backward')
    assert hits == 0
    hits, cached = run(copy, 'backward')
    assert hits == 1
    assert cached == compiled  # to the bit: as in the process that compiled
    # A file that the callback's own file only imports from.
    loop = 'store(out, o + j, mul(load(x, i + j), load(gate, j)))'
    edit(copy / 'kernels_forward.py', loop, loop.replace('mul(', 'add('))
    hits, edited = run(copy, 'forward')
    assert hits == 0
    assert edited != compiled[: len(edited)]


def test_the_key_names_every_file_that_is_compiled(copy):
    before = callbacks._hash_of_sources(copy)
    assert before == callbacks._hash_of_sources(copy)
    compiled = {path.name for path in copy.glob('*.py') if 'numba' in path.read_text() or path.name == 'plan.py'}
    # What calls the loops is not compiled; numba itself looks at the file of the callbacks.
    for name in compiled - {'__init__.py', 'launch.py', 'callbacks.py'}:
        edit(copy / name, '"""\n\nfrom __future__', '"""\n\n# edited\nfrom __future__')
        assert callbacks._hash_of_sources(copy) != before, name
        before = callbacks._hash_of_sources(copy)


def test_other_sources_are_another_entry_in_the_cache():
    from numba.core.caching import FunctionCache
    from numba.core.registry import cpu_target

    def key(sources, direction='forward'):
        function = callbacks._callbacks(sources)[direction]
        return FunctionCache(function)._index_key((), cpu_target.target_context.codegen())

    assert key('a') == key('a')
    assert key('a') != key('b')
