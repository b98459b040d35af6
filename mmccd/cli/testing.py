"""Options of tools/test.py: predictions that are shown, metrics in a file, and test-time augmentation."""

from __future__ import annotations

import json
import math
import os.path as osp
from collections.abc import Mapping
from copy import deepcopy

from mmengine.config import Config, ConfigDict

from mmccd.checkpoints.files import write_atomically
from mmccd.errors import UserError


def show_predictions(cfg: Config, window: bool, folder: str | None, wait_time: float) -> None:
    """Switch the visualization hook on, each task's own way.

    Args:
        cfg (Config): The config, which is changed.
        window (bool): Show every prediction in a window.
        folder (str | None): Write an image of every prediction into this folder below the run's; None writes none.
        wait_time (float): Seconds for which a window shows one.

    Raises:
        UserError: If the config has no visualization hook.
    """
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise UserError('--show and --show-dir need default_hooks.visualization in the config')
    detection = cfg.default_scope == 'mmdet'
    hook.update({'draw' if detection else 'enable': True, 'show': window, 'wait_time': wait_time})
    if folder:
        if detection:
            hook.test_out_dir = folder
        else:  # mmpretrain's hook writes into the folder that it is given, mmdet's below WORK_DIR/<time>
            hook.out_dir = osp.join(cfg.work_dir, folder)
            hook.interval = 1


def write_metrics(metrics: Mapping[str, float], path: str) -> None:
    """Write metrics as JSON. What has no value, such as the AP of a class without examples, is null, not NaN."""
    values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
    write_atomically(path, json.dumps(values, default=float, allow_nan=False).encode())


def use_tta(cfg: Config) -> None:
    """Wrap model and pipeline for test-time augmentation: the mean over an image and its mirror image.

    A config's own ``tta_model`` and ``tta_pipeline`` are used instead where it has them.
    """
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if cfg.default_scope == 'mmdet':
        model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
        keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
        last = dict(type='PackDetInputs', meta_keys=keys)
    else:
        model = dict(type='AverageClsScoreTTA')
        last = dataset.pipeline[-1]
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    pipeline = [*deepcopy(dataset.pipeline[:-1]), dict(type='TestTimeAug', transforms=[flips, [last]])]
    cfg.model = ConfigDict(**cfg.get('tta_model', model), module=cfg.model)
    dataset.pipeline = cfg.get('tta_pipeline', pipeline)
