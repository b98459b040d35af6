"""Where images are, which files are some, and whether a file holds a whole one.

OpenCV, which decodes JPEG and PNG (:mod:`.decode`), makes a half grey image of a JPEG that is cut short, in some of its
versions; Pillow reports it, but decoding twice doubles the time. So :func:`lacks_end` checks the end of the file, and
only a file that is wrong there is decoded again, by :func:`read_image`.
"""

from __future__ import annotations

import os
import os.path as osp
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mmengine import fileio

from .decode import FORMATS, bits, by_opencv, decode, is_dark, open_image, pillow, reason, to_rgb, upright_size

_SUFFIXES = {
    'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif'),
    'PNG': ('.png', '.apng'),
    'BMP': ('.bmp',),
    'PPM': ('.ppm', '.pgm', '.pbm', '.pnm'),
    'TIFF': ('.tif', '.tiff'),
    'WEBP': ('.webp',),
    'GIF': ('.gif',),
    'JPEG2000': ('.jp2', '.j2k', '.j2c', '.jpc', '.jpf', '.jpx'),
    'AVIF': ('.avif', '.avifs'),
}
# By these, lower case, files in folders are images: those that :func:`mmccd.data.decode.decode` reads.
SUFFIXES = tuple(s for kind, suffixes in _SUFFIXES.items() if kind in FORMATS for s in suffixes)
# Files beside images that nobody takes for some.
_NO_IMAGES = ('.txt', '.json', '.xml', '.csv', '.tsv', '.md', '.yaml', '.yml', '.html', '.py', '.log', '.zip')
# Beside what begins with a dot: of network drives, Windows, macOS and Python.
_LEFT_BEHIND = {
    '@eadir',
    '@tmp',
    '#recycle',
    '#snapshot',
    '@recycle',
    '@recently-snapshot',
    '$recycle.bin',
    'system volume information',
    'recycler',
    'found.000',
    'lost+found',
    '__macosx',
    'icon\r',
    'network trash folder',
    'temporary items',
    '__pycache__',
    'thumbs.db',
    'ehthumbs.db',
    'ehthumbs_vista.db',
    'desktop.ini',
    'picasa.ini',
}
_ENDS = {b'\xff\xd8': b'\xff\xd9', b'\x89P': b'IEND\xaeB`\x82'}  # first bytes of JPEG and PNG: last ones
MISSING = 'there is no such file'
DARK = (
    'of its 16 bits the upper 8 are used, and are almost empty: the network sees black. Convert such images to 8 bits '
    'first (docs/reliability.md, "Images")'
)
_TAIL = 64  # bytes; cameras and tools put a little of their own behind the end


class ImageFile(NamedTuple):
    """What :func:`read_image` found.

    Attributes:
        size (tuple[int, int]): Width and height as the pipelines see it, in pixels; (0, 0) if they cannot be read.
        turned (bool): Whether an EXIF orientation swaps the width and the height that stand in the file.
        problem (str): Why it cannot be used; empty if it can.
        bits (int): Bits a channel, 8 or 16; of 16, the upper 8 are used.
        dark (bool): Whether there are 16, and the upper 8 hold almost nothing.
    """

    size: tuple[int, int] = (0, 0)
    turned: bool = False
    problem: str = ''
    bits: int = 8
    dark: bool = False


class LeftOut(NamedTuple):
    """Files of one suffix in folders of images that are no images by it.

    Attributes:
        suffix (str): Lower case, with the dot; empty for files without one.
        count (int): How many.
        example (str): One of them.
    """

    suffix: str
    count: int
    example: str

    @property
    def may_be_images(self) -> bool:
        return self.suffix not in _NO_IMAGES

    def __str__(self) -> str:
        kind = f'{self.suffix} file' if self.suffix else 'file without a suffix'
        plural = kind.replace('file', 'files', 1) if self.count > 1 else kind
        return f'{self.count:,} {plural} (e.g. {self.example})'


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
        image = open_image(content)
        size, turned = upright_size(image)
        if max_pixels is not None and size[0] * size[1] > max_pixels:
            return ImageFile(size, turned)
        depth = bits(image, content)
        with pillow():
            image.load()  # which finds what is cut short
        pixels = decode(content) if by_opencv(content) else to_rgb(image)
    except Exception as e:  # damaged files raise nearly anything, from OSError to struct.error and SyntaxError
        return ImageFile(size, turned, reason(e))
    return ImageFile(pixels.shape[1::-1], turned, '', depth, depth > 8 and is_dark(pixels))


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


def is_left_behind(path: str) -> bool:
    """Whether a relative path is, or is below, what systems and editors leave in folders: thumbnails, copies, caches.

    Example:
        >>> is_left_behind('cat/.ipynb_checkpoints/1-checkpoint.jpg'), is_left_behind('cat/1.jpg')
        (True, False)
    """
    return any(
        (part.startswith('.') and part not in ('.', '..')) or part.lower() in _LEFT_BEHIND
        for part in path.replace(os.sep, '/').split('/')
    )


def is_image(path: str, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Whether a file is an image by its suffix."""
    return path.lower().endswith(suffixes)


def walk_files(folder: str) -> Iterator[str]:
    """Paths of the files in a folder and below it, relative to it and sorted, without what systems leave behind."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_left_behind(name))
        below = osp.relpath(root, folder)
        yield from (osp.normpath(osp.join(below, name)) for name in sorted(names) if not is_left_behind(name))


def left_out(paths: Iterable[str]) -> list[LeftOut]:
    """By their suffixes, the most frequent first, what of :func:`walk_files` is no image."""
    found: dict[str, list] = {}
    for path in paths:
        entry = found.setdefault(osp.splitext(path)[1].lower(), [0, path])
        entry[0] += 1
    return sorted((LeftOut(suffix, *entry) for suffix, entry in found.items()), key=lambda f: (-f.count, f.suffix))


def list_images(path: str) -> list[str]:
    """``path`` itself, or the images in this folder and below it, by their suffixes, sorted.

    Files of other formats are counted on stderr. What systems leave behind is none of either.

    Raises:
        ValueError: If there is none, or one of them cannot be decoded.
    """
    paths = [path]
    if osp.isdir(path):
        files = list(walk_files(path))
        paths = sorted(osp.join(path, f) for f in files if is_image(f))
        others = ', '.join(str(o) for o in left_out(f for f in files if not is_image(f)) if o.may_be_images)
        if not paths:
            has = f'; it has {others}' if others else ''
            raise ValueError(f'folder {path!r} has no image in it (a file named {", ".join(SUFFIXES)}){has}')
        if others:
            print(f'note: {path}: left out, no images by their names: {others}', file=sys.stderr)
    broken = [(p, problem) for p in paths if (problem := why_broken(p))]
    if broken:
        more = f' ({len(broken)} such files of {len(paths)})' if len(broken) > 1 else ''
        raise ValueError(f'image {broken[0][0]!r} cannot be used: {broken[0][1]}{more}')
    return paths


def names_apart(paths: Sequence[str]) -> Mapping[str, str]:
    """For each path of an image, what a file made of it is called: its name, with its folders where names recur.

    Example:
        >>> names_apart(['val/cat/1.jpg', 'val/dog/1.jpg'])
        {'val/cat/1.jpg': 'cat/1.jpg', 'val/dog/1.jpg': 'dog/1.jpg'}
    """
    paths = dict.fromkeys(paths)
    if len({osp.basename(p) for p in paths}) == len(paths):
        return {p: osp.basename(p) for p in paths}
    whole = {p: osp.abspath(p) for p in paths}
    folder = osp.commonpath([osp.dirname(p) for p in whole.values()])
    return {p: osp.relpath(q, folder) for p, q in whole.items()}
