"""What is wrong with class folders, lists of images, and any other dataset that mmengine can build."""

from __future__ import annotations

import copy
import os.path as osp
from collections import Counter
from collections.abc import Mapping
from functools import partial

from mmengine.registry import DATASETS

from mmccd.data.classes import is_a
from mmccd.data.image_files import is_inside
from mmccd.data.stock import use_own_dataset

from .report import Add, CheckedSplit, Report, readable, short


def check_lines(dataset: Mapping, add: Add) -> bool:
    """Whether the annotation file of one of MMPretrain's datasets, '<path> <label>' a line, can be read."""
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


def check_built(split: CheckedSplit, dataset: Mapping, cls: type, scope: str | None, report: Report) -> None:
    """Any other dataset: the images and labels that it reports itself."""
    add = partial(report.add, split.name)
    if is_a(cls, 'CustomDataset') and not check_lines(dataset, add):
        return
    try:
        own = dict(copy.deepcopy(dataset), pipeline=[], _scope_=scope)
        use_own_dataset(own, scope)
        built = DATASETS.build(own)
        built.full_init()
        infos = [built.get_data_info(i) for i in range(len(built))]
    except Exception as e:  # of any dataset there is
        add('annotation-file', f'{cls.__name__} cannot be built: {str(e) or type(e).__name__}')
        return
    classes = built.metainfo.get('classes')
    labels: Counter = Counter()
    for info in infos:
        if not isinstance(info.get('img_path'), str):
            continue
        label = info.get('gt_label')
        if info['img_path'] in split.paths:
            add('image-file-double', readable(info['img_path']))
        split.paths[info['img_path']] = None
        if isinstance(label, int):
            labels[label] += 1
            if classes is not None and not 0 <= label < len(classes):
                add('label', f'{readable(info["img_path"])} has label {label} of {len(classes)} classes')
    if labels and classes is not None:
        for i, name in enumerate(classes):
            if not labels[i]:
                add('class-without-examples', short(name))
    for files in getattr(built, 'left_out', ()):
        add('image-left-out' if files.may_be_images else 'file-left-out', str(files))
    for name in getattr(built, 'without_class', ()):
        add('image-without-class', readable(name))
    split.kept = len(infos)
    if not infos:
        add('empty-split', 'it has no images')
    elif not split.paths:
        add('not-checked', f'{cls.__name__} has no image files')
