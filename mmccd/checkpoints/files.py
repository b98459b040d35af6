"""Files that appear whole or not at all, and checksums beside them.

A file is written beside its place, synced, and renamed: at every moment, the old content or the new one is there. The
checksum of ``epoch_3.pth`` is in ``.epoch_3.pth.sha256``, as ``sha256sum -c`` reads it. Its name begins with a dot, so
that patterns such as ``best_*`` find checkpoints alone; up to version 0.1 it had none, and such files are still read.
The checksum is removed before its file is replaced, and written again after that, so that a good file never has the
checksum of another; a file without a checksum is read without this check.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import os.path as osp
import shutil
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from mmengine.fileio import LocalBackend, register_backend

PARTIAL = '.partial'
CHECKSUM = '.sha256'


def finite_or_null(value: Any) -> Any:
    """The same for JSON, which has no NaN and no infinity: None in their place, in dicts, lists and tuples, too.

    Example:
        >>> finite_or_null({'AP': [0.5, float('nan')]})
        {'AP': [0.5, None]}
    """
    if isinstance(value, dict):
        return {k: finite_or_null(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_null(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def valid_json(value: Any, **options: Any) -> str:
    """``json.dumps`` of :func:`finite_or_null`; NaN that an option ``default`` brings in is a ValueError."""
    return json.dumps(finite_or_null(value), allow_nan=False, **options)


def checksum_path(path: str) -> str:
    """Where the checksum of a file is written.

    Example:
        >>> checksum_path('work_dirs/a/epoch_3.pth')
        'work_dirs/a/.epoch_3.pth.sha256'
    """
    return osp.join(osp.dirname(path), f'.{osp.basename(path)}{CHECKSUM}')


def _checksum_paths(path: str) -> tuple[str, str]:
    """Today's place of the checksum, and that of version 0.1."""
    return checksum_path(path), path + CHECKSUM


def sync_folder(path: str) -> None:
    """Make renames and removals in a folder last through a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_atomically(path: str, content: bytes) -> None:
    """Write a file whole or not at all; what was there before stays until the new content is on the disk."""
    partial = path + PARTIAL
    try:
        with open(partial, 'wb') as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        if _remove_checksums(path):
            sync_folder(osp.dirname(path) or '.')
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise
    sync_folder(osp.dirname(path) or '.')


def write_with_checksum(path: str, content: bytes) -> str:
    """:func:`write_atomically`, and the SHA-256 of the content beside it; returns its digits."""
    digest = hashlib.sha256(content).hexdigest()
    write_atomically(path, content)
    write_atomically(checksum_path(path), f'{digest}  {osp.basename(path)}\n'.encode())
    return digest


def remove_with_checksum(path: str) -> None:
    """Remove a file and its checksum, the file first: a checksum alone does no harm."""
    os.remove(path)
    _remove_checksums(path)


def _remove_checksums(path: str) -> bool:
    """Remove the checksum of a file; returns whether there was one."""
    found = [checksum for checksum in _checksum_paths(path) if osp.exists(checksum)]
    for checksum in found:
        os.remove(checksum)
    return bool(found)


def verify_checksum(path: str, file: IO[bytes] | None = None) -> bool:
    """Compare a file with its checksum.

    Args:
        path (str): The file.
        file (IO[bytes], optional): The same file, open, which is read from its beginning to its end. Default: None,
            which opens it, if there is a checksum to compare it with.

    Returns:
        bool: False if there is none to compare with.

    Raises:
        ValueError: If they differ.
    """
    checksum, expected = next(_checksums(path), (None, None))
    if checksum is None:
        return False
    digest = hashlib.sha256()
    with contextlib.nullcontext(file) if file is not None else open(path, 'rb') as f:
        f.seek(0)
        while block := f.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise ValueError(
            f'{path} is not what was written: it differs from {osp.basename(checksum)} (cut short or damaged; if you '
            'replaced it on purpose, remove the checksum)'
        )
    return True


def _checksums(path: str) -> Iterator[tuple[str, str]]:
    """(file, SHA-256) of each checksum of a file; a crash may leave an empty one."""
    for checksum in _checksum_paths(path):
        with contextlib.suppress(FileNotFoundError, IndexError), open(checksum) as f:
            yield checksum, f.read().split()[0]


@register_backend('mmccd.atomic', force=True)
class AtomicBackend(LocalBackend):
    """mmengine's local backend, with :func:`write_with_checksum`: ``backend_args=dict(backend='mmccd.atomic')``.

    What cannot be written raises ``OSError`` with a message for the user and leaves the folder as it was.
    """

    def put(self, obj: bytes, filepath: str) -> None:
        filepath = str(filepath)
        folder = osp.dirname(filepath) or '.'
        try:
            os.makedirs(folder, exist_ok=True)
            write_with_checksum(filepath, obj)
        except OSError as e:
            message = f'{filepath} could not be written: {e.strerror}.'
            if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                with contextlib.suppress(OSError):
                    message += (
                        f' It takes {len(obj) / 1e6:.1f} MB, and {shutil.disk_usage(folder).free / 1e6:.1f} MB '
                        'are free there.'
                    )
            raise OSError(
                e.errno, f'{message} Earlier checkpoints are as they were; fix the cause and continue with --resume'
            ) from e

    def remove(self, filepath: str) -> None:
        remove_with_checksum(str(filepath))
