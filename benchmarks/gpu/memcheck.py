"""Accesses outside of tensors: compute-sanitizer's memcheck over the Triton kernels on small maps, one after the other.

Run by itself (``python benchmarks/gpu/memcheck.py 6``) this file is the program that is checked. A dry run is that
program alone, with one shape.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SHAPES = ((1, 8, 7, 7), (2, 8, 14, 14), (1, 16, 28, 28), (1, 8, 56, 56), (1, 32, 25, 42), (1, 8, 50, 84))
GROUPS = 2


def check(shapes: int) -> None:
    """Forward and backward of the first shapes, in both layouts and two dtypes; prints each when it is done."""
    import torch

    from mmccd.ops import ccd

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    for shape in SHAPES[:shapes]:
        for layout in (torch.contiguous_format, torch.channels_last):
            for dtype in (torch.float16, torch.float32):
                x = torch.randn(shape, device=device, dtype=dtype).to(memory_format=layout).requires_grad_()
                scale, bias = (torch.randn(GROUPS, device=device) for _ in range(2))
                y = ccd(x, scale, bias, GROUPS, impl='triton')
                torch.autograd.grad(y, x, torch.ones_like(y))
        if device == 'cuda':
            torch.cuda.synchronize()
        print('checked', 'x'.join(map(str, shape)), flush=True)


def summary(text: str) -> dict:
    """What memcheck's output says: shapes that were gone through, and errors, None where it has not counted them."""
    found = re.search(r'ERROR SUMMARY: (\d+) error', text)
    return dict(shapes=re.findall(r'^checked (\S+)$', text, re.M), errors=int(found[1]) if found else None)


def run(task) -> None:  # a gpu.task.Task, which the checked program does not need to import
    """As many shapes as there is time for; adds ``memcheck`` to ``profile.json``."""
    from gpu.task import note, save_json

    sanitizer = shutil.which('compute-sanitizer')
    result: dict = dict(shapes=[], errors=None)
    if sanitizer is None and not task.dry:
        note('compute-sanitizer is not on the PATH')
    else:
        # PyTorch's allocator would hide accesses that end in its own pool.
        env = {**os.environ, 'PYTORCH_NO_CUDA_MEMORY_CACHING': '1'}
        program = [sys.executable, __file__, '1' if task.dry else str(len(SHAPES))]
        command = program if task.dry or sanitizer is None else [sanitizer, '--tool', 'memcheck', *program]
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=max(1, task.left - 1))
            result = summary(done.stdout)
            if done.returncode and not result['errors']:
                note(f'memcheck ended with exit code {done.returncode}: {(done.stderr or done.stdout)[-200:]}')
        except subprocess.TimeoutExpired as e:
            seen = e.stdout or b''  # bytes even of a text pipe, in some versions of Python
            result = summary(seen if isinstance(seen, str) else seen.decode(errors='replace'))
            note(f'memcheck was stopped, no time left, after {len(result["shapes"])} of {len(SHAPES)} shapes')
    path = task.out / 'profile.json'
    content = json.loads(path.read_text()) if path.exists() else {}
    save_json({**content, 'memcheck': result}, path)


if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    check(int(sys.argv[1]))
