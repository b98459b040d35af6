"""From the network's input back to the image that is shown."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from mmccd.data.decode import decode_file

from .results import Finding

_FLIPS = {'horizontal': (1,), 'vertical': (0,), 'diagonal': (0, 1)}  # axes of an image


class View:
    """The image that is shown, and the mapping from the network's input back to it.

    The image itself if the test pipeline only resized, flipped and padded it; the network's input without padding if
    the pipeline cropped it.

    Args:
        meta (dict): Of the data sample.
        seen (np.ndarray): RGB image (h, w, 3) that the test pipeline gave.
    """

    def __init__(self, meta: dict[str, Any], seen: np.ndarray) -> None:
        h, w = seen.shape[:2]
        self.axes = _FLIPS[meta.get('flip_direction') or 'horizontal'] if meta.get('flip') else ()
        original = tuple(meta['ori_shape'][:2]) if 'ori_shape' in meta else (h, w)
        known = original == (h, w) or 'scale_factor' in meta
        self.scale = np.array(meta.get('scale_factor', (1.0, 1.0)))[:2]  # of width and height
        resized = tuple(round(n * s) for n, s in zip(original, self.scale[::-1]))
        image = decode_file(meta['img_path']) if 'img_path' in meta else None
        self.whole = image is not None and image.shape[:2] == original and known and resized[0] <= h and resized[1] <= w
        self.visible = resized if self.whole else (h, w)
        self.pixels = image if self.whole else np.ascontiguousarray(np.flip(seen, self.axes))

    def show(self, cam: np.ndarray) -> np.ndarray:
        """A map of the visible part, over the image that is shown."""
        cam = np.ascontiguousarray(np.flip(cam, self.axes))
        return cv2.resize(cam, self.pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR)

    def place(self, finding: Finding) -> Finding:
        """A detection whose box is scaled back to the image, but flipped if that was."""
        box = finding.box.reshape(2, 2) * (1 if self.whole else self.scale)
        for axis in self.axes:
            box[:, 1 - axis] = self.pixels.shape[axis] - box[::-1, 1 - axis]
        return Finding(finding.label, finding.score, box.reshape(4), finding.target)
