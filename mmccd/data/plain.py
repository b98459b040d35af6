"""Whether a COCO annotation file's content has nothing to repair or to refuse: nearly all files, and in little time.

A file of COCO's size has a million entries. Each is packed into a row of an array by compiled code, which refuses
texts, nulls, and floats in the place of whole numbers; the array is looked at in columns.
"""

from __future__ import annotations

import gc
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat, starmap
from operator import contains, itemgetter, methodcaller
from typing import Any

import numpy as np

LARGEST_FLOAT = 1e38  # that a float32 holds, with some room
LARGEST_EXACT = 2**53  # up to here float64, in which COCO's evaluation stores annotation ids, tells ids apart
LARGEST_ID = 2**63  # of images and categories, which it sorts as int64
_IMAGE = dict(id='q', width='d', height='d')  # q: a whole number of 64 bits, d: any number
_ANNOTATION = dict(id='q', image_id='q', category_id='q', iscrowd='q', area='d')
_IGNORED = methodcaller('get', 'ignore')


@contextmanager
def without_collection() -> Iterator[None]:
    """No collection of garbage while a file is read and checked.

    It would look at millions of new entries again and again, half of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def is_plain(content: Any, odd: Counter | None = None) -> bool:
    """Whether there is nothing to repair or to refuse in what JSON gave of a file.

    Args:
        content (Any): It is not changed.
        odd (Counter, optional): Gets how many annotations there are of each kind that is read as it stands, and that
            hardly anybody means: ``'annotation-without-image'``, ``'annotation-without-category'``, ``'box-double'``,
            ``'box-corners'`` (see :func:`are_corners`).
    """
    with without_collection():
        try:
            return _is_plain(content, Counter() if odd is None else odd)
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, struct.error):
            return False


def _is_plain(content: Any, odd: Counter) -> bool:
    """The same; some of what is not plain raises."""
    if not all(type(content.get(key, [])) is list for key in ('images', 'categories', 'annotations')):
        return False
    images, categories, annotations = content['images'], content['categories'], content.get('annotations', [])
    table = _table(images, _IMAGE)
    return (
        _are_categories(categories)
        and _are_images(images, table)
        and _are_annotations(annotations, table, [c['id'] for c in categories], odd)
    )


def _are_categories(categories: list) -> bool:
    ids = [*map(itemgetter('id'), categories)]
    return (
        set(map(type, ids)) <= {int}
        and len(set(ids)) == len(ids)
        and all(-LARGEST_ID < i < LARGEST_ID for i in ids)
        and set(map(type, map(itemgetter('name'), categories))) <= {str}
    )


def _are_images(images: list, table: np.ndarray) -> bool:
    names = [*map(itemgetter('file_name'), images)]
    return (
        set(map(type, names)) <= {str}
        and all(names)
        and _are_apart(table['id'])
        and all(((table[side] > 0) & (table[side] < 1e9)).all() for side in ('width', 'height'))
        and (table['id'] > -LARGEST_ID).all()
        and not any(_has_flag(table[key], lambda i, key=key: images[i][key]) for key in _IMAGE)
    )


def _are_annotations(annotations: list, images: np.ndarray, categories: list[int], odd: Counter) -> bool:
    table = _table(annotations, _ANNOTATION)
    pack = struct.Struct('4d').pack  # which refuses lists of any other length
    boxes = np.frombuffer(b''.join(starmap(pack, map(itemgetter('bbox'), annotations)))).reshape(-1, 4)
    ids, areas, sides = table['id'], table['area'], boxes[:, 2:]
    if not (
        _are_apart(ids)
        and ((ids > 0) & (ids < LARGEST_EXACT)).all()
        and ((table['iscrowd'] == 0) | (table['iscrowd'] == 1)).all()
        and (np.abs(areas) < LARGEST_FLOAT).all()  # of NaN false, as the next two
        and (np.abs(boxes) < LARGEST_FLOAT).all()
        and (sides > 0).all()
        and not ((areas <= 0) & (sides >= 1).all(1)).any()  # a missing area
    ):
        return False
    if any(map(contains, annotations, repeat('ignore'))) and any(
        i not in (None, 0) for i in map(_IGNORED, annotations)
    ):
        return False
    owners = _rows_of(table['image_id'], images['id'])
    known = owners >= 0
    x, y, w, h = np.ascontiguousarray(boxes.T)
    if known.any():
        width, height = images['width'][owners], images['height'][owners]
        if (known & ((x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0))).any():  # outside of its image
            return False
        if (x < w).all() and (y < h).all():
            odd['box-corners'] = are_corners(boxes[known], np.stack([width, height], 1)[known])
    odd['annotation-without-image'] = int((~known).sum())
    odd['annotation-without-category'] = int((~np.isin(table['category_id'], categories)).sum())
    odd['box-double'] = _doubles(table, boxes)
    return not (
        bool in set(map(type, chain.from_iterable(map(itemgetter('category_id', 'iscrowd'), annotations))))
        or any(_has_flag(table[key], lambda i, key=key: annotations[i][key]) for key in ('id', 'image_id', 'area'))
        or _has_flag(boxes.ravel(), lambda i: annotations[i // 4]['bbox'][i % 4])
    )


def _rows_of(ids: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Where each id stands among its owners', (N, ); -1 where it does not."""
    if not len(owners):
        return np.full(len(ids), -1)
    first, last = int(owners.min()), int(owners.max())
    if last - first > 1_000_000 + 10 * len(owners):
        order = np.argsort(owners)
        places = order[np.searchsorted(owners, ids, sorter=order).clip(max=len(owners) - 1)]
    else:  # ten times as fast
        table = np.zeros(last - first + 1, int)
        table[owners - first] = np.arange(len(owners))
        places = table[ids.clip(first, last) - first]
    return np.where(owners[places] == ids, places, -1)


def _doubles(table: np.ndarray, boxes: np.ndarray) -> int:
    """How many annotations repeat an earlier one's image, class, box and iscrowd."""
    values = np.stack([table['image_id'], table['category_id'], table['iscrowd'], *boxes.T.view('i8')]).view('u8')
    mixed = np.zeros(len(boxes), 'u8')
    for row in values:
        mixed = (mixed ^ (mixed >> 29) ^ row) * np.uint64(0x9E3779B97F4A7C15)
    if _are_apart(mixed):
        return 0
    order = np.argsort(mixed)
    alike = np.flatnonzero(mixed[order][1:] == mixed[order][:-1])
    rows = values[:, np.unique(order[np.concatenate([alike, alike + 1])])].T
    return len(rows) - len(np.unique(rows, axis=0))


def are_corners(boxes: np.ndarray, sizes: np.ndarray) -> int:
    """Number of boxes that leave their image if there are so many that all may be x1, y1, x2, y2; else 0.

    Args:
        boxes (np.ndarray): (N, 4), which should be x, y, width, height.
        sizes (np.ndarray): (N, 2), width and height of their images.
    """
    first, second, inside = boxes[:, :2], boxes[:, 2:], sizes + 1
    outside = int((first + second > inside).any(1).sum())
    as_corners = (first < second).all() and (second <= inside).all()
    return outside if len(boxes) >= 10 and 2 * outside > len(boxes) and as_corners else 0


def _has_flag(numbers: np.ndarray, value: Callable[[int], Any]) -> bool:
    """Whether any of the numbers is true or false in the file, which are packed as 1 and 0."""
    return any(type(value(i)) is bool for i in np.flatnonzero((numbers == 0) | (numbers == 1)).tolist())


def _table(entries: list[dict], keys: dict[str, str]) -> np.ndarray:
    """An array (N, ) with a field for each key.

    Raises:
        KeyError: If an entry has not all of them.
        OverflowError, TypeError, struct.error: If a value is not a number of its kind.
    """
    rows = starmap(struct.Struct(''.join(keys.values())).pack, map(itemgetter(*keys), entries))
    return np.frombuffer(b''.join(rows), [(key, {'q': 'i8', 'd': 'f8'}[kind]) for key, kind in keys.items()])


def _are_apart(ids: np.ndarray) -> bool:
    """Whether no two are the same."""
    ids = np.sort(ids)
    return bool((ids[1:] != ids[:-1]).all())
