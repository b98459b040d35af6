"""CARAFE's upsampling, in PyTorch: each output pixel is a weighted sum over a window of the features.

One tap of the window at a time: the patches of a whole map would take kernel_size squared times its memory. The kernels
``carafe`` and ``carafe_naive`` compute the same; they differ in how they use a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .operators import in_float32, operator

if TYPE_CHECKING:
    from torch import Tensor


@operator
def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Features (N, C, H, W) upsampled, written to output (N, C, scale H, scale W).

    masks: (N, group_size kernel_size kernel_size, scale H, scale W), the weights of each output pixel's window.
    """
    output.copy_(_forward(features, masks, kernel_size, group_size, scale_factor))


@operator
def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Gradients of features and masks, added to bottom_grad and mask_grad.

    mmcv's own ``CARAFENaive`` asks for them on GPUs alone.
    """
    grads = _backward(top_grad, features, masks, kernel_size, group_size, scale_factor)
    bottom_grad.add_(grads[0])
    mask_grad.add_(grads[1])


@operator
def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """The same. rfeatures takes the features to the backward; the two other buffers stay untouched."""
    rfeatures.copy_(features)
    output.copy_(_forward(features, masks, kernel_size, group_size, scale_factor))


@operator
def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Gradients of features and masks, written to bottom_grad and mask_grad."""
    grads = _backward(top_grad, rfeatures, masks, kernel_size, group_size, scale_factor)
    bottom_grad.copy_(grads[0])
    mask_grad.copy_(grads[1])


def _forward(features: Tensor, masks: Tensor, kernel_size: int, groups: int, scale: int) -> Tensor:
    n, c, h, w = features.shape
    features, masks = in_float32(features), in_float32(masks).contiguous()
    output = features.new_zeros(n, c, scale * h, scale * w)
    blocks = output.view(n, groups, c // groups, h, scale, w, scale)
    for tap, window in _windows(_padded(features, kernel_size), groups, kernel_size):
        blocks.addcmul_(window[:, :, :, :, None, :, None], _tap(masks, tap, groups, scale)[:, :, None])
    return output


def _backward(
    grad: Tensor, features: Tensor, masks: Tensor, kernel_size: int, groups: int, scale: int
) -> tuple[Tensor, Tensor]:
    import torch

    n, c, h, w = features.shape
    grad, features, masks = in_float32(grad), in_float32(features), in_float32(masks).contiguous()
    blocks = grad.reshape(n, groups, c // groups, h, scale, w, scale)
    padded_grad = torch.zeros_like(_padded(features, kernel_size))
    grad_masks = torch.empty_like(masks)
    windows = _windows(_padded(features, kernel_size), groups, kernel_size)
    for (tap, window), (_, window_grad) in zip(windows, _windows(padded_grad, groups, kernel_size)):
        window_grad += torch.einsum('ngchiwj,nghiwj->ngchw', blocks, _tap(masks, tap, groups, scale))
        _tap(grad_masks, tap, groups, scale).copy_(torch.einsum('ngchiwj,ngchw->nghiwj', blocks, window))
    r = kernel_size // 2
    return padded_grad[:, :, r : r + h, r : r + w], grad_masks


def _padded(features: Tensor, kernel_size: int) -> Tensor:
    from torch.nn import functional

    return functional.pad(features, [kernel_size // 2] * 4)


def _windows(padded: Tensor, groups: int, kernel_size: int) -> Iterator[tuple[int, Tensor]]:
    """The features (N, groups, C / groups, H, W) that each tap of the window reads, as views."""
    n, c, h, w = padded.shape
    h, w = h - kernel_size + 1, w - kernel_size + 1
    grouped = padded.view(n, groups, c // groups, *padded.shape[2:])
    for i in range(kernel_size):
        for j in range(kernel_size):
            yield i * kernel_size + j, grouped[:, :, :, i : i + h, j : j + w]


def _tap(masks: Tensor, tap: int, groups: int, scale: int) -> Tensor:
    """The weights (N, groups, H, scale, W, scale) of one tap, a view."""
    n, _, h, w = masks.shape
    return masks.view(n, groups, -1, h // scale, scale, w // scale, scale)[:, :, tap]
