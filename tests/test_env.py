import platform
import subprocess
import sys
from unittest import mock

import pytest

from mmccd import env

FREED = """
import resource, sys
import mmccd, torch
from mmccd.env import keep_freed_memory

if sys.argv[1] == 'keep':
    keep_freed_memory()
torch.set_num_threads(1)

def make():
    for size in (40_000_000, 90_000_000):
        torch.ones(size, dtype=torch.uint8)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    make()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(15):  # until small allocations no longer lie within the large ones: three to five, where kept
    make()
print(max(faults() for _ in range(5)))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='acts on glibc alone')
def test_freed_memory_is_kept():
    """Memory that was freed is used again without the system clearing it page by page."""
    faults = {}
    for word in ('keep', 'default'):
        done = subprocess.run([sys.executable, '-c', FREED, word], capture_output=True, text=True, check=True)
        faults[word] = int(done.stdout)
    assert faults['keep'] < 100
    assert faults['default'] > 1000 or faults['default'] > 10 * faults['keep']  # huge pages make it fewer


def test_the_name_of_the_processor(monkeypatch):
    lines = 'processor\t: 0\nmodel name\t: A CPU: with colon\nmodel name\t: another\n'
    monkeypatch.setattr('builtins.open', mock.mock_open(read_data=lines))
    assert env.processor_name() == 'A CPU: with colon'
    monkeypatch.setattr('builtins.open', mock.Mock(side_effect=OSError))
    monkeypatch.setattr(env.platform, 'processor', lambda: '')
    monkeypatch.setattr(env.platform, 'machine', lambda: 'riscv64')
    assert env.processor_name() == 'riscv64'
