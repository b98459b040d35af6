"""Files that are no checkpoints: what they are, and what to do."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from mmccd.checkpoints.other_files import what_it_is
from mmccd.checkpoints.read import read_checkpoint


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as archive:
        for name in names:
            archive.writestr(name, 'x')
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as archive:
        archive.addfile(tarfile.TarInfo('model.pth'))
    return out.getvalue()


FILES = {
    'empty': (b'', 'it is empty'),
    'a page': (b'\n<!DOCTYPE html><html>Sign in</html>', 'a web page, not the file: the download was refused'),
    'an error of a store': (b"<?xml version='1.0'?><Error>AccessDenied</Error>", 'a web page'),
    'git': (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n', '`git lfs pull` fetches it'),
    'parts': (b'{"metadata": {"total_size": 9}, "weight_map": {"a": "1.safetensors"}}', 'the list of the files that a'),
    'JSON': (b'{"a": 1}', 'it is JSON'),
    "mmengine's last_checkpoint": (b'/runs/a/epoch_3.pth', r'it holds the name of one, /runs/a/epoch_3\.pth$'),
    'gzip': (b'\x1f\x8b\x08' + bytes(9), r'it is packed \(gzip\): unpack it'),
    'tar': (tarred(), r'it is packed \(tar\): unpack it'),
    'ZIP': (zipped('a/epoch_1.pth', 'log.txt'), 'it is a ZIP archive of a/epoch_1.pth, log.txt: unpack it'),
    'TorchScript': (zipped('m/constants.pkl', 'm/data.pkl'), 'it is a program of TorchScript, which runs code: '),
    'Keras': (b'\x89HDF\r\n\x1a\n' + bytes(9), 'it is HDF5, as Keras writes it'),
    'NumPy': (b'\x93NUMPY\x01\x00' + bytes(9), 'it is an array of NumPy'),
    'an image': (b'\x89PNG\r\n\x1a\n' + bytes(64), 'it is an image'),
}


@pytest.mark.parametrize(('content', 'rule'), FILES.values(), ids=FILES)
@pytest.mark.parametrize('mmap', [False, True])
def test_named(tmp_path, content, rule, mmap):
    path = tmp_path / 'x.pth'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf'^{re.escape(str(path))} cannot be read as a checkpoint: .*{rule}'):
        read_checkpoint(path, mmap=mmap)


def test_not_named(tmp_path):
    """What is a checkpoint, was one, or is anything else."""
    path = tmp_path / 'x.pth'
    torch.save({'a': torch.zeros(9)}, path)
    whole = path.read_bytes()
    for content in (whole, whole[:-9], b'PK', b'no checkpoint', bytes(300)):
        path.write_bytes(content)
        assert what_it_is(str(path)) is None
    assert what_it_is(str(tmp_path / 'gone')) is None


def test_the_remedy_for_torchscript(tmp_path, monkeypatch):
    """As the message has it."""
    monkeypatch.chdir(tmp_path)
    layer = torch.nn.Linear(2, 1)
    torch.jit.trace(layer, torch.zeros(1, 2)).save('t.pth')
    with pytest.raises(ValueError) as e:
        read_checkpoint('t.pth')
    code = str(e.value).rpartition('runs code: ')[2].replace('load(path)', "load('t.pth')")
    exec(code, dict(torch=torch))
    assert torch.equal(read_checkpoint(Path('x.pth'))['weight'], layer.weight)
