"""What MMDetection's own tools name and its maintained line (``onedl-mmdetection``) no longer has."""

from __future__ import annotations

from typing import Any


def register_corrupt() -> None:
    """Register ``Corrupt``, which ``test_robustness`` puts into the pipeline, where MMDetection lacks it.

    Its arguments are those of MMDetection 3.3: one of the 19 corruptions of Michaelis et al., "Benchmarking Robustness
    in Object Detection" (2019), by name, and a severity from 1 to 5. The package imagecorruptions computes them.
    """
    import mmdet.datasets.transforms
    from mmcv.transforms import BaseTransform
    from mmdet.registry import TRANSFORMS

    if hasattr(mmdet.datasets.transforms, 'Corrupt') or 'Corrupt' in TRANSFORMS.module_dict:
        return

    @TRANSFORMS.register_module()
    class Corrupt(BaseTransform):
        """Corrupt an image (H, W, 3), as uint8.

        Args:
            corruption (str): Name of the corruption.
            severity (int): 1 to 5. Default: 1.
        """

        def __init__(self, corruption: str, severity: int = 1) -> None:
            self.corruption = corruption
            self.severity = severity

        def transform(self, results: dict[str, Any]) -> dict[str, Any]:
            import numpy as np
            from imagecorruptions import corrupt

            image = results['img'].astype(np.uint8)
            results['img'] = corrupt(image, corruption_name=self.corruption, severity=self.severity)
            return results

        def __repr__(self) -> str:
            return f'Corrupt(corruption={self.corruption!r}, severity={self.severity})'
