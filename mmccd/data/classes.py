"""Class names: of a config, of annotations, of a model, and whether they agree.

MMDetection drops annotations whose category it has no class for, and numbers the rest by the annotation file's order;
MMPretrain numbers by the sorted folder names. Neither gives a message if the config has other names.
"""

from __future__ import annotations

import json
import mmap
import os
import os.path as osp
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

from mmccd.configs import datasets_of
from mmccd.errors import UserError, suggest

from .image_files import is_left_behind
from .plain import without_collection

_KEY = re.compile(rb'(?<!\\)"categories"\s*:\s*(?=\[)')
_WINDOW = 1 << 16
_TAIL = 1 << 20  # bytes in which categories at a file's end are looked for


def read_categories(path: str) -> list[str]:
    """Names of a COCO file's categories, in the file's order, without reading the annotations.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no JSON, or has no categories with names.
    """
    if osp.getsize(path) == 0:
        raise ValueError('it is empty')
    with open(path, 'rb') as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        categories = _last_member(content)
        if categories is None:
            found = list(islice(_KEY.finditer(content), 2))
            if len(found) == 1:
                categories = _decode_at(content, found[0].end())
            else:  # the key is written with escapes, or occurs elsewhere as well
                whole = parse_json(content[:])
                categories = whole.get('categories') if isinstance(whole, dict) else None
    if not isinstance(categories, list) or not all(
        isinstance(c, dict) and isinstance(c.get('name'), str) for c in categories
    ):
        raise ValueError('it has no list of categories with names')
    return [c['name'] for c in categories]


def _last_member(content: mmap.mmap) -> Any:
    """The categories where they are the last member of the file's object, as in COCO's own; None where they are not.

    What is before them need not be looked at: of members of one name, JSON's last one counts.
    """
    tail = content[max(len(content) - _TAIL, 0) :]
    key = next(_KEY.finditer(tail, max(tail.rfind(b'"categories"') - 1, 0)), None)
    if key is None:
        return None
    try:
        text = tail[key.end() :].decode()
        categories, end = json.JSONDecoder().raw_decode(text)
    except (RecursionError, ValueError):
        return None
    return categories if text[end:].strip(' \t\r\n') == '}' else None


def parse_json(content: bytes | str) -> Any:
    """``json.loads``, whose ways to fail all become a ValueError.

    Collection of garbage waits.
    """
    with without_collection():
        try:
            return json.loads(content)
        except RecursionError as e:
            raise ValueError('it is nested too deeply') from e


def _decode_at(content: mmap.mmap, start: int) -> Any:
    """The JSON value that begins at ``start``."""
    window = _WINDOW
    while True:
        text = content[start : start + window].decode('utf-8', 'replace')
        try:
            return json.JSONDecoder().raw_decode(text)[0]
        except RecursionError as e:
            raise ValueError('it is nested too deeply') from e
        except ValueError:
            if start + window >= len(content):
                raise
        window *= 2


def dataset_class(dataset: Mapping, scope: str | None) -> type | None:
    """The class that a dataset's config names; None if there is none of that name."""
    name = dataset.get('type')
    if isinstance(name, str):
        return DATASETS.get(name if '.' in name or not scope else f'{scope}.{name}')
    return name if isinstance(name, type) else None


def is_a(cls: type | None, name: str) -> bool:
    """Whether a class is one of that name, or made from one; spares importing the other task's packages."""
    return cls is not None and any(base.__name__ == name for base in cls.__mro__)


def class_names(dataset: Mapping, cls: type) -> list[str] | None:
    """The classes that a dataset is given by its config or has by itself; None if it takes what it finds.

    Raises:
        ValueError: If they are no list of names.
    """
    classes = (dataset.get('metainfo') or {}).get('classes') or dataset.get('classes')
    if isinstance(classes, str) and osp.isfile(classes):
        with open(classes, encoding='utf-8') as f:
            classes = f.read().splitlines()
    if classes is None:
        classes = getattr(cls, 'METAINFO', {}).get('classes')
    if (
        isinstance(classes, str)
        or not isinstance(classes, (list, tuple, type(None)))
        or not all(isinstance(c, str) for c in classes or ())
    ):
        hint = f': a comma is missing, ({classes!r}, )' if isinstance(classes, str) else ''
        raise ValueError(f'classes must be a list of names, got {classes!r}{hint}')
    return None if classes is None else list(classes)


def category_problems(classes: Sequence[str], categories: Sequence[str], ann_file: str) -> list[str]:
    """What would go wrong with these classes on a COCO file with these categories, a line each."""
    missing = [c for c in classes if c not in categories]
    if missing:
        shown = _shown([_with_suggestion(c, categories) for c in missing], 5)
        return [
            f'{len(missing)} of {len(classes)} classes are no categories of {ann_file}: {shown}. '
            f'Its categories are: {_shown(categories)}'
        ]
    order = [c for c in categories if c in set(classes)]
    double = sorted({c for c in order if order.count(c) > 1})
    if double:
        return [f'{ann_file} has several categories of the same name: {_shown(double)}']
    if order != list(classes):
        return [
            f'the classes are in another order than the categories of {ann_file}, which is the order of the '
            f'labels. Write them as: {_shown(order, 100)}'
        ]
    return []


def class_folders(dataset: Mapping, everything: bool = False) -> list[str] | None:
    """Names of the class folders of one of MMPretrain's datasets without an annotation file, in label order.

    Without those that systems leave behind, which MMPretrain's own datasets take for classes; ``everything``: with.
    """
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or dataset.get('split') or ''
    prefix = prefix.get('img_path', '') if isinstance(prefix, Mapping) else prefix
    if (
        dataset.get('ann_file')
        or not dataset.get('with_label', True)
        or (dataset.get('split') and osp.isfile(osp.join(root, 'meta', f'{dataset["split"]}.txt')))
    ):
        return None
    folder = osp.join(root, prefix)
    if not osp.isdir(folder):
        return None
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and (everything or not is_left_behind(e.name)))


def label_problem(dataset: Mapping, count: int) -> str:
    """The first label of a list of images, '<path> <label>' a line, that is no class; empty if there is none.

    PyTorch would stop at it in the first epoch, with ``Target 10 is out of bounds``.
    """
    root, ann_file = dataset.get('data_root') or '', dataset.get('ann_file')
    path = osp.join(root, ann_file or osp.join('meta', f'{dataset.get("split")}.txt'))
    if not dataset.get('with_label', True) or not osp.isfile(path):
        return ''
    with open(path, encoding='utf-8', errors='replace') as f:
        for i, line in enumerate(f, 1):
            label = line.rstrip().rpartition(' ')[2]
            if label.removeprefix('-').isdecimal() and not 0 <= int(label) < count:
                return f'{path}:{i} has the label {label}, and the labels of {count} classes are 0 to {count - 1}'
    return ''


def folder_problems(classes: Sequence[str] | None, folders: Sequence[str], where: str) -> list[str]:
    """What would go wrong with these classes on these class folders, a line each."""
    if classes is None:
        return []
    if len(classes) != len(folders):
        return [f'there are {len(classes)} classes, and {len(folders)} folders in {where}: {_shown(folders)}']
    other = [f for f in folders if f not in classes]
    if not other and list(classes) != list(folders):
        return [
            f'the classes are in another order than the sorted folders of {where}, which is the order of the '
            f'labels. Write them as: {_shown(folders, 100)}'
        ]
    if other and len(other) < len(folders):  # all others: names for humans
        shown = _shown([_with_suggestion(f, classes) for f in other], 5)
        return [f'{len(other)} of {len(folders)} folders in {where} have no class of their name: {shown}']
    return []


def head_classes(model: Any, key: str = 'model') -> Iterator[tuple[str, int]]:
    """(key, ``num_classes``) of every head in a model's config; the RPN and its like have classes of their own."""
    if isinstance(model, Mapping):
        for name, value in model.items():
            if name == 'num_classes' and isinstance(value, int) and 'head' in key:
                yield f'{key}.{name}', value
            elif name not in ('rpn_head', 'semantic_head'):
                yield from head_classes(value, f'{key}.{name}')
    elif isinstance(model, (list, tuple)):
        for i, value in enumerate(model):
            yield from head_classes(value, f'{key}.{i}')


def class_problems(cfg: Config, loaders: Sequence[str]) -> list[str]:
    """Where the classes of config, annotations and model differ, a line each. Takes no time with large sets either."""
    problems, folders_of = [], {}
    for loader in loaders:
        for key, dataset in datasets_of(cfg.get(f'{loader}_dataloader') or ConfigDict(), f'{loader}_dataloader'):
            cls = dataset_class(dataset, cfg.get('default_scope'))
            if cls is None:
                continue  # the runner reports it
            try:
                classes = class_names(dataset, cls)
            except ValueError as e:
                problems.append(f'{key}.metainfo.{e}')
                continue
            root, ann_file = dataset.get('data_root') or '', dataset.get('ann_file')
            if is_a(cls, 'CocoDataset') and ann_file and classes and osp.isfile(osp.join(root, ann_file)):
                ann_file = osp.join(root, ann_file)
                try:
                    found = category_problems(classes, read_categories(ann_file), ann_file)
                except ValueError as e:
                    raise UserError(f'annotation file {ann_file} ({key}.ann_file) cannot be used: {e}') from e
                problems += [f'{key}.metainfo.classes: {p}' for p in found]
            elif is_a(cls, 'CustomDataset'):
                folders = class_folders(dataset)
                if folders is not None:
                    odd = sorted({*(class_folders(dataset, everything=True) or ())} - {*folders})
                    if odd and not is_a(cls, 'GuardedDataset'):
                        problems.append(
                            f'{key}: {cls.__name__} of MMPretrain takes {_shown(odd)} in {root} for classes, which a '
                            f"system left behind: remove them, or set type='mmccd.{cls.__name__}'"
                        )
                    problems += [f'{key}.metainfo.classes: {p}' for p in folder_problems(classes, folders, root)]
                    folders_of[key] = folders
                    classes = classes or folders
                else:
                    count = len(classes) if classes else max((n for _, n in head_classes(cfg.get('model'))), default=0)
                    found = label_problem(dataset, count) if count else ''
                    problems += [f'{key}: {found}'] if found else []
            if classes:
                problems += [
                    f'{head} is {n}, {key} has {len(classes)} classes'
                    for head, n in head_classes(cfg.get('model'))
                    if n != len(classes)
                ]
    first = next(iter(folders_of), None)
    for key, folders in folders_of.items():
        if folders != folders_of[first]:
            other = sorted(set(folders) ^ set(folders_of[first]))
            problems.append(f'{key} has other class folders than {first}: {", ".join(other[:10])}')
    return problems


def _shown(names: Sequence[str], limit: int = 10) -> str:
    return ', '.join(names[:limit]) + (f' and {len(names) - limit} more' if len(names) > limit else '')


def _with_suggestion(name: str, names: Sequence[str]) -> str:
    hint = suggest(name, names).removeprefix('; ')
    return f'{name!r} ({hint})' if hint else repr(name)
