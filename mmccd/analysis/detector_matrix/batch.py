"""A made batch of two small images, with the annotations that a config's own pipelines load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData

THINGS = 80  # in annotations of things and stuff; the classes behind them are stuff
# (x, y, width, height) of the boxes, as shares of the side: small and large, wide and tall, one beside the other.
_BOXES = (
    ((0.05, 0.10, 0.35, 0.40), (0.45, 0.05, 0.50, 0.25), (0.50, 0.40, 0.22, 0.55)),
    ((0.10, 0.15, 0.80, 0.70), (0.30, 0.30, 0.15, 0.12), (0.62, 0.60, 0.30, 0.33)),
)


def made_batch(cfg: Config, side: int) -> dict[str, Any]:
    """What a loader of the config would hand over: images of ``side`` x ``side`` pixels, and data samples."""
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.integers(0, 256, (3, side, side), np.uint8)) for _ in _BOXES]
    if cfg.get('default_scope') == 'mmseg':
        return dict(inputs=images, data_samples=[_segmented(i, side) for i in range(len(images))])
    loads = list(_transforms(cfg.get('train_dataloader')))
    model = cfg.model
    classes = min((n for n in _numbers(model, 'num_classes', 'num_things_classes') if n > 0), default=1)
    options = dict(
        masks=any(t.get('with_mask') or 'Panoptic' in t['type'] for t in loads),
        polygons=any(t.get('poly2mask') is False for t in loads),
        proposals='LoadProposals' in str(cfg.get('train_dataloader')),  # Fast R-CNN
        semantic=any(t.get('with_seg') or 'Panoptic' in t['type'] for t in loads) or 'semantic_head' in str(model),
    )
    samples = [_sample(i, boxes, side, classes, **options) for i, boxes in enumerate(_BOXES)]
    return dict(inputs=images, data_samples=samples)


def branches(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch of a semi-supervised detector: the same images with labels, for its teacher and for its student."""
    names = ('sup', 'unsup_teacher', 'unsup_student')
    return dict(
        inputs={name: [image.clone() for image in batch['inputs']] for name in names},
        data_samples={name: [sample.clone() for sample in batch['data_samples']] for name in names},
    )


def _sample(
    number: int,
    boxes: tuple,
    side: int,
    classes: int,
    masks: bool,
    polygons: bool,
    proposals: bool,
    semantic: bool,
) -> DetDataSample:
    x, y, w, h = (np.array(boxes) * side).round().astype(int).T
    corners = np.stack([x, y, x + w, y + h], 1)
    labels = [(number + 3 * i) % min(classes, THINGS) for i in range(len(boxes))]
    sample = DetDataSample(
        metainfo=dict(
            img_id=number,
            img_path=f'{number}.jpg',
            img_shape=(side, side),
            ori_shape=(side, side),
            scale_factor=(1.0, 1.0),
            flip=False,
            flip_direction=None,
            homography_matrix=np.eye(3, dtype=np.float32),
            border=np.array([0, side, 0, side], np.float32),  # CornerNet's and CenterNet's
            text='cat. dog.',
            custom_entities=True,
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor(corners, dtype=torch.float32), labels=torch.tensor(labels, dtype=torch.long)
    )
    bitmaps = np.zeros((len(boxes), side, side), np.uint8)
    for bitmap, (left, top, right, bottom) in zip(bitmaps, corners):
        bitmap[top:bottom, left:right] = 1
    if masks:
        rings = [[np.array([a, b, c, b, c, d, a, d], np.float32)] for a, b, c, d in corners]
        kind, content = (PolygonMasks, rings) if polygons else (BitmapMasks, bitmaps)
        sample.gt_instances.masks = kind(content, side, side)
    if semantic:
        content = np.full((1, side, side), THINGS, np.int64)
        for bitmap, label in zip(bitmaps, labels):
            content[0][bitmap > 0] = label
        sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(content))
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    if proposals:
        shifted = torch.cat([sample.gt_instances.bboxes, sample.gt_instances.bboxes + side / 16])
        sample.proposals = InstanceData(bboxes=shifted.clamp(0, side), scores=torch.linspace(0.9, 0.5, len(shifted)))
    return sample


def _segmented(number: int, side: int) -> Any:
    """A data sample of MMSegmentation: stripes of a few classes."""
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=dict(img_path=f'{number}.png', img_shape=(side, side), ori_shape=(side, side)))
    stripes = (torch.arange(side) // 16 + number) % 4
    sample.gt_sem_seg = PixelData(data=stripes.expand(1, side, side).clone())
    return sample


def _transforms(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every transform that loads annotations, in whatever datasets and pipelines of a loader."""
    if isinstance(value, Mapping):
        kind = value.get('type')
        if isinstance(kind, str) and kind.rpartition('.')[2].startswith('Load') and kind.endswith('Annotations'):
            yield value
        for item in value.values():
            yield from _transforms(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _transforms(item)


def _numbers(value: Any, *keys: str) -> Iterator[int]:
    """The ints that stand under one of the keys, in a model's config; a semantic head has classes of its own."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in keys and isinstance(item, int):
                yield item
            elif key != 'semantic_head':
                yield from _numbers(item, *keys)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item, *keys)
