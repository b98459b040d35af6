"""What ResNet-C, ResNet-D and ResNeXt add to a ResNet: the checked groups, names in checkpoints, published weights.

ResNet-C has three 3x3 convolutions in the stem (``deep_stem``), ResNet-D an average pooling in the shortcuts as well
(``avg_down``; arXiv:1812.01187), ResNeXt groups in the 3x3 convolutions (arXiv:1611.05431).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .layers.base import check_int

# ImageNet weights that are published for a ResNet, by (deep_stem, avg_down, groups, base_width); {} is the depth.
_MMPRETRAIN = 'https://mmassets.onedl.ai/mmclassification/v0/resnet/'
_WEIGHTS = {
    (False, False, 1, 4): dict.fromkeys((18, 34, 50, 101, 152), 'torchvision://resnet{}'),
    (False, False, 32, 4): {50: 'torchvision://resnext50_32x4d', 101: 'open-mmlab://resnext101_32x4d'},
    (False, False, 32, 8): {101: 'torchvision://resnext101_32x8d'},
    (False, False, 64, 4): {101: 'torchvision://resnext101_64x4d'},
    (True, False, 1, 4): {depth: f'open-mmlab://resnet{depth}_v1c' for depth in (18, 50, 101)},
    (True, True, 1, 4): {
        50: f'{_MMPRETRAIN}resnetv1d50_b32x8_imagenet_20210531-db14775a.pth',
        101: f'{_MMPRETRAIN}resnetv1d101_b32x8_imagenet_20210531-6e13bcd3.pth',
        152: f'{_MMPRETRAIN}resnetv1d152_b32x8_imagenet_20210531-278cf22a.pth',
    },
}


def checked_groups(depth: int, groups: int, base_width: int | None) -> tuple[int, int]:
    """``groups`` and ``base_width`` of a ResNet, 4 by default.

    Raises:
        TypeError, ValueError: If one is no positive int, or of no use at this depth.
    """
    check_int('groups', groups)
    if base_width is not None:
        check_int('base_width', base_width)
    if groups == 1 and base_width is not None:
        raise ValueError(f'base_width needs groups above 1 (ResNeXt), got groups=1 and base_width={base_width}')
    if groups > 1 and depth in (18, 34):
        raise ValueError(f'groups needs Bottleneck blocks (depth 50, 101 or 152), got groups={groups} at depth {depth}')
    return groups, 4 if base_width is None else base_width


def names_of_mmpretrain(net: nn.Module, keys: Iterable[str]) -> dict[str, str]:
    """Names in mmdet's ResNetV1c and V1d of the keys that MMPretrain's have otherwise, by those keys.

    There a stem is made of ``ConvModule``s, and a shortcut without a stride has no pooling that comes first.

    Args:
        net (nn.Module): ResNet of mmdet.
        keys (Iterable[str]): Of a checkpoint, without a prefix.
    """
    keys = list(keys)
    found = {}
    for key in keys:
        stem = re.fullmatch(r'stem\.(\d)\.(conv|bn|gn|ln|in)\.(\w+)', key)
        if stem and getattr(net, 'deep_stem', False):
            found[key] = f'stem.{3 * int(stem[1]) + (stem[2] != "conv")}.{stem[3]}'
    if not getattr(net, 'avg_down', False):
        return found
    # A pooling has no tensors: step 0 of a shortcut is in the checkpoint only where no pooling comes first.
    shifted = {m[1] for m in (re.fullmatch(r'(layer\d\.0\.downsample\.)0\.weight', key) for key in keys) if m}
    for key in keys:
        step = re.fullmatch(r'(layer\d\.0\.downsample\.)(\d)\.(\w+)', key)
        if step and step[1] in shifted:
            found[key] = f'{step[1]}{int(step[2]) + 1}.{step[3]}'
    return found


def named_variant(name: str) -> dict[str, Any]:
    """Arguments of the backbone that configs and checkpoints call so: ``r50``, ``r50d``, ``x50-32x4d``; {} if none is.

    Example:
        >>> named_variant('x50-32x4d')
        {'depth': 50, 'groups': 32, 'base_width': 4}
    """
    match = re.fullmatch(r'r(\d+)(d?)|x(\d+)-(\d+)x(\d+)d', name)
    if not match:
        return {}
    if match[3]:
        return dict(depth=int(match[3]), groups=int(match[4]), base_width=int(match[5]))
    return dict(depth=int(match[1]), **(dict(deep_stem=True, avg_down=True) if match[2] else {}))


def published_weights(backbone: Mapping[str, Any]) -> str | None:
    """Where ImageNet weights of this ResNet without attention are published; None if they are not.

    Args:
        backbone (Mapping[str, Any]): Config of a :class:`mmccd.models.AttentionResNet`.

    Example:
        >>> published_weights(dict(depth=50)), published_weights(dict(depth=50, groups=32))
        ('torchvision://resnet50', 'torchvision://resnext50_32x4d')
    """
    groups, width = backbone.get('groups', 1), backbone.get('base_width') or 4
    kind = bool(backbone.get('deep_stem')), bool(backbone.get('avg_down')), groups, width
    source = _WEIGHTS.get(kind, {}).get(backbone.get('depth', 50))
    return source and source.format(backbone.get('depth', 50))
