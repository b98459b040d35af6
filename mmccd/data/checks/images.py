"""What is wrong with the images themselves, and what training and evaluation share."""

from __future__ import annotations

import hashlib
import os.path as osp
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from functools import partial

from tqdm import tqdm

from mmccd.data.image_files import MISSING, ImageFile, read_file
from mmccd.errors import UserError

from .report import KINDS, CheckedSplit, Report, readable

MAX_PIXELS = 50_000_000  # 150 MB decoded


def look_at(path: str, max_pixels: int) -> tuple[ImageFile, str]:
    """An image file and the digest of its content."""
    image, content = read_file(path, max_pixels)
    return image, hashlib.blake2b(content, digest_size=16).hexdigest() if content else ''


def look_at_all(paths: list[str], max_pixels: int, workers: int) -> Iterator[tuple[str, ImageFile, str]]:
    """(path, image, digest) of every path, in their order, with a progress bar on a terminal.

    Raises:
        UserError: If a worker process dies.
    """
    pool = ProcessPoolExecutor(workers) if workers else nullcontext()
    with pool:
        look = partial(look_at, max_pixels=max_pixels)
        found = pool.map(look, paths, chunksize=16) if workers else map(look, paths)
        try:
            for path, (image, digest) in zip(paths, tqdm(found, total=len(paths), unit='images', disable=None)):
                yield path, image, digest
        except BrokenProcessPool as e:
            raise UserError(
                'a worker process died, of too little memory or of an image that kills the decoder; '
                '--workers 0 shows it'
            ) from e


def check_images(splits: list[CheckedSplit], report: Report, max_pixels: int, workers: int) -> None:
    """Decode the images of all splits, each once; sizes, and what training and evaluation share."""
    paths = list(dict.fromkeys(p for s in splits for p in s.paths))
    train_paths = {p for s in splits if s.name == 'train' for p in s.paths}
    train_files = set(map(_real, train_paths))
    train_contents: dict[str, str] = {}
    for path, image, digest in look_at_all(paths, max_pixels, workers):
        for split in splits:
            if path not in split.paths:
                continue
            kind, what = _image_problem(image, split.paths[path], max_pixels)
            if kind:
                report.add(split.name, kind, f'{readable(path)}{what}')
            if kind and KINDS[kind][0] == 'error':
                split.drop(path)
        if digest and path in train_paths:
            train_contents.setdefault(digest, path)
        for split in splits:
            if split.name == 'train' or path not in split.paths:
                continue
            if _real(path) in train_files:
                report.add(split.name, 'image-shared', readable(path))
            elif digest in train_contents:  # training's paths came first
                report.add(split.name, 'content-shared', f'{readable(path)} and {readable(train_contents[digest])}')


def _real(path: str) -> str:
    """The file behind a path; the path itself if it cannot be one."""
    try:
        return osp.realpath(path)
    except (OSError, ValueError):
        return path


def _image_problem(image: ImageFile, expected: tuple[float, float] | None, max_pixels: int) -> tuple[str, str]:
    if image.problem == MISSING:
        return 'image-missing', ''
    if image.problem:
        return 'image-broken', f': {image.problem}'
    if expected is not None and image.size != tuple(expected):
        turned = ', turned by its EXIF orientation' if image.turned else ''
        return 'image-size', (
            f' has {image.size[0]} x {image.size[1]}{turned}, the annotations say {expected[0]} x {expected[1]}'
        )
    if image.size[0] * image.size[1] > max_pixels:
        return 'image-huge', f' has {image.size[0]} x {image.size[1]}'
    if image.bits > 8:
        return 'image-dark' if image.dark else 'image-deep', ''
    return '', ''
