"""Files that appear whole or not at all, and checksums beside them.

A file is written beside its place, synced, and renamed: at every moment, the old content or the new one is there. The
checksum of ``epoch_3.pth`` is in ``epoch_3.pth.sha256``, as ``sha256sum -c`` reads it. It is taken away before its file
is replaced and put back after that, so that a good file never stands beside the checksum of another; a file without
one is neither good nor bad.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import os.path as osp
import shutil

from mmengine.fileio import LocalBackend, register_backend

PARTIAL = '.partial'
CHECKSUM = '.sha256'


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
        if osp.exists(path + CHECKSUM):
            os.remove(path + CHECKSUM)
            sync_folder(osp.dirname(path) or '.')
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise
    sync_folder(osp.dirname(path) or '.')


def write_with_checksum(path: str, content: bytes) -> None:
    """:func:`write_atomically`, and the SHA-256 of the content beside it."""
    write_atomically(path, content)
    line = f'{hashlib.sha256(content).hexdigest()}  {osp.basename(path)}\n'
    write_atomically(path + CHECKSUM, line.encode())


def remove_with_checksum(path: str) -> None:
    """Remove a file and its checksum, the file first: a checksum alone misleads nobody."""
    os.remove(path)
    with contextlib.suppress(FileNotFoundError):
        os.remove(path + CHECKSUM)


def verify_checksum(path: str) -> bool:
    """Compare a file with its checksum.

    Returns:
        bool: False if there is none to compare with.

    Raises:
        ValueError: If they differ.
    """
    try:
        with open(path + CHECKSUM) as f:
            expected = f.read().split()[0]
    except (FileNotFoundError, IndexError):
        return False
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise ValueError(
            f'{path} is not what was written: it differs from {osp.basename(path)}{CHECKSUM} (cut short '
            'or damaged; if you replaced it on purpose, remove the checksum)'
        )
    return True


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
                e.errno, f'{message} Earlier checkpoints are as they were; mend it and go on with --resume'
            ) from e

    def remove(self, filepath: str) -> None:
        remove_with_checksum(str(filepath))
