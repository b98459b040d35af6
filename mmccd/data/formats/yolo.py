"""YOLO folders: Ultralytics' ``data.yaml``, Darknet's ``obj.data``, or class names in a text file beside the labels.

A label file has a line for each object: the class's number, then centre, width and height of its box, or the points of
a polygon, as shares of the image's width and height. Ultralytics reads and trains on images with their EXIF orientation
applied, so the shares are of that size.
"""

from __future__ import annotations

import math
import os
import os.path as osp
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mmccd.data.image_files import is_image, is_left_behind
from mmccd.errors import UserError

from .images import Images, image_of, lines_of, names_in, walk
from .labelled import WHOLE, Findings, Label, Labelled, LabelledImage, check_class_names, split_name
from .shapes import around

NAME_FILES = ('classes.txt', 'obj.names', 'classes.names')
NO_LABELS = ('train.txt', 'val.txt', 'valid.txt', 'test.txt', 'readme.txt', 'readme.roboflow.txt', 'readme.dataset.txt')
SLACK = 0.01  # that a share may be outside of 0 to 1: rounding, as Ultralytics allows


@dataclass
class Layout:
    """What a dataset's file says.

    Attributes:
        path (str): The file.
        root (str): What its paths are relative to.
        names (tuple[str, ...]): Classes.
        splits (dict[str, list[str]]): Folders, images or lists of images of each split, as written.
        values (int): Numbers in a label besides its class and box: of keypoints.
    """

    path: str
    root: str
    names: tuple[str, ...]
    splits: dict[str, list[str]]
    values: int = 0


def find_layout(path: str) -> str | None:
    """The file that describes a YOLO dataset: ``path``, or one in this folder; None if there is none."""
    if osp.isfile(path):
        is_one = path.endswith(('.yaml', '.yml', '.data')) or osp.basename(path) in NAME_FILES
        return path if is_one else None
    names = names_in(path)
    for name in ('data.yaml', 'dataset.yaml', 'data.yml', 'obj.data'):
        if name in names:
            return osp.join(path, name)
    others = [n for n in names if n.endswith(('.yaml', '.yml')) and _describes(osp.join(path, n))]
    if len(others) > 1:
        raise UserError(f'{path} has several files with classes and splits, {", ".join(others)}: name one of them')
    found = [*others, *(n for n in NAME_FILES if n in names and _has_labels(path))]
    return osp.join(path, found[0]) if found else None


def _describes(path: str) -> bool:
    try:
        with open(path, encoding='utf-8-sig') as f:
            content = yaml.safe_load(f)
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and ('names' in content or 'nc' in content) and bool({'train', 'val'} & {*content})


def _has_labels(folder: str) -> bool:
    """Whether text files lie beside images, or in a folder of labels."""
    if osp.isdir(osp.join(folder, 'labels')):
        return True
    names = names_in(folder)
    stems = {osp.splitext(n)[0] for n in names if is_image(n)}
    return any(n.endswith('.txt') and n[:-4] in stems for n in names)


def read(path: str, findings: Findings) -> Labelled:
    """Read a dataset.

    Args:
        path (str): Its folder, or the file that describes it.
        findings (Findings): Gets what is wrong or odd.

    Raises:
        UserError: If what describes it cannot be used.
    """
    file = find_layout(path)
    if file is None:
        raise UserError(f'{path} has no data.yaml, obj.data, {" or ".join(NAME_FILES[:2])}: the classes have no names')
    layout = _read_names(file) if osp.basename(file) in NAME_FILES else _read_layout(file, findings)
    reader = _Reader(layout, findings)
    splits = {split: reader.split(split, sources) for split, sources in layout.splits.items()}
    reader.find_orphans()
    return Labelled(path, 'yolo', splits, layout.names, findings)


def _read_layout(file: str, findings: Findings) -> Layout:
    content = _read_data(file) if file.endswith('.data') else _read_yaml(file)
    here = osp.dirname(osp.abspath(file))
    names = content.get('names')
    if isinstance(names, str):
        names = _lines(_first([names, osp.join(here, names), osp.join(here, osp.basename(names))], names))
    elif isinstance(names, dict):
        keys = {int(k) if isinstance(k, str) and k.isdecimal() else k: v for k, v in names.items()}
        if set(keys) != set(range(len(keys))):
            raise UserError(f'{file}: names must be numbered from 0 without a gap, has {", ".join(map(str, names))}')
        names = [keys[i] for i in range(len(keys))]
    count = content.get('nc', content.get('classes'))
    if names is None and isinstance(count, int) and count > 0:
        names = [f'class_{i}' for i in range(count)]
        findings.add('taken', f'{file} has no names: {names[0]} to {names[-1]}')
    if not isinstance(names, (list, tuple)) or not names:
        raise UserError(f'{file}: names must be a list of classes or a dict of them by number, is {names!r}')
    names = check_class_names(names, file)
    if count is not None and count != len(names):
        raise UserError(f'{file}: nc is {count!r}, and there are {len(names)} names')
    splits: dict[str, list[str]] = {}
    for key, value in content.items():
        split = split_name(str(key))
        sources = [value] if isinstance(value, str) else value
        if split is None or not sources:
            continue
        if not isinstance(sources, list) or not all(isinstance(s, str) and s for s in sources):
            raise UserError(f'{file}: {key} must be a path or a list of paths, is {value!r}')
        if split in splits:
            raise UserError(f'{file}: {key} is a second split {split}')
        splits[split] = sources
    if not splits:
        raise UserError(f'{file} has no train, val or test')
    shape = content.get('kpt_shape')
    values = math.prod(shape) if isinstance(shape, list) and all(isinstance(v, int) for v in shape) else 0
    return Layout(file, _root(file, content.get('path'), splits, findings), names, splits, values)


def _root(file: str, given: Any, splits: dict[str, list[str]], findings: Findings) -> str:
    """The folder that paths are relative to. Datasets are moved without their ``path``: then the file's own folder."""
    here = osp.dirname(osp.abspath(file))
    if not given:
        return here
    candidates = [given] if osp.isabs(str(given)) else [osp.join(here, str(given)), osp.abspath(str(given))]
    for folder in candidates:
        if any(_located(folder, source) for sources in splits.values() for source in sources):
            return osp.normpath(folder)
    findings.add('taken', f'{file}: path {given!r} does not lead to the images: the folder of the file is taken')
    return here


def _located(root: str, source: str) -> str | None:
    """A path of a split; exporters write ``../train/images`` or ``data/train.txt`` into a file that stands beside."""
    paths = [source] if osp.isabs(source) else [osp.join(root, source)]
    paths += [osp.join(root, source.partition('/')[2])] * source.startswith(('../', 'data/'))
    return next((osp.normpath(p) for p in paths if osp.exists(p)), None)


def _first(paths: Sequence[str], name: str) -> str:
    found = next((p for p in paths if osp.isfile(p)), None)
    if found is None:
        raise UserError(f'the file of class names {name} does not exist')
    return found


def _read_yaml(file: str) -> dict:
    try:
        with open(file, encoding='utf-8-sig') as f:
            content = yaml.safe_load(f)
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise UserError(f'{file} is no YAML file: {" ".join(str(e).split())}') from e
    if not isinstance(content, dict):
        raise UserError(f'{file} must have keys: names, train, val; it has {type(content).__name__}')
    return content


def _read_data(file: str) -> dict:
    """Darknet's ``key = value`` lines."""
    content: dict[str, Any] = {}
    for line in _lines(file):
        key, equals, value = line.partition('=')
        if equals and value.strip() and key.strip() != 'backup':
            content[key.strip()] = int(value) if value.strip().isdecimal() else value.strip()
    return content


def _read_names(file: str) -> Layout:
    """Class names in a text file, a line each; the splits are folders below ``images``, or beside the file."""
    root = osp.dirname(osp.abspath(file))
    names = check_class_names(_lines(file), file)
    if not names:
        raise UserError(f'{file} has no names of classes')
    base = 'images' if osp.isdir(osp.join(root, 'images')) else '.'
    folders = {split_name(n): osp.join(base, n) for n in names_in(osp.join(root, base))}
    splits = {s: [p] for s, p in folders.items() if s is not None and osp.isdir(osp.join(root, p))}
    return Layout(file, root, names, splits or {WHOLE: [base]})


def _lines(path: str) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        with open(path, encoding='utf-8-sig') as f:
            return [line.strip() for line in f if line.strip()]
    except (OSError, ValueError) as e:
        raise UserError(f'{path} cannot be read: {e}') from e


class _Reader:
    def __init__(self, layout: Layout, findings: Findings) -> None:
        self.layout, self.findings = layout, findings
        self.images = Images(layout.root, findings)
        self.owners: dict[str, str] = {}  # image of each label file
        self.label_folders: dict[str, set[str]] = {}  # folders of images whose labels are there

    def split(self, split: str, sources: Sequence[str]) -> list[LabelledImage]:
        """All images of a split."""
        found, seen = [], set()
        for path in self._paths(split, sources):
            if path in seen:
                self.findings.add('image-double', f'{path} is in {split} twice')
                continue
            seen.add(path)
            label_file = self._label_file(path)
            if self.owners.setdefault(label_file, path) != path:
                self.findings.add('image-double', f'{self.owners[label_file]} and {path} share {label_file}')
                continue
            size = self.images.take(path, label_file, again=True)
            if size is not None:
                found.append(LabelledImage(path, size, self._labels(label_file, size)))
        return found

    def _paths(self, split: str, sources: Sequence[str]) -> Iterator[str]:
        for source in sources:
            path = _located(self.layout.root, source)
            if path is None:
                self.findings.add('split', f'{self.layout.path}: {split}: {source} is not in {self.layout.root}')
            elif osp.isdir(path):
                images = [p for p in walk(path) if is_image(p)]
                if not images:
                    self.findings.add('split', f'{self.layout.path}: {split}: {path} has no images')
                yield from images
            elif is_image(path):
                yield path
            else:
                yield from self._listed(path)

    def _listed(self, file: str) -> Iterator[str]:
        """The images in a list; ``./`` is the list's own folder, as in Ultralytics."""
        here = osp.dirname(file)
        for i, line in enumerate(lines_of(file, self.findings), 1):
            name = line.strip().replace('\\', '/')
            if not name or is_left_behind(osp.basename(name)):
                continue
            folders = [here] if name.startswith('./') else [here, self.layout.root, '']
            path = next((p for p in (osp.join(d, name) for d in folders) if osp.isfile(p)), None)
            # Darknet's paths begin with data/, whose files are beside the list.
            if path is None and name.startswith('data/') and osp.isfile(osp.join(here, name[5:])):
                path = osp.join(here, name[5:])
            if path is None:
                self.findings.add('image-missing', f'{file}:{i}: {name!r}')
            else:
                yield osp.normpath(path)

    def _label_file(self, image: str) -> str:
        """``labels`` in the place of the last folder ``images``; else beside the image."""
        stem = osp.splitext(image)[0]
        beside, below = f'{stem}.txt', None
        head, found, tail = stem.rpartition(f'{os.sep}images{os.sep}')
        if found:
            below = f'{head}{os.sep}labels{os.sep}{tail}.txt'
            if not osp.isfile(below) and osp.isfile(beside):
                below = None
        label_file = below or beside
        self.label_folders.setdefault(osp.dirname(label_file), set()).add(osp.dirname(image))
        return label_file

    def find_orphans(self) -> None:
        """Label files whose image is not there."""
        for folder, image_folders in sorted(self.label_folders.items()):
            if not osp.isdir(folder):
                continue
            for name in names_in(folder):
                path = osp.join(folder, name)
                if not name.endswith('.txt') or name.lower() in (*NAME_FILES, *NO_LABELS) or path in self.owners:
                    continue
                if any(image_of(osp.join(d, name[:-4])) for d in image_folders):
                    self.findings.add('not-listed', path)
                else:
                    self.findings.add(
                        'label-without-image', f'{path}: no image in {" or ".join(sorted(image_folders))}'
                    )

    def _labels(self, path: str, size: tuple[int, int]) -> list[Label]:
        if not osp.isfile(path):
            self.findings.add('no-label-file', path)
            return []
        try:
            with open(path, encoding='utf-8-sig') as f:
                lines = f.read().splitlines()
        except (OSError, ValueError) as e:
            self.findings.add('label-file', f'{path}: {e}')
            return []
        found = []
        for i, line in enumerate(lines, 1):
            if line.strip():
                label = self._label(line.split(), f'{path}:{i}', size)
                found += [label] if label is not None else []
        return found

    def _label(self, words: list[str], where: str, size: tuple[int, int]) -> Label | None:
        names, extra = self.layout.names, self.layout.values
        try:
            values = [float(w) for w in words]
        except ValueError:
            self.findings.add('label', f'{where}: must be numbers, is {" ".join(words)[:80]!r}')
            return None
        n, expected = len(values), 5 + extra
        is_polygon = not extra and n >= 7 and n % 2 == 1
        if n != expected and not is_polygon:
            what = f'{n} numbers, and a label has {expected}'
            what += '' if extra else ' (class, x, y, width, height), or a class and 3 points or more'
            what += ': the last may be a score, of a prediction' * (n == 6 and not extra)
            self.findings.add('label', f'{where}: {what}')
            return None
        if not values[0].is_integer() or not 0 <= values[0] < len(names):
            what = f'class {words[0]}, and the classes are 0 to {len(names) - 1}'
            self.findings.add('label-class', f'{where}: {what} ({self.layout.path})')
            return None
        shares = values[1:] if is_polygon else values[1:5]
        if not all(-SLACK <= s <= 1 + SLACK for s in shares):
            what = f'must be shares of the width and height, 0 to 1, has {" ".join(words[1 : 1 + len(shares)])[:80]}'
            self.findings.add('label', f'{where}: {what}')
            return None
        width, height = size
        if is_polygon:
            self.findings.add('enclosed', f'{where}: polygon of {len(shares) // 2} points')
            box = around((x * width, y * height) for x, y in zip(shares[::2], shares[1::2]))
        else:
            cx, cy, w, h = shares
            box = (cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height
            if extra:
                self.findings.add('keypoints', where)
        return Label(names[int(values[0])], box, where)
