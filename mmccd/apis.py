"""mmccd from Python: its configs, and models of them.

What these functions are given wrong raises :class:`mmccd.UserError`, a ``ValueError``, with one message.
"""

from __future__ import annotations

import copy
import os

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import nn

from mmccd.checkpoints.fit import load_whole_checkpoint
from mmccd.checkpoints.read import allow_mmengine_checkpoints
from mmccd.data.classes import class_names, dataset_class
from mmccd.models.build import build_model
from mmccd.models.padding_in_detector import ignore_padding_in

from .configs import CONFIGS, datasets_of, is_old_name, list_configs, load_config, with_names
from .env import check_requirements
from .errors import UserError, suggest

__all__ = ['allow_mmengine_checkpoints', 'config_path', 'get_config', 'init_model']


def config_path(name: str) -> str:
    """The file of one of the configs that come with mmccd, in a checkout or in a wheel.

    As a base, it makes a config that may lie anywhere: ``_base_ = __import__('mmccd').config_path(name)``.

    Args:
        name (str): Its name, with or without ``.py`` and ``mmccd::``, as ``mmccd.list_configs`` gives it.

    Raises:
        UserError: If there is none of that name; the message has the nearest.

    Example:
        >>> import mmccd
        >>> mmccd.config_path('ccd_r50_8xb32_in1k').rpartition('/')[2]
        'ccd_r50_8xb32_in1k.py'
    """
    names = list_configs()
    stem = name.removeprefix('mmccd::').removesuffix('.py')
    if stem not in names and not is_old_name(stem):
        near = suggest(stem, names, n=3)
        raise UserError(f'no config of mmccd is called {name!r}{near or "; mmccd.list_configs() names all"}')
    return str((CONFIGS / f'{stem}.py').resolve())


def get_config(name: str) -> Config:
    """One of the configs that come with mmccd.

    Paths in it (data, checkpoints) are relative to the current folder. ``cfg.filename`` is the file's.

    Args:
        name (str): As :func:`config_path` takes it.

    Raises:
        UserError: As :func:`config_path`.

    Example:
        >>> import mmccd
        >>> mmccd.get_config('ccd_r50_8xb32_in1k').model.backbone.attention
        {'type': 'mmccd.CCD'}
    """
    return load_config(config_path(name))


def init_model(
    name_or_path: str | os.PathLike | Config,
    checkpoint: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
) -> nn.Module:
    """Build a detector or a classifier for inference, as MMDetection's and MMPretrain's own functions do.

    ``mmdet.apis.inference_detector`` and ``mmpretrain.ImageClassificationInferencer`` take what it returns: the config
    is ``model.cfg``, the classes are ``model.dataset_meta['classes']`` (from the checkpoint, else from the config's
    test set). The config's ``default_scope`` becomes the current one, which those functions need.

    Args:
        name_or_path (str | PathLike | Config): A config file, or the name of one that comes with mmccd; or a config,
            which is not changed.
        checkpoint (str | PathLike, optional): File or http(s) URL, read with ``weights_only=True``: no code in it
            runs. It has to hold exactly the model's tensors. Default: random weights; ``init_cfg`` is not followed.
        device (str | torch.device, optional): Default: the GPU if there is one, else the CPU.

    Returns:
        nn.Module: The model, in evaluation mode.

    Raises:
        UserError: If the config or the checkpoint does not exist or cannot be read, if they do not fit, or if the
            device is not there.
        ImportError: If the config is one for MMPretrain and that is not installed.

    Example:
        >>> import mmccd
        >>> model = mmccd.init_model('retinanet_ccd_r18_fpn_digits', device='cpu')
        >>> model.dataset_meta['classes'][:3], model.training
        (('0', '1', '2'), False)
    """
    device = checked_device(device)
    if isinstance(name_or_path, Config):
        cfg = with_names(copy.deepcopy(name_or_path))
    else:
        path = os.fspath(name_or_path)
        is_path = os.path.isfile(path) or os.path.dirname(path)
        cfg = load_config(path if is_path else config_path(path))
    if cfg.get('model') is None:
        raise UserError(f'config {cfg.filename or ""} has no model'.replace('  ', ' '))
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))  # MMPretrain's place for it
    scope = cfg.get('default_scope', 'mmdet')
    if scope == 'mmpretrain':
        check_requirements('mmpretrain')
    init_default_scope(scope)
    # Not by mmdet.apis.init_detector and mmpretrain.get_model: they load what fits of a checkpoint, run code in it
    # if it cannot be read otherwise, and name COCO's classes where it has none.
    model = revert_sync_batchnorm(build_model(cfg, 'cpu'))
    ignore_padding_in(model)  # where the config has its backbone do so
    meta = {} if checkpoint is None else load_whole_checkpoint(checkpoint, model)
    model.cfg = cfg
    model.dataset_meta = _dataset_meta(cfg, meta)
    if scope == 'mmpretrain':  # where its inferencers look
        model._config, model._dataset_meta, model._metainfo = cfg, model.dataset_meta, None
    return model.to(device).eval()


def checked_device(device: str | torch.device | None) -> torch.device:
    """The device, or, without one, a GPU if there is one and else the CPU; UserError if it is not available."""
    try:
        device = torch.device(get_device() if device is None else device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as e:
        reason = str(e).splitlines()[0]
        raise UserError(f'device {str(device)!r} cannot be used: {reason}') from e
    return device


def _dataset_meta(cfg: Config, meta: dict) -> dict:
    """Classes and palette: the checkpoint's classes go before the config's, the config's palette before its own."""
    found = {k.lower(): v for k, v in (meta.get('dataset_meta') or {}).items()}
    if 'classes' not in found and meta.get('CLASSES'):  # MMDetection 2, MMClassification 0
        found['classes'] = meta['CLASSES']
    loader = cfg.get('test_dataloader') or {}
    dataset = next(datasets_of(loader, ''))[1] if 'dataset' in loader else {}
    cls = dataset_class(dataset, cfg.get('default_scope'))
    if cls is not None:
        classes = found.get('classes') or class_names(dataset, cls)
        if classes is not None:
            found['classes'] = tuple(classes)
        known = {**getattr(cls, 'METAINFO', {}), **(dataset.get('metainfo') or {})}
        if known.get('palette') is not None:
            found['palette'] = known['palette']
    if cfg.get('default_scope') == 'mmdet':
        found.setdefault('palette', 'random')
    return found
