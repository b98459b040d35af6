"""Rotated boxes (x, y, w, h, angle in radians): their overlaps, and non-maximum suppression by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .operators import c_float, operator

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 2**15  # pairs of boxes at a time, some 50 MiB
_MIN_AREA = 1e-14  # of a box, as in mmcv
_TOLERANCE = 1e-9  # of a box's sides: what is on a side counts as inside, else equal boxes might lose a corner


@operator
def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Overlaps of boxes1 (N, 5) and boxes2 (M, 5), written to ious (N M, ), or (N, ) for pairs if aligned.

    mode_flag: 0 for the intersection over the union, 1 over the area of boxes1. Computed in float64: mmcv's float32
    loses corners of boxes that are nearly parallel (1 / 7 for an IoU of 1 / 3).
    """
    if aligned:
        ious.copy_(_pairs(boxes1, boxes2, mode_flag))
        return
    rows = max(1, CHUNK // max(1, len(boxes2)))
    for i in range(0, len(boxes1), rows):
        part = boxes1[i : i + rows]
        first = part.repeat_interleave(len(boxes2), 0)
        second = boxes2.repeat(len(part), 1)
        ious[i * len(boxes2) : (i + len(part)) * len(boxes2)] = _pairs(first, second, mode_flag)


@operator
def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Which of dets (N, 5), or (N, 6) with labels, suppression keeps: indices, best first.

    As in mmcv, labels change nothing (``batched_nms`` moves classes apart), and an overlap that equals the threshold
    removes a box on the CPU, and not on a GPU.
    """
    import torch

    iou_threshold = c_float(iou_threshold)
    reach = dets[:, 2:4].double().square().sum(1).sqrt() / 2
    keep, left = [], order
    while len(left):
        first, left = left[0], left[1:]
        keep.append(first)
        distance = (dets[left, :2] - dets[first, :2]).double().square().sum(1).sqrt()
        near = distance <= reach[left] + reach[first]
        near = near.nonzero()[:, 0]
        iou = _pairs(dets[first, :5].expand(len(near), 5), dets[left[near], :5], 0).to(dets.dtype)
        removed = iou > iou_threshold if dets.is_cuda else iou >= iou_threshold
        stays = torch.ones(len(left), dtype=torch.bool, device=left.device)
        stays[near[removed]] = False
        left = left[stays]
    return torch.stack(keep) if keep else order.new_zeros(0)


def _pairs(boxes1: Tensor, boxes2: Tensor, mode_flag: int) -> Tensor:
    """Overlaps of pairs (N, 5): (N, ) in float64."""
    import torch

    a, b = boxes1.double(), boxes2.double()
    area1, area2 = a[:, 2] * a[:, 3], b[:, 2] * b[:, 3]
    # Around the middle of both, where coordinates have most digits.
    shift = (b[:, :2] - a[:, :2]) / 2
    points1, sides1 = _edges(a, -shift)
    points2, sides2 = _edges(b, shift)
    corners, inside = zip(_clip(points1, sides1, b, shift), _clip(points2, sides2, a, -shift))
    area = _area(torch.cat(corners, 1), torch.cat(inside, 1))
    whole = area1 if mode_flag == 1 else area1 + area2 - area
    empty = (area1 < _MIN_AREA) | (area2 < _MIN_AREA)
    return torch.where(empty, 0.0, area / whole)


def _edges(boxes: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """The four corners of boxes around centre (N, 2), and from each the way to the next: (N, 4, 2)."""
    import torch

    signs = boxes.new_tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    corners = centre[:, None] + _turn(signs * boxes[:, None, 2:4], boxes[:, 4])
    return corners, torch.roll(corners, -1, 1) - corners


def _turn(points: Tensor, angle: Tensor) -> Tensor:
    """Points (N, K, 2) turned by angle (N, )."""
    import torch

    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x, y = points.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


def _clip(points: Tensor, sides: Tensor, boxes: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """The parts of edges (N, 4, 2) in boxes around centre, by Liang and Barsky: their ends (N, 8, 2), and which exist.

    In the box's own frame it is two intervals; an edge is inside between the last entry and the first exit.
    """
    import torch

    start = _turn(points - centre[:, None], -boxes[:, 4])
    way = _turn(sides, -boxes[:, 4])
    half = boxes[:, None, 2:4].abs() * (0.5 + _TOLERANCE)
    parallel = way.abs() <= _TOLERANCE * half
    step = torch.where(parallel, 1.0, way)
    t = torch.stack([(-half - start) / step, (half - start) / step])
    within = start.abs() <= half
    t_in = torch.where(parallel, torch.where(within, -torch.inf, torch.inf), t.amin(0)).amax(-1).clamp(min=0)
    t_out = torch.where(parallel, torch.where(within, torch.inf, -torch.inf), t.amax(0)).amin(-1).clamp(max=1)
    ends = torch.stack([points + sides * t_in[..., None], points + sides * t_out[..., None]], 2).flatten(1, 2)
    exists = (t_in <= t_out)[..., None].expand(-1, -1, 2).flatten(1)
    return torch.where(exists[..., None], ends, 0.0), exists


def _area(points: Tensor, exists: Tensor) -> Tensor:
    """Area (N, ) of the convex polygon of those points (N, K, 2) that exist, in any order, some of them twice."""
    import torch

    count = exists.sum(1, keepdim=True).clamp(min=1)
    points = points - (points.sum(1) / count)[:, None]  # those that do not exist are 0
    angle = torch.where(exists, torch.atan2(points[..., 1], points[..., 0]), torch.inf)
    angle, order = angle.sort(1)
    points = points.gather(1, order[..., None].expand_as(points))
    points = torch.where(angle.isfinite()[..., None], points, points[:, :1])  # twice the first: adds nothing
    x, y = points.unbind(-1)
    return (x * y.roll(-1, 1) - y * x.roll(-1, 1)).sum(1).abs() / 2
