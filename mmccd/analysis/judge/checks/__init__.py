"""The checks, in files by what they are about, and their order in the report."""

from __future__ import annotations

from . import cost, definition, files, learning, modes, numbers, shapes
from .base import ENTERED, Case, Check

_ORDER = (
    'build',
    'shape',
    'dtype',
    'parameters',
    'equality',
    'gain',
    'identity',
    'sizes',
    'layouts',
    'float16',
    'bfloat16',
    'constant',
    'nan',
    'gradients',
    'derivative',
    'batch',
    'padding',
    'modes',
    'determinism',
    'in_place',
    'registered',
    'state_dict',
    'deepcopy',
    'pickle',
    'compile',
    'onnx',
    'forward',
    'training',
    'memory',
)
assert set(_ORDER) == set(ENTERED)
CHECKS: dict[str, Check] = {name: ENTERED[name] for name in _ORDER}

__all__ = ['CHECKS', 'Case', 'Check', 'cost', 'definition', 'files', 'learning', 'modes', 'numbers', 'shapes']
