"""The replacement's operators by name, and what they share: registration, errors, and the note in the log.

Nothing here imports torch before an operator runs: whether the replacement is needed is found out without it, and
``import mmccd`` does not fail because of a broken torchvision that is not used.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ENV_VAR = 'MMCCD_MMCV_OPS'
OPERATORS: dict[str, Callable] = {}
MESSAGE = (
    "mmcv has no compiled operators: those that MMDetection needs run on torchvision's and on "
    f'plain PyTorch (mmccd.compat.mmcv_ops; {ENV_VAR}=off switches this off)'
)

# Distributions that provide the package `mmcv`: the one to build the operators from.
_DISTRIBUTIONS = {
    'onedl-mmcv': 'onedl-mmcv',
    'mmcv': 'mmcv',
    'mmcv-lite': 'mmcv',
}
_logged = False  # in mmengine's log


def operator(function: Callable) -> Callable:
    """Register an operator; as with a compiled one, autograd does not record what it does."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        import torch
        import torchvision  # noqa: F401, registers torch.ops.torchvision

        _log_first_use()
        with torch.no_grad():
            return function(*args, **kwargs)

    OPERATORS[function.__name__] = run
    return run


def c_float(value: float) -> float:
    """Round as mmcv's C++ does: an overlap of 0.3f is not above its 0.3, but is above Python's."""
    return ctypes.c_float(value).value


def in_float32(t: Tensor) -> Tensor:
    """The tensor itself, or a float32 copy of one in half precision, for which kernels are missing or inexact."""
    import torch

    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def _mmcv_distribution() -> tuple[str, str] | None:
    """Name and version of the distribution that mmcv comes from, None where it has no metadata."""
    for name in _DISTRIBUTIONS:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def build_commands() -> str:
    """Commands that replace the installed mmcv by the same version with compiled operators.

    No option is spare: without ``--no-build-isolation`` the build does not see torch and leaves
    the operators out; without ``--no-cache-dir`` pip takes the wheel without operators that it
    once built, ``--no-binary`` or not. onedl-mmcv's metadata needs setuptools 80; torch, and the
    ``pkg_resources`` in mmcv's setup.py, need less than 82.

    Returns:
        One command a line.
    """
    name, version = _mmcv_distribution() or ('onedl-mmcv', None)
    source = _DISTRIBUTIONS[name]
    requirement = source if version is None else f'{source}=={version}'
    # Both own the folder `mmcv`, so removing the old one afterwards would break the new one.
    remove = '' if name == source else f'pip uninstall -y {name} && '
    variable = '' if source == 'onedl-mmcv' else 'MMCV_WITH_OPS=1 '
    return (
        'pip install "setuptools>=80,<82" wheel packaging\n'
        f'{remove}{variable}pip install --no-build-isolation --no-cache-dir --no-deps '
        f'--force-reinstall --no-binary {source} "{requirement}"'
    )


def unsupported(operator: str, argument: str | None = None) -> RuntimeError:
    """The error for an operator that the replacement lacks, or for a value of its argument."""
    what = f'mmcv operator {operator!r}' + ('' if argument is None else f' with {argument}')
    installed = ' '.join(_mmcv_distribution() or ('mmcv',))
    return RuntimeError(
        f'{what} is not available: {installed} was installed without its compiled operators, and '
        f"mmccd's replacement for them, which has what MMDetection's configs need, does not have this one. "
        f'To build the real ones (needs a C++ compiler and some minutes; for a GPU also nvcc, and '
        f'FORCE_CUDA=1 in the environment where the build cannot see the GPU):\n'
        f'{build_commands()}'
    )


def _log_first_use() -> None:
    """Say in the running log that the replacement is in use.

    The line of :func:`install` comes before any training log exists, on a logger that is silent
    unless it was configured, and importing mmengine for this would be too heavy. By the
    time an operator first runs, mmengine is loaded, has the log's file open and keeps all ranks
    but the first silent; the workers of a data loader run no operator.
    """
    global _logged  # no functools.cache: torch.compile traces into it, and warns each time
    mmengine_logging = sys.modules.get('mmengine.logging')
    if not _logged and mmengine_logging is not None:
        _logged = True
        mmengine_logging.print_log(MESSAGE, logger='current', level=logging.INFO)
