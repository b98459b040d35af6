"""Non-maximum suppression: the usual one by ``torchvision.ops.nms``, others with numpy or PyTorch, a box at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .operators import c_float, in_float32, operator, unsupported

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

NAIVE, LINEAR, GAUSSIAN = range(3)  # mmcv's numbers for the methods of softnms
_LANE_OFFSETS = 72  # x positions of a lane in line_nms, as compiled into mmcv


@operator
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Which boxes (N, 4) with scores (N, ) non-maximum suppression keeps: indices, best first."""
    import torch
    import torchvision

    if offset != 0:
        raise unsupported('nms', f'offset={offset}')
    # In mixed precision mmdet's boxes are float32 and its scores float16; torchvision wants one.
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    return torchvision.ops.nms(boxes.to(dtype), scores.to(dtype), c_float(iou_threshold))


@operator
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS on the CPU: overlap with a better box lowers a score instead of removing the box.

    Args:
        boxes: (N, 4).
        scores: (N, ).
        dets: (N, 5), whose first rows are written: boxes and lowered scores, best first.
        iou_threshold: Overlap from which ``method`` 0 removes a box and 1 lowers its score; 2 does so for any.
        sigma: Width of method 2's factor ``exp(-overlap^2 / sigma)``.
        min_score: Boxes below it are left out.
        method: 0 naive, 1 linear, 2 Gaussian.
        offset: Added to widths and heights, 0 or 1.

    Returns:
        Indices of the rows written to dets.
    """
    import numpy as np
    import torch

    if not boxes.numel():
        return torch.zeros(0, dtype=torch.long)
    dtype = np.float64 if boxes.dtype == torch.float64 else np.float32
    box = boxes.detach().double().numpy().astype(dtype)
    score = scores.detach().double().numpy().astype(dtype)
    area = (box[:, 2] - box[:, 0] + offset) * (box[:, 3] - box[:, 1] + offset)
    # The order of equal scores is that of the compiled loop, which moves boxes in its arrays: so does this one.
    order = np.arange(len(box))
    iou_threshold, sigma, min_score = dtype(c_float(iou_threshold)), dtype(c_float(sigma)), dtype(c_float(min_score))
    count, i = len(box), 0
    while i < count:
        best = i + _first_maximum(score[order[i:count]])
        order[i], order[best] = order[best], order[i]
        rest = order[i + 1 : count]
        overlap = _overlaps(box, area, order[i], rest, offset)
        if method == NAIVE:
            factor = np.where(overlap >= iou_threshold, dtype(0), dtype(1))
        elif method == LINEAR:
            factor = np.where(overlap >= iou_threshold, 1 - overlap, dtype(1))
        elif method == GAUSSIAN:
            factor = np.exp(-(overlap * overlap) / sigma)
        else:
            raise ValueError(f'method must be 0 (naive), 1 (linear) or 2 (gaussian), got {method!r}')
        score[rest] *= factor
        dropped = score[rest] < min_score
        kept = len(rest) - np.count_nonzero(dropped)
        # Each gap is closed by the last box that is left.
        rest[np.flatnonzero(dropped[:kept])] = rest[kept + np.flatnonzero(~dropped[kept:])][::-1]
        i, count = i + 1, i + 1 + kept
    kept = torch.from_numpy(order[:count].copy())
    dets[:count, :4] = boxes[kept].to(dets.dtype)
    dets[:count, 4] = torch.from_numpy(score)[kept].to(dets.dtype)
    return kept


@operator
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of dets (N, 5), boxes and scores: each kept box, best first, and those that it removes."""
    import numpy as np
    import torch

    dtype = np.float64 if dets.dtype == torch.float64 else np.float32
    values = dets.detach().double().numpy().astype(dtype)
    box = values[:, :4]
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    left = dets[:, 4].sort(descending=True, stable=True).indices.numpy()
    groups = []
    while len(left):
        first, left = left[0], left[1:]
        removed = _overlaps(box, area, first, left, 0) >= dtype(c_float(iou_threshold))
        groups.append([int(first), *left[removed].tolist()])
        left = left[~removed]
    return groups


def _first_maximum(score: np.ndarray) -> int:
    """Where a loop by ``<`` from the first element ends: NaN stays if it is first, and else never wins."""
    import numpy as np

    return 0 if np.isnan(score[0]) else int(np.where(np.isnan(score), -np.inf, score).argmax())


def _overlaps(box: np.ndarray, area: np.ndarray, one: int, others: np.ndarray, offset: int) -> np.ndarray:
    """IoU of one box with others, by indices; NaN where neither has an area."""
    import numpy as np

    a, b = box[one], box[others]
    zero = box.dtype.type(0)
    w = np.maximum(zero, np.minimum(a[2], b[:, 2]) - np.maximum(a[0], b[:, 0]) + offset)
    h = np.maximum(zero, np.minimum(a[3], b[:, 3]) - np.maximum(a[1], b[:, 1]) + offset)
    inter = w * h
    with np.errstate(divide='ignore', invalid='ignore'):
        return inter / (area[one] + area[others] - inter)


@operator
def line_nms_forward(boxes: Tensor, scores: Tensor, overlap: float, top_k: int) -> list[Tensor]:
    """Non-maximum suppression of CLRNet's lanes (N, 77), by their mean horizontal distance.

    A lane is two scores, its start as a fraction of the height, an angle, its length in strips, and 72 positions. The
    compiled kernel compares lanes in the order of their scores with lanes in the order of boxes, which is right where
    both are the same; here both are in the order of scores, as in CLRNet.

    Args:
        boxes: (N, 77).
        scores: (N, ).
        overlap: Mean distance below which the lane with the lower score is removed.
        top_k: Lanes to keep at most.

    Returns:
        Indices of the kept lanes, filled up with 0 to N; how many they are; for each lane, the place from 1 of
        the last kept one that it is near to, or 0.
    """
    import torch

    if boxes.size(1) != 5 + _LANE_OFFSETS:
        raise ValueError(f'boxes must have {5 + _LANE_OFFSETS} columns, got {boxes.size(1)}')
    overlap = c_float(overlap)
    lanes = in_float32(boxes)
    start = (lanes[:, 2] * (_LANE_OFFSETS - 1) + 0.5).long()
    end = start + lanes[:, 4].long() - 1
    at = torch.arange(_LANE_OFFSETS, device=boxes.device)
    order = scores.sort(descending=True, stable=True).indices
    removed = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    keep, parent = torch.zeros_like(order), torch.zeros_like(order)
    count = 0
    for place, first in enumerate(order):
        if count == top_k or removed[place]:
            continue
        keep[count] = first
        count += 1
        parent[first] = count
        others = order[place + 1 :]
        low = torch.maximum(start[first], start[others])
        high = torch.minimum(end[first], end[others]).clamp(max=_LANE_OFFSETS - 1)
        common = (at >= low[:, None]) & (at <= high[:, None])
        distance = ((lanes[others, 5:] - lanes[first, 5:]).abs() * common).sum(1)
        near = (high >= low) & (low >= 0) & (distance < overlap * (high - low + 1))
        parent[others[near]] = count
        removed[place + 1 :] |= near
    return [keep, torch.tensor(count, device=boxes.device), parent]
