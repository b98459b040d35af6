"""Labelled images as COCO annotation files."""

from __future__ import annotations

import os.path as osp
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmccd.data.checks.coco import box_problem
from mmccd.errors import UserError

from . import cvat, label_studio, labelme, voc, yolo
from .labelled import WHOLE, Findings, Labelled, LabelledImage, same_classes
from .recognise import NAMES, recognise, why_not
from .shapes import tidy


@dataclass
class CocoSplit:
    """A split in COCO's format.

    Attributes:
        folder (str): What the ``file_name`` of its images are relative to.
        content (dict): For a JSON file.
    """

    folder: str
    content: dict

    @property
    def boxes(self) -> int:
        return len(self.content['annotations'])

    @property
    def images(self) -> int:
        return len(self.content['images'])


def read_labels(path: str, kind: str | None = None, difficult: str = 'ignore', coordinates: str = 'auto') -> Labelled:
    """Read a dataset of another format than COCO.

    Args:
        path (str): A folder, or a file in it.
        kind (str | None): Name of its format, of ``NAMES``. Default: None, which is found out.
        difficult (str): For VOC: ``'ignore'`` or ``'keep'``. Default: ``'ignore'``.
        coordinates (str): For VOC: of ``voc.COORDINATES``. Default: ``'auto'``.

    Raises:
        UserError: If its format is none of them, or what describes it cannot be used. What is wrong with single
            images and labels becomes findings.

    Example:
        >>> read_labels('no/where')
        Traceback (most recent call last):
        mmccd.errors.UserError: no/where does not exist
    """
    if not osp.exists(path):
        raise UserError(f'{path} does not exist')
    kind = kind or recognise(path)
    if kind is None:
        raise UserError(f'{path} has no labels of a known format: {why_not(path)}')
    findings = Findings()
    if kind == 'voc':
        labelled = voc.read(path, findings, difficult, coordinates)
    else:
        labelled = dict(yolo=yolo, labelme=labelme, cvat=cvat, **{'label-studio': label_studio})[kind].read(
            path, findings
        )
    names = Counter(c.lower().replace('_', ' ').strip() for c in same_classes({path: labelled}))
    for name, n in names.items():
        if n > 1:
            alike = [c for c in same_classes({path: labelled}) if c.lower().replace('_', ' ').strip() == name]
            findings.add('class-alike', ', '.join(map(repr, alike)))
    return labelled


def to_coco(images: Sequence[LabelledImage], classes: Sequence[str], findings: Findings, source: str = '') -> CocoSplit:
    """A split in COCO's format. Boxes below a pixel, outside of their image, or repeated are left out, and counted.

    Args:
        images (Sequence[LabelledImage]): As a reader gave them.
        classes (Sequence[str]): In the order of the categories' ids, from 1.
        findings (Findings): Gets what is left out or odd.
        source (str): Where they are from, for the file's ``info``.
    """
    folder = osp.commonpath([osp.dirname(osp.abspath(i.path)) for i in images]) if images else ''
    ids = {name: i for i, name in enumerate(classes, 1)}
    content: dict = dict(
        info=dict(description=source),
        licenses=[],
        categories=[dict(id=i, name=name) for name, i in ids.items()],
        images=[],
        annotations=[],
    )
    annotations = content['annotations']
    for image_id, image in enumerate(images, 1):
        width, height = image.size
        name = osp.relpath(osp.abspath(image.path), folder).replace(osp.sep, '/')
        content['images'].append(dict(id=image_id, file_name=name, width=width, height=height))
        seen = set()
        for label in image.labels:
            box = tidy(label.box)
            problem, what = box_problem(list(box), box[2] * box[3], width, height)
            if problem:
                findings.add(problem, f'{label.where}: {what}')
            if problem in ('box-empty', 'box-outside'):
                continue
            if (label.name, box) in seen:
                findings.add('box-double', f'{label.where}: {label.name} {list(box)}')
                continue
            seen.add((label.name, box))
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=ids[label.name],
                    bbox=list(box),
                    area=tidy((0, 0, 0, box[2] * box[3]))[3],
                    iscrowd=int(label.ignored),
                )
            )
    return CocoSplit(folder, content)


def divide(images: Sequence[LabelledImage], share: float, seed: int) -> dict[str, list[LabelledImage]]:
    """Images at random for training and validation, the same ones each time; at least one for each.

    Args:
        images (Sequence[LabelledImage]): Two or more.
        share (float): Of them for validation, between 0 and 1.
        seed (int): Of the choice.
    """
    n = min(max(round(share * len(images)), 1), len(images) - 1)
    chosen = {int(i) for i in np.random.default_rng(seed).permutation(len(images))[:n]}
    return {
        'train': [image for i, image in enumerate(images) if i not in chosen],
        'val': [image for i, image in enumerate(images) if i in chosen],
    }


def pick_split(labelled: Labelled, split: str) -> list[LabelledImage]:
    """The images of a split; of a dataset without splits all.

    Raises:
        UserError: If there is none of this name.
    """
    if split in labelled.splits:
        return labelled.splits[split]
    if set(labelled.splits) == {WHOLE}:
        return labelled.splits[WHOLE]
    raise UserError(f'{labelled.source} has no split {split}; it has {", ".join(labelled.splits) or "no images"}')


def check_splits(splits: Mapping[str, CocoSplit], source: str) -> None:
    """A UserError if there is nothing to write."""
    if not any(split.images for split in splits.values()):
        raise UserError(f'{source} has no usable image')
    if not any(split.boxes for split in splits.values()):
        raise UserError(f'{source} has no usable box')


__all__ = ['NAMES', 'CocoSplit', 'check_splits', 'divide', 'pick_split', 'read_labels', 'to_coco']
