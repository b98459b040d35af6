"""The config that ``tools/make_config.py`` writes: :mod:`mmccd.cli.own_data`'s decisions with their reasons."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict

from mmccd.data.checks.report import number
from mmccd.data.classes import head_classes
from mmccd.errors import UserError

from .own_data import MATCH_IOU, MATCHED, Decisions, Part, fit_anchors, fit_scale, only_dataset, resize_factors


class Raw(str):
    """An expression that stands in the config as it is."""


def code(value: Any, indent: int = 0, used: int = 0) -> str:
    """A value as configs are written: ``dict(a=1)``, in lines of 120, ``used`` characters before it on the first."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, float):
        return f'{value:.6g}'
    if isinstance(value, dict):
        (start, end), items = ('dict(', ')'), [(f'{k}=', v) for k, v in value.items()]
    elif isinstance(value, list):
        (start, end), items = '[]', [('', v) for v in value]
    else:
        return repr(value)
    flat = start + ', '.join(name + code(v, -1000) for name, v in items) + end
    if indent + used + len(flat) <= 116:  # brackets and a comma may follow
        return flat
    lines, inner = [start], indent + 4
    for name, v in items:
        text = name + code(v, inner, len(name))
        if '\n' in text or '\n' in lines[-1] or len(lines) == 1 or len(lines[-1]) + len(text) > 115:
            lines.append(' ' * inner + text + ',')
        else:
            lines[-1] += f' {text},'
    return '\n'.join(lines)[:-1] + end


def assign(name: str, value: Any) -> str:
    """``name = value`` in code."""
    return f'{name} = {code(value, used=len(name) + 3)}'


def names(classes: Sequence[str]) -> str:
    """``classes = ('a', 'b')`` in lines of 120; names are never broken."""
    lines = ['classes = (']
    for text in [f'{c!r}, ' for c in classes]:
        if len(lines[-1] + text) > 120:
            lines.append(' ' * 11)
        lines[-1] += text
    lines[-1] = (lines[-1].rstrip() if len(classes) == 1 else lines[-1][:-2]) + ')'
    return '\n'.join(line.rstrip() for line in lines)


def comment(text: str) -> str:
    """A comment in lines of 120."""
    return textwrap.fill(
        text, 120, initial_indent='# ', subsequent_indent='# ', break_long_words=False, break_on_hyphens=False
    )


def nested(keys: Sequence[str], value: dict) -> dict:
    """``{k1: {k2: value}}``."""
    for key in reversed(keys):
        value = {key: value}
    return value


def merged(*parts: dict) -> dict:
    """Nested dicts in one; later values win."""
    out: dict = {}
    for part in parts:
        for key, value in part.items():
            out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


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


def _head(base: str, parts: Sequence[Part], summary: str) -> list[str]:
    sets = ', '.join(f'{p.argument[2:]} {number(p.images, "image", "images")}' for p in parts)
    where = 'The base is found wherever mmccd is installed: this file may be moved. Paths of data are relative to the '
    where += 'folder that you start from.'
    if not base.startswith('__import__'):
        where = "Paths of data are relative to the folder that you start from, the base's to this file."
    found = f'{sets[0].upper()}{sets[1:]}. {summary}'
    return [comment(f'Written by tools/make_config.py, yours to change. {found} {where}'), f'_base_ = {base}', '']


def _training(d: Decisions, cfg: Config) -> list[str]:
    """Learning rate, schedule and checkpoints, alike for both tasks."""
    every = max(1, round(d.epochs / cfg.train_cfg.max_epochs))
    hook = dict(interval=every, max_keep_ckpts=3, save_best='auto')
    return [
        comment(f'Learning rate: {d.notes["lr"]}.'),
        assign('optim_wrapper', dict(optimizer=dict(lr=d.lr))),
        assign('auto_scale_lr', dict(base_batch_size=d.total_batch)),
        comment(f'Length: {d.notes["length"]}.'),
        assign('train_cfg', dict(max_epochs=d.epochs, val_interval=every)),
        assign('param_scheduler', d.schedulers),
        assign('default_hooks', dict(checkpoint=hook)),
    ]


def _loaders(parts: Sequence[Part], keys: tuple[str, str], d: Decisions, dataset: dict[str, dict]) -> list[str]:
    """The loaders of training, validation and test; ``dataset`` holds what each part's is made of, ``keys`` where the
    base's loaders of training and validation have theirs."""
    train, val = (key.split('.')[1:] for key in keys)
    lines = [
        assign('train_dataloader', merged(dict(batch_size=d.batch), nested(train, dataset['--train']))),
        assign('val_dataloader', nested(val, dataset['--val'])),
    ]
    lines.append(
        assign('test_dataloader', nested(val, dataset['--test']))
        if len(parts) > 2
        else 'test_dataloader = val_dataloader'
    )
    return lines


def _scale(pipeline: Sequence[dict]) -> tuple[int, int] | None:
    found = [t.get('scale') for t in pipeline if t['type'] == 'Resize']
    return tuple(found[0]) if found and isinstance(found[0], (list, tuple)) else None


def _is_plain(generator: Any) -> bool:
    """Whether these are anchors of some scales and ratios, the same on every level."""
    return (
        isinstance(generator, dict)
        and 'ratios' in generator
        and ('scales_per_octave' in generator or 'scales' in generator)
        and all(isinstance(s, int) for s in generator.strides)
    )


def detector_text(cfg: Config, base: str, parts: Sequence[Part], d: Decisions) -> str:
    """The config of a detector. ``base`` is the expression that its ``_base_`` gets; adds to ``d.warnings``."""
    train = parts[0]
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
    jitter = [t['type'] for t in dataset.pipeline if t['type'].startswith('Random') and 'Resize' in t['type']]
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
            f'the base resizes at random ({jitter[0]}): look whether its scale fits your images, '
            f'{train.sizes.min(0).astype(int)} to {train.sizes.max(0).astype(int)} (width, height)'
        )
    else:
        factors = np.ones(len(train.sizes))
        if test_scale:
            change = 'scale_factor=1.0, scale=None'
            lines.append(comment('The base trains on images as they are: no other size in the test either.'))
    for p in parts[1:]:
        ratio = np.median(p.sizes.min(1)) / np.median(train.sizes.min(1))
        if train_scale and test_scale and not 2 / 3 <= ratio <= 3 / 2:
            d.warnings.append(
                f'images of {p.argument} are {ratio:.2g} times as large as those of {train.argument} '
                f'(short side, median): resized alike, objects are {1 / ratio:.2g} times as large there'
            )
    pipelines = {p.argument: {} for p in parts}
    if lines:
        for argument, source in (('--train', key), ('--val', val_key)):
            if argument == '--train' and not train_scale:
                continue
            name = f'{argument[2:]}_pipeline'
            lines.append(
                f"{name} = [dict(t, {change}) if t['type'] == 'Resize' else t\n"
                f'{" " * (len(name) + 4)}for t in _base_.{source}.pipeline]'
            )
            pipelines[argument] = dict(pipeline=Raw(name))
        if '--test' in pipelines:
            pipelines['--test'] = pipelines['--val']
    sets = {
        p.argument: dict(
            data_root='', ann_file=p.ann_file, data_prefix=dict(img=p.folder), metainfo=dict(classes=Raw('classes'))
        )
        | pipelines[p.argument]
        for p in parts
    }
    least = (dataset.get('filter_cfg') or {}).get('min_size', 0)
    if train.sizes.min() < least:
        lines.append(
            comment(
                f'{(train.sizes.min(1) < least).sum():,} images have a side below {least}, and the base '
                'would leave them out.'
            )
        )
        sets['--train']['filter_cfg'] = dict(min_size=1)
    lines += _loaders(parts, (key, val_key), d, sets)
    for p in parts[1:]:
        lines.append(assign(f'{p.argument[2:]}_evaluator', dict(ann_file=p.ann_file)))
    if len(parts) < 3:
        lines.append('test_evaluator = val_evaluator')

    model = merged(_classes_change(cfg.model, len(train.classes)), dict(backbone=d.start) if d.start else {})
    notes = [d.notes['start']]
    if generator is not None:
        fitted = fit_anchors(generator, train.sides * factors[train.owners, None])
        note = f"Anchors: the base's match {fitted.base_share:.0%} of the boxes "
        note += f'(IoU {MATCH_IOU} or more; {MATCHED:.0%} will do)'
        if fitted.change:
            model = merged(model, {head: dict(anchor_generator=fitted.change)})
            note += f', these {fitted.share:.0%}'
        notes.append(f'{note}.')
    middle = np.median(np.sqrt(train.sides.prod(1)))
    return '\n'.join(
        [
            *_head(
                base,
                parts,
                f'{number(len(train.classes), "class", "classes")}, {len(train.sides):,} boxes to train '
                f'on, with a median side of {middle:.0f} pixels.',
            ),
            names(train.classes),
            *lines,
            '',
            comment(' '.join(notes)),
            assign('model', model),
            '',
            *_training(d, cfg),
            '',
        ]
    )


def classifier_text(cfg: Config, base: str, parts: Sequence[Part], d: Decisions) -> str:
    """The config of a classifier of class folders. ``base`` is the expression that its ``_base_`` gets."""
    train, n = parts[0], len(parts[0].classes)
    key, dataset = only_dataset(cfg, 'train_dataloader')
    val_key, val_dataset = only_dataset(cfg, 'val_dataloader')
    crop = next((t['scale'] for t in dataset.pipeline if t['type'] == 'RandomResizedCrop'), None)
    scale = fit_scale((crop, crop), train.sizes) if isinstance(crop, int) and len(train.sizes) else None
    lines = []
    pipelines = {p.argument: Raw(f'_base_.{key if p is train else val_key}.pipeline') for p in parts}
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
            sizes = ', '.join(f'{k}={code(v)}' for k, v in crops.items() if any(t['type'] == k for t in pipeline))
            lines.append(
                f"{name} = [dict(t, **dict({sizes}).get(t['type'], {{}}))\n"
                f'{" " * (len(name) + 4)}for t in {pipelines[argument]}]'
            )
            pipelines[argument] = Raw(name)
        if '--test' in pipelines:
            pipelines['--test'] = pipelines['--val']
    sets = {}
    for p in parts:
        sets[p.argument] = dict(
            _delete_=True, type='mmccd.CustomDataset', data_prefix=p.folder, metainfo=dict(classes=Raw('classes'))
        )
        if p is train:  # the share of broken images that the base's set may skip
            sets[p.argument]['max_broken'] = dataset.get('max_broken', 0)
        sets[p.argument]['pipeline'] = pipelines[p.argument]
    lines += _loaders(parts, (key, val_key), d, sets)
    model = merged(_classes_change(cfg.model, n), dict(backbone=d.start) if d.start else {})
    if 'num_classes' in (cfg.model.get('data_preprocessor') or {}):
        model = merged(dict(data_preprocessor=dict(num_classes=n)), model)
    topk = (cfg.get('val_evaluator') or {}).get('topk')
    if topk and max(topk) >= n:
        lines += [
            comment(f'Of {n} classes, one among {max(topk)} says little.'),
            'val_evaluator = dict(topk=(1, ))',
            'test_evaluator = val_evaluator',
        ]
        if 'topk' in cfg.model.head:
            model = merged(model, dict(head=dict(topk=(1,))))
    counts = [train.counts[c] for c in train.classes]
    found = f'{min(counts):,}' + (f' to {max(counts):,}' if len(set(counts)) > 1 else '')
    return '\n'.join(
        [
            *_head(base, parts, f'{number(n, "class", "classes")} of {found} images each to train on.'),
            names(train.classes),
            *lines,
            '',
            comment(d.notes['start']),
            assign('model', model),
            '',
            *_training(d, cfg),
            '',
        ]
    )
