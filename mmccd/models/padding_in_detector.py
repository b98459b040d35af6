"""Neck and heads of a detector whose backbone ignores padding: what they do with an image depends on it alone.

A backbone alone is not enough: behind it, a neck's bias fills the padding, 3x3 convolutions carry that back into the
image, five pixels of a map in four layers and the output of a head, and heads find objects in the padding.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from .backbones import AttentionResNet
from .padding import ValidArea, apply_norm, is_norm, per_size, zero_outside

_DONE = '_ignores_padding'


def ignore_padding_in(detector: nn.Module) -> bool:
    """Make neck and heads of a detector treat every image as if it had no padding.

    ``mmccd.IgnorePaddingHook`` does it in trainings and tests, :func:`mmccd.init_model` for inference; elsewhere, call
    it once on the built model. The backbone gets the sizes of the images from their ``img_shape``. In neck and dense
    heads, convolutions see zeros outside of an image, norms take their statistics inside, and only what lies inside is
    decoded to boxes. RoI features at an image's border do not mix with padding.

    Args:
        detector (nn.Module): One of MMDetection, not wrapped.

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
    for module in _dense_modules(detector):
        if isinstance(module, (_ConvNd, _AvgPoolNd, _MaxPoolNd)):
            module.register_forward_pre_hook(within.clear)
        elif is_norm(module):
            module.forward = _Norm(module, within)
        if hasattr(module, 'predict_by_feat'):
            module.predict_by_feat = _Predict(module, within)
    for module in detector.modules():
        if hasattr(module, 'roi_layers'):
            module.register_forward_pre_hook(within.repeat_edges)
    return True


def _dense_modules(detector: nn.Module) -> Iterator[Any]:
    """What works on maps of whole images, behind the backbone."""
    for name, child in detector.named_children():
        if name not in ('backbone', 'roi_head', 'data_preprocessor'):
            yield from child.modules()


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
        if sizes and len(args) == 1 and 'image_sizes' not in kwargs:
            kwargs = dict(kwargs, image_sizes=sizes)
        return args, kwargs

    def area(self, x: Any) -> ValidArea | None:
        """Of a map of the neck or a head; None if the images have no padding there, or if it is none of these."""
        areas = self.backbone.areas
        if not areas or not isinstance(x, Tensor) or x.dim() != 4 or len(x) != len(areas[0].sizes):
            return None
        levels = list(areas)
        while max(levels[-1].map_size) > 1:  # convolutions or poolings of the neck, one behind the other
            levels.append(levels[-1].strided(2))
        found = next((level for level in levels if level.map_size == tuple(x.shape[-2:])), None)
        return None if found is None or found.is_whole else found

    def clear(self, module: nn.Module, args: tuple) -> tuple | None:
        """Zeros outside of the images in the input of a convolution or pooling of more than one pixel."""
        if module.kernel_size in (1, (1, 1)):
            return None
        area = self.area(args[0])
        return None if area is None else (zero_outside(args[0].clone(), area), *args[1:])

    def repeat_edges(self, extractor: nn.Module, args: tuple) -> tuple:
        """RoIAlign reads half a pixel beyond the last one; at a map's border that is the last one again."""
        maps = tuple(x if (a := self.area(x)) is None else per_size(_same, a, x, edge=1) for x in args[0])
        return (maps, *args[1:])


def _same(x: Tensor) -> Tensor:
    return x


class _Norm:
    """In place of a norm's ``forward``."""

    def __init__(self, norm: nn.Module, within: _Within) -> None:
        self.norm, self.within = norm, within

    def __call__(self, x: Tensor) -> Tensor:
        forward = functools.partial(type(self.norm).forward, self.norm)
        area = self.within.area(x)
        return forward(x) if area is None else apply_norm(forward, x, area, self.norm)


class _Predict:
    """In place of a dense head's ``predict_by_feat``: boxes from the part of each map that is in the image."""

    def __init__(self, head: Any, within: _Within) -> None:
        self.head, self.within = head, within

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        predict = functools.partial(type(self.head).predict_by_feat, self.head)
        maps = [x for x in _maps([*args, *kwargs.values()]) if self.within.area(x) is not None]
        if not maps:
            return predict(*args, **kwargs)
        results: list[Any] = [None] * len(maps[0])
        for images in self.within.backbone.areas[0].groups().values():
            part = [self._of(images, x) for x in args]
            found = predict(*part, **{k: self._of(images, x) for k, x in kwargs.items()})
            for i, result in zip(images, found):
                results[i] = result
        return results

    def _of(self, images: list[int], x: Any) -> Any:
        """The share of these images, all of one size, in an argument: cut maps, and entries of lists by image."""
        if not isinstance(x, (list, tuple)) or not x:
            return x
        if next(_maps(x), None) is not None:
            return type(x)(self._cut(images, each) for each in x)
        return [x[i] for i in images] if len(x) == len(self.within.backbone.areas[0].sizes) else x

    def _cut(self, images: list[int], x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() != 4:
            return self._of(images, x)
        area = self.within.area(x)
        h, w = x.shape[-2:] if area is None else area.sizes[images[0]]
        return x[images, :, :h, :w]


def _maps(x: Any) -> Iterator[Tensor]:
    """The maps in lists of maps."""
    for each in x if isinstance(x, (list, tuple)) else ():
        if isinstance(each, Tensor) and each.dim() == 4:
            yield each
        else:
            yield from _maps(each)
