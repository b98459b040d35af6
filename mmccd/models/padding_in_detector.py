"""Neck and heads of a detector whose backbone ignores padding: what they do with an image depends on it alone.

A backbone alone is not enough: behind it, a neck's bias fills the padding, 3x3 convolutions carry that back into the
image, five pixels of a map in four layers and the output of a head, and heads find objects in the padding.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from .backbones import AttentionResNet
from .padding import ValidArea, apply_norm, fill_outside, is_norm, per_size, zero_outside

_DONE = '_ignores_padding'


def ignore_padding_in(detector: nn.Module) -> bool:
    """Make neck and heads of a detector treat every image as if it had no padding.

    ``mmccd.IgnorePaddingHook`` does it in trainings and tests, :func:`mmccd.init_model` for inference; elsewhere, call
    it once on the built model. The backbone gets the sizes of the images from their ``img_shape``. In neck and dense
    heads, convolutions see zeros outside of an image, norms and global poolings take their statistics inside, and only
    what lies inside is decoded to boxes. RoI features at an image's border do not mix with padding.

    Args:
        detector (nn.Module): One of MMDetection, or a classifier of MMPretrain, not wrapped.

    Returns:
        bool: Whether ``detector.backbone`` is an AttentionResNet with ``ignore_padding=True``; nothing is done for any
        other.
    """
    backbone = getattr(detector, 'backbone', None)
    if not isinstance(backbone, AttentionResNet) or not backbone.ignore_padding:
        return False
    if _DONE in detector.__dict__:
        return True
    within = _Within(backbone)
    setattr(detector, _DONE, True)
    detector.register_forward_pre_hook(within.take_sizes, with_kwargs=True)
    backbone.register_forward_pre_hook(within.give_sizes, with_kwargs=True)
    for name, child in detector.named_children():
        # What has a backbone of its own, such as a teacher, is another network.
        if name in ('backbone', 'data_preprocessor') or hasattr(child, 'backbone'):
            continue
        for module in child.modules():
            if hasattr(module, 'roi_layers'):
                module.register_forward_pre_hook(within.repeat_edges)
            elif name != 'roi_head':  # all others work on maps of whole images
                _change(module, within)
    return True


def _change(module: Any, within: _Within) -> None:
    """Make one module of a neck or a dense head treat every image as if it had no padding."""
    if isinstance(module, (_ConvNd, _AvgPoolNd, _MaxPoolNd)) or 'DeformConv2d' in type(module).__name__:
        module.register_forward_pre_hook(within.clear)
        if isinstance(module, _MaxPoolNd):
            module.register_forward_hook(within.clear_result)
    elif is_norm(module) or isinstance(module, (_AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)):
        module.forward = _Statistics(module, within)
    if hasattr(module, 'predict_by_feat'):
        module.predict_by_feat = _Predict(module, within)


class _Within:
    """Sizes of the images on their way into the backbone, and from there to what is behind it.

    Objects with methods, not closures: a copy of the detector gets its own.
    """

    def __init__(self, backbone: AttentionResNet) -> None:
        self.backbone = backbone
        self.sizes: list[Sequence[int]] | None = None

    def take_sizes(self, detector: nn.Module, args: tuple, kwargs: dict) -> None:
        samples = kwargs.get('data_samples', args[1] if len(args) > 1 else None)
        shapes = [getattr(sample, 'metainfo', {}).get('img_shape') for sample in samples or ()]
        self.sizes = [shape for shape in shapes if shape is not None]
        if len(self.sizes) < len(shapes):
            self.sizes = None

    def give_sizes(self, backbone: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        sizes, self.sizes = self.sizes, None  # a second call is of other images
        if sizes and backbone.ignore_padding and len(args) == 1 and 'image_sizes' not in kwargs:
            kwargs = dict(kwargs, image_sizes=sizes)
        return args, kwargs

    def area(self, x: Any) -> ValidArea | None:
        """Of a map of the neck or a head; None if the images have no padding there, or if it is none of these."""
        areas = self.backbone.areas if self.backbone.ignore_padding else []
        if not areas or not isinstance(x, Tensor) or x.dim() != 4 or len(x) != len(areas[0].sizes):
            return None
        levels = list(areas)
        while max(levels[-1].map_size) > 1:  # convolutions or poolings of the neck, one behind the other
            levels.append(levels[-1].strided(2))
        found = next((level for level in levels if level.map_size == tuple(x.shape[-2:])), None)
        return None if found is None or found.is_whole else found

    def clear(self, module: nn.Module, args: tuple) -> tuple | None:
        """As beyond a map's border, outside of the images in the input of a layer of more than one pixel."""
        area = None if module.kernel_size in (1, (1, 1)) else self.area(args[0])
        if area is None:
            return None
        value = torch.finfo(args[0].dtype).min if isinstance(module, _MaxPoolNd) else 0.0
        return (fill_outside(args[0].clone(), area, value), *args[1:])

    def clear_result(self, module: nn.Module, args: tuple, result: Any) -> Tensor | None:
        """Zeros outside of the images, where a maximum of nothing would be huge."""
        area = self.area(result)
        return None if area is None else zero_outside(result, area)

    def repeat_edges(self, extractor: nn.Module, args: tuple) -> tuple:
        """RoIAlign reads half a pixel beyond the last one; at a map's border that is the last one again."""
        maps = tuple(x if (a := self.area(x)) is None else per_size(_same, a, x, edge=1) for x in args[0])
        return (maps, *args[1:])


def _same(x: Tensor) -> Tensor:
    return x


class _Statistics:
    """In place of the ``forward`` of a norm or a global pooling."""

    def __init__(self, module: nn.Module, within: _Within) -> None:
        self.module, self.within = module, within

    def __call__(self, x: Tensor) -> Tensor:
        forward = functools.partial(type(self.module).forward, self.module)
        area = self.within.area(x)
        if area is None:
            return forward(x)
        if is_norm(self.module):
            return apply_norm(forward, x, area, self.module)
        return per_size(forward, area, x, stride=None)


class _Predict:
    """In place of a dense head's ``predict_by_feat``: boxes from the part of each map that is in the image."""

    def __init__(self, head: Any, within: _Within) -> None:
        self.head, self.within = head, within
        # Otherwise, positions on a map cannot be told from its size.
        has_priors = any(hasattr(head, name) for name in ('prior_generator', 'square_anchor_generator'))
        parameters = inspect.signature(head.predict_by_feat).parameters
        self.takes_parts = has_priors and 'anchor_list' not in parameters
        self.has_warned = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        predict = functools.partial(type(self.head).predict_by_feat, self.head)
        if all(self.within.area(x) is None for x in _maps([*args, *kwargs.values()])):
            return predict(*args, **kwargs)
        if not self.takes_parts:
            self._warn()
            return predict(*args, **kwargs)
        groups = self.within.backbone.areas[0].groups()
        results: list[Any] = [None] * sum(map(len, groups.values()))
        for images in groups.values():
            part = [self._of(images, x) for x in args]
            found = predict(*part, **{k: self._of(images, x) for k, x in kwargs.items()})
            for i, result in zip(images, found, strict=True):
                results[i] = result
        return results

    def _of(self, images: list[int], x: Any) -> Any:
        """The share of these images, all of one size, in an argument: cut maps, and entries of what goes by image."""
        number = len(self.within.backbone.areas[0].sizes)
        if isinstance(x, Tensor):
            if x.dim() == 0 or len(x) != number:
                return x
            area = self.within.area(x)
            h, w = x.shape[-2:] if area is None else area.sizes[images[0]]
            return x[images, :, :h, :w] if x.dim() == 4 else x[images]
        if not isinstance(x, (list, tuple)):
            return x
        if next(_maps(x), None) is not None:
            return type(x)(self._of(images, each) for each in x)
        return [x[i] for i in images] if len(x) == number else x

    def _warn(self) -> None:
        if not self.has_warned:
            self.has_warned = True
            print_log(
                f'ignore_padding: {type(self.head).__name__} is given whole maps to decode, and may find something in '
                'the padding',
                logger='current',
                level=logging.WARNING,
            )


def _maps(x: Any) -> Iterator[Tensor]:
    """The maps in lists of maps."""
    for each in x if isinstance(x, (list, tuple)) else ():
        if isinstance(each, Tensor) and each.dim() == 4:
            yield each
        else:
            yield from _maps(each)
