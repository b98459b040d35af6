"""The metrics that a training's evaluators give, and what of its config waits for one of them.

mmengine looks a metric up by name when the first validation is over: a name that no evaluator gives is found here,
before the first iteration.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import HOOKS, METRICS

from mmccd.configs import datasets_of
from mmccd.data.classes import class_folders, class_names, dataset_class
from mmccd.env import is_first_on_machine
from mmccd.errors import UserError, suggest


def check_monitors(cfg: Config) -> None:
    """``save_best``, early stopping and schedules that follow a metric have to name one that the evaluators give.

    Raises:
        UserError: If they name another; where an evaluator's metrics are not known, its names are not judged.
    """
    scope = cfg.get('default_scope')
    monitors = list(_monitors(cfg))
    if not monitors:
        return
    never = _no_validation(cfg)
    if never:
        if is_first_on_machine():
            print(f'note: {monitors[0][0]} has no effect, since {never}')
        return
    evaluators = cfg.val_evaluator if isinstance(cfg.val_evaluator, (list, tuple)) else [cfg.val_evaluator]
    known: list[str] = []
    prefixes: set[str] = set()
    all_known = True
    for evaluator in evaluators:
        names = metric_names(evaluator, scope, classes_of(cfg, 'val_dataloader'))
        all_known &= names is not None
        known += names or ()
        prefixes |= {name.split('/')[0] for name in names or () if '/' in name}
    for key, name, hook in monitors:
        if name == 'auto':
            if all_known and known:  # mmengine takes the first one
                _check_arguments(key.rpartition('.')[0], ConfigDict(hook, save_best=known[0]))
            continue
        if name in known or not (all_known or name.split('/')[0] in prefixes):
            continue
        gives = f'; the evaluators give {", ".join(known[:12])}{", ..." if known[12:] else ""}'
        ending = [k for k in known if k.rpartition('/')[2] == name]  # the prefix is left out
        near = f'; did you mean {ending[0]!r}?' if ending else suggest(name, known) or gives
        raise UserError(f'{key}={name!r}: the validation has no such metric{near}')


def _no_validation(cfg: Config) -> str:
    """Why a training validates nothing; empty if it does."""
    if cfg.get('val_dataloader') is None or cfg.get('val_evaluator') is None:
        return 'the config has no validation (val_evaluator)'
    train = cfg.get('train_cfg') or {}
    first, last = train.get('val_begin', 1), train.get('max_epochs') or train.get('max_iters')
    return f'train_cfg.val_begin={first} is after the end of the training, {last}' if last and first > last else ''


def _monitors(cfg: Config) -> Iterator[tuple[str, str, ConfigDict]]:
    """(key in the config, name of a metric, what waits for it); UserError for arguments that are wrong."""
    hooks = [('default_hooks.checkpoint', (cfg.get('default_hooks') or {}).get('checkpoint'))]
    hooks += [(f'custom_hooks.{i}', hook) for i, hook in enumerate(cfg.get('custom_hooks') or [])]
    for key, hook in hooks:
        if not isinstance(hook, dict):
            continue
        names = hook.get('save_best') if 'save_best' in hook else hook.get('monitor')
        if names is None and not _short(hook).startswith('EarlyStopping'):
            continue
        _check_arguments(key, hook)
        word = 'save_best' if 'save_best' in hook else 'monitor'
        for name in names if isinstance(names, (list, tuple)) else [names]:
            yield f'{key}.{word}', name, hook
    schedulers = cfg.get('param_scheduler') or []
    for i, scheduler in enumerate(schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]):
        if isinstance(scheduler, dict) and 'ReduceOnPlateau' in str(scheduler.get('type')):
            yield f'param_scheduler.{i}.monitor', scheduler.get('monitor', 'loss'), scheduler


def _short(hook: ConfigDict) -> str:
    kind = hook.get('type', '')
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def _check_arguments(key: str, hook: ConfigDict) -> None:
    """Build the hook: it says what is wrong with its rule, of which it knows more than is written here."""
    kind = hook.get('type', 'CheckpointHook')
    cls = HOOKS.get(kind) if isinstance(kind, str) else kind
    if not inspect.isclass(cls):
        return  # the runner reports it
    try:
        cls(**{k: v for k, v in hook.items() if k not in ('type', 'priority')})
    except (AssertionError, KeyError, ValueError, TypeError) as e:
        reason = str(e.args[0] if e.args else e)
        remedy = f": set {key}.rule='greater' or 'less'" if 'Cannot infer' in reason else ''
        raise UserError(f'{key}: {reason.rstrip(".")}{remedy}') from e


def classes_of(cfg: Config, loader: str) -> list[str]:
    """Names of the classes of a loader's first dataset, those of its class folders too; empty if they are not known."""
    for _, dataset in datasets_of(cfg[loader], loader):
        cls = dataset_class(dataset, cfg.get('default_scope'))
        try:
            return (cls and class_names(dataset, cls)) or class_folders(dataset) or []
        except (ValueError, OSError):
            return []  # the checks of the data report it
    return []


def metric_names(evaluator: ConfigDict, scope: str | None, classes: Sequence[str] = ()) -> list[str] | None:
    """Names of the metrics that an evaluator gives, the first one first; None if they are not known.

    Args:
        evaluator (ConfigDict): Its config.
        scope (str | None): Scope of its type.
        classes (Sequence[str]): Names of the classes, for metrics of single classes.

    Example:
        >>> metric_names(ConfigDict(type='Accuracy', topk=(1, 5)), 'mmpretrain')
        ['accuracy/top1', 'accuracy/top5']
    """
    kind = evaluator.get('type')
    if isinstance(kind, str):
        kind = METRICS.get(kind if '.' in kind or not scope else f'{scope}.{kind}')
    if not inspect.isclass(kind):
        return None
    bases = {cls.__name__: cls for cls in kind.__mro__}
    found = next(((base, names) for base, names in _NAMES.items() if base in bases), None)
    if found is None:
        return None
    own = kind.__module__.startswith('mmccd.')
    if not own and kind.compute_metrics is not bases[found[0]].compute_metrics:
        return None  # a class that computes others
    options: dict[str, Any] = {}
    for cls in reversed(kind.__mro__):
        if '__init__' in vars(cls):
            parameters = inspect.signature(cls).parameters.values()
            options.update({p.name: p.default for p in parameters if p.default is not p.empty})
    options.update(evaluator)
    prefix = options.get('prefix') or getattr(kind, 'default_prefix', None)
    return [f'{prefix}/{name}' if prefix else name for name in found[1](options, classes)]


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _coco(options: dict, classes: Sequence[str]) -> Iterator[str]:
    items = options.get('metric_items')
    for metric in _as_list(options['metric']):
        if metric == 'proposal_fast':
            yield from (f'AR@{n}' for n in options['proposal_nums'])
        elif metric == 'proposal':
            yield from items or ('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')
        else:
            names = items or ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
            yield from (f'{metric}_{name}' for name in names)
            if options['classwise']:
                yield from (f'{name}_precision' for name in classes)


def _accuracy(options: dict, classes: Sequence[str]) -> Iterator[str]:
    thresholds = _as_list(options['thrs'])
    for k in _as_list(options['topk']):
        for threshold in thresholds:
            suffix = '_no-thr' if threshold is None else f'_thr-{threshold:.2f}'
            yield f'top{k}' + (suffix if len(thresholds) > 1 else '')


def _single_label(options: dict, classes: Sequence[str]) -> Iterator[str]:
    thresholds = _as_list(options['thrs'])
    average = options['average']
    kind = '_classwise' if average is None else '_micro' if average == 'micro' else ''
    for threshold in thresholds:
        suffix = '_no-thr' if threshold is None else f'_thr-{threshold:.2f}'
        yield from (name + (suffix if len(thresholds) > 1 else '') + kind for name in options['items'])


def _voc(options: dict, classes: Sequence[str]) -> Iterator[str]:
    thresholds, counts = _as_list(options['iou_thrs']), options['proposal_nums']
    if options['metric'] == 'recall':
        yield from (f'recall@{n}@{t}' for n in counts for t in thresholds)
        yield from (f'AR@{n}' for n in counts if len(thresholds) > 1)
        return
    yield 'mAP'
    yield from (f'AP{int(t * 100):02d}' for t in thresholds)


_NAMES = {'VOCMetric': _voc, 'CocoMetric': _coco, 'Accuracy': _accuracy, 'SingleLabelMetric': _single_label}
