"""From a file to the input of a network, by the test pipeline of its config, and back to pixels."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from torch import Tensor

from mmccd.configs import datasets_of
from mmccd.data.stock import use_own_loader


def pipeline_of(cfg: Config) -> list[dict[str, Any]]:
    """A copy of the test pipeline of a config, with mmccd's loader of images, in whose scope it can be built.

    Raises:
        ValueError: If the config has no ``test_dataloader`` with a pipeline.
    """
    for _, dataset in datasets_of(cfg.get('test_dataloader') or {}, 'test_dataloader'):
        if dataset.get('pipeline'):
            break
    else:
        raise ValueError('the config has no test_dataloader.dataset.pipeline')
    scope = cfg.get('default_scope', 'mmengine')
    init_default_scope(scope)
    pipeline = copy.deepcopy(dataset.pipeline)
    use_own_loader(pipeline, scope)
    return pipeline


def prepare_image(cfg: Config, path: str) -> dict[str, Any]:
    """A batch of one image from the test pipeline of the config, for ``model.data_preprocessor``.

    Args:
        cfg (Config): A config of a detector or a classifier.
        path (str): The image.

    Raises:
        ValueError: If the config has no ``test_dataloader`` with a pipeline.
    """
    pipeline = Compose(pipeline_of(cfg))
    # No annotations for a pipeline that loads them; img_id is a key that PackDetInputs may ask for.
    return pseudo_collate([pipeline(dict(img_path=path, img_id=0, instances=[]))])


def rgb_pixels(inputs: Tensor) -> np.ndarray:
    """RGB image (h, w, 3), uint8, of a pipeline's output (C, h, w), BGR or grey as OpenCV reads it."""
    pixels = inputs.cpu().numpy().transpose(1, 2, 0)[..., ::-1]
    if pixels.dtype != np.uint8:  # normalised by the pipeline
        low, high = pixels.min(), pixels.max()
        pixels = ((pixels - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
