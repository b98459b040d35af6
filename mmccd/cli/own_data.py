"""Own data: what ``tools/make_config.py`` reads of them. :mod:`mmccd.cli.own_recipe` decides what follows from it."""

from __future__ import annotations

import os.path as osp
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmccd.data.checks.coco import UNREADABLE, CocoFile, is_id, read_json
from mmccd.data.classes import class_folders, read_categories
from mmccd.data.image_files import SUFFIXES, is_image, left_out, read_file, walk_files
from mmccd.errors import UserError

SAMPLED = 200  # images of class folders whose size is read


@dataclass
class Split:
    """A split as it was found; broken entries are left out, the data checks name them.

    Attributes:
        argument (str): The option that named it.
        folder (str): Images.
        ann_file (str): COCO annotations; empty for class folders.
        classes (tuple[str, ...]): In the order of the labels.
        counts (Counter): Examples of each class.
        images (int): All images.
        filled (int): Images with a box; with class folders, all.
        sizes (np.ndarray): (P, 2), width and height in pixels; of class folders a sample.
        sides (np.ndarray): (B, 2), width and height of each box that is no crowd, in pixels.
        owners (np.ndarray): (B, ), the row of its image in ``sizes``.
    """

    argument: str
    folder: str
    ann_file: str
    classes: tuple[str, ...]
    counts: Counter
    images: int
    filled: int
    sizes: np.ndarray
    sides: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    owners: np.ndarray = field(default_factory=lambda: np.zeros(0, int))


def _check_folder(argument: str, folder: str) -> None:
    if not osp.isdir(folder):
        raise UserError(
            f'{argument}: {folder!r} must be a folder of images, and '
            + ('is a file' if osp.exists(folder) else 'does not exist')
        )


def read_coco(argument: str, folder: str, ann_file: str) -> Split:
    """Read a split in COCO format; a UserError if there is none, or nothing in it."""
    _check_folder(argument, folder)
    if not osp.isfile(ann_file):
        raise UserError(f'{argument}: the annotation file {ann_file!r} does not exist')
    problems: list[str] = []

    def add(kind: str, what: str) -> None:
        problems.append(what)

    content = read_json(ann_file, add)
    file = None if content is UNREADABLE else CocoFile(content, add, name=ann_file)
    if file is None or not file.usable:
        raise UserError(f'{argument}: no COCO annotation file: {problems[0]}')
    try:
        classes = tuple(read_categories(ann_file))
    except ValueError as e:
        raise UserError(f'{argument}: {ann_file} cannot be used: {e}') from e
    names = defaultdict(list)  # more than one where categories share an id, an error of the data checks
    for category in content['categories']:
        if is_id(category.get('id')):
            names[category['id']].append(category['name'])
    clean = file.cleaned()
    rows = {image['id']: row for row, image in enumerate(clean['images'])}
    boxes = [a for a in clean['annotations'] if not a.get('iscrowd')]
    for what, found in (('categories', names), ('usable images', rows), ('usable boxes', boxes)):
        if not found:
            raise UserError(f'{argument}: {ann_file} has no {what}' + (f': {problems[0]}' if problems else ''))
    owners = np.array([rows[a['image_id']] for a in boxes])
    counts = Counter(name for a in boxes for name in names[a['category_id']])
    return Split(
        argument,
        folder,
        ann_file,
        classes,
        counts,
        len(rows),
        len(np.unique(owners)),
        np.array([(i['width'], i['height']) for i in clean['images']], float),
        np.array([a['bbox'][2:] for a in boxes], float),
        owners,
    )


def read_folders(argument: str, folder: str) -> Split:
    """Read a folder of class folders; a UserError if there are none, or no images in them."""
    _check_folder(argument, folder)
    classes = tuple(class_folders(dict(data_prefix=folder)))
    if not classes:
        raise UserError(
            f'{argument}: {folder!r} has no class folders. A COCO dataset needs its annotation file, too: '
            f'{argument} DIR JSON'
        )
    paths, counts, others = [], Counter(), []
    for name in classes:
        for file in walk_files(osp.join(folder, name)):
            path = osp.join(name, file)
            if is_image(file):
                counts[name] += 1
                paths.append(osp.join(folder, path))
            else:
                others.append(path)
    if not paths:
        has = f'; they have {", ".join(map(str, left_out(others)))}' if others else ''
        raise UserError(f'{argument}: the class folders of {folder!r} have no images ({", ".join(SUFFIXES)}){has}')
    sizes = list(_sizes(paths[:: -(-len(paths) // SAMPLED)]))
    return Split(argument, folder, '', classes, counts, len(paths), len(paths), np.array(sizes, float).reshape(-1, 2))


def _sizes(paths: Sequence[str]) -> Iterator[tuple[int, int]]:
    for path in paths:
        image, _ = read_file(path, max_pixels=0)  # 0: its header alone
        if not image.problem:  # the data checks name it
            yield image.size


def check_same_classes(train: Split, other: Split) -> None:
    """Labels are positions in the list of classes: it has to be one and the same."""
    if train.classes == other.classes:
        return
    text = f'{train.argument} and {other.argument} have different classes'
    for one, two in ((train, other), (other, train)):
        alone = [c for c in one.classes if c not in two.classes]
        if alone:
            text += f'; only {one.argument} has {", ".join(map(repr, alone[:10]))}' + (' ...' if alone[10:] else '')
    if sorted(train.classes) == sorted(other.classes):
        text += f' in order or number: {", ".join(train.classes[:10])} and {", ".join(other.classes[:10])}'
    raise UserError(text + '. Labels are positions in this list: give both the same categories in the same order')
