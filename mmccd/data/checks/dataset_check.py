"""What is wrong with the data of a config: annotations, images, classes. Behind ``tools/checks/check_dataset.py``.

Everything read here is another's, and anything may stand in it: whatever a JSON file holds becomes findings.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import os.path as osp
import reprlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS
from tqdm import tqdm

from mmccd.configs import datasets_of
from mmccd.data.classes import category_problems, class_names, class_problems, dataset_class, is_a, parse_json
from mmccd.data.datasets import is_inside
from mmccd.data.image_files import MISSING, ImageFile, read_file
from mmccd.env import is_local
from mmccd.errors import UserError

SETS = ('train', 'val', 'test')
MAX_PIXELS = 50_000_000  # 150 MB decoded
SLACK = 1.0  # pixels that a box may reach out of its image: rounding
KINDS = {
    'annotation-file': ('error', 'annotations that cannot be read'),
    'image-entry': ('error', "entries of 'images' without what they need"),
    'image-id-double': ('error', 'images with the id of another one'),
    'annotation-entry': ('error', "entries of 'annotations' without what they need"),
    'annotation-id-double': ('error', 'annotations with the id of another one'),
    'annotation-without-image': ('error', 'annotations of an image that is not in the file'),
    'annotation-without-category': ('error', 'annotations of a category that is not in the file'),
    'category-entry': ('error', "entries of 'categories' without id or name, or with another's id"),
    'not-finite': ('error', 'boxes or areas that are not finite'),
    'iscrowd-missing': ('error', "annotations without 'iscrowd', which COCO's evaluation reads"),
    'classes': ('error', 'classes that do not fit'),
    'label': ('error', 'labels without a class'),
    'path-outside': ('error', 'paths that leave the data root'),
    'image-missing': ('error', 'images that are not there'),
    'image-broken': ('error', 'images that cannot be decoded'),
    'image-size': ('error', 'images of another size than the annotations say'),
    'empty-set': ('error', 'sets without images or without annotations'),
    'image-shared': ('error', 'files in training and evaluation both'),
    'evaluator': ('error', 'evaluators with other images than their loader'),
    'evaluator-file': ('warning', 'evaluators with another annotation file than their loader'),
    'content-shared': ('warning', 'images in training and evaluation with the same content'),
    'image-file-double': ('warning', 'files that several entries name'),
    'box-empty': ('warning', 'boxes below one pixel or without area, which are left out'),
    'box-outside': ('warning', 'boxes outside of their image, which are left out'),
    'box-partly-outside': ('warning', f'boxes that reach more than {SLACK:g} pixel out of their image'),
    'image-huge': ('warning', 'images with more pixels than --max-pixels'),
    'image-small': ('note', "images with a side below filter_cfg's min_size, which training leaves out"),
    'image-without-boxes': ('note', 'images without a usable box'),
    'class-without-examples': ('note', 'classes without an example'),
    'category-unused': ('note', 'categories that the config has no class for'),
    'not-checked': ('note', 'what was not looked at'),
}
# Errors that write_clean leaves out with their entries.
CLEANED = (
    'image-entry',
    'image-id-double',
    'annotation-entry',
    'annotation-id-double',
    'annotation-without-image',
    'annotation-without-category',
    'not-finite',
    'path-outside',
    'image-missing',
    'image-broken',
    'image-size',
)
SEVERITIES = ('error', 'warning', 'note')
Add = Callable[[str, str], None]
UNREADABLE = object()  # None is a JSON file's content too


@dataclass
class Report:
    """Findings of :func:`check_config`.

    Attributes:
        images (dict[str, int]): Number of images of each set.
        findings (dict[str, list]): (set, what) of each kind found, in the order found.
        cleaned (dict[str, Callable]): For each COCO annotation file, what makes its content without what is broken.
    """

    images: dict[str, int] = field(default_factory=dict)
    findings: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    cleaned: dict[str, Callable[[], dict]] = field(default_factory=dict)

    def add(self, name: str, kind: str, what: str) -> None:
        """Note a finding of one of ``KINDS`` in the set ``name``."""
        assert kind in KINDS
        self.findings[kind].append((name, what))

    def count(self, severity: str) -> int:
        """Number of findings of a severity."""
        return sum(len(found) for kind, found in self.findings.items() if KINDS[kind][0] == severity)

    def sorted(self) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
        """(severity, kind, text, findings), the gravest first."""
        order = [k for severity in SEVERITIES for k in KINDS if KINDS[k][0] == severity and self.findings.get(k)]
        return [(*KINDS[k][:1], k, KINDS[k][1], self.findings[k]) for k in order]

    def text(self, examples: int = 3) -> str:
        """For people: each kind with its first examples, and a sum."""
        lines = [f'{name}: {number(n, "image", "images")}' for name, n in self.images.items()]
        for severity, kind, text, found in self.sorted():
            lines.append(f'{severity:8}{len(found):>8,}  {kind}: {text}')
            lines += [f'{"":18}{name}: {what}' for name, what in found[:examples]]
            if len(found) > examples:
                lines.append(f'{"":18}and {len(found) - examples:,} more')
        return '\n'.join([*lines, ', '.join(number(self.count(s), s, f'{s}s') for s in SEVERITIES)])

    def as_dict(self) -> dict:
        """For programs: all findings."""
        return dict(
            images=self.images,
            counts={s: self.count(s) for s in SEVERITIES},
            findings=[
                dict(severity=severity, kind=kind, text=text, items=[dict(set=n, what=w) for n, w in found])
                for severity, kind, text, found in self.sorted()
            ],
        )


@dataclass
class Checked:
    """A set after its annotations were read.

    Attributes:
        paths (dict): Size (width, height) that the annotations give to each image, or None.
        drop (Callable): Told the path of an image that cannot be used.
    """

    name: str
    paths: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    drop: Callable[[str], None] = lambda path: None


class CocoFile:
    """The content of a COCO annotation file, read with suspicion.

    Args:
        content (Any): As JSON gave it.
        add (Callable[[str, str], None]): Takes each finding: a kind of ``KINDS``, and what.
        locate (Callable[[str], str | None]): The path of an image by its ``file_name``; None if it leaves the root.
        classes (list[str] | None): The config's.
        min_size (float): Images with a shorter side are left out: ``filter_cfg.min_size`` of a training set.
        evaluated (bool): Whether COCO's evaluation will read the file.
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
        evaluated: bool = False,
        name: str = 'the file',
    ) -> None:
        self.content, self.add, self.name = content, add, name
        self.images: dict[Any, Mapping] = {}
        self.paths: dict[str, tuple[float, float]] = {}
        self._ids_of_path: dict[str, list] = defaultdict(list)
        self._bad_images: set[int] = set()  # positions in the lists
        self._bad_annotations: set[int] = set()
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
        categories = self._check_categories(classes)
        self._check_images(locate, min_size)
        self._check_annotations(categories, classes, evaluated)

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
            self.add('empty-set', f'{self.name} has no images')

    def _check_annotations(self, categories: Mapping, classes: list[str] | None, evaluated: bool) -> None:
        ids, with_boxes, examples = set(), set(), Counter()
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
            if evaluated and 'iscrowd' not in annotation:
                self.add('iscrowd-missing', where)
            image = self.images[annotation['image_id']]
            kind, what = box_problem(annotation['bbox'], annotation['area'], image['width'], image['height'])
            if kind:
                self.add(kind, f'{where}: {what}')
            if kind in ('box-empty', 'box-outside'):
                self._bad_annotations.add(i)
                continue
            with_boxes.add(image['id'])
            examples[categories[annotation['category_id']]] += 1
        if self.content['images'] and not with_boxes:
            self.add('empty-set', f'{self.name} has no usable annotation')
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
        return dict(self.content, images=images, annotations=annotations)


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
    return -1e38 < value < 1e38


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


def number(n: int, one: str, many: str) -> str:
    """``1 class``, ``2 classes``."""
    return f'{n:,} {one if n == 1 else many}'


def readable(text: str) -> str:
    """A text that any terminal can print on one line."""
    return text if text.isprintable() else repr(text)


def short(value: Any) -> str:
    """A value from a file, in a few characters."""
    return reprlib.repr(value)


def read_json(path: str, add: Add) -> Any:
    """The content of a JSON file; ``UNREADABLE``, and a finding, if it has none."""
    try:
        with open(path, 'rb') as f:
            return parse_json(f.read())
    except (OSError, ValueError) as e:  # a UnicodeDecodeError is one
        add('annotation-file', f'{readable(path)}: {e}')
        return UNREADABLE


def check_coco(checked: Checked, dataset: Mapping, cls: type, report: Report, evaluated: bool) -> None:
    """The annotation file of one of MMDetection's COCO sets."""
    add = partial(report.add, checked.name)
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
    filters = {} if dataset.get('test_mode') else dataset.get('filter_cfg') or {}  # mmdet filters no other set
    min_size = filters.get('min_size', 0)
    file = CocoFile(content, add, locate, classes, min_size, evaluated, path)
    if file.usable:
        checked.paths.update(file.paths)
        checked.drop = file.drop
        report.cleaned[path] = file.cleaned


def check_lines(dataset: Mapping, add: Add) -> bool:
    """Whether the annotation file of one of MMPretrain's sets, '<path> <label>' a line, can be read."""
    root = dataset.get('data_root') or ''
    path = osp.join(root, dataset.get('ann_file') or osp.join('meta', f'{dataset.get("split")}.txt'))
    prefix = dataset.get('data_prefix') or dataset.get('split') or ''
    prefix = osp.join(root, prefix.get('img_path', '') if isinstance(prefix, Mapping) else prefix)
    if not dataset.get('ann_file') and not osp.isfile(path):
        return True  # folders
    try:
        with open(path, encoding='utf-8') as f:
            lines = f.read().splitlines()
    except (OSError, ValueError) as e:
        add('annotation-file', f'{path}: {e}')
        return False
    good = True
    for i, line in enumerate(lines, 1):
        name, _, label = line.strip().rpartition(' ') if dataset.get('with_label', True) else (line, '', '0')
        if not name or not label.isdecimal():
            add('annotation-entry', f'{path}:{i} must be a path, a space and a label, is {short(line)}')
        elif not is_inside(osp.join(prefix, name), root or prefix):
            add('path-outside', f'{path}:{i} {readable(name)}')
        else:
            continue
        good = False
    return good


def check_built(checked: Checked, dataset: Mapping, cls: type, scope: str | None, report: Report) -> None:
    """Any other data set: what it says itself about its images and labels."""
    add = partial(report.add, checked.name)
    if is_a(cls, 'CustomDataset') and not check_lines(dataset, add):
        return
    try:
        built = DATASETS.build(dict(copy.deepcopy(dataset), pipeline=[], _scope_=scope))
        built.full_init()
        infos = [built.get_data_info(i) for i in range(len(built))]
    except Exception as e:  # of any data set there is
        add('annotation-file', f'{cls.__name__} cannot be built: {str(e) or type(e).__name__}')
        return
    classes = built.metainfo.get('classes')
    labels: Counter = Counter()
    for info in infos:
        if not isinstance(info.get('img_path'), str):
            continue
        label = info.get('gt_label')
        if info['img_path'] in checked.paths:
            add('image-file-double', readable(info['img_path']))
        checked.paths[info['img_path']] = None
        if isinstance(label, int):
            labels[label] += 1
            if classes is not None and not 0 <= label < len(classes):
                add('label', f'{readable(info["img_path"])} has label {label} of {len(classes)} classes')
    if labels and classes is not None:
        for i, name in enumerate(classes):
            if not labels[i]:
                add('class-without-examples', short(name))
    if not infos:
        add('empty-set', 'it has no images')
    elif not checked.paths:
        add('not-checked', f'{cls.__name__} has no image files')


def _reads_coco(cls: type) -> bool:
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


def check_images(sets: list[Checked], report: Report, max_pixels: int, workers: int) -> None:
    """Decode the images of all sets, each once; sizes, and what training and evaluation share."""
    paths = list(dict.fromkeys(p for s in sets for p in s.paths))
    train_paths = {p for s in sets if s.name == 'train' for p in s.paths}
    train_files = set(map(_real, train_paths))
    train_contents: dict[str, str] = {}
    for path, image, digest in look_at_all(paths, max_pixels, workers):
        for checked in sets:
            if path not in checked.paths:
                continue
            kind, what = _image_problem(image, checked.paths[path], max_pixels)
            if kind:
                report.add(checked.name, kind, f'{readable(path)}{what}')
            if kind and KINDS[kind][0] == 'error':
                checked.drop(path)
        if digest and path in train_paths:
            train_contents.setdefault(digest, path)
        for checked in sets:
            if checked.name == 'train' or path not in checked.paths:
                continue
            if _real(path) in train_files:
                report.add(checked.name, 'image-shared', readable(path))
            elif digest in train_contents:  # training's paths came first
                report.add(checked.name, 'content-shared', f'{readable(path)} and {readable(train_contents[digest])}')


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
    return '', ''


def check_evaluators(cfg: Config, sets: tuple[str, ...], report: Report) -> None:
    """An evaluator's annotation file has to be its loader's, or one of the same images."""
    for name in sets:
        loader, evaluators = cfg.get(f'{name}_dataloader'), cfg.get(f'{name}_evaluator')
        if not loader or not evaluators:
            continue
        files = [
            osp.join(d.get('data_root') or '', d['ann_file']) for _, d in datasets_of(loader, name) if d.get('ann_file')
        ]
        for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
            path = evaluator.get('ann_file')
            if not path or not files or any(osp.realpath(path) == osp.realpath(f) for f in files):
                continue
            add = partial(report.add, name)
            add('evaluator-file', f'{path}, the loader has {", ".join(files)}')
            content = read_json(path, add)
            loaded = [read_json(f, lambda *_: None) for f in files]
            if content is not UNREADABLE:
                other = _image_ids(content) ^ set().union(*map(_image_ids, loaded))
                if other:
                    add(
                        'evaluator',
                        f'{path} and {", ".join(files)} differ in {len(other)} image ids, e.g. '
                        f'{", ".join(short(i) for i in sorted(other, key=str)[:3])}',
                    )


def _image_ids(content: Any) -> set:
    images = content.get('images') if isinstance(content, dict) else None
    if not isinstance(images, list):
        return set()
    return {image['id'] for image in images if isinstance(image, dict) and is_id(image.get('id'))}


def check_config(cfg: Config, sets: tuple[str, ...] = SETS, workers: int = 0, max_pixels: int = MAX_PIXELS) -> Report:
    """Look at all data that a config names.

    Args:
        cfg (Config): Its loaders and evaluators are read.
        sets (tuple[str, ...]): Which of ``SETS``. Those that the config has not are left out. Default: all.
        workers (int): Processes that decode images; 0 is this one alone. Default: 0.
        max_pixels (int): Larger images are reported and not decoded. Default: 50 million.

    Raises:
        UserError: If the config has none of the sets, or a data set of an unknown type.
    """
    report, together = Report(), {}
    sets = tuple(name for name in SETS if name in sets)  # training first
    for name in sets:
        for key, dataset in datasets_of(cfg.get(f'{name}_dataloader') or {}, f'{name}_dataloader'):
            if not dataset:
                continue
            cls = dataset_class(dataset, cfg.get('default_scope'))
            if cls is None:
                raise UserError(f'{key}.type: there is no data set {dataset.get("type")!r}')
            # Mostly val and test are one and the same.
            known = json.dumps({k: v for k, v in dataset.items() if k not in ('pipeline', 'test_mode')}, default=str)
            together.setdefault((known, name == 'train'), (dataset, cls, []))[2].append(name)
    if not together:
        raise UserError(f'the config has no data set for {", ".join(sets)}')
    checked_sets = []
    for dataset, cls, names in together.values():
        checked = Checked(', '.join(dict.fromkeys(names)))
        if dataset.get('backend_args') or not is_local(dataset.get('data_root') or ''):
            report.add(checked.name, 'not-checked', f'{dataset.get("data_root")} is not on a disk of this machine')
        elif _reads_coco(cls):
            check_coco(checked, dataset, cls, report, evaluated='train' not in names)
        else:
            check_built(checked, dataset, cls, cfg.get('default_scope'), report)
        checked_sets.append(checked)
        report.images[checked.name] = report.images.get(checked.name, 0) + len(checked.paths)
    found = {what for _, what in report.findings.get('classes', ())}
    try:
        for problem in class_problems(cfg, sets):
            if not any(problem.endswith(what) for what in found):
                report.add('config', 'classes', readable(problem))
    except UserError:
        pass  # an annotation file: found above
    check_evaluators(cfg, sets, report)
    check_images(checked_sets, report, max_pixels, workers)
    return report


def write_clean(report: Report, out: str) -> dict:
    """Write the one COCO file of a report without what is broken; returns what was written.

    Raises:
        UserError: If there is not exactly one, or ``out`` is there.
    """
    if osp.exists(out):
        raise UserError(f'--write-clean: {out} is there, and nothing is overwritten')
    if len(report.cleaned) != 1:
        raise UserError(
            f'--write-clean needs one readable COCO annotation file, found {len(report.cleaned)}: '
            f'{", ".join(report.cleaned) or "none"}. Name its set with --sets'
        )
    content = next(iter(report.cleaned.values()))()
    os.makedirs(osp.dirname(osp.abspath(out)), exist_ok=True)
    with open(f'{out}.partial', 'w', encoding='utf-8') as f:
        json.dump(content, f)
    os.replace(f'{out}.partial', out)
    return content
