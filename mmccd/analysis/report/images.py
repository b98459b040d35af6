"""Images of the page: their names, their data, and the choice of the worst, the best and those that runs differ on."""

from __future__ import annotations

import base64
import io
import os.path as osp
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from mmccd.data.decode import decode

from .blocks import Gallery, Item, Section

IMAGE_SIDE = 384  # pixels
ALL_RIGHT = ' All images are right: there is no worst one.'
Key = TypeVar('Key', bound=Hashable)


def image_name(task: str | None, path: str) -> str:
    """Name of an image: in classification with its folder, mostly the class, since names recur."""
    return '/'.join(Path(path).parts[-2:]) if task == 'classification' else osp.basename(path)


def data_uri(source: str | io.BytesIO, side: int, quality: int = 75) -> tuple[str, tuple[int, int]]:
    """An image as WebP, at most ``side`` pixels wide and high, and its original width and height, upright."""
    pixels = decode(source.getvalue() if isinstance(source, io.BytesIO) else Path(source).read_bytes())
    image = Image.fromarray(np.ascontiguousarray(pixels[..., ::-1]))
    size = image.size
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, 'WEBP', quality=quality)
    return f'data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}', size


def add_galleries(
    section: Section,
    chosen: dict[str, Sequence[Key]],
    count: int,
    path_of: Callable[[Key], str],
    item_of: Callable[[Key], Item],
    **options,
) -> list[str]:
    """Add a gallery for each title, of its first ``count`` images that no gallery before it shows.

    Args:
        section (Section): Gets the galleries, and problems with single images.
        chosen (dict[str, Sequence]): Images by title, in the order to be shown.
        count (int): Maximum number of images in a gallery.
        path_of (Callable): Path of an image.
        item_of (Callable): Its panels.
        **options: For :class:`.Gallery`.

    Returns:
        list[str]: Paths of the first image of each gallery, the first, the last, then the others.
    """
    taken: set[Key] = set()
    first = []
    for title, keys in chosen.items():
        keys = [k for k in keys if k not in taken][:count]
        taken |= set(keys)
        items = [section.attempt(path_of(k), lambda k=k: item_of(k)) for k in keys]
        items = [item for item in items if item is not None]
        if items:
            section.galleries.append(Gallery(title, items, **options))
            first.append(path_of(keys[0]))
    return list(dict.fromkeys([*first[:1], *first[-1:], *first]))
