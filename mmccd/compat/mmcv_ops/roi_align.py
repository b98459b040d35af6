"""RoIAlign, forward and backward, by ``torch.ops.torchvision``'s."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .operators import c_float, operator, unsupported

if TYPE_CHECKING:
    from torch import Tensor


@operator
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign of input (N, C, H, W) at rois (K, 5), written to output (K, C, height, width).

    The two argmax tensors belong to max pooling and stay untouched.
    """
    import torch

    _check_pool_mode('roi_align_forward', pool_mode)
    output.copy_(
        torch.ops.torchvision.roi_align(
            _converted(input),
            _converted(rois),
            c_float(spatial_scale),
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
    )


@operator
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of RoIAlign, added to grad_input (N, C, H, W) as the compiled kernel does."""
    import torch

    _check_pool_mode('roi_align_backward', pool_mode)
    grad_input.add_(
        torch.ops.torchvision._roi_align_backward(
            _converted(grad_output),
            _converted(rois),
            c_float(spatial_scale),
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _converted(t: Tensor) -> Tensor:
    """In float32 where it is in bfloat16, which torchvision's kernels lack."""
    import torch

    return t.float() if t.dtype == torch.bfloat16 else t


def _check_pool_mode(operator: str, pool_mode: int) -> None:
    if pool_mode != 1:
        raise unsupported(operator, f'pool_mode={pool_mode} (max)')
