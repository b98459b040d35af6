"""The loops read and write tensors' own memory alone: each tensor lies against a page that must not be touched.

In a process of its own: a touch ends it.
"""

import subprocess
import sys

import pytest

pytest.importorskip('numba')
pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='mprotect by way of ctypes')

SCRIPT = """
import ctypes, itertools, mmap, sys
import torch
from mmccd.ops.backends import Inputs
from mmccd.ops.numba_backend import launch
from mmccd.ops.options import Options

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
kept = []


def guarded(t, after):
    'A copy of t that ends where a forbidden page begins, or begins where one ends.'
    size = max(1, t.numel()) * t.element_size()
    page = mmap.PAGESIZE
    room = -(-size // page) * page
    memory = mmap.mmap(-1, room + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for forbidden in (start, start + page + room):
        assert libc.mprotect(forbidden, page, 0) == 0, ctypes.get_errno()
    kept.append(memory)
    offset = page + (room - size if after else 0)
    flat = torch.frombuffer(memory, dtype=t.dtype, count=max(1, t.numel()), offset=offset)
    return flat.as_strided(t.shape, t.stride()).copy_(t)


if sys.argv[1] == 'touch':  # that such a page ends a process
    x = guarded(torch.ones(16), True)
    print(ctypes.c_float.from_address(x.data_ptr() + 64).value)
empty_like, after = torch.empty_like, True
launch.torch.empty_like = lambda t: guarded(empty_like(t).zero_(), after)
SHAPES = [(1, 4, 7, 7), (2, 6, 3, 5), (1, 2, 1, 16), (1, 4, 4, 4), (2, 4, 5, 17), (1, 6, 3, 37), (1, 2, 9, 33)]
for shape, after, dtype, similarity in itertools.product(
    SHAPES, (True, False), (torch.float32, torch.float64), ('dot', 'cosine')
):
    kept.clear()
    options = Options(2, similarity=similarity)
    for layout in (torch.contiguous_format, torch.channels_last):
        x, residual, grad_y = (
            guarded(torch.randn(shape, dtype=dtype).contiguous(memory_format=layout), after) for _ in range(3)
        )
        scale, bias = (guarded(torch.randn(2, dtype=dtype), after) for _ in range(2))
        affine = tuple(guarded(torch.randn(shape[1], dtype=dtype), after) for _ in range(2))
        for add, more in itertools.product((None, residual), ((), affine)):
            y, saved = launch.forward(Inputs(x, add, scale, bias, *more), options, True)
            over, _ = launch.forward(Inputs(guarded(x, after), add, scale, bias, *more), options, False, True)
            assert torch.equal(over, y)
            saved = tuple(guarded(s, after) for s in saved)
            y = None if add is None else guarded(y, after)
            grads = launch.backward(grad_y, y, Inputs(x, None, scale, bias, *more), saved, options, True)
            assert all(t is None or t.isfinite().all() for t in (y, *grads))
print('untouched')
"""


def run(what):
    return subprocess.run([sys.executable, '-c', SCRIPT, what], capture_output=True, text=True)


def test_nothing_beyond_a_tensor_is_touched():
    done = run('loops')
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert done.stdout == 'untouched\n'


def test_a_touch_would_be_seen():
    assert run('touch').returncode < 0
