"""Convolution at some positions of an image alone, as Guided Anchoring predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .operators import operator

if TYPE_CHECKING:
    from torch import Tensor


@operator
def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """The patches of im (1, C, H, W) whose convolutions are at M positions, written to col (C kernel_h kernel_w, M)."""
    from torch.nn import functional

    padded = functional.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    patches = col.view(im.size(1), kernel_h, kernel_w, -1)
    for i in range(kernel_h):
        for j in range(kernel_w):
            patches[:, i, j] = padded[:, mask_h_idx + i, mask_w_idx + j]


@operator
def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """The columns of col (C, M), written to M positions of im (1, C, H, W)."""
    im[0][:, mask_h_idx, mask_w_idx] = col
