"""Multi-scale deformable attention by ``grid_sample``; mmcv runs it as an operator on GPUs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .operators import in_float32, operator

if TYPE_CHECKING:
    from torch import Tensor

_OUTSIDE = -2.0  # a location that no sample of any level reaches


@operator
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Weighted sum of samples, (N, queries, heads channels).

    Args:
        value: (N, keys, heads, channels), the positions of all levels one after the other.
        value_spatial_shapes: Height and width of each level, (levels, 2).
        value_level_start_index: Not needed: the shapes say it.
        sampling_locations: (N, queries, heads, levels, points, 2), x before y, 0 to 1 over the image.
        attention_weights: (N, queries, heads, levels, points).
        im2col_step: Not needed: images at a time.
    """
    tensors = (in_float32(t) for t in (value, sampling_locations, attention_weights))
    return _attention(*tensors, value_spatial_shapes.tolist()).to(value.dtype)


@operator
def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of value, locations and weights, added to the three tensors."""
    import torch

    tensors = [in_float32(t).detach().requires_grad_() for t in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = _attention(*tensors, value_spatial_shapes.tolist())
        grads = torch.autograd.grad(output, tensors, in_float32(grad_output).view_as(output))
    for total, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads):
        total.add_(grad)


def _attention(value: Tensor, locations: Tensor, weights: Tensor, shapes: list[list[int]]) -> Tensor:
    import torch
    from torch.nn import functional

    n, _, heads, channels = value.shape
    queries, levels, points = locations.size(1), locations.size(3), locations.size(4)
    size = locations.new_tensor([[w, h] for h, w in shapes]).view(levels, 1, 2)
    at = locations * size - 0.5  # in pixels, whose centres are whole numbers
    # At -1 exactly, grid_sample has a slope where mmcv's kernel has 0; of NaN it makes NaN, mmcv's kernel 0.
    inside = ((at > -1) & (at < size)).all(-1, keepdim=True)
    grid = 2 * torch.where(inside, locations, torch.full_like(locations, _OUTSIDE)) - 1
    grid = grid.permute(0, 2, 3, 1, 4, 5).flatten(0, 1)  # (N heads, levels, queries, points, 2)
    samples = []
    for level, (part, (h, w)) in enumerate(zip(value.split([h * w for h, w in shapes], 1), shapes)):
        image = part.permute(0, 2, 3, 1).reshape(n * heads, channels, h, w)
        samples.append(
            functional.grid_sample(image, grid[:, level], mode='bilinear', padding_mode='zeros', align_corners=False)
        )
    weights = weights.permute(0, 2, 1, 3, 4).reshape(n * heads, 1, queries, levels * points)
    output = (torch.cat(samples, -1) * weights).sum(-1)  # (N heads, channels, queries)
    return output.view(n, heads * channels, queries).transpose(1, 2).contiguous()
