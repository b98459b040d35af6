"""The config that ``tools/make_config.py`` writes: :mod:`mmccd.cli.own_recipe`'s decisions with their reasons."""

from __future__ import annotations

import os.path as osp
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict

from mmccd.apis import get_config
from mmccd.configs import config_name, load_config
from mmccd.data.checks import Report, check_config
from mmccd.data.checks.report import CLEANED, number
from mmccd.data.classes import head_classes
from mmccd.errors import UserError
from mmccd.models.build import build_model

from .config_text import Raw, assign, code, comment, merged, names, nested, over
from .own_data import Split, check_same_classes, read_coco, read_folders
from .own_recipe import MATCH_IOU, MATCHED, Decisions, decide, fit_anchors, fit_scale, only_dataset, resize_factors
from .stock_base import backbone_change, is_stock, read_stock, stock_text

BASES = {'mmdet': 'retinanet_ccd_r50_fpn_1x_coco', 'mmpretrain': 'ccd_r50_8xb32_in1k'}
_TASKS = {'mmdet': 'a detector', 'mmpretrain': 'a classifier'}


@dataclass
class OwnConfig:
    """A config for own data, and what the checks found in the data.

    Attributes:
        text (str): Content of the file.
        report (Report): Of :func:`mmccd.data.checks.check_config`.
        warnings (list[str]): What the user should check.
        broken (dict[str, str]): COCO files with entries that can be left out: their split, by their path.
        base (tuple[str, str] | None): File beside this one, and its content, that the config inherits from instead of
            a base of the new style: mmengine mixes the two in no other way.
    """

    text: str
    report: Report
    warnings: list[str]
    broken: dict[str, str]
    base: tuple[str, str] | None = None


def read_base(base: str, scope: str, attention: str | None = 'mmccd.CCD') -> Config:
    """The config of a name or a path; a UserError if it is for another task than ``scope``.

    One of MMDetection or MMPretrain (``'mmdet::...'``) gets ``attention`` in its backbone.
    """
    if is_stock(base):
        cfg = read_stock(base, attention)
    else:
        cfg = load_config(base) if _is_path(base) else get_config(base)
    if cfg.get('default_scope') != scope:
        raise UserError(
            f'--base {base} is {_TASKS.get(cfg.get("default_scope"), "for neither task")}, and --train is '
            f'data for {_TASKS[scope]} ({"DIR JSON" if scope == "mmdet" else "DIR"})'
        )
    return cfg


def default_out(base: str) -> str:
    """``retinanet_ccd_r50_fpn_own.py`` for ``retinanet_ccd_r50_fpn_1x_coco``."""
    stem = re.sub(r'(_8xb32|_(fsdp-)?1x|_2x|_24e)?(_legacy)?_(coco|in1k|digits|trees)$', '', config_name(base))
    return f'{stem}_own.py'


def make_config(
    cfg: Config, base: str, out: str, data: Mapping[str, Sequence[str]], gpus: int, batch: int | None, workers: int
) -> OwnConfig:
    """Read the data, decide, write the config's text and check the data by it.

    Args:
        cfg (Config): Of :func:`read_base`.
        base (str): Its name or path.
        out (str): File that the config is for; a base that is a path is written relative to it.
        data (Mapping[str, Sequence[str]]): Paths by the option that named them, ``--train`` first: folder and
            annotation file, or a folder of class folders.
        gpus (int): GPUs to train on.
        batch (int | None): Images a GPU. Default: the base's.
        workers (int): Processes that decode images for the checks.
    """
    is_detector = cfg.default_scope == 'mmdet'
    read, write = (read_coco, detector_text) if is_detector else (read_folders, classifier_text)
    splits = [read(argument, *paths) for argument, paths in data.items()]
    for other in splits[1:]:
        check_same_classes(splits[0], other)
    decisions = decide(cfg, config_name(base), splits[0], gpus, batch)
    here = there = f"__import__('mmccd').config_path({config_name(base)!r})"
    if is_stock(base):
        here = there = stock_text(base)
        decisions.weights = merged(backbone_change(base, cfg), decisions.weights)
    elif _is_path(base):
        here, there = repr(osp.abspath(base)), repr(osp.relpath(base, osp.dirname(out) or '.'))
    beside = None
    if _is_path(base) and Config._is_lazy_import(base):
        name = f'{config_name(out)}_base.py'
        beside, there = (osp.join(osp.dirname(out), name), cfg.pretty_text), repr(f'./{name}')
    text = write(cfg, there, splits, decisions)
    warnings = list(dict.fromkeys(decisions.warnings))
    with TemporaryDirectory() as folder:
        if beside is not None:
            here = repr(osp.join(folder, osp.basename(beside[0])))
            cfg.dump(osp.join(folder, osp.basename(beside[0])))
        own = Config.fromstring(write(cfg, here, splits, decisions), '.py')
    build_model(own)
    report = check_config(own, tuple(split.argument[2:] for split in splits), workers)
    return OwnConfig(text, report, warnings, _broken_files(report, splits), beside)


def _broken_files(report: Report, splits: Sequence[Split]) -> dict[str, str]:
    broken = {name for kind in CLEANED for where, _ in report.findings.get(kind, ()) for name in where.split(', ')}
    files: dict[str, str] = {}
    for split in splits:
        if split.ann_file and split.argument[2:] in broken:
            files.setdefault(split.ann_file, split.argument[2:])
    return files


def _is_path(base: str) -> bool:
    return osp.isfile(base) or (bool(osp.dirname(base)) and not is_stock(base))


def _classes_change(model: ConfigDict, n: int) -> dict:
    """The model's heads with ``n`` classes; lists of heads as an expression over the base's."""
    change: dict = {}
    for key, _ in head_classes(model):
        keys = key.split('.')[1:]
        at = next((i for i, k in enumerate(keys) if k.isdecimal()), None)
        if at is None:
            change = merged(change, nested(keys, n))
        else:
            heads = Raw(f'[dict(h, num_classes={n}) for h in _base_.{".".join(["model", *keys[:at]])}]')
            change = merged(change, nested(keys[:at], heads))
    if not change:
        raise UserError('the base has no head with num_classes: give another --base')
    return change


def _head(base: str, splits: Sequence[Split], summary: str) -> list[str]:
    images = ', '.join(f'{p.argument[2:]} {number(p.images, "image", "images")}' for p in splits)
    where = 'The base is found wherever mmccd is installed: this file may be moved. Paths of data are relative to the '
    where += 'current folder.'
    if '::' in base:
        where = where.replace('wherever mmccd is', 'wherever mmccd and its package are')
    elif not base.startswith('__import__'):
        where = "Paths of data are relative to the current folder, the base's to this file."
    found = f'{images[0].upper()}{images[1:]}. {summary}'
    return [comment(f'Written by tools/make_config.py, yours to change. {found} {where}'), f'_base_ = {base}', '']


def _training(d: Decisions, cfg: Config) -> list[str]:
    """Learning rate, schedule and checkpoints, alike for both tasks."""
    every = max(1, round(d.epochs / cfg.train_cfg.max_epochs))
    hook = dict(interval=every, max_keep_ckpts=3, save_best='auto')
    if not (cfg.get('default_hooks') or {}).get('checkpoint'):
        hook = dict(type='mmccd.CheckpointHook', **hook)
    return [
        comment(f'Learning rate: {d.notes["lr"]}.'),
        _assign(cfg, 'optim_wrapper', dict(optimizer=dict(lr=d.lr))),
        _assign(cfg, 'auto_scale_lr', dict(base_batch_size=d.total_batch)),
        comment(f'Length: {d.notes["length"]}.'),
        _assign(cfg, 'train_cfg', dict(max_epochs=d.epochs, val_interval=every)),
        assign('param_scheduler', d.schedulers),
        _assign(cfg, 'default_hooks', dict(checkpoint=hook)),
    ]


def _assign(cfg: Config, name: str, value: dict) -> str:
    """``name = value`` over what the base has there."""
    return assign(name, over(cfg[name], value) if name in cfg else value)


def _loaders(splits: Sequence[Split], keys: tuple[str, str], d: Decisions, dataset: dict[str, dict]) -> list[str]:
    """The loaders of training, validation and test; ``dataset`` holds what each split's is made of, ``keys`` where the
    base's loaders of training and validation have theirs."""
    train, val = (key.split('.')[1:] for key in keys)
    lines = [
        assign('train_dataloader', merged(dict(batch_size=d.batch), nested(train, dataset['--train']))),
        assign('val_dataloader', nested(val, dataset['--val'])),
    ]
    lines.append(
        assign('test_dataloader', nested(val, dataset['--test']))
        if len(splits) > 2
        else 'test_dataloader = val_dataloader'
    )
    return lines


def _scale(pipeline: Sequence[dict]) -> tuple[int, int] | None:
    found = [t.get('scale') for t in pipeline if _name(t) == 'Resize']
    return tuple(found[0]) if found and isinstance(found[0], (list, tuple)) else None


def _is_plain(generator: Any) -> bool:
    """Whether these are anchors of some scales and ratios, the same on every level."""
    return (
        isinstance(generator, dict)
        and 'ratios' in generator
        and ('scales_per_octave' in generator or 'scales' in generator)
        and all(isinstance(s, int) for s in generator.strides)
    )


def detector_text(cfg: Config, base: str, splits: Sequence[Split], d: Decisions) -> str:
    """The config of a detector. ``base`` is the expression that its ``_base_`` gets; adds to ``d.warnings``."""
    train = splits[0]
    key, dataset = only_dataset(cfg, 'train_dataloader')
    val_key, val_dataset = only_dataset(cfg, 'val_dataloader')
    head, generator = next(
        (
            (h, cfg.model[h].anchor_generator)
            for h in ('bbox_head', 'rpn_head')
            if isinstance(cfg.model.get(h), dict) and _is_plain(cfg.model[h].get('anchor_generator'))
        ),
        ('', None),
    )
    train_scale, test_scale = _scale(dataset.pipeline), _scale(val_dataset.pipeline)
    jitter = [n for n in map(_name, dataset.pipeline) if n.startswith('Random') and 'Resize' in n]
    lines, change = [], 'scale=None'
    if train_scale and test_scale:
        scale = fit_scale(train_scale, train.sizes)
        factors = resize_factors(scale or train_scale, train.sizes)
        if scale:
            change = f'scale={scale}'
            lines.append(
                comment(
                    f'The median short side is {np.median(train.sizes.min(1)):.0f} pixels: '
                    f'enlarged to {scale[1]} instead of {min(train_scale)}.'
                )
            )
    elif jitter:
        factors = resize_factors(test_scale, train.sizes) if test_scale else np.ones(len(train.sizes))
        d.warnings.append(
            f'the base resizes at random ({jitter[0]}): check that its scale fits your images, '
            f'{train.sizes.min(0).astype(int)} to {train.sizes.max(0).astype(int)} (width, height)'
        )
    else:
        factors = np.ones(len(train.sizes))
        if test_scale:
            change = 'scale_factor=1.0, scale=None'
            lines.append(comment('The base trains on images as they are: no other size in the test either.'))
    for p in splits[1:]:
        ratio = np.median(p.sizes.min(1)) / np.median(train.sizes.min(1))
        if train_scale and test_scale and not 2 / 3 <= ratio <= 3 / 2:
            d.warnings.append(
                f'images of {p.argument} are {ratio:.2g} times as large as those of {train.argument} '
                f'(short side, median): resized alike, objects are {1 / ratio:.2g} times as large there'
            )
    pipelines = {p.argument: {} for p in splits}
    if lines:
        for argument, source, pipeline in (
            ('--train', key, dataset.pipeline),
            ('--val', val_key, val_dataset.pipeline),
        ):
            if argument == '--train' and not train_scale:
                continue
            name = f'{argument[2:]}_pipeline'
            lines.append(
                f"{name} = [dict(t, {change}) if {_name_code(pipeline)} == 'Resize' else t\n"
                f'{" " * (len(name) + 4)}for t in _base_.{source}.pipeline]'
            )
            pipelines[argument] = dict(pipeline=Raw(name))
        if '--test' in pipelines:
            pipelines['--test'] = pipelines['--val']
    datasets = {
        p.argument: dict(
            data_root='', ann_file=p.ann_file, data_prefix=dict(img=p.folder), metainfo=dict(classes=Raw('classes'))
        )
        | pipelines[p.argument]
        for p in splits
    }
    min_size = (dataset.get('filter_cfg') or {}).get('min_size', 0)
    if train.sizes.min() < min_size:
        lines.append(
            comment(
                f'{(train.sizes.min(1) < min_size).sum():,} images have a side below {min_size}, and the base '
                'would leave them out.'
            )
        )
        datasets['--train']['filter_cfg'] = dict(min_size=1)
    lines += _loaders(splits, (key, val_key), d, datasets)
    for p in splits[1:]:
        lines.append(assign(f'{p.argument[2:]}_evaluator', dict(ann_file=p.ann_file)))
    if len(splits) < 3:
        lines.append('test_evaluator = val_evaluator')

    model = merged(_classes_change(cfg.model, len(train.classes)), dict(backbone=d.weights) if d.weights else {})
    notes = [d.notes['weights']]
    if generator is not None:
        fitted = fit_anchors(generator, train.sides * factors[train.owners, None])
        note = f"Anchors: the base's match {fitted.base_share:.0%} of the boxes "
        note += f'(IoU {MATCH_IOU} or more; {MATCHED:.0%} are enough)'
        if fitted.change:
            model = merged(model, {head: dict(anchor_generator=fitted.change)})
            note += f', these {fitted.share:.0%}'
        notes.append(f'{note}.')
    middle = np.median(np.sqrt(train.sides.prod(1)))
    return '\n'.join(
        [
            *_head(
                base,
                splits,
                f'{number(len(train.classes), "class", "classes")}, {len(train.sides):,} boxes to train '
                f'on, with a median side of {middle:.0f} pixels.',
            ),
            names(train.classes),
            *lines,
            '',
            comment(' '.join(notes)),
            _assign(cfg, 'model', model),
            '',
            *_training(d, cfg),
            '',
        ]
    )


def _name(transform: ConfigDict) -> str:
    """Name of a transform without its scope."""
    return transform['type'].rpartition('.')[2]


def _name_code(pipeline: Sequence[ConfigDict]) -> str:
    """The same of a transform ``t`` of a pipeline, as code."""
    return "t['type'].split('.')[-1]" if any('.' in t['type'] for t in pipeline) else "t['type']"


def classifier_text(cfg: Config, base: str, splits: Sequence[Split], d: Decisions) -> str:
    """The config of a classifier of class folders. ``base`` is the expression that its ``_base_`` gets."""
    train, n = splits[0], len(splits[0].classes)
    key, dataset = only_dataset(cfg, 'train_dataloader')
    val_key, val_dataset = only_dataset(cfg, 'val_dataloader')
    crop = next((t['scale'] for t in dataset.pipeline if _name(t) == 'RandomResizedCrop'), None)
    scale = fit_scale((crop, crop), train.sizes) if isinstance(crop, int) and len(train.sizes) else None
    lines = []
    pipelines = {p.argument: Raw(f'_base_.{key if p is train else val_key}.pipeline') for p in splits}
    if scale:
        lines.append(
            comment(
                f'The median short side is {np.median(train.sizes.min(1)):.0f} pixels: crops of '
                f'{scale[1]} instead of {crop}.'
            )
        )
        crops = dict(
            RandomResizedCrop=dict(scale=scale[1]),
            ResizeEdge=dict(scale=round(scale[1] * 8 / 7)),
            CenterCrop=dict(crop_size=scale[1]),
            Resize=dict(scale=scale[1]),
        )  # 8 / 7: 256 for 224
        for argument, pipeline in (('--train', dataset.pipeline), ('--val', val_dataset.pipeline)):
            name = f'{argument[2:]}_pipeline'
            sizes = ', '.join(f'{k}={code(v)}' for k, v in crops.items() if any(_name(t) == k for t in pipeline))
            lines.append(
                f'{name} = [dict(t, **dict({sizes}).get({_name_code(pipeline)}, {{}}))\n'
                f'{" " * (len(name) + 4)}for t in {pipelines[argument]}]'
            )
            pipelines[argument] = Raw(name)
        if '--test' in pipelines:
            pipelines['--test'] = pipelines['--val']
    datasets = {}
    for p in splits:
        datasets[p.argument] = dict(
            _delete_=True, type='mmccd.CustomDataset', data_prefix=p.folder, metainfo=dict(classes=Raw('classes'))
        )
        if p is train:  # the share of broken images that the base's may skip
            datasets[p.argument]['max_broken'] = dataset.get('max_broken', 0)
        datasets[p.argument]['pipeline'] = pipelines[p.argument]
    lines += _loaders(splits, (key, val_key), d, datasets)
    model = merged(_classes_change(cfg.model, n), dict(backbone=d.weights) if d.weights else {})
    if 'num_classes' in (cfg.model.get('data_preprocessor') or {}):
        model = merged(dict(data_preprocessor=dict(num_classes=n)), model)
    topk = (cfg.get('val_evaluator') or {}).get('topk')
    if topk and max(topk) >= n:
        lines += [
            comment(f'With {n} classes, top-{max(topk)} accuracy is always 100 %.'),
            'val_evaluator = dict(topk=(1, ))',
            'test_evaluator = val_evaluator',
        ]
        if 'topk' in cfg.model.head:
            model = merged(model, dict(head=dict(topk=(1,))))
    counts = [train.counts[c] for c in train.classes]
    found = f'{min(counts):,}' + (f' to {max(counts):,}' if len(set(counts)) > 1 else '')
    return '\n'.join(
        [
            *_head(base, splits, f'{number(n, "class", "classes")} of {found} images each to train on.'),
            names(train.classes),
            *lines,
            '',
            comment(d.notes['weights']),
            _assign(cfg, 'model', model),
            '',
            *_training(d, cfg),
            '',
        ]
    )
