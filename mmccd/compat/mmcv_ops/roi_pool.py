"""Max pooling in boxes, and deformable pooling: the mean of samples in bins that offsets shift."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .operators import c_float, in_float32, operator

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 2**23  # elements at a time, 32 MiB
_FLT_MAX = 3.4028234663852886e38


@operator
def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Maximum of input (N, C, H, W) in each bin of rois (K, 5), written to output (K, C, height, width).

    argmax takes where in the image it is, int32, or -1 for a bin without pixels, whose maximum is 0. A box of negative
    size leaves both tensors as they are. Unlike torchvision's, bins are of the box as it is, not rounded to pixels.
    """
    import torch

    k, (_, c, h, w) = len(rois), input.shape
    if not k or not c:
        return
    values = in_float32(input)
    values = values.masked_fill(values.isnan(), -_FLT_MAX).permute(0, 2, 3, 1).flatten(0, 2)  # (N H W, C)
    boxes = in_float32(rois)
    corner = boxes[:, 1:3] * c_float(spatial_scale)  # x, y
    size = (boxes[:, 3:] + 1) * c_float(spatial_scale) - corner
    bins = [
        _bins(corner[:, i], size[:, i], count, limit)
        for i, count, limit in ((1, pooled_height, h), (0, pooled_width, w))
    ]
    spans = [max(1, int((high - low).max())) for low, high in bins]
    step = max(1, CHUNK // (c * pooled_height * pooled_width * spans[0] * spans[1]))
    for start in range(0, k, step):
        part = slice(start, start + step)
        (y, y_in), (x, x_in) = (_pixels(low[part], high[part], span) for (low, high), span in zip(bins, spans))
        at = (y[:, :, None, :, None] * w + x[:, None, :, None, :]).flatten(3)  # (k, height, width, span span)
        inside = (y_in[:, :, None, :, None] & x_in[:, None, :, None, :]).flatten(3)
        image = boxes[part, 0].long()[:, None, None, None]
        best, where = values[image * (h * w) + at].masked_fill(~inside[..., None], -torch.inf).max(3)
        where = at.gather(3, where)  # (k, height, width, C)
        nothing = best <= -_FLT_MAX
        best = torch.where(best.isneginf() & ~inside.any(3, keepdim=True), torch.zeros_like(best), best)
        best, where = best.clamp(min=-_FLT_MAX).permute(0, 3, 1, 2), where.masked_fill(nothing, -1).permute(0, 3, 1, 2)
        sound = ~(size[part] <= 0).any(1)[:, None, None, None]
        output[part] = torch.where(sound, best.to(output.dtype), output[part])
        argmax[part] = torch.where(sound, where.int(), argmax[part])


@operator
def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Gradient of each bin, added where its maximum is in grad_input (N, C, H, W)."""
    import torch

    n, c, h, w = grad_input.shape
    plane = rois[:, 0].long()[:, None] * c + torch.arange(c, device=rois.device)  # (K, C)
    at = plane[:, :, None, None] * (h * w) + argmax.long()
    hit = argmax >= 0
    total = torch.zeros(n * c * h * w, dtype=in_float32(grad_output).dtype, device=grad_output.device)
    total.index_add_(0, at[hit], in_float32(grad_output)[hit])
    grad_input.add_(total.view(n, c, h, w))


def _bins(start: Tensor, size: Tensor, count: int, limit: int) -> tuple[Tensor, Tensor]:
    """First pixel and the one behind the last of count bins along an axis of limit pixels: (K, count) each."""
    import torch

    i = torch.arange(count, device=start.device)
    step = (size / count)[:, None]
    low = (i * step + start[:, None]).floor()
    high = ((i + 1) * step + start[:, None]).ceil()
    low, high = (torch.nan_to_num(t, nan=0.0).clamp(0, limit).long() for t in (low, high))
    return low, high


def _pixels(low: Tensor, high: Tensor, span: int) -> tuple[Tensor, Tensor]:
    """Pixels low to high (k, bins) as (k, bins, span), and which of them belong to the bin."""
    import torch

    at = low[:, :, None] + torch.arange(span, device=low.device)
    inside = at < high[:, :, None]
    return torch.where(inside, at, 0), inside


@operator
def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Mean of samples of input (N, C, H, W) in each bin of rois (K, 5), written to output (K, C, height, width).

    As RoIAlign's with ``aligned=True``, but each bin is moved by gamma times the box's size times offset
    (K, 2, height, width), x before y; an empty offset moves none.
    """
    import torch

    if not len(rois):
        return
    size = (pooled_height, pooled_width)
    samples = _samples(input, rois, offset, size, c_float(spatial_scale), sampling_ratio, c_float(gamma))
    rows = in_float32(input).permute(0, 2, 3, 1).flatten(0, 2)  # (N H W, C)
    means = torch.nn.functional.embedding_bag(
        samples.at.flatten(1), rows, per_sample_weights=samples.weight.flatten(1), mode='sum'
    )
    output.copy_(means.view(len(rois), *size, -1).permute(0, 3, 1, 2))


@operator
def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Gradients of input and offset, added to grad_input and grad_offset."""
    import torch

    if not len(rois):
        return
    size, gamma = (pooled_height, pooled_width), c_float(gamma)
    samples = _samples(input, rois, offset, size, c_float(spatial_scale), sampling_ratio, gamma)
    n, c, h, w = input.shape
    grad = in_float32(grad_output).permute(0, 2, 3, 1).flatten(0, 2)  # (K bins, C)
    rows = in_float32(input).permute(0, 2, 3, 1).flatten(0, 2).detach().requires_grad_()
    weight = samples.weight.flatten(1).detach().requires_grad_()
    with torch.enable_grad():
        means = torch.nn.functional.embedding_bag(samples.at.flatten(1), rows, per_sample_weights=weight, mode='sum')
        grad_rows, by_corner = torch.autograd.grad(means, (rows, weight), grad)
    grad_input.add_(grad_rows.view(n, h, w, c).permute(0, 3, 1, 2))
    if offset.numel():
        by_corner = by_corner.view_as(samples.slope_x)  # the gradient of each bin times each corner's pixel
        for i, slope in enumerate((samples.slope_x, samples.slope_y)):
            moved = (by_corner * slope).sum((1, 2)).view(len(rois), *size)
            grad_offset[:, i].add_(gamma * samples.box_size[:, i, None, None] * moved)


class _Samples(NamedTuple):
    """For each bin, samples, and their four corners: row of the pixel, its weight, the weight's slopes in x and y.

    Tensors (K bins, samples, 4); weights and slopes are divided by the number of samples, and 0 where a box has fewer
    samples than another. box_size: (K, 2), width and height in pixels.
    """

    at: Tensor
    weight: Tensor
    slope_x: Tensor
    slope_y: Tensor
    box_size: Tensor


def _samples(
    input: Tensor, rois: Tensor, offset: Tensor, size: tuple[int, int], scale: float, ratio: int, gamma: float
) -> _Samples:
    import torch

    h, w = input.shape[2:]
    boxes = in_float32(rois)
    image, boxes = boxes[:, 0].long(), boxes[:, 1:] * scale - 0.5
    box_size = boxes[:, 2:] - boxes[:, :2]
    axes = []
    for axis, bins in ((1, size[0]), (0, size[1])):
        extent = box_size[:, axis]
        # A box without a positive size has no samples unless their number is given.
        counts = (
            torch.full_like(extent, ratio)
            if ratio > 0
            else torch.nan_to_num((extent / bins).ceil(), nan=0.0, posinf=0.0, neginf=0.0)
        )
        i = torch.arange(max(1, int(counts.max())), device=rois.device)
        start = boxes[:, axis, None, None].expand(-1, *size)
        if offset.numel():
            start = start + gamma * extent[:, None, None] * in_float32(offset)[:, axis]
        place = torch.arange(bins, device=rois.device)
        place = place[:, None] if axis == 1 else place[None]
        step = (extent / bins)[:, None, None]
        within = (i + 0.5) / counts.clamp(min=1)[:, None]  # (K, samples)
        at = (start + place * step)[..., None] + (within * step[:, 0])[:, None, None]
        axes.append((at, i < counts[:, None], counts.clamp(min=0)))
    (y, y_on, rows), (x, x_on, columns) = axes
    y, x = torch.broadcast_tensors(y[..., :, None], x[..., None, :])  # (K, height, width, samples, samples)
    on = (y_on[:, :, None] & x_on[:, None, :])[:, None, None] & (y >= -1) & (y <= h) & (x >= -1) & (x <= w)
    share = on / (rows * columns).clamp(min=1)[:, None, None, None, None]
    y, x = torch.where(on, y, 0.0), torch.where(on, x, 0.0)
    y_low, y_high, y_part = _neighbours(y, h)
    x_low, x_high, x_part = _neighbours(x, w)
    plane = image[:, None, None, None, None] * h
    at = [(plane + a) * w + b for a in (y_low, y_high) for b in (x_low, x_high)]
    weight = [a * b for a in (1 - y_part, y_part) for b in (1 - x_part, x_part)]
    # mmcv's slopes are of the place before it is moved into the image, and 0 between two equal neighbours.
    below, above = y_high - y, y - y_low
    left, right = x_high - x, x - x_low
    slope_x = [-below, below, -above, above]
    slope_y = [-left, -right, left, right]
    stacked = [torch.stack(torch.broadcast_tensors(*each), -1).flatten(3, 4) for each in (at, weight, slope_x, slope_y)]
    share = share.flatten(3, 4)[..., None]
    first, *others = stacked
    dtype = in_float32(input).dtype
    return _Samples(first.flatten(0, 2), *((each * share).flatten(0, 2).to(dtype) for each in others), box_size)


def _neighbours(at: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels next to a place along an axis, and the share of the second."""
    import torch

    at = at.clamp(min=0)
    low = at.long().clamp(max=limit - 1)
    high = (low + 1).clamp(max=limit - 1)
    return low, high, torch.where(high > low, at - low, torch.zeros_like(at))
