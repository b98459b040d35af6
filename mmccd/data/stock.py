"""Puts what reads data as everything here does in the place of MMDetection's, MMPretrain's and MMCV's own.

Of these, exactly the classes below are replaced; what is derived from them is left alone.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, METRICS, TRANSFORMS, Registry

from mmccd.configs import datasets_of

_OWN = {
    'mmdet.datasets.coco.CocoDataset': 'mmccd.UnguardedCocoDataset',
    'mmpretrain.datasets.custom.CustomDataset': 'mmccd.UnguardedCustomDataset',
    'mmpretrain.datasets.imagenet.ImageNet': 'mmccd.UnguardedImageNet',
    'mmdet.evaluation.metrics.coco_metric.CocoMetric': 'mmccd.CocoMetric',
    'mmcv.transforms.loading.LoadImageFromFile': 'mmccd.LoadImageFromFile',
}


def use_own_readers(cfg: Config) -> None:
    """Replace datasets, loaders of images and metrics of all splits of a config, which is changed."""
    scope = cfg.get('default_scope')
    for split in ('train', 'val', 'test'):
        for _, dataset in datasets_of(cfg.get(f'{split}_dataloader') or ConfigDict(), split):
            use_own_dataset(dataset, scope)
        evaluators = cfg.get(f'{split}_evaluator') or []
        for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
            _replace(evaluator, METRICS, scope)


def use_own_dataset(dataset: MutableMapping, scope: str | None) -> None:
    """Replace the type of a dataset's config, which is changed, and the loader of images in its pipeline."""
    _replace(dataset, DATASETS, scope)
    use_own_loader(dataset.get('pipeline') or (), scope)


def use_own_loader(pipeline: Sequence, scope: str | None) -> None:
    """Replace the loader of images in the config of a pipeline, which is changed, and in pipelines inside it."""
    for step in pipeline:
        if isinstance(step, (list, tuple)):
            use_own_loader(step, scope)
        elif isinstance(step, MutableMapping):
            _replace(step, TRANSFORMS, scope)
            use_own_loader(step.get('transforms') or (), scope)


def _replace(item: Any, registry: Registry, scope: str | None) -> None:
    kind = item.get('type') if isinstance(item, MutableMapping) else None
    if isinstance(kind, str):
        kind = registry.get(kind if '.' in kind or not scope else f'{scope}.{kind}')
    if isinstance(kind, type) and (own := _OWN.get(f'{kind.__module__}.{kind.__qualname__}')):
        item['type'] = own
