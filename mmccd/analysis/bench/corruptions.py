"""Mild corruptions of test images for the attention bench: the same for every network, and at every run."""

from __future__ import annotations

import zlib

import cv2
import numpy as np

from mmccd.registry import TRANSFORMS

KINDS = ('noise', 'blur', 'contrast')
_NOISE = 0.08  # standard deviation, of 255
_BLUR = 1.0  # standard deviation in px
_CONTRAST = 0.4  # factor of what an image differs from its mean


@TRANSFORMS.register_module()
class BenchCorruption:
    """Corrupts ``img``: Gaussian noise of 0.08, Gaussian blur of one pixel, or contrast of 0.4.

    Args:
        kind (str): ``'noise'``, ``'blur'`` or ``'contrast'``.

    Raises:
        ValueError: If ``kind`` is another.
    """

    def __init__(self, kind: str) -> None:
        if kind not in KINDS:
            raise ValueError(f'kind must be one of {", ".join(KINDS)}, got {kind!r}')
        self.kind = kind

    def __call__(self, results: dict) -> dict:
        """Change ``results['img']``, (H, W, C) in 0..255; noise is drawn by the name of the file."""
        image = results['img'].astype(np.float32)
        if self.kind == 'noise':
            name = '/'.join(str(results['img_path']).replace('\\', '/').split('/')[-2:])
            draws = np.random.default_rng(zlib.crc32(name.encode()))
            image = image + draws.normal(0, 255 * _NOISE, image.shape).astype(np.float32)
        elif self.kind == 'blur':
            image = cv2.GaussianBlur(image, (0, 0), _BLUR).reshape(image.shape)
        else:
            mean = image.mean((0, 1), keepdims=True)
            image = mean + _CONTRAST * (image - mean)
        results['img'] = image.clip(0, 255).round().astype(np.uint8)
        return results
