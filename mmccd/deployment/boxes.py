"""The choice of boxes of MMDetection's heads, of one image, in operators that ONNX has and in sizes that stay free.

Anchors, deltas, thresholds and NMS are MMDetection's; what differs is the form: no branch depends on a number of boxes,
which a traced graph would keep.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import Tensor
from torchvision.ops import nms, roi_align

from mmccd.compat.mmdet_v06 import InclusiveBBoxCoder, InclusiveRoIExtractor

# Of a box's side and its prior's, as a logarithm: the default of MMDetection's coders.
_MAX_RATIO = abs(math.log(16 / 1000))


class Choice(NamedTuple):
    """What a ``test_cfg`` says about boxes.

    Attributes:
        iou_threshold (float): Of the NMS.
        class_agnostic (bool): Whether boxes of different classes, or levels, suppress each other.
        score_thr (float): Only boxes with a score above it.
        nms_pre (int): Maximum number of boxes of a level before the NMS; all of them if it is not positive.
        min_size (float): Only boxes wider and higher than it; negative for all.
        maximum (int | None): Maximum number of boxes after the NMS; None for all.
    """

    iou_threshold: float
    class_agnostic: bool
    score_thr: float
    nms_pre: int
    min_size: float
    maximum: int | None


def read_choice(cfg: Mapping, where: str, ignored: tuple[str, ...] = ()) -> tuple[Choice, list[str]]:
    """A ``test_cfg`` as a :class:`Choice`, and what of it cannot be exported.

    Args:
        cfg (Mapping): For example ``model.test_cfg.rcnn``.
        where (str): Its name, for the problems.
        ignored (tuple[str, ...]): Keys without influence on boxes.
    """
    rest = {k: v for k, v in dict(cfg).items() if k not in ignored}
    nms_cfg = dict(rest.pop('nms', None) or {})
    choice = Choice(
        iou_threshold=nms_cfg.pop('iou_threshold', None),
        class_agnostic=nms_cfg.pop('class_agnostic', False),
        score_thr=rest.pop('score_thr', 0),
        nms_pre=rest.pop('nms_pre', -1),
        min_size=rest.pop('min_bbox_size', -1),
        maximum=rest.pop('max_per_img', None),
    )
    problems = [f'{where}.{k}={v!r}' for k, v in rest.items()]
    if nms_cfg.pop('type', None) != 'nms':
        problems.append(f'{where}.nms={cfg.get("nms")} (only type "nms")')
    nms_cfg.pop('split_thr', None)  # it does not change the result
    problems += [f'{where}.nms.{k}={v!r}' for k, v in nms_cfg.items()]
    if choice.iou_threshold is None:
        problems.append(f'{where}.nms without iou_threshold')
    return choice, problems


def coder_problems(coder: Any) -> list[str]:
    """Why the boxes of this coder cannot be exported; empty if they can."""
    return [] if type(coder) in (DeltaXYWHBBoxCoder, InclusiveBBoxCoder) else [f'bbox_coder={type(coder).__name__}']


def extractor_problems(extractor: Any) -> list[str]:
    """Why the features of this RoI extractor cannot be exported; empty if they can."""
    if type(extractor) not in (SingleRoIExtractor, InclusiveRoIExtractor):
        return [f'bbox_roi_extractor={type(extractor).__name__}']
    layer = extractor.roi_layers[0]
    if not isinstance(layer, RoIAlign):
        return [f'roi_layer={type(layer).__name__} (only RoIAlign)']
    return [] if layer.pool_mode == 'avg' else [f'roi_layer.pool_mode={layer.pool_mode!r} (only "avg")']


def best_of_level(
    scores: Tensor, deltas: Tensor, priors: Tensor, maximum: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best pairs of prior and class, best first.

    Args:
        scores (Tensor): (n, classes).
        deltas (Tensor): (n, 4).
        priors (Tensor): (n, 4).
        maximum (int): Number of pairs; all if it is not positive.

    Returns:
        tuple[Tensor, Tensor, Tensor, Tensor]: scores (k,), labels (k,), deltas (k, 4), priors (k, 4).
    """
    classes = scores.shape[1]
    scores = scores.reshape(-1)
    count = scores.shape[0]
    if maximum > 0:
        count = torch.minimum(torch.as_tensor(count), torch.tensor(maximum))
    scores, index = scores.topk(count)
    prior = torch.div(index, classes, rounding_mode='trunc')
    return scores, index - prior * classes, deltas[prior], priors[prior]


def decode(coder: Any, priors: Tensor, deltas: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """Boxes (n, 4) from priors (n, 4) and deltas (n, 4), cut off at the border of the image.

    As the coder's own ``decode``, in the same order of operations, but without its branch for no box at all: a graph
    that was traced with none would keep it.
    """
    inclusive = isinstance(coder, InclusiveBBoxCoder)
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    low, high = priors[:, :2], priors[:, 2:]
    size = high - low + 1 if inclusive else high - low
    move, log_size = size * deltas[:, :2], deltas[:, 2:].clamp_max(_MAX_RATIO)
    if not inclusive and coder.add_ctr_clamp:
        move = move.clamp(-coder.ctr_clamp, coder.ctr_clamp)
    else:
        log_size = log_size.clamp_min(-_MAX_RATIO)
    centre, half = (low + high) * 0.5 + move, size * log_size.exp() * 0.5
    if inclusive:
        boxes = torch.cat([centre - half + 0.5, centre + half - 0.5], dim=1)
    else:
        boxes = torch.cat([centre - half, centre + half], dim=1)
        if not coder.clip_border:
            return boxes
    ends = torch.stack([torch.as_tensor(v) - int(inclusive) for v in (width, height, width, height)])
    return boxes.clamp_min(0).minimum(ends.to(boxes.dtype))


def candidates(boxes: Tensor, scores: Tensor, choice: Choice) -> Tensor:
    """Indices of the boxes (n, 4) with scores (n,) that are good and large enough for ``choice``."""
    keep = scores > choice.score_thr
    if choice.min_size >= 0:
        keep = keep & (boxes[:, 2:] - boxes[:, :2] > choice.min_size).all(1)
    return keep.nonzero().squeeze(1)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, choice: Choice) -> Tensor:
    """Indices of the boxes that the NMS keeps, best first, not more than ``choice.maximum``.

    Args:
        boxes (Tensor): (n, 4).
        scores (Tensor): (n,).
        groups (Tensor): (n,), int64. Boxes of different groups do not suppress each other, unless ``class_agnostic``.
        choice (Choice): Threshold and number.
    """
    # A box that ends before it begins (0.6's are a pixel longer) overlaps with none; ONNX would swap its ends.
    boxes = torch.cat([boxes[:, :2], torch.maximum(boxes[:, :2], boxes[:, 2:])], dim=1)
    if not choice.class_agnostic:
        # One NMS for all: as in mmcv, an offset separates the groups. The zero is for no box at all.
        widest = torch.cat([boxes.reshape(-1), boxes.new_zeros(1)]).max()
        boxes = boxes + (groups * (widest + 1))[:, None]
    return nms(boxes, scores, choice.iou_threshold)[: choice.maximum]


def roi_features(extractor: SingleRoIExtractor, maps: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """Features (n, C, h, w) of boxes (n, 4), each from the level of its size, by RoIAlign.

    Args:
        extractor (SingleRoIExtractor): MMDetection's, or that of version 0.6.
        maps (tuple[Tensor, ...]): Feature maps (1, C, h, w) of the levels.
        boxes (Tensor): (n, 4), in pixels of the image.
    """
    if isinstance(extractor, InclusiveRoIExtractor):
        boxes = boxes + boxes.new_tensor([0, 0, 1, 1])
    rois = F.pad(boxes, (1, 0))  # all of image 0; zeros_like may become a constant with the trace's number of boxes
    layers = list(zip(extractor.roi_layers, maps))
    if len(layers) == 1:
        return _align(*layers[0], rois)
    level = extractor.map_roi_levels(rois, len(layers))
    index = [(level == i).nonzero().squeeze(1) for i in range(len(layers))]
    found = torch.cat([_align(*layer, rois[i]) for layer, i in zip(layers, index)])
    # A box without a level, because its size is NaN, keeps zeros, as in MMDetection.
    out = (level * 0).to(found.dtype)[:, None, None, None].expand(-1, *found.shape[1:])
    return out.index_put((torch.cat(index),), found)


def _align(layer: RoIAlign, x: Tensor, rois: Tensor) -> Tensor:
    return roi_align(x, rois, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
