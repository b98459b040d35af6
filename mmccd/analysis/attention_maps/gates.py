"""Gates of a backbone's attention layers, for an image as the network sees it.

They can be recorded from any layer with a method ``gates`` (:class:`mmccd.models.layers.base.AttentionLayer`) in a
residual block, in :class:`mmccd.AttentionResNet` and, as a plugin, in mmdet's ResNet. They are computed from the input
of the layer: its output may include the shortcut and the ReLU.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmccd.analysis.inputs import rgb_pixels

KINDS = ('spatial', 'channel')
_PLACE = re.compile(r'layer(\d+)\.(\d+)\.(\w+)')


@dataclass(frozen=True)
class Gate:
    """The gates of one layer for one image.

    Attributes:
        name (str): The layer's name in the backbone, ``'layer3.0.ccd'``: stage 3, block 0.
        layer (str): Its class.
        kind (str): ``'spatial'`` or ``'channel'``.
        label (str): Meaning of the values, for legends.
        values (np.ndarray): float32, (maps, H, W) if spatial, with one map a group in CCD; else (channels,).
    """

    name: str
    layer: str
    kind: str
    label: str
    values: np.ndarray

    @property
    def stage(self) -> int:
        return place(self.name)[0]

    @property
    def block(self) -> int:
        return place(self.name)[1]


@dataclass(frozen=True)
class SeenImage:
    """An image and its gates.

    Attributes:
        pixels (np.ndarray): The image after the test pipeline, RGB, uint8, (h, w, 3).
        padded (tuple[int, int]): Height and width of the network's input, in pixels; padding is at the right and the
            bottom. The gates' maps cover all of it.
        gates (list[Gate]): In the order of the layers.
    """

    pixels: np.ndarray
    padded: tuple[int, int]
    gates: list[Gate]

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name, for ``np.savez``: ``layer3.0.ccd.spatial``, ``image``, ``padded_size``."""
        gates = {f'{g.name}.{g.kind}': g.values for g in self.gates}
        return dict(image=self.pixels, padded_size=np.array(self.padded), **gates)


def place(name: str) -> tuple[int, int]:
    """Stage (from 1) and block (from 0) out of the name of a layer in a ResNet."""
    stage, block, _ = _PLACE.fullmatch(name).groups()
    return int(stage), int(block)


def attention_layers(backbone: nn.Module) -> dict[str, nn.Module]:
    """Attention layers of a backbone whose gates can be recorded, by name.

    Raises:
        ValueError: If there is none.
    """
    layers = {n: m for n, m in backbone.named_modules() if _PLACE.fullmatch(n) and hasattr(m, 'gates')}
    if not layers:
        raise ValueError(
            f'there is nothing to show: no residual block of the backbone ({type(backbone).__name__}) has '
            'an attention layer with gates'
        )
    return layers


def choose_layers(
    layers: dict[str, nn.Module], stages: Collection[int] | None = None, blocks: Collection[int] | None = None
) -> dict[str, nn.Module]:
    """Those of :func:`attention_layers` in these stages and blocks. Default: in all.

    Raises:
        ValueError: If a stage has no attention, or none of these stages has it in a block.
    """
    found = {}
    for name in layers:
        stage, block = place(name)
        if stages is None or stage in stages:
            found.setdefault(stage, []).append(block)
    for stage in stages or ():
        if stage not in found:
            known = sorted({place(name)[0] for name in layers})
            raise ValueError(f'stage {stage} has no attention, or does not exist; there are {_listed(known)}')
    for block in blocks or ():
        if all(block not in known for known in found.values()):
            known = '; '.join(f'stage {s}: {_listed(sorted(set(b)))}' for s, b in found.items())
            raise ValueError(f'block {block} has no attention, or does not exist; there are, in {known}')
    return {
        name: layer
        for name, layer in layers.items()
        if place(name)[0] in found and (blocks is None or place(name)[1] in blocks)
    }


def _listed(numbers: list[int]) -> str:
    return ', '.join(map(str, numbers))


@torch.no_grad()
def record_gates(model: nn.Module, batch: dict[str, Any], layers: dict[str, nn.Module]) -> SeenImage:
    """Run the backbone and record the gates of its layers.

    Args:
        model (nn.Module): A classifier or a detector in evaluation mode.
        batch (dict): One image, what ``model.data_preprocessor`` takes
            (:func:`mmccd.analysis.inputs.prepare_image`).
        layers (dict[str, nn.Module]): Layers of ``model.backbone`` by name.
    """
    gates = {}

    def record(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        found = layer.gates(args[0])
        labels = getattr(layer, 'gate_labels', {})
        gates[name] = [
            Gate(name, type(layer).__name__, kind, labels.get(kind, 'gate'), found[kind][0].float().cpu().numpy())
            for kind in KINDS
            if kind in found
        ]

    pixels = rgb_pixels(batch['inputs'][0])
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args, name=name: record(name, layer, args))
        for name, layer in layers.items()
    ]
    try:
        inputs = model.data_preprocessor(batch, False)['inputs']
        model.backbone(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return SeenImage(pixels, tuple(inputs.shape[-2:]), [g for name in layers for g in gates[name]])
