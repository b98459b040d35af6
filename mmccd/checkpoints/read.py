"""The one reader of checkpoints: files and URLs, without running code from them, and compared with their checksums."""

from __future__ import annotations

import hashlib
import os
import os.path as osp
import pickle
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_torchvision_models

from mmccd.env import is_local
from mmccd.errors import UserError, suggest

from .files import verify_checksum
from .other_files import what_it_is

try:
    from numpy._core import multiarray
except ImportError:  # NumPy 1
    from numpy.core import multiarray  # type: ignore[no-redef]

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ENDINGS = ('.pth', '.pt', '.safetensors', '.bin', '.pth.tar', '.ckpt')  # that checkpoints usually have
_HISTORY_METHODS = ('current', 'max', 'mean', 'min')
_FORBID = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_ALLOW = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
_ZIP = b'PK\x03\x04'  # what torch.save has written since PyTorch 1.6, and what can be mapped
_HEAD = 9  # bytes by which files of safetensors are known
_MAX_HEADER = 100_000_000  # bytes, safetensors' own limit
_HASHED = re.compile(r'-[0-9a-f]{8,}\.')  # as PyTorch and OpenMMLab call what they publish
_ADVICE = re.compile(r'weights_only|^Check the documentation|Weights only load failed')
_OPEN_FILES = '/proc/self/fd'  # Linux
_LIST = threading.RLock()  # PyTorch's list of what is plain data is one for all threads


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


def allow_mmengine_checkpoints() -> None:
    """From now on ``torch.load`` reads the checkpoints of mmengine's runner with ``weights_only=True``.

    mmengine 0.10.7 needs this for what it loads itself, as in ``mmdet.apis.DetInferencer``: without it, PyTorch 2.6
    and newer refuse the histories of a training in such a file. mmengine's maintained line does it by itself,
    and so does everything in mmccd. The list is the process's: reading a config or a checkpoint does not change it.

    Example:
        >>> import mmccd
        >>> mmccd.allow_mmengine_checkpoints()
    """
    torch.serialization.add_safe_globals(mmengine_globals())


def forbid_unpickling() -> None:
    """From now on ``torch.load`` runs no code from a file in this process, no matter who calls it.

    mmengine's maintained line falls back to ``weights_only=False`` when safe loading fails, and so do downloads.
    """
    os.environ.pop(_ALLOW, None)  # torch refuses both at once
    os.environ[_FORBID] = '1'


@contextmanager
def mmengine_allowed() -> Iterator[None]:
    """Inside, PyTorch knows mmengine's histories as plain data; what the process allowed itself stays allowed."""
    with _LIST:
        known = torch.serialization.get_safe_globals()
        try:
            with torch.serialization.safe_globals(mmengine_globals()):
                yield
        finally:
            torch.serialization.add_safe_globals(known)  # leaving the context forbade them


@contextmanager
def _weights_only_forced() -> Iterator[None]:
    """Inside, mmengine's own loaders run no code either."""
    before = {name: os.environ.get(name) for name in (_ALLOW, _FORBID)}
    forbid_unpickling()
    try:
        yield
    finally:
        os.environ.pop(_FORBID, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


def read_checkpoint(source: str | os.PathLike, map_location: str = 'cpu', *, mmap: bool = False) -> Any:
    """Read a checkpoint; no code in it runs.

    A file is opened once. It is compared with its checksum (``.<name>.sha256`` beside it, if there is one) and then
    loaded, so that what was verified is what is loaded even if the file is replaced meanwhile.

    Args:
        source (str | PathLike): A path, an http(s) or file URL, ``torchvision://resnet50``, or another name that
            mmengine resolves. Downloads go to PyTorch's hub folder, once. Files of ``torch.save`` and of safetensors
            are told apart by their content.
        map_location (str): Device of the tensors. Default: ``'cpu'``.
        mmap (bool): Map the tensors of a file instead of copying them into memory: where they are copied soon
            after, into a model, say. A file that is written in place changes them. Where files cannot be mapped, they
            are read. Default: False.

    Returns:
        Any: What ``torch.save`` was given; of a safetensors file a dict with ``state_dict``, and with the texts beside
        the tensors as ``metadata`` if there are any.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file differs from its checksum, is truncated, is no checkpoint, or contains objects that
            are not plain data; if a URL cannot be loaded.

    Example:
        >>> state = read_checkpoint('work_dirs/ccd_r18_digits/epoch_12.pth')['state_dict']  # doctest: +SKIP
    """
    source = os.fspath(source)
    if not is_local(source):
        return _read_remote(source, map_location, mmap)
    with CheckpointFile(source) as file:
        file.verify()
        return file.load(map_location, mmap=mmap)


class CheckpointFile:
    """A checkpoint file that is opened once, for callers that read some of it before they verify it.

    Args:
        path (str): The file.

    Raises:
        OSError: If it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = open(path, 'rb')  # noqa: SIM115  closed by __exit__

    def __enter__(self) -> CheckpointFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._file.close()

    def verify(self) -> None:
        """Raise ValueError if the file differs from its checksum; one without a checksum is taken as it is."""
        verify_checksum(self.path, self._file)

    def load(self, map_location: str = 'cpu', *, mmap: bool = False) -> Any:
        """As :func:`read_checkpoint`, without comparing."""
        try:
            self._file.seek(0)
            head = self._file.read(_HEAD)
            # A library that maps a file opens it itself: this is the name of the one that is open.
            by_name = osp.isdir(_OPEN_FILES)
            name = f'{_OPEN_FILES}/{self._file.fileno()}' if by_name else self.path
            if _is_safetensors(head):
                return _read_safetensors(name, map_location)
            with mmengine_allowed():
                if mmap and head.startswith(_ZIP) and by_name:
                    return torch.load(name, map_location=map_location, weights_only=True, mmap=True)
                self._file.seek(0)
                return torch.load(self._file, map_location=map_location, weights_only=True)
        except ImportError:  # of safetensors
            raise
        except Exception as e:  # damaged files raise nearly anything, from EOFError to OSError 22
            kind = what_it_is(self.path)
            if kind is not None:
                raise ValueError(f'{self.path} cannot be read as a checkpoint: {kind}') from e
            if isinstance(e, pickle.UnpicklingError):
                raise ValueError(_not_plain(self.path, e)) from e
            raise ValueError(f'{self.path} cannot be read as a checkpoint (cut short?): {_reason(e)}') from e


def _is_safetensors(head: bytes) -> bool:
    """Whether a file that begins like this is one of safetensors: the length of a JSON object, and that."""
    return len(head) == _HEAD and head[8:9] == b'{' and 2 <= int.from_bytes(head[:8], 'little') <= _MAX_HEADER


def _read_safetensors(path: str, map_location: str) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError as e:
        raise ImportError('files of safetensors need the package: pip install safetensors') from e
    with safe_open(path, framework='pt', device=map_location) as file:
        content: dict[str, Any] = dict(state_dict={name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        metadata = {k: v for k, v in (file.metadata() or {}).items() if k != 'format'}
    return content | dict(metadata=metadata) if metadata else content


def _read_remote(source: str, map_location: str, mmap: bool) -> Any:
    url, path = source, ''
    try:
        if source.startswith(('torchvision://', 'modelzoo://')):
            url = get_torchvision_models()[source.split('://', 1)[1]]
        if url.startswith('file://'):
            return read_checkpoint(url2pathname(urlparse(url).path), map_location, mmap=mmap)
        if url.startswith(('http://', 'https://')):
            path = _download(url)
            with CheckpointFile(path) as file:
                return file.load(map_location, mmap=mmap)
        with mmengine_allowed(), _weights_only_forced():
            return CheckpointLoader.load_checkpoint(url, map_location=map_location)
    except pickle.UnpicklingError as e:
        raise ValueError(_not_plain(source, e)) from e
    except Exception as e:  # anything from URLError to what damaged files raise
        by_hand = ''
        if path:
            by_hand = f'.\nRemove {path} to download it again'
        elif url.startswith('http'):
            by_hand = f'.\nWithout a network, fetch {url}\nelsewhere, and put it there as {_download_path(url)}'
        raise ValueError(f'{source} cannot be loaded as a checkpoint: {_reason(e)}{by_hand}') from e


def _download_folder() -> str:
    """PyTorch's own, so that what it has downloaded is not downloaded again."""
    return osp.join(torch.hub.get_dir(), 'checkpoints')


def _download_path(url: str) -> str:
    """Where a URL is downloaded to: PyTorch's own place for a name that has a hash of the content.

    Others recur (``pytorch_model.bin``), and the file of one URL must not be taken for that of another.
    """
    name = osp.basename(urlparse(url).path)
    if not _HASHED.search(name):
        stem, ending = osp.splitext(name)
        name = f'{stem}-{hashlib.sha256(url.encode()).hexdigest()[:16]}{ending}'
    return osp.join(_download_folder(), name)


def _download(url: str) -> str:
    """Path of the file that a URL names, downloaded unless it was before: by one process, while the others wait.

    They wait for a lock on a file, which the system lets go of if its owner fails: they need not know each other yet,
    and none waits for a process that has ended.
    """
    os.makedirs(_download_folder(), exist_ok=True)
    path = _download_path(url)
    if not osp.exists(path):
        with locked(f'{path}.lock'):
            if not osp.exists(path):
                print_log(f'Downloading {url} to {path}', logger='current')
                torch.hub.download_url_to_file(url, path, progress=sys.stderr.isatty())  # a file appears when complete
    return path


def use_own_downloads() -> None:
    """From now on mmengine loads of URLs what :func:`read_checkpoint` does: the files that were checked."""
    CheckpointLoader.register_scheme(('http://', 'https://', 'file://'), load_from_http, force=True)


def load_from_http(filename: str, map_location: Any = None, **kwargs: Any) -> Any:
    """mmengine's loader of this name, by :func:`read_checkpoint`."""
    return read_checkpoint(filename, map_location or 'cpu')


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Inside, one process of this machine at a time; all at once where system or file system have no locks.

    Args:
        path (str): Of a file, which is made for it and stays.
    """
    with open(path, 'a') as file:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _reason(error: Exception) -> str:
    """First line of an exception's message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _not_plain(source: str, error: Exception) -> str:
    return (
        f'{source} is not a checkpoint of tensors and plain data, and is not loaded: {_unpickling_reason(error)}\n'
        "Where it was made, its tensors can be saved alone: torch.save({'state_dict': model.state_dict()}, path)"
    )


def _unpickling_reason(error: Exception) -> str:
    """What PyTorch found, without its advice to run the code that is in the file."""
    text = str(error)
    code = re.search(r'GLOBAL ([\w.]+)', text)
    if code:
        return f'it names {code[1]}, which is code'
    if 'Unsupported operand' in text:
        return 'it is no file of torch.save'
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _ADVICE.search(line)]
    return lines[0] if lines else type(error).__name__


def check_checkpoint_file(path: str, argument: str) -> None:
    """A checkpoint named on the command line has to be a file or a URL; UserError if it is neither."""
    if not isinstance(path, str) or not path:
        raise UserError(f'{argument} must be a path or a URL, got {path!r}')
    if not is_local(path) or osp.isfile(path):
        return
    if osp.isdir(path):
        raise UserError(f'{argument} {folder_message(path)}')
    folder = osp.dirname(path)
    near = suggest(osp.basename(path), _checkpoints_in(folder), prefix=osp.join(folder, ''))
    raise UserError(f'{argument} {path!r} does not exist (looked for {osp.abspath(path)}){near}')


def folder_message(path: str) -> str:
    """What to say of a folder that was named as a checkpoint: the checkpoints in it."""
    names = _checkpoints_in(path)
    found = f': it has {", ".join(sorted(names)[:8])}' if names else ', without checkpoints'
    return f'{path!r} is a folder{found}'


def _checkpoints_in(folder: str) -> list[str]:
    folder = folder or '.'
    return [n for n in os.listdir(folder) if n.endswith(ENDINGS)] if osp.isdir(folder) else []
