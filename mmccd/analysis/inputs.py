"""From a path to what the network gets: images of a folder, a config's test pipeline, a model with its weights."""

from __future__ import annotations

import copy
import os
import os.path as osp
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from PIL import Image
from torch import nn

from mmccd.checkpoints.read import mmengine_globals
from mmccd.configs import datasets_of
from mmccd.data.image_files import FORMATS, why_broken


def list_images(path: str) -> list[str]:
    """Paths of the images that ``path`` names: itself, or those in this folder and below it, by their
    suffix, sorted.

    Raises:
        ValueError: If there is none, or one of them cannot be decoded.
    """
    paths = [path]
    if osp.isdir(path):
        Image.init()
        suffixes = tuple(sorted(s for s, name in Image.registered_extensions().items() if name in FORMATS))
        paths = sorted(
            osp.join(root, n)
            for root, _, names in os.walk(path, followlinks=True)
            for n in names
            if n.lower().endswith(suffixes)
        )
        if not paths:
            raise ValueError(f'folder {path!r} has no image in it (a file named {", ".join(suffixes)})')
    broken = [(p, reason) for p in paths if (reason := why_broken(p))]
    if broken:
        more = f' ({len(broken)} such files of {len(paths)})' if len(broken) > 1 else ''
        raise ValueError(f'image {broken[0][0]!r} cannot be used: {broken[0][1]}{more}')
    return paths


def output_names(images: list[str], path: str) -> list[str]:
    """Paths of ``list_images(path)`` below that folder; without their suffix, but where two would be the same."""
    folder = path if osp.isdir(path) else osp.dirname(path) or '.'
    names = [osp.relpath(p, folder) for p in images]
    stems = [osp.splitext(n)[0] for n in names]
    return [s if stems.count(s) == 1 else n for n, s in zip(names, stems)]


def load_model(cfg: Config, checkpoint: str, device: str | torch.device = 'cpu') -> nn.Module:
    """Model of a config with the weights of a checkpoint (file or URL), all of them, in evaluation mode.

    Raises:
        RuntimeError: If the checkpoint does not hold exactly the model's tensors.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = MODELS.build(dict(copy.deepcopy(cfg.model), _scope_=cfg.get('default_scope')))
    with torch.serialization.safe_globals(mmengine_globals()):
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    return model.to(device).eval()


def prepare_image(cfg: Config, path: str) -> dict[str, Any]:
    """A batch of one image, out of the test pipeline of the config: what ``model.data_preprocessor`` takes.

    Raises:
        ValueError: If the config has no ``test_dataloader`` with a pipeline.
    """
    for _, dataset in datasets_of(cfg.get('test_dataloader') or {}, 'test_dataloader'):
        if dataset.get('pipeline'):
            break
    else:
        raise ValueError('the config has no test_dataloader.dataset.pipeline')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    # Annotations, which a pipeline may load, are none; img_id is a key that PackDetInputs may ask for.
    return pseudo_collate([Compose(copy.deepcopy(dataset.pipeline))(dict(img_path=path, img_id=0, instances=[]))])
