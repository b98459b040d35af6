"""Where the images of labels are, and how large: by the files themselves, as the pipelines will see them."""

from __future__ import annotations

import os
import os.path as osp
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from mmccd.data.image_files import SUFFIXES, ImageFile, is_image, is_left_behind, read_file, read_image, walk_files

from .labelled import Findings

_BEGINNING = 1 << 18  # bytes: EXIF and the size stand in the first segments


def image_of(stem: str) -> str | None:
    """The image of a path without its suffix; None if there is none."""
    names = (stem + s for suffix in SUFFIXES for s in (suffix, suffix.upper()))
    return next(filter(osp.isfile, names), None)


def names_in(folder: str) -> list[str]:
    """Names of the files and folders in a folder, sorted, without what systems leave behind."""
    return sorted(name for name in os.listdir(folder) if not is_left_behind(name))


def walk(folder: str) -> Iterator[str]:
    """Paths of all files in a folder and below it, sorted, without what systems leave behind; links are followed."""
    return (osp.normpath(osp.join(folder, path)) for path in walk_files(folder))


def lines_of(path: str, findings: Findings) -> list[str]:
    """The lines of a list of images; none, and a finding, if it cannot be read."""
    try:
        with open(path, encoding='utf-8-sig') as f:
            return list(f)
    except (OSError, ValueError) as e:
        findings.add('split', f'{path}: {e}')
        return []


def _header(path: str) -> ImageFile:
    """What the header of an image says; of a large JPEG the beginning is enough."""
    with open(path, 'rb') as f:
        beginning = f.read(_BEGINNING)
    image = read_image(beginning, max_pixels=0) if beginning.startswith(b'\xff\xd8') else None
    return read_file(path, max_pixels=0)[0] if image is None or image.problem else image


class Images:
    """The images in a folder.

    Args:
        folder (str): Looked through once, when first needed.
        findings (Findings): Gets what is wrong.
    """

    def __init__(self, folder: str, findings: Findings) -> None:
        self.folder, self.findings = folder, findings
        self.used: dict[str, tuple[str, tuple[int, int] | None]] = {}  # what labelled an image first, and its size
        self._by_name: dict[str, list[str]] | None = None
        self._by_stem: dict[str, list[str]] | None = None

    def by_name(self) -> dict[str, list[str]]:
        """Paths by the file's name."""
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for path in walk(self.folder):
                if is_image(path):
                    self._by_name[osp.basename(path)].append(path)
        return self._by_name

    def by_stem(self) -> dict[str, list[str]]:
        """Paths by the file's name without its suffix."""
        if self._by_stem is None:
            self._by_stem = defaultdict(list)
            for name, paths in self.by_name().items():
                self._by_stem[osp.splitext(name)[0]] += paths
        return self._by_stem

    def find(self, name: str, where: str, folders: Sequence[str] = ()) -> str | None:
        """The path of an image by the name that labels give it.

        Looks in ``folders`` first, then for the one image below the folder whose path ends alike, by as many folders
        as possible. What labels write on Windows has backslashes.

        Args:
            name (str): A file name or path.
            where (str): What names it, for messages.
            folders (Sequence[str]): What ``name`` may be relative to.

        Returns:
            str | None: None, and a finding, if there is no such image or there are several.
        """
        name = name.replace('\\', '/')
        for folder in folders:
            path = osp.normpath(osp.join(folder, name))
            if osp.isfile(path):
                return path
        parts = [p for p in PurePosixPath(name).parts if p not in ('/', '.', '..')]
        found = self.by_name().get(parts[-1], []) if parts else []
        for n in range(2, len(parts) + 1):
            ending = os.sep + os.sep.join(parts[-n:])
            nearer = [p for p in found if (os.sep + p).endswith(ending)]
            if not nearer:
                break
            found = nearer
        if len(found) == 1:
            return found[0]
        what = f'{where}: {name!r}'
        if found:
            self.findings.add('label-without-image', f'{what} may be {" or ".join(found[:3])}')
        else:
            self.findings.add('label-without-image', f'{what} is not below {self.folder}')
        return None

    def take(
        self,
        path: str,
        where: str,
        stated: tuple[float | None, float | None] = (None, None),
        again: bool = False,
    ) -> tuple[int, int] | None:
        """The size (width, height) of an image. If something else has labelled it already, that is a finding.

        Args:
            path (str): The image.
            where (str): What labels it, for messages.
            stated (tuple): Its size as the labels say; None or 0 where they do not.
            again (bool): Whether ``where`` is a file that may stand in several splits, which the data checks look at.
                Default: False.

        Returns:
            tuple[int, int] | None: None, and a finding, if it cannot be used.
        """
        real = osp.realpath(path)
        if real in self.used:
            first, size = self.used[real]
            if first != where or not again:
                self.findings.add('image-double', f'{path}: labelled by {first} and by {where}')
                return None
            return size
        size = self.used[real] = (where, self._size(path, where, stated))
        return size[1]

    def _size(self, path: str, where: str, stated: tuple[float | None, float | None]) -> tuple[int, int] | None:
        image = _header(path)
        if image.problem or not all(image.size):
            self.findings.add('image-broken', f'{path}: {image.problem or "it has no size"}')
            return None
        if all(stated) and tuple(stated) != image.size:
            what = f'{where}: {stated[0]:g} x {stated[1]:g}, and {path} has {image.size[0]} x {image.size[1]}'
            if image.turned and tuple(stated) == image.size[::-1]:
                what += ' when turned by its EXIF orientation, as it is in training'
            self.findings.add('image-size', what)
            return None
        return image.size
