"""The images within the padded maps of a batch, and what has to be done so that padding changes nothing in them.

A detector pads the images of a batch at the right and bottom, to one size. Here, what is outside an image is zero at
every convolution, as beyond a map's border; whatever takes statistics over space gets each image without its padding.
An image has then the features, and gives the gradients, that it has alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

Size = tuple[int, int]


@dataclass(frozen=True)
class ValidArea:
    """Where the images of a batch are, within maps of one size: in the upper left corner.

    Attributes:
        map_size (tuple[int, int]): Height and width of the maps.
        sizes (tuple[tuple[int, int], ...]): Height and width of every image, in the maps' pixels.

    Example:
        >>> ValidArea((64, 96), ((64, 96), (33, 96))).strided(2)
        ValidArea(map_size=(32, 48), sizes=((32, 48), (17, 48)))
    """

    map_size: Size
    sizes: tuple[Size, ...]

    def strided(self, stride: int) -> ValidArea:
        """Behind a convolution or pooling with this stride, whose padding keeps the size where the stride is 1."""
        if stride == 1:
            return self
        (height, width), *sizes = (
            ((h - 1) // stride + 1, (w - 1) // stride + 1) for h, w in (self.map_size, *self.sizes)
        )
        return ValidArea((height, width), tuple(sizes))

    @property
    def is_whole(self) -> bool:
        """Whether no image has padding."""
        return all(size == self.map_size for size in self.sizes)

    def groups(self) -> dict[Size, list[int]]:
        """Numbers of the images of each size."""
        groups: dict[Size, list[int]] = {}
        for i, size in enumerate(self.sizes):
            groups.setdefault(size, []).append(i)
        return groups


def checked_area(x: Tensor, image_sizes: Sequence[Sequence[int]]) -> ValidArea:
    """The area of given sizes.

    Args:
        x (Tensor): Padded images, (N, C, H, W).
        image_sizes (Sequence[Sequence[int]]): Height and width in pixels, and possibly channels as in the
            ``img_shape`` of MMDetection, for every image.

    Raises:
        TypeError, ValueError: Unless there are N of them, from 1 to H and from 1 to W.
    """
    height, width = x.shape[-2:]
    if not isinstance(image_sizes, Sequence):
        raise TypeError(f'image_sizes must be a list of pairs of ints, height and width, got {image_sizes!r}')
    sizes = [tuple(size[:2]) if isinstance(size, Sequence) else size for size in image_sizes]
    if len(sizes) != len(x):
        raise ValueError(f'image_sizes must have one entry for each of the {len(x)} images, got {len(sizes)}: {sizes}')
    for size in sizes:
        if not isinstance(size, tuple) or len(size) != 2 or not all(isinstance(n, Integral) for n in size):
            raise TypeError(f'image_sizes must be pairs of ints, height and width, got {size!r}')
        if not (1 <= size[0] <= height and 1 <= size[1] <= width):
            raise ValueError(f'image_sizes must be from (1, 1) to the padded size {(height, width)}, got {size}')
    return ValidArea((height, width), tuple((int(h), int(w)) for h, w in sizes))


def read_area(x: Tensor, pad_value: float = 0.0) -> ValidArea:
    """The area as it can be seen: without the last rows and columns that are ``pad_value`` in all channels.

    An image that itself ends in such rows or columns is taken for smaller than it is; one that is ``pad_value``
    everywhere, for whole, and so are all on the meta device, whose pixels have no values.

    Args:
        x (Tensor): Padded images, (N, C, H, W).
        pad_value (float): What they are padded with, after normalisation. Default: 0.
    """
    height, width = x.shape[-2:]
    whole = ValidArea((height, width), ((height, width),) * len(x))
    if x.is_meta:
        return whole
    x = x.detach()
    # Nearly always enough, and two lines of the image instead of all: nobody has padding.
    if ((x[:, :, -1] != pad_value).flatten(1).any(1) & (x[..., -1] != pad_value).flatten(1).any(1)).all():
        return whole
    inside = (x != pad_value).any(1)  # (N, H, W)
    heights, widths = (_last(inside.any(d)) for d in (2, 1))
    return ValidArea((height, width), tuple((h, w) if h else (height, width) for h, w in zip(heights, widths)))


def _last(inside: Tensor) -> list[int]:
    """One more than the index of the last True in each row of (N, L); 0 where there is none."""
    numbers = torch.arange(1, inside.shape[1] + 1, device=inside.device)
    return (inside * numbers).amax(1).tolist()


def zero_outside(x: Tensor, area: ValidArea) -> Tensor:
    """``x``, (N, C, H, W), with its padding set to zero; in its memory, unless it is compiled."""
    return fill_outside(x, area, 0.0)


def fill_outside(x: Tensor, area: ValidArea, value: float) -> Tensor:
    """``x``, (N, C, H, W), with its padding set to ``value``; in its memory, unless it is compiled."""
    if area.is_whole:
        return x
    if torch.compiler.is_compiling():  # which does not take the function
        height, width = area.map_size
        rows, columns = (torch.arange(n, device=x.device) for n in (height, width))
        h, w = torch.tensor(area.sizes, device=x.device)[..., None].unbind(1)  # (N, 1) each
        inside = (rows < h)[:, None, :, None] & (columns < w)[:, None, None]
        return torch.where(inside, x, value)
    return _FillOutside.apply(x, area, value)


def per_size(
    function: Callable[..., Tensor], area: ValidArea, *maps: Tensor, stride: int | None = 1, edge: int = 0
) -> Tensor:
    """What ``function`` makes of the images without their padding; images of one size are one batch.

    Args:
        function (Callable): Takes crops of ``maps``, (n, C, h, w), and returns (n, C', h / stride, w / stride).
        area (ValidArea): Of ``maps``.
        *maps (Tensor): (N, C, H, W) each, the same H and W.
        stride (int | None): The function's; None if its results have one size, whatever that of the crops. Default: 1.
        edge (int): Pixels at the lower and the right border of an image that repeat its last row and column, where
            the map has room for them. Default: 0.

    Returns:
        Tensor: (N, C', H / stride, W / stride), zero outside of the images.
    """
    groups = tuple(area.groups().values())
    crops = zip(*(_cut(x, area) for x in maps))
    parts = [function(*each) for each in crops]
    if stride is None:
        order = torch.tensor([*chain.from_iterable(groups)], device=parts[0].device)
        return torch.cat(parts)[order.argsort()]
    size = area.strided(stride).map_size
    if edge:
        room = [(min(edge, size[0] - y.shape[-2]), min(edge, size[1] - y.shape[-1])) for y in parts]
        parts = [
            F.pad(y, (0, columns, 0, rows), mode='replicate') if rows or columns else y
            for y, (rows, columns) in zip(parts, room)
        ]
    return _put_together(parts, groups, size)


def attend(layer: nn.Module, area: ValidArea, *maps: Tensor, stride: int = 1, **options: Any) -> Tensor:
    """:func:`per_size` for an attention: an error where batch statistics inside it would be those of a few images.

    Raises:
        ValueError: If images have different sizes, and a norm in ``layer`` takes its statistics over the batch.
    """
    if len(set(area.sizes)) > 1:
        for name, norm in layer.named_modules():
            if _is_batch_norm(norm) and _takes_batch_statistics(norm):
                raise ValueError(
                    f'ignore_padding: the norm {name!r} of {type(layer).__name__} takes its statistics over the batch, '
                    f'whose images have different sizes, {sorted(set(area.sizes))} on its maps; set norm_eval=True, or '
                    'ignore_padding=False'
                )
    return per_size(lambda *crops: layer(*crops, **options), area, *maps, stride=stride)


def apply_norm(norm: Callable[[Tensor], Tensor], x: Tensor, area: ValidArea, module: nn.Module) -> Tensor:
    """What a norm makes of the images without their padding; the result is zero outside.

    Args:
        norm (Callable): The norm.
        x (Tensor): (N, C, H, W).
        area (ValidArea): Of ``x``.
        module (nn.Module): The norm's module. A batch norm takes statistics over the batch, if at all, from the pixels
            of all images together; every other norm takes them from each image.
    """
    if not _is_batch_norm(module):
        return per_size(norm, area, x)
    if not _takes_batch_statistics(module):
        return zero_outside(norm(x), area)
    (height, width), sizes = area.map_size, area.sizes
    pixels = torch.cat([x[i, :, :h, :w].flatten(1) for i, (h, w) in enumerate(sizes)], 1)  # (C, pixels)
    y = norm(pixels[None, :, :, None])[0, :, :, 0]
    parts = y.split([h * w for h, w in sizes], 1)
    padded = [F.pad(p.unflatten(1, (h, w)), (0, width - w, 0, height - h)) for p, (h, w) in zip(parts, sizes)]
    return torch.stack(padded).contiguous(memory_format=_memory_format(x))


def is_norm(module: nn.Module) -> bool:
    """Whether its result depends on what else is on the map, or in the batch."""
    return _is_batch_norm(module) or isinstance(module, (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm))


def _is_batch_norm(module: nn.Module) -> bool:
    # mmcv's SyncBatchNorm is none of PyTorch's.
    return isinstance(module, _BatchNorm) or type(module).__name__ == 'SyncBatchNorm'


def _takes_batch_statistics(norm: nn.Module) -> bool:
    return norm.training or norm.running_mean is None


def _memory_format(x: Tensor) -> torch.memory_format:
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format


def _set_padding(x: Tensor, area: ValidArea, value: float) -> Tensor:
    """Set the padding of ``x``, in place."""
    if len(set(area.sizes)) == 1:
        h, w = area.sizes[0]
        x[:, :, h:] = value
        x[:, :, :h, w:] = value
        return x
    for each, (h, w) in zip(x, area.sizes):
        each[:, h:] = value
        each[:, :h, w:] = value
    return x


class _FillOutside(torch.autograd.Function):
    """One node in the graph, where assignments to slices would be two for each image."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, area: ValidArea, value: float) -> Tensor:
        ctx.area = area
        ctx.mark_dirty(x)
        return _set_padding(x, area, value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _set_padding(grad.clone(), ctx.area, 0.0), None, None


def _cut(x: Tensor, area: ValidArea) -> tuple[Tensor, ...]:
    """The images of each size, without their padding; contiguous, since not every attention takes a view."""
    if torch.compiler.is_compiling():
        sizes = area.groups().items()
        return tuple(x[i, :, :h, :w].contiguous(memory_format=_memory_format(x)) for (h, w), i in sizes)
    return _Cut.apply(x, area)


def _put_together(parts: Sequence[Tensor], groups: tuple[list[int], ...], size: Size) -> Tensor:
    """The images of each group at their places in a batch of maps of one size, zero outside."""
    if torch.compiler.is_compiling():
        padded = [F.pad(y, (0, size[1] - y.shape[-1], 0, size[0] - y.shape[-2])) for y in parts]
        order = torch.tensor([*chain.from_iterable(groups)], device=parts[0].device)
        return torch.cat(padded)[order.argsort()]
    return _PutTogether.apply(groups, size, *parts)


def _copies(x: Tensor, groups: Sequence[list[int]], sizes: Sequence[Size]) -> tuple[Tensor, ...]:
    memory_format, copies = _memory_format(x), []
    for images, (h, w) in zip(groups, sizes):
        copy = torch.empty((len(images), x.shape[1], h, w), dtype=x.dtype, device=x.device, memory_format=memory_format)
        for each, i in zip(copy, images):
            each.copy_(x[i, :, :h, :w])
        copies.append(copy)
    return tuple(copies)


def _batch(parts: Sequence[Tensor], groups: Sequence[list[int]], size: Size) -> Tensor:
    n, first = sum(map(len, groups)), parts[0]
    memory_format = _memory_format(first)
    y = torch.empty((n, first.shape[1], *size), dtype=first.dtype, device=first.device, memory_format=memory_format)
    for part, images in zip(parts, groups):
        h, w = part.shape[-2:]
        for each, i in zip(part, images):
            y[i, :, :h, :w] = each
            y[i, :, h:] = 0
            y[i, :, :h, w:] = 0
    return y


class _Cut(torch.autograd.Function):
    """One copy of each image, and one of its gradient, where slices and indices would be four of each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, area: ValidArea) -> tuple[Tensor, ...]:
        ctx.area = area
        return _copies(x, tuple(area.groups().values()), tuple(area.groups()))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _batch(grads, tuple(ctx.area.groups().values()), ctx.area.map_size), None


class _PutTogether(torch.autograd.Function):
    """The way back from the parts, as :class:`_Cut`."""

    @staticmethod
    def forward(ctx: Any, groups: tuple[list[int], ...], size: Size, *parts: Tensor) -> Tensor:
        ctx.groups, ctx.sizes = groups, [y.shape[-2:] for y in parts]
        return _batch(parts, groups, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_copies(grad, ctx.groups, ctx.sizes)
