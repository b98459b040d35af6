"""RoIAlign, forward and backward, by ``torch.ops.torchvision``'s.

A detector can predict boxes of negative size, and NaN. They get what mmcv's CUDA kernel gives them, on the CPU too,
where torchvision's kernel ends with a C++ error or reads anywhere, and mmcv's with an error.
"""

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

    The two argmax tensors belong to max pooling and stay untouched. With sampling_ratio 0, a box without a positive
    width and height, or with a coordinate that is NaN or infinite, has no samples: its output is 0. With a fixed number
    of samples, a box of negative size is sampled from its other end, and one that is not finite gives NaN.
    """
    import torch

    _check_pool_mode('roi_align_forward', pool_mode)
    rois, unusable = _usable(_converted(rois), c_float(spatial_scale), sampling_ratio, aligned)
    result = torch.ops.torchvision.roi_align(
        _converted(input), rois, c_float(spatial_scale), aligned_height, aligned_width, sampling_ratio, aligned
    )
    output.copy_(result.masked_fill_(unusable[:, None, None, None], torch.nan if sampling_ratio > 0 else 0.0))


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
    """Gradient of RoIAlign, added to grad_input (N, C, H, W) as the compiled kernel does.

    None comes from boxes without samples, and from those that are not finite.
    """
    import torch

    _check_pool_mode('roi_align_backward', pool_mode)
    rois, unusable = _usable(_converted(rois), c_float(spatial_scale), sampling_ratio, aligned)
    grad_input.add_(
        torch.ops.torchvision._roi_align_backward(
            _converted(grad_output).masked_fill(unusable[:, None, None, None], 0.0),
            rois,
            c_float(spatial_scale),
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _usable(rois: Tensor, spatial_scale: float, sampling_ratio: int, aligned: bool) -> tuple[Tensor, Tensor]:
    """The boxes (K, 5), with zeros for those that torchvision's kernel must not see; and which these are, (K, )."""
    import torch

    unusable = ~rois[:, 1:].isfinite().all(1)
    if sampling_ratio <= 0 and aligned:  # else a box has at least one pixel
        # Sizes as the kernel computes them: of its number of samples, only whether there is one matters.
        corners = rois[:, 1:] * spatial_scale - 0.5
        unusable |= (corners[:, 2:] <= corners[:, :2]).any(1)
    return torch.where(unusable[:, None], torch.zeros_like(rois), rois), unusable


def _converted(t: Tensor) -> Tensor:
    """In float32 where it is in bfloat16, which torchvision's kernels lack."""
    import torch

    return t.float() if t.dtype == torch.bfloat16 else t


def _check_pool_mode(operator: str, pool_mode: int) -> None:
    if pool_mode != 1:
        raise unsupported(operator, f'pool_mode={pool_mode} (max)')
