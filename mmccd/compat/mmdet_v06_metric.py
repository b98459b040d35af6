"""COCO's metric for MMDetection 0.6's boxes, for :mod:`mmccd.compat.mmdet_v06`.

In a file of its own, since mmdet's metrics are slow to import.
"""

from __future__ import annotations

import numpy as np
from mmdet.evaluation import CocoMetric

from mmccd.registry import METRICS


@METRICS.register_module()
class InclusiveCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric`` for boxes that include their last pixel. Arguments are the same."""

    def xyxy2xywh(self, bbox: np.ndarray) -> list[float]:
        """(x1, y1, x2, y2) to COCO's (x, y, width, height)."""
        x, y, width, height = super().xyxy2xywh(bbox)
        return [x, y, width + 1, height + 1]
