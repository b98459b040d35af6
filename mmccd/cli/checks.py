"""Checks of a training or a test before any work: what a user can get wrong raises UserError with one message.

Initial weights are in :mod:`.initial_weights`.
"""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Iterator

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from torch import nn

from mmccd.compat import mmcv_ops
from mmccd.configs import datasets_of
from mmccd.data.classes import class_problems
from mmccd.env import is_local
from mmccd.errors import UserError


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
        made = next((n for n in ('digits', 'trees') if all(m.startswith(f'data/{n}') for m in missing)), None)
        hint = (
            f'\nMake the {made} with: python tools/dataset_converters/make_{made}.py'
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
