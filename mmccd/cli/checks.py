"""Checks of a training or a test before any work: what a user can get wrong raises UserError with one message.

Initial weights are in :mod:`.initial_weights`.
"""

from __future__ import annotations

import copy
import os
import os.path as osp
import traceback
from collections.abc import Iterator, Sequence

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.optim import BaseOptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.registry import OPTIMIZERS, TRANSFORMS, DefaultScope
from torch import nn

from mmccd.compat import mmcv_ops
from mmccd.configs import datasets_of
from mmccd.data.classes import class_problems
from mmccd.env import is_local
from mmccd.errors import UserError, suggest


def check_amp(cfg: Config, asked: bool) -> None:
    """Mixed precision, by the option or by the config, needs an accelerator."""
    if (asked or 'Amp' in str(cfg.optim_wrapper.get('type', ''))) and get_device() == 'cpu':
        raise UserError(
            '--amp (AmpOptimWrapper) needs a GPU, and PyTorch sees none: leave --amp out for '
            'float32 on the CPU, or check the driver and CUDA_VISIBLE_DEVICES '
            f'({os.environ.get("CUDA_VISIBLE_DEVICES", "not set")})'
        )


def check_sync_bn(cfg: Config, model: nn.Module) -> None:
    """Norms that processes share need GPUs; with one process, mmengine turns them into ordinary ones."""
    kind = cfg.get('sync_bn')
    if kind not in (None, 'torch', 'mmcv'):
        raise UserError(f"sync_bn must be 'torch', 'mmcv' or None, got {kind!r}")
    if cfg.launcher == 'none' or not (kind or any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())):
        return
    if cfg.get('runner_type') == 'FlexibleRunner':
        raise UserError(
            '--sync-bn (sync_bn) is read by the ordinary runner; FlexibleRunner takes strategy.sync_bn, '
            'and FSDPStrategy has none'
        )
    if get_device() == 'cpu':
        raise UserError(
            "synchronised BatchNorm (--sync-bn, sync_bn, or norm_cfg.type='SyncBN') needs GPUs, and "
            'PyTorch sees none: leave it out, or take larger batches a process'
        )
    if kind == 'mmcv' and mmcv_ops.in_use() not in ('compiled', 'replacement'):
        raise UserError(
            "sync_bn='mmcv' needs mmcv's operators, which are not installed: use sync_bn='torch' (--sync-bn)"
        )


_MINIMA = {
    'train_cfg': dict(max_epochs=1, max_iters=1, val_interval=1, val_begin=0),
    'randomness': dict(seed=0),
}


def check_numbers(cfg: Config) -> None:
    """Lengths and seeds have to be whole numbers: mmengine divides by some, and trains nothing with others."""
    for key, minima in _MINIMA.items():
        given = cfg.get(key) or {}
        if not isinstance(given, dict):
            raise UserError(f'{key} must be a dict, got {given!r}')
        for name, minimum in minima.items():
            value = given.get(name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and value == round(value) >= minimum):
                raise UserError(f'{key}.{name} must be a whole number, at least {minimum}, got {value!r}')


def optimizer_of(cfg: Config, model: nn.Module) -> BaseOptimWrapper | OptimWrapperDict:
    """The optimizer of a config, for a model on any device.

    Raises:
        UserError: If it cannot be built, most often because it does not know an option of another one.
    """
    try:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            return build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    except (TypeError, ValueError, KeyError, AssertionError) as e:
        reason, kind = _reason(e), (cfg.optim_wrapper.get('optimizer') or {}).get('type')
        if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
            reason = f'there is no optimizer {kind!r}{suggest(kind, OPTIMIZERS.module_dict)}'
        elif 'unexpected keyword argument' in reason:
            reason += '. In a config, optimizer=dict(_delete_=True, type=..., lr=...) leaves out the options of a base'
        raise UserError(f'the optimizer of the config (optim_wrapper) cannot be built: {reason}') from e


def _reason(error: Exception) -> str:
    """The first sentence of a message; where there is none, the line of code, such as ``assert scale > 0``."""
    text = str(error.args[0]) if error.args else ''
    return text.split('. ')[0] or str(traceback.extract_tb(error.__traceback__)[-1].line)


def _check_pipeline(key: str, pipeline: Sequence[ConfigDict]) -> None:
    """Build each transform."""
    for i, step in enumerate(pipeline):
        try:
            TRANSFORMS.build(copy.deepcopy(step))
        except (TypeError, ValueError, KeyError, AssertionError) as e:
            name = f'{key}.{i} ({step.get("type")})'
            raise UserError(f'{name} cannot be built: {type(e).__name__}: {_reason(e)}') from e


def _missing_paths(key: str, dataset: ConfigDict) -> Iterator[str]:
    root = dataset.get('data_root') or ''
    if dataset.get('backend_args') or not is_local(root):
        return  # not on this machine's disk: the data loader raises if it is missing
    paths = {}
    if dataset.get('ann_file'):
        paths['ann_file'] = dataset['ann_file']
    prefix = dataset.get('data_prefix') or dataset.get('split')
    for name, value in prefix.items() if isinstance(prefix, dict) else [('', prefix)]:
        if isinstance(value, str) and value:
            paths[f'data_prefix.{name}' if name else 'data_prefix'] = value
    for name, path in paths.items():
        path = osp.join(root, path)
        if is_local(path) and not osp.exists(path):
            yield f'{path} ({key}.{name})'


def check_loaders(cfg: Config, splits: tuple[str, ...]) -> None:
    """What mmengine and PyTorch need of loaders: each has an exception of its own for what is missing or unfit."""
    for split in splits:
        key = f'{split}_dataloader'
        loader = cfg.get(key)
        if not isinstance(loader, dict):
            continue
        for name, minimum in (('num_workers', 0), ('batch_size', 1)):
            value = loader.get(name, minimum)
            if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
                raise UserError(f'{key}.{name} must be a whole number, at least {minimum}, got {value!r}')
        for name in ('dataset', *(['batch_size'] if loader.get('batch_sampler') else []), 'sampler'):
            if name not in loader:
                sampler = f": set it to dict(type='DefaultSampler', shuffle={split == 'train'})"
                raise UserError(f'{key} has no {name}{sampler if name == "sampler" else ""}')
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            for place, dataset in datasets_of(loader, key):
                _check_pipeline(f'{place}.pipeline', dataset.get('pipeline') or ())


def check_data(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Annotation files and image folders of the loaders and their evaluators have to be there, with our classes."""
    missing: list[str] = []
    for loader in loaders:
        if cfg.get(f'{loader}_dataloader') is not None:
            for key, dataset in datasets_of(cfg[f'{loader}_dataloader'], f'{loader}_dataloader'):
                missing += _missing_paths(key, dataset)
        evaluators = cfg.get(f'{loader}_evaluator') or []
        for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
            path = evaluator.get('ann_file')
            if path and not evaluator.get('backend_args') and is_local(path) and not osp.exists(path):
                missing.append(f'{path} ({loader}_evaluator.ann_file)')
    if missing:
        made = next(
            (n for n in ('digits', 'trees', 'fashion', 'solar') if all(m.startswith(f'data/{n}/') for m in missing)),
            None,
        )
        hint = (
            f'\nMake data/{made} with: python tools/dataset_converters/make_{made}.py'
            if made
            else (
                '\nPut or link the dataset there (docs/imagenet_coco.md, "Data"), or name your own with --cfg-options, '
                f'e.g. {missing[0].rsplit("(", 1)[1][:-1]}=PATH'
            )
        )
        raise UserError(f'data not found from the folder {os.getcwd()}:\n  ' + '\n  '.join(missing) + hint)
    for loader in loaders:
        found = cfg.get(f'{loader}_dataloader') or {}
        batches = found.get('batch_sampler') or {}
        if loader != 'train' and (found.get('drop_last') or batches.get('drop_last')):
            raise UserError(
                f'{loader}_dataloader: drop_last=True would leave the last images out of the metrics: set it to False'
            )
    problems = class_problems(cfg, loaders)
    if problems:
        raise UserError('the classes do not fit, and no later step would report it:\n  ' + '\n  '.join(problems))
