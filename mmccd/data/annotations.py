"""Repairs of a COCO annotation file's content, where what is meant is certain.

Exporters write ``iscrowd: null``, ids as texts or from 0, areas of 0. MMDetection and COCO's evaluation read some of
that wrongly without a message, and stop at the rest after an epoch. Training, evaluation, dataset check and report
all read files through :func:`repair`; what it leaves odd is refused (:func:`mmccd.data.checks.coco.read_coco`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from .plain import LARGEST_EXACT, LARGEST_FLOAT, is_plain

_WHOLE = re.compile(r'\s*[+-]?[0-9]{1,19}(\.0*)?\s*')


def repair(content: Any) -> list[str]:
    """Repair a COCO file's content in place.

    Args:
        content (Any): As JSON gave it. What is no entry is left as it is.

    Returns:
        list[str]: What was repaired, a phrase each; empty for nearly all files.
    """
    if is_plain(content) or not isinstance(content, dict):
        return []
    images, categories, annotations = (
        [entry for entry in content.get(key) or () if isinstance(entry, dict)]
        if isinstance(content.get(key), list)
        else []
        for key in ('images', 'categories', 'annotations')
    )
    done: list[str] = []
    for owners, what, key in ((images, 'image', 'image_id'), (categories, 'category', 'category_id')):
        done += _repair_ids(owners, what, annotations, key)
    done += _count(images, 'width or height of {} written as texts: taken as numbers', _repair_size)
    done += _count(annotations, 'bbox or area of {} written as texts: taken as numbers', _repair_numbers)
    for key in ('iscrowd', 'ignore'):
        done += _count(annotations, f'{key} of {{}} written as true, false or a text: taken as 1 or 0', _flag(key))
    done += _count(annotations, 'iscrowd of {} missing or null: taken as 0', _repair_crowd)
    done += _count(
        annotations,
        '{} with ignore: 1, which training leaves out: ignored in evaluation, too (iscrowd 1)',
        _repair_ignore,
    )
    done += _count(
        annotations,
        '{} without width or height, which no detection can match: ignored in evaluation (iscrowd 1), as in training',
        _repair_empty,
    )
    done += _count(
        annotations,
        '{} outside of their image, which no detection can match: ignored in evaluation (iscrowd 1), as in training',
        _outside(images),
    )
    done += _count(annotations, 'area of {} missing, null or 0: taken from the box', _repair_area)
    return done + _renumber(annotations)


def _count(entries: list[dict], text: str, change: Callable[[dict], bool]) -> list[str]:
    n = sum(map(change, entries))
    return [text.format(f'{n:,} {"entry" if n == 1 else "entries"}')] if n else []


def whole(value: Any) -> Any:
    """An id that is written as ``1.0``, ``'1'``, ``' 1'`` or ``'1.0'`` as a whole number; anything else as it is."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) < 30 and _WHOLE.fullmatch(value):
        return int(value.partition('.')[0])
    return value


def _repair_ids(owners: list[dict], what: str, annotations: list[dict], key: str) -> list[str]:
    """Whole numbers out of ids that are not all texts, unless two would become one."""
    entries = [(e, 'id') for e in owners if 'id' in e] + [(a, key) for a in annotations if key in a]
    kinds = {type(e[k]) for e, k in entries}
    if kinds <= {int} or kinds == {str}:  # texts alone identify as well as numbers do
        return []
    given = [e['id'] for e in owners if isinstance(e.get('id'), (int, float, str))]
    if len(set(map(whole, given))) < len(set(given)):
        return []  # '1' beside 1, or '01': which of them is meant?
    n = 0
    for entry, k in entries:
        if type(entry[k]) in (float, str):
            number = whole(entry[k])
            n += type(number) is int
            entry[k] = number
    return (
        [f'{n:,} {what} id{"s" * (n > 1)} written as texts or with a decimal point: taken as whole numbers']
        if n
        else []
    )


def _number(value: Any) -> Any:
    """A finite number that is written as a text; anything else as it is."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        if math.isfinite(number) and '_' not in value:
            return int(number) if number.is_integer() and abs(number) < LARGEST_EXACT else number
    return value


def _repair_size(image: dict) -> bool:
    size = [image.get('width'), image.get('height')]
    numbers = [_number(v) for v in size]
    changed = any(type(a) is not type(b) for a, b in zip(size, numbers))
    if changed:
        image['width'], image['height'] = numbers
    return changed


def _repair_numbers(annotation: dict) -> bool:
    changed = False
    box, area = annotation.get('bbox'), annotation.get('area')
    if isinstance(box, list) and any(isinstance(v, str) for v in box):
        annotation['bbox'] = [_number(v) for v in box]
        changed = annotation['bbox'] != box
    if isinstance(area, str) and not isinstance(_number(area), str):
        annotation['area'] = _number(area)
        changed = True
    return changed


def _flag(key: str) -> Callable[[dict], bool]:
    """What turns a flag that is written in another way into 0 or 1."""

    def change(annotation: dict) -> bool:
        value = annotation.get(key)
        if type(value) is bool or (type(value) is float and value in (0, 1)):
            annotation[key] = int(value)
        elif isinstance(value, str) and value.strip().lower() in ('0', '1', 'false', 'true'):
            annotation[key] = int(value.strip().lower() in ('1', 'true'))
        return type(annotation.get(key)) is not type(value)

    return change


def _missing(value: Any) -> bool:
    """Whether a value is null, or NaN, which pandas writes for it."""
    return value is None or value != value


def _repair_crowd(annotation: dict) -> bool:
    if not _missing(annotation.get('iscrowd')):
        return False
    annotation['iscrowd'] = 0
    return True


def _repair_ignore(annotation: dict) -> bool:
    """COCO's evaluation overwrites ``ignore`` with ``iscrowd``."""
    if _missing(annotation.get('ignore')):
        annotation.pop('ignore', None)  # training takes NaN for true
    if annotation.get('ignore') != 1 or annotation['iscrowd'] != 0:
        return False
    annotation['iscrowd'] = 1
    return True


def _are_numbers(values: list) -> bool:
    """Whether all are finite numbers: with NaN or an infinite one the sum is not either, and below nothing."""
    try:
        return set(map(type, values)) <= {int, float} and sum(map(abs, values)) < LARGEST_FLOAT
    except OverflowError:  # a whole number that no float holds
        return False


def _repair_empty(annotation: dict) -> bool:
    """MMDetection leaves these out of training; COCO's evaluation counts them as never found."""
    box = annotation.get('bbox')
    if not isinstance(box, list) or len(box) != 4 or not _are_numbers(box) or annotation['iscrowd'] != 0:
        return False
    if min(box[2:]) > 0:
        return False
    annotation['iscrowd'] = 1
    return True


def _outside(images: list[dict]) -> Callable[[dict], bool]:
    """What marks boxes that have no pixel of their image; both as for :func:`_repair_empty`."""
    sizes = {
        i['id']: (i['width'], i['height'])
        for i in images
        if isinstance(i.get('id'), (int, float, str)) and _are_numbers([i.get('width'), i.get('height')])
    }

    def change(annotation: dict) -> bool:
        box, owner = annotation.get('bbox'), annotation.get('image_id')
        size = sizes.get(owner) if isinstance(owner, (int, float, str)) else None
        if size is None or not isinstance(box, list) or len(box) != 4 or not _are_numbers(box):
            return False
        if annotation['iscrowd'] != 0 or not any(a >= s or a + b <= 0 for a, b, s in zip(box, box[2:], size)):
            return False
        annotation['iscrowd'] = 1
        return True

    return change


def _lacks_area(annotation: dict) -> bool:
    """Whether there is a box of a pixel or more, and an area that is missing or not above 0."""
    box, area = annotation.get('bbox'), annotation.get('area')
    if not isinstance(box, list) or len(box) != 4 or not _are_numbers(box):
        return False
    return _missing(area) or (type(area) in (int, float) and area <= 0 and box[2] >= 1 and box[3] >= 1)


def _repair_area(annotation: dict) -> bool:
    if not _lacks_area(annotation):
        return False
    annotation['area'] = annotation['bbox'][2] * annotation['bbox'][3]
    return True


def _renumber(annotations: list[dict]) -> list[str]:
    """Annotation ids, which nothing refers to, from 1 where the given ones do not survive COCO's evaluation.

    It stores the id of each match as a float64, and takes 0 for none.
    """
    ids = [whole(a.get('id')) for a in annotations]
    given = [i for i in ids if i is not None]
    if not all(type(i) in (int, str) for i in given) or len(set(given)) < len(given):
        return []
    if set(map(type, (a.get('id') for a in annotations))) <= {int} and all(0 < i < LARGEST_EXACT for i in ids):
        return []
    odd = next(
        a.get('id') for a, i in zip(annotations, ids) if type(a.get('id')) is not int or not 0 < i < LARGEST_EXACT
    )
    for i, annotation in enumerate(annotations, 1):
        if annotation.get('id') is not None:
            annotation.setdefault('original_id', annotation['id'])
        annotation['id'] = i
    return [
        f'annotation ids, {odd!r} among them: numbered from 1 (evaluation takes 0 for no match, and all for numbers)'
    ]
