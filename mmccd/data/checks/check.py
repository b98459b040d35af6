"""All checks of the data of a config, and the annotations without what is broken.

Behind ``tools/checks/check_dataset.py`` and ``tools/make_config.py``.
"""

from __future__ import annotations

import json
import os
import os.path as osp
from functools import partial

from mmengine.config import Config

from mmccd.checkpoints.files import write_atomically
from mmccd.configs import datasets_of
from mmccd.data.classes import class_problems, dataset_class
from mmccd.env import is_local
from mmccd.errors import UserError

from .coco import UNREADABLE, check_coco, image_ids, read_json, reads_coco
from .folders import check_built
from .images import MAX_PIXELS, check_images
from .report import CheckedSplit, Report, readable, short

SPLITS = ('train', 'val', 'test')


def check_config(
    cfg: Config, splits: tuple[str, ...] = SPLITS, workers: int = 0, max_pixels: int = MAX_PIXELS
) -> Report:
    """Check all data that a config names.

    Args:
        cfg (Config): Its loaders and evaluators are read.
        splits (tuple[str, ...]): Which of ``SPLITS``. Those that the config has not are left out. Default: all.
        workers (int): Processes that decode images; 0 is this one alone. Default: 0.
        max_pixels (int): Larger images are reported and not decoded. Default: 50 million.

    Raises:
        UserError: If the config has none of the splits, or a dataset of an unknown type.
    """
    report, together = Report(), {}
    splits = tuple(name for name in SPLITS if name in splits)  # training first
    for name in splits:
        for key, dataset in datasets_of(cfg.get(f'{name}_dataloader') or {}, f'{name}_dataloader'):
            if not dataset:
                continue
            cls = dataset_class(dataset, cfg.get('default_scope'))
            if cls is None:
                raise UserError(f'{key}.type: there is no dataset {dataset.get("type")!r}')
            # Mostly val and test are one and the same.
            known = json.dumps({k: v for k, v in dataset.items() if k not in ('pipeline', 'test_mode')}, default=str)
            together.setdefault((known, name == 'train'), (dataset, cls, []))[2].append(name)
    if not together:
        raise UserError(f'the config has no dataset for {", ".join(splits)}')
    checked = []
    for dataset, cls, names in together.values():
        split = CheckedSplit(', '.join(dict.fromkeys(names)))
        if dataset.get('backend_args') or not is_local(dataset.get('data_root') or ''):
            report.add(split.name, 'not-checked', f'{dataset.get("data_root")} is not on a disk of this machine')
        elif reads_coco(cls):
            check_coco(split, dataset, cls, report)
        else:
            check_built(split, dataset, cls, cfg.get('default_scope'), report)
        checked.append(split)
        report.images[split.name] = report.images.get(split.name, 0) + len(split.paths)
    found = {what for _, what in report.findings.get('classes', ())}
    try:
        for problem in class_problems(cfg, splits):
            if not any(problem.endswith(what) for what in found):
                report.add('config', 'classes', readable(problem))
    except UserError:
        pass  # an annotation file: found above
    check_evaluators(cfg, splits, report)
    check_batch(cfg, checked, report)
    check_images(checked, report, max_pixels, workers)
    return report


def check_batch(cfg: Config, checked: list[CheckedSplit], report: Report) -> None:
    """A training whose images are less than a batch, and which drops the last one, has no iteration."""
    loader = cfg.get('train_dataloader') or {}
    batches, dataset = loader.get('batch_sampler') or {}, loader.get('dataset') or {}
    size = batches.get('batch_size', loader.get('batch_size')) or 1
    kept = [split.kept for split in checked if 'train' in split.name.split(', ')]
    if (
        not (batches.get('drop_last') or loader.get('drop_last'))
        or None in kept
        or 'Infinite' in str((loader.get('sampler') or {}).get('type'))
        or ('dataset' in dataset and 'MultiImageMix' not in str(dataset.get('type')))  # that may repeat images
    ):
        return
    if 0 < sum(kept) < size:
        report.add(
            'train',
            'empty-split',
            f'its {sum(kept):,} images are less than a batch of {size}, which drop_last leaves out',
        )


def check_evaluators(cfg: Config, splits: tuple[str, ...], report: Report) -> None:
    """An evaluator's annotation file has to be its loader's, or one of the same images."""
    for name in splits:
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
                other = image_ids(content) ^ set().union(*map(image_ids, loaded))
                if other:
                    add(
                        'evaluator',
                        f'{path} and {", ".join(files)} differ in {len(other)} image ids, e.g. '
                        f'{", ".join(short(i) for i in sorted(other, key=str)[:3])}',
                    )


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
            f'{", ".join(report.cleaned) or "none"}. Name its split with --splits'
        )
    content = next(iter(report.cleaned.values()))()
    os.makedirs(osp.dirname(osp.abspath(out)), exist_ok=True)
    write_atomically(out, json.dumps(content).encode())
    return content
