"""Files appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess

import pytest

from mmccd.checkpoints import files
from mmccd.checkpoints.files import (
    AtomicBackend,
    checksum_path,
    remove_with_checksum,
    verify_checksum,
    write_atomically,
    write_with_checksum,
)


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / 'x.pth')


def read(path: str) -> bytes:
    with open(path, 'rb') as f:
        return f.read()


class Crash(BaseException):
    """The process ends here."""


def crash_after(monkeypatch, changes: int) -> None:
    """Let so many changes of the disk happen; the next one, and whatever would tidy up after it, does not."""
    left = iter(range(changes))

    def until_crash(original):
        def call(*args, **kwargs):
            if next(left, None) is None:
                raise Crash
            return original(*args, **kwargs)

        return call

    for name in ('replace', 'remove', 'fsync'):
        monkeypatch.setattr(files.os, name, until_crash(getattr(os, name)))


def test_every_crash_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    """A crash before each change in turn: the content is old or new, and no checksum speaks against it."""
    seen = set()
    for changes in range(20):
        path = str(tmp_path / f'{changes}.pth')
        write_with_checksum(path, b'old')
        with monkeypatch.context() as m:
            crash_after(m, changes)
            try:
                write_with_checksum(path, b'new')
                crashed = False
            except Crash:
                crashed = True
        seen.add((read(path), verify_checksum(path)))
        if not crashed:
            break
    assert not crashed
    assert seen == {(b'old', True), (b'old', False), (b'new', False), (b'new', True)}


def test_content_and_checksum(path):
    for content in (b'old', b'new' * 1000):
        write_with_checksum(path, content)
        assert read(path) == content
        assert read(checksum_path(path)) == f'{hashlib.sha256(content).hexdigest()}  x.pth\n'.encode()
        assert verify_checksum(path)
    remove_with_checksum(path)
    assert not os.listdir(os.path.dirname(path))
    write_atomically(path, b'alone')
    assert os.listdir(os.path.dirname(path)) == ['x.pth']
    assert not verify_checksum(path)
    remove_with_checksum(path)


def test_checksums_of_version_0_1(path):
    """They stood in ``x.pth.sha256``: they are compared, and they go with the file or when it is replaced."""
    folder = os.path.dirname(path)

    def make(content: bytes) -> None:
        with open(path, 'wb') as f:
            f.write(b'old')
        with open(f'{path}.sha256', 'w') as f:
            f.write(f'{hashlib.sha256(content).hexdigest()}  x.pth\n')

    make(b'other')
    with pytest.raises(ValueError, match=r'x\.pth is not what was written: it differs from x\.pth\.sha256'):
        verify_checksum(path)
    make(b'old')
    assert verify_checksum(path)
    write_with_checksum(path, b'new')
    assert sorted(os.listdir(folder)) == ['.x.pth.sha256', 'x.pth']
    assert verify_checksum(path)
    make(b'old')
    remove_with_checksum(path)
    assert os.listdir(folder) == []


@pytest.mark.skipif(shutil.which('sha256sum') is None, reason='sha256sum is not installed')
def test_sha256sum_reads_them(path):
    write_with_checksum(path, b'new')
    command = ['sha256sum', '--check', '.x.pth.sha256']
    done = subprocess.run(command, cwd=os.path.dirname(path), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, 'x.pth: OK\n')


@pytest.mark.parametrize('damaged', [b'', b'ne', b'new ', b'nEw'])
def test_damage(path, damaged):
    write_with_checksum(path, b'new')
    with open(path, 'wb') as f:
        f.write(damaged)
    with pytest.raises(ValueError, match=r'x\.pth is not what was written: it differs from \.x\.pth\.sha256'):
        verify_checksum(path)


def test_no_room(path):
    """The old file and its checksum stay, nothing half written does; the message has path, reason and sizes."""
    backend = AtomicBackend()
    backend.put(b'old', path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            OSError,
            match=r'x\.pth could not be written: File too large\. It takes 2\.0 MB, and '
            r'[0-9.]+ MB are free there\. Earlier .* --resume',
        ):
            backend.put(bytes(2_000_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read(path) == b'old'
    assert verify_checksum(path)
    assert sorted(os.listdir(os.path.dirname(path))) == ['.x.pth.sha256', 'x.pth']
    backend.remove(path)
    assert not os.listdir(os.path.dirname(path))


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / 'f').write_text('')
    with pytest.raises(OSError, match=r'x\.pth could not be written: ') as caught:
        AtomicBackend().put(b'new', str(tmp_path / 'f' / 'x.pth'))
    assert 'MB are free' not in str(caught.value)
