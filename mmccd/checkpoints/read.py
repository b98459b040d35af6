"""Reading checkpoint files without running code from them."""

from __future__ import annotations

import os
import os.path as osp
import pickle
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from mmccd.env import is_local
from mmccd.errors import UserError

from .files import verify_checksum

try:
    from numpy._core import multiarray
except ImportError:  # NumPy 1
    from numpy.core import multiarray

_HISTORY_METHODS = ('current', 'max', 'mean', 'min')


def _history_method(owner: Any, name: str) -> Any:
    """``getattr`` for pickled histories alone: they name their statistics as ``getattr(HistoryBuffer, 'mean')``."""
    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not plain data')
    return getattr(owner, name)


def mmengine_globals() -> list:
    """What mmengine's own checkpoints hold beside tensors: the message hub's histories, which are NumPy arrays."""
    # NumPy 2 writes numpy._core, NumPy 1 numpy.core; either may read the other's files.
    names = ('_reconstruct', 'scalar')
    arrays = [(getattr(multiarray, n), f'numpy.{core}.multiarray.{n}') for core in ('core', '_core') for n in names]
    dtypes = [type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    restricted = [(_history_method, f'{module}.getattr') for module in ('builtins', '__builtin__')]
    return [HistoryBuffer, *restricted, *arrays, np.ndarray, np.dtype, *dtypes]


def forbid_unpickling() -> None:
    """From now on ``torch.load`` runs no code from a file in this process, whoever calls it.

    mmengine's maintained line falls back to ``weights_only=False`` when safe loading fails, and so do downloads.
    """
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)  # torch refuses both at once
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'


def _mmengine_allowed() -> torch.serialization.safe_globals:
    known = torch.serialization.get_safe_globals()  # leaving the context would forbid these again
    return torch.serialization.safe_globals([g for g in mmengine_globals() if g not in known])


def load_local_checkpoint(path: str, map_location: str = 'cpu') -> Any:
    """``torch.load`` with ``weights_only=True``, for files of mmengine's runner as well.

    Raises:
        ValueError: If the file differs from its checksum (``<path>.sha256``, if there is one), is cut short, is no
            checkpoint, or holds objects that are not plain data.
    """
    verify_checksum(path)
    try:
        with _mmengine_allowed():
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as e:
        reason = str(e).splitlines()[0]
        raise ValueError(f'{path} is not a checkpoint of tensors and plain data, and is not loaded: {reason}') from e
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as e:  # damaged files raise nearly anything, from EOFError to OSError 22
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ValueError(f'{path} cannot be read as a checkpoint (cut short?): {reason}') from e


def load_remote_checkpoint(url: str, map_location: str = 'cpu') -> Any:
    """Download to PyTorch's hub folder, once, and load with ``weights_only=True``, as :func:`load_local_checkpoint`.

    Raises:
        ValueError: If it cannot be had or read, or holds objects that are not plain data.
    """
    try:
        with _mmengine_allowed():
            return torch.hub.load_state_dict_from_url(url, map_location=map_location, weights_only=True)
    except Exception as e:  # anything from URLError to what damaged files raise
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ValueError(f'{url} cannot be loaded as a checkpoint: {reason}') from e


def check_checkpoint_file(path: str, argument: str) -> None:
    """A checkpoint named on the command line has to be a file or a URL."""
    if is_local(path) and not osp.isfile(path):
        raise UserError(f'{argument} {path!r} does not exist (looked for {osp.abspath(path)})')
