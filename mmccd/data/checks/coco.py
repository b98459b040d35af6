"""What is wrong with a COCO annotation file, and the one reader of such files, which refuses them.

The file may contain anything: all that is wrong with it becomes findings.
"""

from __future__ import annotations

import codecs
import logging
import os.path as osp
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from mmengine.logging import print_log

from mmccd.data.annotations import repair
from mmccd.data.classes import category_problems, class_names, is_a, parse_json
from mmccd.data.image_files import is_inside
from mmccd.data.plain import LARGEST_FLOAT, LARGEST_ID, are_corners, is_plain, without_collection
from mmccd.errors import UserError

from .report import SLACK, Add, CheckedSplit, Report, number, readable, short

UNREADABLE = object()  # None is a JSON file's content too
# Findings that training or evaluation would read wrongly, or stop at: read_coco refuses files with them.
REFUSED = (
    'annotation-file',
    'image-entry',
    'image-id-double',
    'category-entry',
    'annotation-entry',
    'annotation-id-double',
    'not-finite',
    'ids',
)
DOCTOR = 'tools/checks/check_dataset.py CONFIG says what else is wrong with the data'
CLEAN = 'python tools/checks/check_dataset.py CONFIG --splits SPLIT --write-clean OUT.json writes a clean copy'
# Findings that are read as they stand, and said.
ODD = {
    'annotation-without-image': 'of images that are not in the file: left out',
    'annotation-without-category': 'of categories that are not in the file: left out',
    'box-double': 'that repeat another one of their image and class: each counts',
    'box-corners': 'that leave their image; as x1, y1, x2, y2 all would lie inside, and COCO has x, y, width, height',
}
_said: set[tuple[str, str]] = set()  # what was said of which file, once a process


class CocoFile:
    """The content of a COCO annotation file, nothing in it taken for granted.

    Args:
        content (Any): As JSON gave it; what is certain is repaired in place.
        add (Callable[[str, str], None]): Takes each finding: a kind of ``KINDS``, and what.
        locate (Callable[[str], str | None]): The path of an image by its ``file_name``; None if it leaves the root.
        classes (list[str] | None): The config's.
        min_size (float): Images with a shorter side are left out: ``filter_cfg.min_size`` of the training split.
        name (str): How messages call the file.

    Attributes:
        images (dict): Usable entries by id.
        paths (dict[str, tuple]): Expected (width, height) of each image's path.
    """

    def __init__(
        self,
        content: Any,
        add: Add,
        locate: Callable[[str], str | None] = lambda name: name,
        classes: list[str] | None = None,
        min_size: float = 0,
        name: str = 'the file',
    ) -> None:
        self.content, self.add, self.name = content, add, name
        self.images: dict[Any, Mapping] = {}
        self.paths: dict[str, tuple[float, float]] = {}
        self._ids_of_path: dict[str, list] = defaultdict(list)
        self._bad_images: set[int] = set()  # positions in the lists
        self._bad_annotations: set[int] = set()
        self._with_labels: set = set()  # images with an annotation of the classes, boxes without area included
        missing = [
            k
            for k in ('images', 'annotations', 'categories')
            if not isinstance(content, dict) or not isinstance(content.get(k), list)
        ]
        self.usable = not missing
        if missing:
            kind = 'a JSON object' if isinstance(content, dict) else f'{type(content).__name__} and no JSON object'
            add('annotation-file', f'{name} is {kind} without the lists {", ".join(missing)}')
            return
        for what in repair(content):
            add('repaired', f'{name}: {what}')
        categories = self._check_categories(classes)
        self._check_images(locate, min_size)
        # Ids that a clean copy has to number again.
        self._unfit = {key: unfit_ids(ids) for key, ids in (('image_id', self.images), ('category_id', categories))}
        for key, what in self._unfit.items():
            if what:
                add('ids', f'{key.replace("_", " ")}s: {what}')
        self._check_annotations(categories, classes)

    def _check_categories(self, classes: list[str] | None) -> dict[Any, str]:
        categories: dict[Any, str] = {}
        for i, category in enumerate(self.content['categories']):
            if (
                not isinstance(category, dict)
                or not is_id(category.get('id'))
                or not isinstance(category.get('name'), str)
            ):
                self.add('category-entry', f'categories[{i}] must have id and name, is {short(category)}')
            elif category['id'] in categories:
                self.add(
                    'category-entry',
                    f'categories[{i}] has the id {category["id"]} of {short(categories[category["id"]])}',
                )
            else:
                categories[category['id']] = category['name']
        if classes is not None:
            for problem in category_problems(classes, list(categories.values()), self.name):
                self.add('classes', readable(problem))
            for category in categories.values():
                if category not in classes:
                    self.add('category-unused', short(category))
        return categories

    def _check_images(self, locate: Callable[[str], str | None], min_size: float) -> None:
        for i, image in enumerate(self.content['images']):
            where = f'images[{i}]'
            self._bad_images.add(i)
            if not isinstance(image, dict) or not is_id(image.get('id')):
                self.add('image-entry', f'{where} has no id: {short(image)}')
                continue
            where += f' (id {short(image["id"])})'
            size = image.get('width'), image.get('height')
            if not isinstance(image.get('file_name'), str) or not image['file_name']:
                self.add('image-entry', f'{where} has no file_name, but {short(image.get("file_name"))}')
            elif not all(is_number(s) and 0 < s < 1e9 for s in size):
                self.add('image-entry', f'{where} must have a width and height above 0, has {short(size)}')
            elif image['id'] in self.images:
                self.add(
                    'image-id-double',
                    f'{where} {readable(image["file_name"])} has the id of '
                    f'{readable(self.images[image["id"]]["file_name"])}',
                )
            elif locate(image['file_name']) is None:
                self.add('path-outside', f'{where} {readable(image["file_name"])}')
            else:
                self._bad_images.discard(i)
                self.images[image['id']] = image
                path = locate(image['file_name'])
                if path in self.paths:
                    self.add('image-file-double', f'{where} {readable(path)}')
                self.paths[path] = size
                self._ids_of_path[path].append(image['id'])
                if min(size) < min_size:
                    self.add('image-small', f'{where} {readable(path)} has {size[0]} x {size[1]}')
        if not self.content['images']:
            self.add('empty-split', f'{self.name} has no images')

    def _check_annotations(self, categories: Mapping, classes: list[str] | None) -> None:
        ids, with_boxes, examples, objects, crowds = set(), set(), Counter(), False, False
        seen, boxes, sizes = set(), [], []
        for i, annotation in enumerate(self.content['annotations']):
            kind, what = self._annotation_problem(annotation, ids, categories)
            where = f'annotations[{i}]'
            if isinstance(annotation, dict) and is_id(annotation.get('id')):
                where += f' (id {short(annotation["id"])})'
                ids.add(annotation['id'])
            if kind:
                self._bad_annotations.add(i)
                self.add(kind, f'{where}: {what}')
                continue
            image, category = self.images[annotation['image_id']], categories[annotation['category_id']]
            if classes is None or category in classes:
                self._with_labels.add(image['id'])
            kind, what = box_problem(annotation['bbox'], annotation['area'], image['width'], image['height'])
            same = image['id'], annotation['category_id'], annotation['iscrowd'], *annotation['bbox']
            boxes.append(annotation['bbox'])
            sizes.append((image['width'], image['height']))
            if not kind and same in seen:
                kind, what = 'box-double', f'bbox {short(annotation["bbox"])}'
            seen.add(same)
            if kind:
                self.add(kind, f'{where}: {what}')
            if kind in ('box-empty', 'box-outside', 'box-double'):
                self._bad_annotations.add(i)
                continue
            with_boxes.add(image['id'])
            examples[category] += 1
            if classes is None or category in classes:
                objects, crowds = objects or not annotation['iscrowd'], crowds or bool(annotation['iscrowd'])
        outside = are_corners(np.array(boxes, float).reshape(-1, 4), np.array(sizes, float).reshape(-1, 2))
        if outside:
            self.add('box-corners', f'{self.name}: {odd_text("box-corners", outside)}')
        if self.content['images'] and not objects:
            but = ' but crowds' if crowds else ' of the classes' if with_boxes else ''
            self.add('empty-split', f'{self.name} has no usable annotation{but}')
        for image_id, image in self.images.items():
            if image_id not in with_boxes:
                self.add('image-without-boxes', f'{readable(image["file_name"])} (id {short(image_id)})')
        for name in classes or ():
            if name in categories.values() and not examples[name]:
                self.add('class-without-examples', short(name))

    def _annotation_problem(self, annotation: Any, ids: set, categories: Mapping) -> tuple[str, str]:
        """(kind, what) that makes an annotation useless; empty if nothing does."""
        if not isinstance(annotation, dict) or not is_id(annotation.get('id')):
            return 'annotation-entry', f'it has no id: {short(annotation)}'
        if annotation['id'] in ids:
            return 'annotation-id-double', 'an earlier one has the same id'
        box, area = annotation.get('bbox'), annotation.get('area')
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            return 'annotation-entry', f'bbox must be four numbers, is {short(box)}'
        if not is_number(area):
            return 'annotation-entry', f'area must be a number, is {short(area)}'
        for key in ('iscrowd', 'ignore'):
            if annotation.get(key) not in (None, 0, 1):
                return 'annotation-entry', f'{key} must be 0 or 1, is {short(annotation[key])}'
        if not all(map(is_finite, (*box, area))):
            return 'not-finite', f'bbox {short(box)}, area {short(area)}'
        for key, kind, known in (
            ('image_id', 'annotation-without-image', self.images),
            ('category_id', 'annotation-without-category', categories),
        ):
            if not is_id(annotation.get(key)):
                return 'annotation-entry', f'{key} must be an id, is {short(annotation.get(key))}'
            if annotation[key] not in known:
                return kind, f'{key} is {short(annotation[key])}'
        return '', ''

    def kept(self, filters: Mapping, classes: list[str] | None) -> tuple[int, str]:
        """How many images MMDetection's ``filter_cfg`` leaves, and why not the others."""
        size, empty = filters.get('min_size', 0), filters.get('filter_empty_gt', False)
        small = {i for i, image in self.images.items() if min(image['width'], image['height']) < size}
        without = set(self.images) - self._with_labels if empty else set()
        reasons = [f'{len(small):,} have a side below {size}'] if small else []
        reasons += [f'{len(without):,} have no box of the classes'] if without else []
        return len(self.images) - len(small | without), ', '.join(reasons)

    def drop(self, path: str) -> None:
        """Leave an image out of :meth:`cleaned`."""
        for image_id in self._ids_of_path.get(path, ()):
            self.images.pop(image_id, None)

    def cleaned(self) -> dict:
        """The content without what is broken; everything else as it is."""
        kept = {id(image) for image in self.images.values()}
        images = [
            image for i, image in enumerate(self.content['images']) if i not in self._bad_images and id(image) in kept
        ]
        annotations = [
            a
            for i, a in enumerate(self.content['annotations'])
            if i not in self._bad_annotations and a['image_id'] in self.images
        ]
        content = dict(self.content, images=images, annotations=annotations)
        for owners, key in (('images', 'image_id'), ('categories', 'category_id')):
            if self._unfit[key]:
                content.update(_numbered(content, owners, key))
        return content


def _numbered(content: dict, owners: str, key: str) -> dict:
    """Images or categories, and annotations, with ids from 1; each owner keeps its old id as ``original_id``."""
    usable = [e for e in content[owners] if isinstance(e, dict) and is_id(e.get('id'))]
    numbers = {entry['id']: i for i, entry in reversed(list(enumerate(usable, 1)))}
    return {
        owners: [dict(e, id=numbers[e['id']], original_id=e['id']) for e in usable],
        'annotations': [dict(a, **{key: numbers[a[key]]}) for a in content['annotations']],
    }


def unfit_ids(ids: Mapping) -> str:
    """Why COCO's evaluation, which sorts the ids of images and categories in an array, cannot tell them apart."""
    kinds = {isinstance(i, str) for i in ids}
    if len(kinds) > 1:
        example = short(next(i for i in ids if isinstance(i, str)))
        return f'texts beside numbers, which evaluation cannot tell apart, e.g. {example}'
    large = next((i for i in ids if not isinstance(i, str) and not -LARGEST_ID < i < LARGEST_ID), None)
    if large is not None:
        return f'beyond 64 bits, where evaluation cannot tell them apart, e.g. {short(large)}'
    ended = next((i for i in ids if isinstance(i, str) and (i.endswith('\0') or not i)), None)
    return '' if ended is None else f'a text that evaluation takes for another one, {short(ended)}'


def is_id(value: Any) -> bool:
    """Whether a JSON value can identify something: a whole number or a text."""
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number; NaN and infinity, which Python reads, are."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_finite(value: float) -> bool:
    """Whether a number is one that a float32 can hold."""
    return -LARGEST_FLOAT < value < LARGEST_FLOAT


def box_problem(box: list[float], area: float, width: float, height: float) -> tuple[str, str]:
    """(kind, what) of a box (x, y, w, h) in an image; empty if there is none. MMDetection leaves out the first two."""
    x, y, w, h = box
    what = f'bbox {short(box)} in an image of {width} x {height}'
    if w < 1 or h < 1 or area <= 0:
        return 'box-empty', f'{what}, area {area}'
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        return 'box-outside', what
    if x < -SLACK or y < -SLACK or x + w > width + SLACK or y + h > height + SLACK:
        return 'box-partly-outside', what
    return '', ''


def read_json(path: str, add: Add) -> Any:
    """The content of a JSON file; ``UNREADABLE``, and a finding, if it has none."""
    try:
        with open(path, 'rb') as f:
            return parse_json(f.read())
    except (OSError, ValueError) as e:  # a UnicodeDecodeError is one
        add('annotation-file', f'{readable(path)}: {e}')
        return UNREADABLE


def read_coco(path: str) -> dict:
    """The content of a COCO annotation file as training, evaluation and report take it.

    What is certain is repaired (:func:`mmccd.data.annotations.repair`), and said in the log once a process. Only files
    with something odd are looked at entry by entry. Without ``annotations``, as COCO's test split, the list is empty.

    Raises:
        OSError: If the file cannot be read.
        UserError: If it would be read wrongly, or cannot be used at all.
    """
    with open(path, 'rb') as f:
        raw = f.read()
    with without_collection():
        try:
            content = parse_json(raw)
        except ValueError as e:
            raise UserError(f'the annotations {path} cannot be used: {e}; {DOCTOR}') from e
        if raw.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_BE, codecs.BOM_UTF16_LE)):
            _say(path, 'repaired on reading: the byte-order mark at its beginning is skipped')
        del raw
        if isinstance(content, dict):
            content.setdefault('annotations', [])
        odd: Counter = Counter()
        if is_plain(content, odd):
            _say_odd(path, odd)
            return content
    refused: list[str] = []
    odd.clear()

    def add(kind: str, what: str) -> None:
        odd[kind] += kind != 'box-corners'  # which is one finding of all boxes
        if kind == 'box-corners':
            _say(path, what.removeprefix('it: '))
        elif kind == 'repaired':
            _say(path, f'repaired on reading: {what.removeprefix("it: ")}')
        elif kind in REFUSED:
            refused.append(what)

    file = CocoFile(content, add, name='it')
    if refused and not file.usable:
        raise UserError(f'the annotations {path} cannot be used: {refused[0]}; {DOCTOR}')
    if refused:
        more = f', and {len(refused) - 1:,} more' if len(refused) > 1 else ''
        raise UserError(f'the annotations {path} cannot be used: {refused[0]}{more}; {CLEAN}')
    _say_odd(path, odd)
    return content


def _say(path: str, what: str) -> None:
    if (path, what) not in _said:
        _said.add((path, what))
        print_log(f'annotations {path}: {what}', 'current', logging.WARNING)


def _say_odd(path: str, odd: Mapping[str, int]) -> None:
    for kind in ODD:
        if odd.get(kind):
            _say(path, odd_text(kind, odd[kind]))


def odd_text(kind: str, n: int) -> str:
    """What is said of ``n`` annotations of a kind of ``ODD``."""
    return f'{number(n, "annotation", "annotations")} {ODD[kind]}'


def check_coco(split: CheckedSplit, dataset: Mapping, cls: type, report: Report) -> None:
    """The annotation file of a COCO dataset of MMDetection."""
    add = partial(report.add, split.name)
    root = dataset.get('data_root') or ''
    prefix = osp.join(root, (dataset.get('data_prefix') or {}).get('img', ''))
    path = osp.join(root, dataset.get('ann_file') or '')
    content = read_json(path, add)
    if content is UNREADABLE:
        return

    def locate(name: str) -> str | None:
        located = osp.join(prefix, name)
        return located if any(is_inside(located, r) for r in (root or prefix or '.', prefix or '.')) else None

    try:
        classes = class_names(dataset, cls)
    except ValueError as e:
        add('classes', str(e))
        classes = None
    filters = {} if dataset.get('test_mode') else dataset.get('filter_cfg') or {}  # mmdet filters no other split
    min_size = filters.get('min_size', 0)
    file = CocoFile(content, add, locate, classes, min_size, path)
    if file.usable:
        split.paths.update(file.paths)
        split.drop = file.drop
        split.kept, reasons = file.kept(filters, classes)
        if file.images and not split.kept:
            add(
                'empty-split',
                f'none of the {len(file.images):,} images of {path} is left: {reasons} (filter_cfg={filters})',
            )
        report.cleaned[path] = file.cleaned


def reads_coco(cls: type) -> bool:
    """Whether a class is MMDetection's CocoDataset, or reads its file in the same way."""
    return (
        is_a(cls, 'CocoDataset')
        and cls.parse_data_info.__qualname__ == 'CocoDataset.parse_data_info'
        and all(
            base.__name__ in ('CocoDataset', 'GuardedDataset')
            for base in cls.__mro__
            if 'load_data_list' in vars(base) and base.__name__ != 'BaseDataset'
        )
    )


def image_ids(content: Any) -> set:
    """Ids of the images in an annotation file's content, as far as it has any."""
    images = content.get('images') if isinstance(content, dict) else None
    if not isinstance(images, list):
        return set()
    return {image['id'] for image in images if isinstance(image, dict) and is_id(image.get('id'))}
