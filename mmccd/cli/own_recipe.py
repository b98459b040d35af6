"""The recipe for own data: batch, learning rate, schedule, image size, anchors and initial weights.

Each decision is a function of a few numbers. :mod:`mmccd.cli.own_config` writes them down with their reasons.
"""

from __future__ import annotations

import math
import os.path as osp
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict

from mmccd.configs import datasets_of
from mmccd.data.checks.report import number
from mmccd.data.classes import dataset_class, is_a
from mmccd.env import is_local
from mmccd.errors import UserError
from mmccd.models.pretrained import IDENTITY_PARTS
from mmccd.models.resnet_variants import published_weights

from .initial_weights import named_checkpoints
from .own_data import Split

MATCHED = 0.9  # share of the boxes that anchors have to match; the base's anchors are kept if they do
MATCH_IOU = 0.5  # IoU from which RetinaNet's assigner calls an anchor positive
SCALE_FACTORS = (1, 0.75, 0.5, 0.375, 0.25, 1.5, 2)  # of the base's anchors, the nearest first
MAX_ENLARGED = 2.0  # maximum enlargement: more adds no detail, and the time grows with its square
SAMPLED = 20_000  # maximum number of boxes that anchors are compared with


@dataclass(frozen=True)
class Task:
    """Length of a training, in images, for one task.

    Attributes:
        seen (int): Images that a training on a small dataset processes, summed over its epochs.
        base_images (int): Size of the dataset for which the base chose its number of epochs.
        minimum (float): Minimum number of epochs, as a share of the base's, for a dataset of up to ``base_images``.
        finetune (float): Factor of the base's learning rate.
    """

    seen: int
    base_images: int
    minimum: float
    finetune: float


TASKS = {
    'mmdet': Task(60_000, 117_266, 1.0, 1.0),  # COCO's images with boxes
    # ImageNet's recipes train from scratch; here its result is fine-tuned.
    'mmpretrain': Task(200_000, 1_281_167, 0.3, 0.1),
}


def anchor_sides(
    generator: ConfigDict, scale: float | None = None, ratios: Sequence[float] | None = None
) -> np.ndarray:
    """Width, height and stride of every anchor of a generator, (A, 3), in pixels of the resized image."""
    octaves = generator.get('scales_per_octave')
    if octaves:
        scales = [(scale or generator.octave_base_scale) * 2 ** (i / octaves) for i in range(octaves)]
    else:
        scales = [scale] if scale else list(generator.scales)
    ratios = generator.ratios if ratios is None else ratios
    return np.array(
        [
            (stride * s / math.sqrt(r), stride * s * math.sqrt(r), stride)
            for stride in generator.strides
            for s in scales
            for r in ratios
        ]
    )


def matched_share(sides: np.ndarray, anchors: np.ndarray) -> float:
    """Share of boxes, (B, 2), of which the best anchor, of (A, 3), has an IoU of at least ``MATCH_IOU``.

    The centre of the anchor is assumed to be a quarter of the stride away from the centre of the box, in both
    directions: the mean distance to the nearest anchor.
    """
    box, anchor = sides[:, None], anchors[None, :, :2]  # (B, 1, 2), (1, A, 2)
    overlap = np.minimum(np.minimum(box, anchor), (box + anchor) / 2 - anchors[None, :, 2:] / 4).clip(0).prod(-1)
    iou = overlap / (box.prod(-1) + anchor.prod(-1) - overlap)
    return float((iou.max(1) >= MATCH_IOU).mean())


@dataclass
class Anchors:
    """Anchors for a split. ``change``: what differs from the base's generator; empty if nothing has to."""

    base_share: float
    share: float
    change: dict[str, Any]


def fit_anchors(generator: ConfigDict, sides: np.ndarray) -> Anchors:
    """Keep the base's anchors if they match ``MATCHED`` of the boxes; else change the scale, the ratios, or both.

    The first of the candidates that matches as many is taken, or else the best. Ratios are the 10th, 50th and 90th
    percentile of height over width.

    Args:
        generator (ConfigDict): Of mmdet's ``AnchorGenerator``, with ``octave_base_scale`` or one of ``scales``.
        sides (np.ndarray): (B, 2), width and height of the boxes in pixels of the resized image.
    """
    sides = sides[:: -(-len(sides) // SAMPLED)]
    base = matched_share(sides, anchor_sides(generator))
    best = Anchors(base, base, {})
    if base >= MATCHED or (not generator.get('scales_per_octave') and len(generator.scales) > 1):
        return best
    key = 'octave_base_scale' if generator.get('scales_per_octave') else 'scales'
    base_scale = generator.octave_base_scale if key == 'octave_base_scale' else generator.scales[0]
    found = np.quantile(np.log(sides[:, 1] / sides[:, 0]), (0.1, 0.5, 0.9))
    fitted = sorted({float(f'{math.exp(v):.1g}' if v < 0 else f'{math.exp(v):.1f}') for v in found})
    for ratios in (None, fitted):
        for factor in SCALE_FACTORS:
            scale = base_scale * factor
            share = matched_share(sides, anchor_sides(generator, scale, ratios))
            if share > best.share + 0.01:  # no change for less
                change = {} if factor == 1 else {key: scale if key == 'octave_base_scale' else [scale]}
                best = Anchors(base, share, change | ({} if ratios is None else dict(ratios=ratios)))
            if best.share >= MATCHED:
                return best
    return best


def fit_scale(scale: Sequence[int], sizes: np.ndarray) -> tuple[int, int] | None:
    """Another ``Resize.scale`` (long, short) if the base's would enlarge the median image by more than
    ``MAX_ENLARGED``: that much, the short side in steps of 32. None if the base's is kept."""
    long, short = max(scale), min(scale)
    maximum = MAX_ENLARGED * float(np.median(sizes.min(1)))
    if short <= maximum:
        return None
    new = math.ceil(maximum / 32) * 32
    return round(long * new / short), new


def resize_factors(scale: Sequence[int], sizes: np.ndarray) -> np.ndarray:
    """Factor of ``Resize(keep_ratio=True)`` for images of (P, 2) pixels, (P, )."""
    return np.minimum(max(scale) / sizes.max(1), min(scale) / sizes.min(1))


def epoch_bounds(images: int, base_epochs: int, task: str) -> tuple[int, int]:
    """Minimum and maximum number of epochs for a split of so many images.

    Minimum: ``Task.minimum`` times the base's epochs; for a split larger than the base's dataset, as many iterations
    as that has. Maximum: 16 times the base's epochs, but not above 200 (or the base's, if those are more).
    """
    rule = TASKS[task]
    minimum = min(rule.minimum, rule.base_images / images) * base_epochs
    return max(round(minimum), 1), max(base_epochs, min(16 * base_epochs, 200))


def plan_epochs(images: int, base_epochs: int, task: str) -> int:
    """As many epochs as process ``Task.seen`` images in total, within :func:`epoch_bounds`."""
    minimum, maximum = epoch_bounds(images, base_epochs, task)
    return min(max(math.ceil(TASKS[task].seen / images), minimum), maximum)


def plan_schedulers(schedulers: Any, base_epochs: int, epochs: int, iterations: int) -> list[dict]:
    """The base's schedulers for another number of epochs: epoch counts are scaled in proportion, and a warm-up ends
    within the first epoch, which has this many ``iterations``."""
    planned = []
    for scheduler in schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]:
        scheduler = dict(scheduler)
        if not scheduler.get('by_epoch', True):
            scheduler['end'] = min(scheduler['end'], max(2, iterations - 1))  # with 1, it would never end
        else:
            for key in ('begin', 'end', 'T_max'):
                if key in scheduler:
                    scheduler[key] = round(scheduler[key] * epochs / base_epochs)
            if 'milestones' in scheduler:
                scaled = {round(m * epochs / base_epochs) for m in scheduler['milestones']}
                scheduler['milestones'] = sorted(m for m in scaled if 0 < m < epochs)
        planned.append(scheduler)
    return planned


def plan_initial_weights(backbone: ConfigDict, stem: str) -> tuple[dict[str, Any], str, str]:
    """The initial weights of the backbone; never random ones.

    Args:
        backbone (ConfigDict): The base's.
        stem (str): The base's name; the path of a classifier's backbone checkpoint follows from it.

    Returns:
        tuple: What to change in the backbone, the reason, and a warning or ''.
    """
    found = named_checkpoints(backbone)
    if found and found != [backbone.get('init_cfg')]:  # one of several, or WithAttention's
        return {}, "Initial weights: as the base's.", ''
    checkpoint = found[0]['checkpoint'] if found else None
    change: dict[str, Any] = {}
    if checkpoint is None:  # a classifier: its training makes these checkpoints
        match = re.fullmatch(r'((?:(?!_fpn_).)+?)(?:_8xb32)?_(in1k|digits)', stem)
        checkpoint = f'checkpoints/{match[1]}_{match[2]}.pth' if match else ''
        change = dict(init_cfg=dict(type='mmccd.PretrainedBackbone', checkpoint=checkpoint))
    if checkpoint and (not is_local(checkpoint) or osp.isfile(checkpoint)):
        return change, f'Initial weights: {checkpoint}.', ''
    kind = str((backbone.get('attention') or {}).get('type', '')).rpartition('.')[2].lower()
    source = published_weights(backbone)
    if backbone.get('type') != 'mmccd.AttentionResNet' or kind not in ('', *IDENTITY_PARTS) or source is None:
        warning = f'{checkpoint or "a checkpoint of the backbone"} is not there, and the training needs it: '
        warning += 'make it first (tools/train.py prints the commands), or set model.backbone.init_cfg'
        return change if checkpoint else {}, f'MISSING initial weights: {checkpoint or "none are named"}.', warning
    init = dict(type='mmccd.PretrainedBackbone', checkpoint=source)
    whose = "torchvision's" if source.startswith('torchvision') else source
    reason = f'Initial weights: {whose} (a download), since {checkpoint or "a checkpoint of this backbone"} '
    reason += 'is not there'
    if not kind:
        return dict(init_cfg=init), f'{reason}.', ''
    return (
        dict(attention=dict(identity_init=True), init_cfg=dict(init, allow_missing=IDENTITY_PARTS[kind])),
        f'{reason}; the gates are initialised as the identity.',
        '',
    )


@dataclass
class Decisions:
    """What :func:`decide` found for a base and a split; iterations are those of one epoch."""

    batch: int
    gpus: int
    lr: float
    epochs: int
    iterations: int
    schedulers: list[dict]
    weights: dict[str, Any]
    notes: dict[str, str]
    warnings: list[str]

    @property
    def total_batch(self) -> int:
        """Images of an optimizer step."""
        return self.batch * self.gpus


def decide(cfg: Config, stem: str, train: Split, gpus: int, batch: int | None) -> Decisions:
    """Batch, learning rate, schedule and initial weights; a UserError if the base cannot be used for this."""
    base_epochs = (cfg.get('train_cfg') or {}).get('max_epochs')
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    if (
        not base_epochs
        or 'lr' not in optimizer
        or cfg.get('param_scheduler') is None
        or 'backbone' not in (cfg.get('model') or {})
        or any(not isinstance(cfg.get(f'{split}_evaluator'), dict) for split in ('val', 'test'))
        or any(not isinstance(cfg.get(f'{split}_dataloader'), dict) for split in ('train', 'val', 'test'))
    ):
        raise UserError(
            f'--base {stem}: it must have model.backbone, train_cfg.max_epochs, param_scheduler, '
            'optim_wrapper.optimizer.lr, loaders for train, val and test, and one evaluator each for val and test'
        )
    task = cfg.default_scope
    loader = cfg.train_dataloader
    batch = batch or loader.batch_size
    _, dataset = only_dataset(cfg, 'train_dataloader')
    if task == 'mmdet' and not is_a(dataset_class(dataset, task), 'CocoDataset'):
        raise UserError(f'--base {stem}: its dataset must read COCO annotations, and is {dataset.get("type")}')
    images = train.filled if (dataset.get('filter_cfg') or {}).get('filter_empty_gt') else train.images
    for wrapper in _wrappers(loader.dataset):
        images *= wrapper.get('times', 1)
    iterations = math.ceil(math.ceil(images / gpus) / batch)
    epochs = plan_epochs(images, base_epochs, task)
    weights, why_weights, warning = plan_initial_weights(cfg.model.backbone, stem)
    base_batch = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    finetune = TASKS[task].finetune if cfg.model.backbone.get('init_cfg') is None else 1
    lr = optimizer.lr * finetune * (gpus * batch / base_batch if base_batch else 1)
    rate = f'{gpus} GPU{"s" * (gpus > 1)} x {batch} images: {optimizer.lr:g} at batch {base_batch}, in proportion'
    if not base_batch:
        rate = f'{optimizer.lr:g}; the base has no auto_scale_lr.base_batch_size to scale it from'
    if finetune != 1:
        rate += f'; times {finetune:g}, since it is fine-tuned'
    minimum, maximum = epoch_bounds(images, base_epochs, task)
    length = f'{number(epochs, "epoch", "epochs")} of {number(iterations, "iteration", "iterations")} process '
    length += f'{number(epochs * images, "image", "images")} (the target is {TASKS[task].seen:,}, '
    length += f"in {minimum} to {maximum} epochs); steps in proportion to the base's {base_epochs} epochs"
    schedulers = plan_schedulers(cfg.param_scheduler, base_epochs, epochs, iterations)
    if any(not s.get('by_epoch', True) for s in schedulers):
        length += ', warm-up within the first epoch'
    unused = [c for c in train.classes if not train.counts[c]]
    warnings = [warning] if warning else []
    if unused:
        warnings.append(
            f'{len(unused)} of {len(train.classes)} classes have no example in {train.argument} and stay '
            f'classes: {", ".join(unused[:10])}'
        )
    return Decisions(
        batch,
        gpus,
        lr,
        epochs,
        iterations,
        schedulers,
        weights,
        dict(weights=why_weights, lr=rate, length=length),
        warnings,
    )


def only_dataset(cfg: Config, loader: str) -> tuple[str, ConfigDict]:
    """(key, config) of the one dataset of one of the base's loaders."""
    found = [item for item in datasets_of(cfg.get(loader) or ConfigDict(), loader) if 'pipeline' in item[1]]
    if len(found) != 1:
        raise UserError(f'{loader} of the base must have one dataset, has {len(found)}: give another --base')
    return found[0]


def _wrappers(dataset: ConfigDict) -> Iterator[ConfigDict]:
    while 'dataset' in dataset:
        yield dataset
        dataset = dataset.dataset
