"""Where an image may be, and whether its file holds a whole one.

OpenCV, which the pipelines decode with, makes a half grey image of a JPEG that is cut short, in some of its versions;
Pillow reports it, but decoding twice doubles the time. So :func:`lacks_end` checks the end of the file, and only a
file that is wrong there is decoded again, by :func:`read_image`.
"""

from __future__ import annotations

import io
import os
import os.path as osp
import warnings
from typing import NamedTuple

import mmcv
from mmengine import fileio
from PIL import Image

# What images to train on come in. Pillow knows more, and starts Ghostscript for one of them.
FORMATS = ('BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
_ENDS = {b'\xff\xd8': b'\xff\xd9', b'\x89P': b'IEND\xaeB`\x82'}  # first bytes of JPEG and PNG: last ones
MISSING = 'there is no such file'
_TAIL = 64  # bytes; cameras and tools put a little of their own behind the end
_ORIENTATION, _BY_A_QUARTER = 0x0112, (5, 6, 7, 8)  # EXIF


class ImageFile(NamedTuple):
    """What :func:`read_image` found.

    Attributes:
        size (tuple[int, int]): Width and height as the pipelines see it, in pixels; (0, 0) if they cannot be read.
        turned (bool): Whether an EXIF orientation swaps the width and the height that stand in the file.
        problem (str): Why it cannot be used; empty if it can.
    """

    size: tuple[int, int] = (0, 0)
    turned: bool = False
    problem: str = ''


def is_inside(path: str, folder: str) -> bool:
    """Whether a path stays inside a folder, by its text: links are the user's own."""
    return osp.relpath(path, folder).split(os.sep)[0] != os.pardir


def lacks_end(first: bytes, last: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end. It need not be broken: something long may stand behind the end.

    Args:
        first (bytes): The file's first two bytes.
        last (bytes): Its last 64 bytes, or more.
    """
    end = _ENDS.get(first)
    return end is not None and end not in last[-_TAIL:]


def looks_cut(path: str) -> bool:
    """:func:`lacks_end` of a local file, of which nothing else is read."""
    with open(path, 'rb') as f:
        first = f.read(2)
        f.seek(max(os.fstat(f.fileno()).st_size - _TAIL, 0))
        return lacks_end(first, f.read())


def read_image(content: bytes, max_pixels: int | None = None) -> ImageFile:
    """Decode an image, all of it.

    Args:
        content (bytes): The file.
        max_pixels (int | None): Do not decode larger ones. Default: no limit.
    """
    if not content:
        return ImageFile(problem='the file is empty')
    size, turned = (0, 0), False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Pillow's own limit, odd EXIF entries
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            size = image.size
            turned = image.getexif().get(_ORIENTATION) in _BY_A_QUARTER
            if turned:
                size = size[::-1]
            if max_pixels is not None and size[0] * size[1] > max_pixels:
                return ImageFile(size, turned)
            image.load()
        if mmcv.imfrombytes(content) is None:
            return ImageFile(size, turned, 'OpenCV cannot decode it')
    except Exception as e:  # damaged files raise nearly anything, from OSError to struct.error and SyntaxError
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        if isinstance(e, Image.UnidentifiedImageError):
            reason = 'it is no image'
        return ImageFile(size, turned, reason)
    return ImageFile(size, turned)


def read_file(path: str, max_pixels: int | None = None, backend_args: dict | None = None) -> tuple[ImageFile, bytes]:
    """Read and decode a file; what goes wrong with either is the image's ``problem``.

    Args:
        path (str): Path or URL.
        max_pixels (int | None): As for :func:`read_image`.
        backend_args (dict | None): How mmengine reads it. Default: by the path.
    """
    try:
        content = fileio.get(path, backend_args=backend_args)
    except FileNotFoundError:
        return ImageFile(problem=MISSING), b''
    except Exception as e:  # any backend's
        return ImageFile(problem=f'it cannot be read: {str(e) or type(e).__name__}'), b''
    return read_image(content, max_pixels), content


def why_broken(path: str, backend_args: dict | None = None) -> str:
    """Why an image cannot be used; empty if it can."""
    return read_file(path, backend_args=backend_args)[0].problem


def list_images(path: str) -> list[str]:
    """``path`` itself, or the images in this folder and below it, by their suffixes, sorted.

    Raises:
        ValueError: If there is none, or one of them cannot be decoded.
    """
    paths = [path]
    if osp.isdir(path):
        Image.init()
        suffixes = tuple(sorted(s for s, name in Image.registered_extensions().items() if name in FORMATS))
        found = (osp.join(root, n) for root, _, names in os.walk(path, followlinks=True) for n in names)
        paths = sorted(p for p in found if p.lower().endswith(suffixes))
        if not paths:
            raise ValueError(f'folder {path!r} has no image in it (a file named {", ".join(suffixes)})')
    broken = [(p, reason) for p in paths if (reason := why_broken(p))]
    if broken:
        more = f' ({len(broken)} such files of {len(paths)})' if len(broken) > 1 else ''
        raise ValueError(f'image {broken[0][0]!r} cannot be used: {broken[0][1]}{more}')
    return paths
