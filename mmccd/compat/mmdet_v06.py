"""MMDetection 0.6's boxes, which MMDetection 3's legacy modules reproduce only in part.

In 0.6 a box included its last pixel: its width was x2 - x1 + 1 everywhere, from decoding to the file that COCO's
evaluation reads. MMDetection 3 has ``LegacyDeltaXYWHBBoxCoder`` for such detectors, but decodes to boxes that do not
include it, half a pixel larger on every side (its source gives the reason: without the rest of 0.6, that tests
better). Here is the rest, with the metric in :mod:`mmccd.data.coco_metric`, so that the weights of a detector
give the same numbers as then. It is for testing: for training, MMDetection 3's boxes are better.

Still different from 0.6: overlaps in NMS have no + 1; before NMS RetinaNet keeps the 1,000 best scores of a level, not
all scores of its 1,000 best anchors; RoIs smaller than one cell of their feature map are widened to one.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.coders import LegacyDeltaXYWHBBoxCoder
from torch import Tensor

from mmccd.registry import MODELS, TASK_UTILS


@TASK_UTILS.register_module()
class InclusiveBBoxCoder(LegacyDeltaXYWHBBoxCoder):
    """Deltas (dx, dy, dw, dh) of boxes that include their last pixel.

    Arguments and :meth:`encode` are those of mmdet's ``LegacyDeltaXYWHBBoxCoder``.

    Example:
        >>> import torch
        >>> from mmccd.compat.mmdet_v06 import InclusiveBBoxCoder
        >>> InclusiveBBoxCoder().decode(torch.tensor([[0., 0., 7., 7.]]), torch.zeros(1, 4))
        tensor([[0., 0., 7., 7.]])
    """

    def decode(
        self,
        bboxes: Tensor,
        pred_bboxes: Tensor,
        max_shape: Sequence[int] | None = None,
        wh_ratio_clip: float = 16 / 1000,
    ) -> Tensor:
        """Boxes (N, 4 * k) from ``bboxes`` (N, 4) and deltas (N, 4 * k), clipped to the pixels of ``max_shape``."""
        boxes = super().decode(bboxes, pred_bboxes, None, wh_ratio_clip).unflatten(-1, (-1, 2, 2))  # (N, k, corner, xy)
        boxes = boxes + boxes.new_tensor([0.5, -0.5])[:, None]
        if max_shape is not None:
            height, width = max_shape[:2]
            boxes = boxes.clamp_min(0).minimum(boxes.new_tensor([width - 1, height - 1]))
        return boxes.flatten(-3)


@MODELS.register_module()
class InclusiveRoIExtractor(SingleRoIExtractor):
    """RoI features of boxes that include their last pixel. Arguments: as mmdet's ``SingleRoIExtractor``."""

    def forward(self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Features (n, out_channels, h, w) of RoIs (n, 5): image, x1, y1, x2, y2."""
        # For both the choice of the level and RoIAlign, the box reached to x2 + 1.
        return super().forward(feats, rois + rois.new_tensor([0, 0, 0, 1, 1]), roi_scale_factor)
