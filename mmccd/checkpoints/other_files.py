"""What a file is that cannot be read as a checkpoint, by its first bytes, and what to do about it.

A browser that is refused saves the page that says so, git leaves a pointer where a large file is, and downloads are
packed: such files have the names of checkpoints.
"""

from __future__ import annotations

import zipfile

_HEAD = 1024  # bytes
_PACKED = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ': 'xz', b'7z\xbc\xaf': '7-Zip', b'Rar!': 'RAR'}
_KINDS = {
    b'version https://git-lfs': 'a pointer of Git LFS, in the place of the file: `git lfs pull` fetches it',
    b'\x89HDF': 'HDF5, as Keras writes it: save the tensors by torch.save',
    b'\x93NUMPY': 'an array of NumPy: save the tensors by torch.save',
    b'\x89PNG': 'an image',
    b'\xff\xd8\xff': 'an image',
}
_PAGE = 'a web page, not the file: the download was refused, or needs a login'
_INDEX = 'the list of the files that a checkpoint is divided into (weight_map): save it as one'


def what_it_is(path: str) -> str | None:
    """Why a file is no checkpoint, for a message; None if nothing is known about it.

    Args:
        path (str): The file, which could not be read as a checkpoint.

    Example:
        >>> what_it_is('/dev/null')
        'it is empty'
    """
    try:
        with open(path, 'rb') as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    if not head:
        return 'it is empty'
    if head.startswith(b'PK'):
        return _zipped(path)
    text = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if text.startswith((b'<!doctype', b'<html', b'<?xml')):
        return f'it is {_PAGE}'
    if text.startswith((b'{', b'[')):
        return f'it is {_INDEX}' if b'"weight_map"' in text or b'"total_size"' in text else 'it is JSON'
    name = text.strip()
    if name.endswith((b'.pth', b'.pt', b'.ckpt', b'.safetensors')) and b'\n' not in name and len(head) < _HEAD:
        return f'it holds the name of one, {head.strip().decode(errors="replace")}'
    if head[257:262] == b'ustar':
        return 'it is packed (tar): unpack it'
    for start, packed in _PACKED.items():
        if head.startswith(start):
            return f'it is packed ({packed}): unpack it'
    return next((f'it is {kind}' for start, kind in _KINDS.items() if head.startswith(start)), None)


def _zipped(path: str) -> str | None:
    """Of ZIP archives, which PyTorch's files are, too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    if any(name.endswith('/constants.pkl') for name in names):
        return "it is a program of TorchScript, which runs code: torch.save(torch.jit.load(path).state_dict(), 'x.pth')"
    if not any(name.endswith('/data.pkl') for name in names):
        more = f' and {len(names) - 3} more' if len(names) > 3 else ''
        return f'it is a ZIP archive of {", ".join(names[:3])}{more}: unpack it'
    return None
