"""What the Triton kernels need of cards that are not here, by the compiler in Triton's wheel.

Examples:
    python tests/ops/triton_backend/compiled.py          # prints a table
    python tests/ops/triton_backend/compiled.py --write  # and records it, for test_ahead_of_time.py

A case is the kernels of one direction, float16, the layer's own options. ``per element`` is the instructions that all
threads execute, a loop once, over the elements of the map: what an instruction count has to be compared
with the 39 that an H100 can issue while it moves 4 bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from mmccd.ops.backends import Inputs
from mmccd.ops.options import Options
from mmccd.ops.triton_backend import launch

RECORDED = Path(__file__).with_name('recorded.json')
CUOBJDUMP = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
WHOLE = [(64, 256, 56, 56), (64, 512, 28, 28), (64, 1024, 14, 14), (64, 2048, 7, 7)]
SPLIT = [(2, 1024, 50, 84)]
BOTH = ('contiguous', 'channels_last')
# Compute capability, shapes, memory layouts, whether with affine and residual, scales.
CASES = [
    *((arch, WHOLE, BOTH, False, (1, 2, 4)) for arch in (80, 90)),
    (90, SPLIT, BOTH, False, (1, 2, 4)),
    (90, WHOLE + SPLIT, BOTH, True, (1, 2, 4)),
    *((arch, [WHOLE[0], WHOLE[3], *SPLIT], BOTH[:1], True, (1, 2, 4)) for arch in (75, 120)),
    (90, WHOLE[2:], BOTH, True, (1, 4, 8)),
]


class Card:
    """A driver of Triton for a card that is not there."""

    arch = 0

    def get_current_target(self):
        return GPUTarget('cuda', self.arch, 32)

    def get_current_device(self):
        return self.arch  # a cache of its own

    def get_current_stream(self, device):
        return 0


class Compiler:
    """Compiles what would be launched, and notes it."""

    def __init__(self, folder):
        self.card, self.kernels, self.cubin = Card(), [], Path(folder) / 'kernel.cubin'
        driver.set_active(self.card)
        run = JITFunction.run

        def compile_only(function, *args, grid, warmup, **more):
            self.kernels.append((run(function, *args, grid=grid, warmup=True, **more), math.prod(grid)))

        JITFunction.run = compile_only

    def _ask(self, kernel, option):
        self.cubin.write_bytes(kernel.asm['cubin'])
        return subprocess.run([CUOBJDUMP, option, self.cubin], check=True, capture_output=True, text=True).stdout

    def measure(self, elements):
        """Of the kernels since the last time: totals of instructions, maxima of the rest."""
        found = dict(instructions=0, per_element=0.0, registers=0, stack=0, shared=0)
        for kernel, programs in self.kernels:
            usage = self._ask(kernel, '--dump-resource-usage')
            instructions = len(re.findall(r'^\s+/\*[0-9a-f]{4,}\*/ ', self._ask(kernel, '-sass'), re.M))
            found['instructions'] += instructions
            found['per_element'] += instructions * 32 * kernel.metadata.num_warps * programs / elements
            for key, value in (
                ('registers', re.search(r'REG:(\d+)', usage)[1]),
                ('stack', re.search(r'STACK:(\d+)', usage)[1]),
                ('shared', kernel.metadata.shared),
            ):
                found[key] = max(found[key], int(value))
        self.kernels.clear()
        return {**found, 'per_element': round(found['per_element'], 1)}

    def cases(self):
        """(name, what it needs) of all cases."""
        for arch, shapes, layouts, fused, scales in CASES:
            for shape in shapes:
                for layout in layouts:
                    yield from self._case(arch, shape, layout, fused, scales)

    def _case(self, arch, shape, layout, fused, scales):
        self.card.arch = arch
        options, vectors = Options(64, scales), torch.empty(2, 64, device='meta')
        memory_format = torch.channels_last if layout == 'channels_last' else torch.contiguous_format
        x = torch.empty(shape, device='meta', dtype=torch.float16, memory_format=memory_format)
        affine = torch.empty(2, shape[1], device='meta') if fused else (None, None)
        name = f'sm_{arch} {shape[2]}x{shape[3]} {layout} {"fused" if fused else "alone"} scales {scales}'
        y, saved = launch.forward(Inputs(x, x if fused else None, *vectors, *affine), options, True)
        yield f'{name} forward', self.measure(x.numel())
        launch.backward(x, y if fused else None, Inputs(x, None, *vectors, *affine), saved, options, True)
        yield f'{name} backward', self.measure(x.numel())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--write', action='store_true', help=f'write {RECORDED.name}')
    parser.add_argument('--json', action='store_true', help='print JSON')
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, needs in Compiler(folder).cases():
            found[name] = needs
            if not args.json:
                print(f'{name:64}', *(f'{key} {value}' for key, value in needs.items()), flush=True)
    if args.json:
        json.dump(found, sys.stdout)
    if args.write:
        RECORDED.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
