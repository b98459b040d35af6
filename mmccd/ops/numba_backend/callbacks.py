"""C callbacks of the loops, for one dtype each, from numba's cache on disk where that has them.

A callback takes slabs until none is left, so any number of threads of any pool can share the
work: ``launch`` runs it in PyTorch's own OpenMP threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import cfunc, types

from .kernels_backward import backward_slabs
from .kernels_forward import forward_slabs
from .kernels_shared import SUMS


def _hash_of_sources(folder: Path) -> str:
    """Of all files that are compiled into a callback."""
    digest = hashlib.sha256()
    for path in [folder / 'plan.py', folder / 'vectors.py', *sorted(folder.glob('kernels_*.py'))]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


# Taken as the loops are imported: a file that is edited later is not what this process compiles.
_SOURCES = _hash_of_sources(Path(__file__).parent)


def _callbacks(sources: str) -> dict[str, Callable]:
    # numba's cache looks at the time of this file alone, but what a function closes over is a part of its key: naming
    # the sources here is what keeps an edited file of loops from meeting what was compiled before.
    def forward(address):
        sources  # noqa: B018
        forward_slabs(address)

    def backward(address):
        sources  # noqa: B018
        backward_slabs(address)

    return dict(forward=forward, backward=backward)


def compile_loops(direction: str, double: bool) -> Any:
    """C callback ``void(void*)`` of ``'forward'`` or ``'backward'``, in float64 or float32."""
    # One argument is all that a thread pool hands on: its type says which dtype the loops are for.
    signature = types.void(types.CPointer(types.float64 if double else types.float32))
    function = _callbacks(_SOURCES)[direction]
    try:
        return cfunc(signature, cache=True, **SUMS)(function)
    except RuntimeError:  # no folder that a cache could be written to
        return cfunc(signature, **SUMS)(function)
