"""Options of tools/test.py: predictions that are shown, metrics in a file, and test-time augmentation."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Mapping
from copy import deepcopy

from mmengine.config import Config, ConfigDict

from mmccd.checkpoints.files import valid_json, write_atomically
from mmccd.errors import UserError


def show_predictions(
    cfg: Config, window: bool, folder: str | None, wait_time: float, texts: Mapping[str, str] | None = None
) -> None:
    """Switch the visualization hook on, each task's own way, and keep images of equal names apart.

    In the place of the tasks' own hooks come those of :mod:`mmccd.engine.hooks.show`; others stay.

    Args:
        cfg (Config): The config, which is changed.
        window (bool): Show every prediction in a window.
        folder (str | None): Write an image of every prediction into this folder below the run's; None writes none.
        wait_time (float): Seconds for which a window shows one.
        texts (Mapping[str, str], optional): What is drawn for names of classes that no font has. Default: the names.

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
    stock = 'DetVisualizationHook' if detection else 'VisualizationHook'
    if hook.get('type') in (stock, f'{cfg.default_scope}.{stock}'):
        hook.type = 'mmccd.ShowBoxesHook' if detection else 'mmccd.ShowClassesHook'
        if texts:
            hook.texts = [list(pair) for pair in texts.items()]  # mmengine writes keys of dicts without escapes


def write_metrics(metrics: Mapping[str, float], path: str) -> None:
    """Write metrics as JSON. What has no value, such as the AP of a class without examples, is null, not NaN."""
    os.makedirs(osp.dirname(path) or '.', exist_ok=True)
    write_atomically(path, valid_json(dict(metrics), default=float).encode())


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
