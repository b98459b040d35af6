"""Detection in images that are too large for one pass: overlapping tiles, each as the test pipeline sees an image.

SAHI (Akyon et al., ICIP 2022, https://arxiv.org/abs/2202.06934) does the same. It is not used, since sahi 0.12 asks for
a newer OpenCV than MMCV is tested with here, and loads checkpoints of MMDetection by its inferencer, which takes what
fits of them. Merging differs, too: an object that a tile's border cuts gives way to the whole one in the next tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from torch import nn
from torchvision.ops import box_iou

from .inputs import pipeline_of

COVERED = 0.5  # share of a cut box from which another box stands for it
EDGE = 0.01  # of a tile's side, from which a box counts as cut by the border; at least 2 pixels


class Tile(NamedTuple):
    """A part of an image, in pixels."""

    x: int
    y: int
    width: int
    height: int


class Found(NamedTuple):
    """Detections of an image, the highest scores first.

    Attributes:
        boxes (torch.Tensor): (N, 4): x1, y1, x2, y2 in pixels of the image.
        scores (torch.Tensor): (N, ).
        labels (torch.Tensor): (N, ).
        tiles (int): In how many tiles it was cut.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    tiles: int


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Where tiles begin along a side of an image: all as long, the last one ends with it.

    Args:
        length (int): Pixels of the image.
        side (int): Pixels of a tile.
        overlap (float): Share of a tile that neighbours have in common, at least; 0 to below 1.

    Example:
        >>> starts(1000, 400, 0.25), starts(300, 400, 0.25)
        ([0, 300, 600], [0])
    """
    if length <= side:
        return [0]
    step = max(int(side * (1 - overlap)), 1)
    n = -(-(length - side) // step) + 1
    return [round(i * (length - side) / (n - 1)) for i in range(n)]


def cut(width: int, height: int, side: int, overlap: float) -> list[Tile]:
    """The tiles of an image; one, the image itself, if it is not larger than a tile.

    Raises:
        ValueError: If ``side`` is below 1, or ``overlap`` not in 0 to below 1.
    """
    if side < 1:
        raise ValueError(f'side of a tile must be at least 1 pixel, got {side}')
    if not 0 <= overlap < 1:
        raise ValueError(f'overlap must be from 0 to below 1, got {overlap}')
    return [
        Tile(x, y, min(side, width), min(side, height))
        for y in starts(height, side, overlap)
        for x in starts(width, side, overlap)
    ]


def split_pipeline(cfg: Config) -> tuple[Compose, Compose]:
    """What loads an image by its path, and all that follows.

    Raises:
        ValueError: If the config's test set has no pipeline that begins with a loader of images.
    """
    pipeline = pipeline_of(cfg)
    if 'LoadImage' not in str(pipeline[0].get('type')):
        raise ValueError(f'the test pipeline must begin with a loader of images, begins with {pipeline[0].get("type")}')
    return Compose(pipeline[:1]), Compose(pipeline[1:])


def detect_tiled(
    model: nn.Module,
    path: str,
    side: int,
    overlap: float = 0.25,
    whole: bool = False,
    batch: int = 1,
) -> Found:
    """Detect objects in a large image, tile by tile.

    Args:
        model (nn.Module): A detector of :func:`mmccd.init_model`.
        path (str): The image.
        side (int): Of a tile, in pixels. An image that is not larger gives what the model gives without tiles.
        overlap (float): Share of a tile that neighbours have in common: objects up to that size are whole in one of
            them. Default: 0.25.
        whole (bool): Whether the model sees the whole image as well, made smaller by the test pipeline, for objects
            larger than the overlap. Default: False.
        batch (int): Tiles that go through the model together. Default: 1.

    Raises:
        ValueError: If an argument is out of its range, or the config has no fitting test pipeline.
    """
    if batch < 1:
        raise ValueError(f'batch must be at least 1, got {batch}')
    load, prepare = split_pipeline(model.cfg)
    loaded = load(dict(img_path=path, img_id=0, instances=[]))
    image = loaded['img']
    height, width = image.shape[:2]
    tiles = cut(width, height, side, overlap)
    views = [*tiles, Tile(0, 0, width, height)] if whole and len(tiles) > 1 else tiles
    found = []
    for i in range(0, len(views), batch):
        samples = []
        for tile in views[i : i + batch]:
            pixels = np.ascontiguousarray(image[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width])
            shape = pixels.shape[:2]
            samples.append(prepare(dict(loaded, img=pixels, img_shape=shape, ori_shape=shape)))
        with torch.no_grad():
            found += [s.pred_instances for s in model.test_step(pseudo_collate(samples))]
    if len(views) == 1:
        return Found(found[0].bboxes.cpu(), found[0].scores.cpu(), found[0].labels.cpu(), 1)
    merged = merge(views, found, (width, height), nms_threshold(model.cfg))
    return Found(*merged, len(tiles))


def nms_threshold(cfg: Config) -> float:
    """IoU from which the detector itself takes two boxes for one object; 0.5 where it does not say."""
    test_cfg = cfg.model.get('test_cfg') or {}
    for holder in (test_cfg.get('rcnn') or {}, test_cfg):
        nms = holder.get('nms') or {}
        if nms.get('iou_threshold') is not None:
            return float(nms['iou_threshold'])
    return 0.5


def merge(
    tiles: Sequence[Tile], found: Sequence, size: tuple[int, int], iou_threshold: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Detections of all tiles in pixels of the image, each object once.

    A box gives way to a better one of its class from another tile at ``iou_threshold``; a box that an inner border
    cuts also to one that covers half of it. Whole boxes are better than cut ones, then those with higher scores.
    Within a tile the detector has decided already.

    Args:
        tiles (Sequence[Tile]): Where they are.
        found (Sequence[InstanceData]): ``bboxes``, ``scores`` and ``labels`` of each.
        size (tuple[int, int]): Width and height of the image.
        iou_threshold (float): 0 to 1.

    Returns:
        tuple: Boxes (N, 4), scores (N, ) and labels (N, ), the highest scores first.
    """
    boxes, is_cut = [], []
    for tile, one in zip(tiles, found):
        own = one.bboxes.cpu().float()
        is_cut.append(_is_cut(own, tile, size))
        boxes.append(own + own.new_tensor([tile.x, tile.y, tile.x, tile.y]))
    origin = torch.cat([torch.full((len(b),), i) for i, b in enumerate(boxes)])
    all_boxes, cuts = torch.cat(boxes), torch.cat(is_cut)
    scores = torch.cat([one.scores.cpu().float() for one in found])
    labels = torch.cat([one.labels.cpu() for one in found])
    kept: list[int] = []
    for label in labels.unique():
        own = torch.nonzero(labels == label).flatten()
        own = own[torch.argsort(scores[own], descending=True, stable=True)]
        own = own[torch.argsort(cuts[own].int(), stable=True)]
        kept += _keep(all_boxes[own], cuts[own], origin[own], iou_threshold, own)
    order = torch.tensor(kept, dtype=torch.long)
    order = order[torch.argsort(scores[order], descending=True, stable=True)]
    return all_boxes[order], scores[order], labels[order]


def _is_cut(boxes: torch.Tensor, tile: Tile, size: tuple[int, int]) -> torch.Tensor:
    """Which boxes, (N, 4) in pixels of the tile, reach a border that is not the image's."""
    near_x, near_y = (max(2.0, EDGE * side) for side in (tile.width, tile.height))
    sides = (
        (boxes[:, 0] <= near_x) & (tile.x > 0),
        (boxes[:, 1] <= near_y) & (tile.y > 0),
        (boxes[:, 2] >= tile.width - near_x) & (tile.x + tile.width < size[0]),
        (boxes[:, 3] >= tile.height - near_y) & (tile.y + tile.height < size[1]),
    )
    return torch.stack(sides).any(0)


def _keep(
    boxes: torch.Tensor, cuts: torch.Tensor, origin: torch.Tensor, iou_threshold: float, names: torch.Tensor
) -> list[int]:
    """Of the boxes of a class, the best first, the ``names`` of those that stay."""
    alive = torch.ones(len(boxes), dtype=torch.bool)
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6).prod(1)
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        corners = torch.maximum(boxes[i, :2], boxes[:, :2]), torch.minimum(boxes[i, 2:], boxes[:, 2:])
        shared = (corners[1] - corners[0]).clamp(min=0).prod(1)
        gone = box_iou(boxes[i : i + 1], boxes)[0] >= iou_threshold
        gone |= cuts & (shared >= COVERED * areas)
        gone &= origin != origin[i]
        gone[: i + 1] = False
        alive &= ~gone
    return names[alive].tolist()
