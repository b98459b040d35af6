"""Non-maximum suppression by ``torchvision.ops.nms``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .operators import c_float, operator, unsupported

if TYPE_CHECKING:
    from torch import Tensor


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
