"""What a step is given, and the cases of the operator that several steps go through."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from bench_op import GROUPS, SIZES, STAGES
from common import environment

from mmccd.checkpoints.files import write_atomically
from mmccd.ops.options import Options, make_options

LAYOUTS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
BATCHES = {'224': 64, '800x1344': 2}
# In order of importance: what time is too short for is left out from the end.
DTYPES = ('float16', 'float32', 'bfloat16')


class Task(NamedTuple):
    """What a step is given.

    Attributes:
        out (Path): Folder of the results.
        dry (bool): Whether this is a run on the CPU with tiny shapes, in which nothing is timed.
        until (float): ``time.time()`` at which the step has to have ended.
    """

    out: Path
    dry: bool
    until: float

    @property
    def device(self) -> torch.device:
        return torch.device('cpu' if self.dry else 'cuda')

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.until - time.time()

    def where(self) -> dict[str, object]:
        """Columns that say where and when a row was measured."""
        return environment(self.device, SimpleNamespace(allocator='default'))


def note(text: str) -> None:
    """A remark for the report: run.py collects these lines."""
    print(f'note: {text}', flush=True)


def save_json(content: dict, path: Path) -> None:
    """Write a file whole or not at all: a step may be stopped at any time."""
    write_atomically(str(path), (json.dumps(content, indent=1) + '\n').encode())


@contextmanager
def override(variable: str, value: str) -> Iterator[None]:
    """An environment variable with another value for a while."""
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def first_line(error: Exception) -> str:
    """Of a message, with the error's type."""
    return f'{type(error).__name__}: {error}'.splitlines()[0][:200]


class Case(NamedTuple):
    """One input of the operator.

    Attributes:
        size (str): Images that it stands for, a key of BATCHES, or 'tiny'.
        shape (tuple[int, ...]): (N, C, H, W).
        layers (int): Layers of ResNet-50 with this input.
        groups (int): Groups of channels.
        dtype (str): A floating dtype of PyTorch.
        layout (str): A key of LAYOUTS.
    """

    size: str
    shape: tuple[int, ...]
    layers: int
    groups: int
    dtype: str
    layout: str

    def __str__(self) -> str:
        return f'{"x".join(map(str, self.shape))} {self.dtype} {self.layout}'

    @property
    def options(self) -> Options:
        return make_options(self.groups)

    def tensor(self, device: torch.device, samples: int | None = None) -> torch.Tensor:
        """Normal noise; ``samples`` replaces N."""
        shape = self.shape if samples is None else (samples, *self.shape[1:])
        x = torch.randn(shape, device=device, dtype=getattr(torch, self.dtype))
        return x.to(memory_format=LAYOUTS[self.layout])

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize

    def small(self) -> Case:
        """The same work for the host, with little for the GPU: one sample, and a quarter of the channels and groups."""
        parts = 4 if self.groups % 4 == 0 else 1
        return self._replace(shape=(1, self.shape[1] // parts, *self.shape[2:]), groups=self.groups // parts)

    def columns(self) -> dict[str, object]:
        """As columns of a CSV file."""
        return {
            **self._asdict(),
            'shape': 'x'.join(map(str, self.shape)),
        }


def cases(dry: bool, dtypes: tuple[str, ...] = DTYPES) -> Iterator[Case]:
    """The eight shapes of ResNet-50's stages in every dtype and layout; in a dry run, a small and a large map."""
    if dry:
        for dtype in dtypes[:2]:
            for layout in LAYOUTS:
                yield Case('tiny', (2, 16, 7, 7), 1, 1, dtype, layout)
        yield Case('tiny', (1, 16, 36, 36), 1, 1, dtypes[0], 'contiguous')
        return
    for dtype in dtypes:
        for layout in LAYOUTS:
            for size, batch in BATCHES.items():
                height, width, _ = SIZES[size]
                for channels, stride, layers in STAGES:
                    shape = (batch, channels, height // stride, width // stride)
                    yield Case(size, shape, layers, GROUPS, dtype, layout)
