"""MMCV's and MMPretrain's transforms of an ImageNet training: the same pixels and random draws, in less time.

Decoding takes four fifths of the time of an image. These save what stands around it: a file is opened once, the check
for its end included; images are cropped and flipped without detours, and are split into planes by OpenCV.
``benchmarks/bench_pipeline.py`` measures it.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import cv2
import mmcv
import numpy as np
import torch
from mmcv import transforms
from mmcv.transforms.utils import cache_randomness
from mmengine import fileio
from mmengine.logging import print_log

from mmccd.env import is_local
from mmccd.registry import TRANSFORMS

from . import of_mmpretrain
from .decode import bits, decode, is_dark, looks_deep, open_image
from .image_files import DARK, lacks_end, read_image

_AXES = {'horizontal': 1, 'vertical': 0, 'diagonal': -1}  # OpenCV's numbers
_ANNOTATED = frozenset({'gt_bboxes', 'gt_keypoints', 'gt_seg_map'})  # what RandomFlip flips besides the image


@TRANSFORMS.register_module()
class LoadImageFromFile(transforms.LoadImageFromFile):
    """``mmcv.LoadImageFromFile`` that reads what the dataset check and all else here read (:mod:`.decode`).

    It refuses an image which is cut short, by the bytes that it reads anyway: where it comes first in the pipeline, a
    :class:`mmccd.data.GuardedDataset` does not open the file for that. With ``color_type='unchanged'``, another one
    that ignores the orientation, or another ``imdecode_backend`` than ``'cv2'``, MMCV decodes.

    The tools put it in the place of MMCV's.

    Raises:
        ValueError: If the image is cut short or cannot be decoded, unless ``ignore_empty`` is set.
    """

    said_dark = False  # in this process

    def transform(self, results: dict) -> dict | None:
        """Add ``img``, (H, W, 3) in BGR by default, ``img_shape`` and ``ori_shape``."""
        path = results['img_path']
        try:
            content = self._read(path)
            problem = read_image(content).problem if lacks_end(content[:2], content) else ''
            if problem:
                raise ValueError(f'image {path!r} cannot be used: {problem}')
            img = self._decode(path, content)
        except Exception:
            if self.ignore_empty:
                return None
            raise
        results['img'] = img.astype(np.float32) if self.to_float32 else img
        results['img_shape'] = results['ori_shape'] = img.shape[:2]
        return results

    def _read(self, path: str) -> bytes:
        if self.file_client_args is not None:
            return fileio.FileClient.infer_client(self.file_client_args, path).get(path)
        if self.backend_args is None and is_local(path):
            with open(path, 'rb', buffering=0) as f:
                return f.read()
        return fileio.get(path, backend_args=self.backend_args)

    def _decode(self, path: str, content: bytes) -> np.ndarray:
        if self.imdecode_backend != 'cv2' or self.color_type not in ('color', 'grayscale'):
            img = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
            if img is None:
                raise ValueError(f'image {path!r} cannot be used: it cannot be decoded')
            return img
        try:
            img = decode(content, grey=self.color_type == 'grayscale')
        except ValueError as e:
            raise ValueError(f'image {path!r} cannot be used: {e}') from e
        if looks_deep(content) and is_dark(img) and not LoadImageFromFile.said_dark:
            LoadImageFromFile.said_dark = bits(open_image(content), content) > 8
            if LoadImageFromFile.said_dark:
                print_log(f'image {path}: {DARK}', 'current', logging.WARNING)
        return img


@TRANSFORMS.register_module()
class RandomResizedCrop(of_mmpretrain.RandomResizedCrop):
    """``mmpretrain.RandomResizedCrop``; the crop is a slice, since it always lies within the image."""

    def transform(self, results: dict) -> dict:
        """Replace ``img`` by a crop of it, (*scale, 3), and set ``img_shape``."""
        img = results['img']
        y, x, h, w = self.rand_crop_params(img)
        results['img'] = mmcv.imresize(
            img[y : y + h, x : x + w],
            tuple(self.scale[::-1]),
            interpolation=self.interpolation,
            backend=self.backend,
        )
        results['img_shape'] = results['img'].shape
        return results


@TRANSFORMS.register_module()
class RandomFlip(transforms.RandomFlip):
    """``mmcv.RandomFlip``; the image is copied by OpenCV. A view would be copied later, ten times as slowly."""

    _methods_with_randomness: ClassVar[
        list[str]
    ] = []  # its own: cache_randomness appends to what it finds, MMCV's list

    @cache_randomness
    def _choose_direction(self) -> str | None:
        if not (isinstance(self.direction, str) and isinstance(self.prob, float)):
            return super()._choose_direction.func(self)
        # What numpy.random.choice does with its one draw.
        return self.direction if np.random.random_sample() < self.prob / (self.prob + (1.0 - self.prob)) else None

    def _flip(self, results: dict) -> None:
        img = results['img']
        if img.dtype != np.uint8 or _ANNOTATED.intersection(results):
            super()._flip(results)
        else:
            results['img'] = cv2.flip(img, _AXES[results['flip_direction']]).reshape(img.shape)


@TRANSFORMS.register_module()
class PackInputs(of_mmpretrain.PackInputs):
    """``mmpretrain.PackInputs``; OpenCV splits an image of bytes into planes."""

    @staticmethod
    def format_input(input_: Any) -> Any:
        """(H, W, C) as a tensor (C, H, W); lists, other arrays and PIL images as MMPretrain does."""
        if not (
            isinstance(input_, np.ndarray)
            and input_.dtype == np.uint8
            and input_.ndim == 3
            and input_.shape[2] == 3
            and input_.flags.c_contiguous
        ):
            return of_mmpretrain.PackInputs.format_input(input_)
        planes = np.empty((3, *input_.shape[:2]), np.uint8)
        cv2.split(input_, [planes[0], planes[1], planes[2]])
        return torch.from_numpy(planes)

    def transform(self, results: dict) -> dict:
        """``inputs`` (C, H, W) and ``data_samples``."""
        if isinstance(results.get('gt_label'), int):  # through an array, it becomes a tensor in a third of the time
            results = dict(results, gt_label=np.array([results['gt_label']], np.int64))
        return super().transform(results)
