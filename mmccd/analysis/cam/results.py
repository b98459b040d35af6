"""What an explanation consists of: the findings of a model, and a class activation map for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Finding:
    """A class predicted for an image, or a detection.

    Attributes:
        label (int): Index of the class.
        score (float): After sigmoid or softmax.
        box (np.ndarray | None): x1, y1, x2, y2 in pixels of the image that is shown; None for a classifier.
        target (Callable): From the network's raw outputs to the raw score behind ``score``, a tensor without
            dimensions.
    """

    label: int
    score: float
    box: np.ndarray | None
    target: Callable[[Any], Tensor]


@dataclass(frozen=True)
class Cam:
    """A map and what it explains.

    Attributes:
        values (np.ndarray): float32, 0 to 1, (H, W) of the image that is shown.
        findings (list[Finding]): One; with Eigen-CAM, which knows no target, all.
    """

    values: np.ndarray
    findings: list[Finding]


@dataclass(frozen=True)
class Explanation:
    """Maps of an image.

    Attributes:
        pixels (np.ndarray): RGB, uint8, (H, W, 3): the image itself; where the pipeline cuts something off, what
            it leaves.
        method (str): One of :data:`.METHODS`.
        layers (list[str]): Names of the layers that the maps are made of.
        cams (list[Cam]): The highest score first; empty if a detector found nothing.
        best (float): The highest score of all, even if below the threshold; 0 without any.
    """

    pixels: np.ndarray
    method: str
    layers: list[str]
    cams: list[Cam]
    best: float

    def arrays(self) -> dict[str, np.ndarray]:
        """For ``np.savez``: ``image``; ``maps`` (M, H, W); ``labels``, ``scores`` and, of detections, ``boxes``."""
        findings = [f for cam in self.cams for f in cam.findings]
        arrays = dict(
            image=self.pixels,
            maps=np.stack([cam.values for cam in self.cams]),
            labels=np.array([f.label for f in findings]),
            scores=np.array([f.score for f in findings], np.float32),
        )
        if findings[0].box is not None:
            arrays['boxes'] = np.stack([f.box for f in findings])
        return arrays
