"""Deformable convolution, without and with modulation, by ``torchvision.ops.deform_conv2d``'s kernels.

Where a sample lies exactly at -1, on the outer edge of the ring in which pixels and the zeros around them are mixed,
torchvision's offset gradient is the slope on the inner side. mmcv's is 0, as everywhere further out. An offset starts
as 0, so that with padding this concerns the whole border of every image. Here it is mmcv's.

The modulated one takes offsets and masks of larger maps than the output, as mmcv's kernels do: DyHead has them. An
image's memory is read from its beginning then, as if it were of the output's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .operators import in_float32, operator

if TYPE_CHECKING:
    from torch import Tensor

_FAR = 1e6  # px, for offsets that are NaN or infinite: outside of every image, where nothing is read


class _Layout(NamedTuple):
    """Stride, padding and dilation, vertical and horizontal; groups of the weight, and of the offset."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    deform_groups: int

    @property
    def arguments(self) -> tuple[int, ...]:
        return (*self.stride, *self.padding, *self.dilation, self.groups, self.deform_groups)


@operator
def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution of input (N, C, H, W), written to output (N, C', H', W').

    weight: (C', C / group, kH, kW). offset: (N, 2 deformable_group kH kW, H', W') in pixels, y before x. The
    kernel's buffers columns and ones stay empty, and im2col_step, the number of images at a time, is torchvision's.
    """
    layout = _Layout((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    output.copy_(_forward(input, weight, offset, None, None, layout))


@operator
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Gradients of the input, added to gradInput, and of the offset, written to gradOffset."""
    layout = _Layout((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    grad_input, grad_weight, grad_offset, _, _ = _backward(gradOutput, input, weight, offset, None, None, layout)
    gradInput.add_(grad_input)
    gradOffset.copy_(grad_offset)
    # mmcv asks for the weight's gradient next, with the same buffer and the same gradOutput.
    columns.mmccd_weight = (gradOutput, gradOutput._version, grad_weight)


@operator
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Gradient of the weight times scale, added to gradWeight."""
    of, version, grad_weight = columns.__dict__.pop('mmccd_weight', (None, None, None))
    if of is not gradOutput or version != gradOutput._version:
        layout = _Layout((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
        grad_weight = _backward(gradOutput, input, gradWeight, offset, None, None, layout)[1]
    gradWeight.add_(grad_weight, alpha=scale)


@operator
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """The same with a factor for each sample, mask (N, deformable_group kH kW, H', W'), and a bias (C', )."""
    layout = _Layout((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group)
    offset, mask = (_beginning(t, output) for t in (offset, mask))
    output.copy_(_forward(input, weight, offset, mask, bias if with_bias else None, layout))


@operator
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """All five gradients: those of input, weight and bias are added, those of offset and mask written."""
    layout = _Layout((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group)
    offset, mask = (_beginning(t, grad_output) for t in (offset, mask))
    grads = _backward(grad_output, input, weight, offset, mask, bias if with_bias else None, layout)
    grad_input.add_(grads[0])
    grad_weight.add_(grads[1])
    for whole, grad in ((grad_offset, grads[2]), (grad_mask, grads[3])):
        if whole.shape != grad.shape:
            whole.zero_()
        _beginning(whole, grad).copy_(grad)
    if with_bias:
        grad_bias.add_(grads[4])


def _beginning(t: Tensor, output: Tensor) -> Tensor:
    """What a map of the output's size takes of each image's memory in ``t``, (N, C, H, W), as a view."""
    height, width = output.shape[2:]
    taken = t.size(1) * height * width
    if t.shape[2:] == output.shape[2:] or taken > t[0].numel():
        return t
    return t.flatten(1)[:, :taken].view(len(t), t.size(1), height, width)


def _arguments(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, layout: _Layout
) -> tuple:
    """What torchvision's forward takes, and its backward after the gradient."""
    import torch

    tensors = [in_float32(t) for t in (input, weight, torch.nan_to_num(offset, nan=_FAR, posinf=_FAR, neginf=-_FAR))]
    factors = tensors[0].new_zeros(len(input), 1) if mask is None else in_float32(mask)
    shift = tensors[0].new_zeros(weight.size(0)) if bias is None else in_float32(bias)
    return (*tensors, factors, shift, *layout.arguments, mask is not None)


def _forward(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, layout: _Layout
) -> Tensor:
    import torch

    return torch.ops.torchvision.deform_conv2d(*_arguments(input, weight, offset, mask, bias, layout))


def _backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    layout: _Layout,
) -> tuple[Tensor, ...]:
    """Gradients of input, weight, offset, mask and bias."""
    import torch

    arguments = _arguments(input, weight, offset, mask, bias, layout)
    grads = torch.ops.torchvision._deform_conv2d_backward(in_float32(grad), *arguments)
    kernel = (weight.size(2), weight.size(3))
    outside = _outside(arguments[2], (input.size(2), input.size(3)), kernel, layout)
    grads[2].view(*outside.shape[:3], 2, *outside.shape[3:]).masked_fill_(outside.unsqueeze(3), 0)
    return grads


def _outside(offset: Tensor, size: tuple[int, int], kernel: tuple[int, int], layout: _Layout) -> Tensor:
    """Which samples (N, deform_groups, kH kW, H', W') are at -1 or at the image's size, or beyond."""
    import torch

    count = kernel[0] * kernel[1]
    shift = offset.view(len(offset), layout.deform_groups, count, 2, *offset.shape[2:])
    outside = None
    for axis in (0, 1):
        start = layout.stride[axis] * torch.arange(offset.size(2 + axis), device=offset.device) - layout.padding[axis]
        tap = layout.dilation[axis] * torch.arange(kernel[axis], device=offset.device)
        if axis == 0:
            base = (tap[:, None] + start).repeat_interleave(kernel[1], 0)[:, :, None]  # (kH kW, H', 1)
        else:
            base = (tap[:, None] + start).repeat(kernel[0], 1)[:, None, :]  # (kH kW, 1, W')
        at = base + shift[:, :, :, axis]  # integers first: rounded as in mmcv's kernel
        beyond = (at <= -1) | (at >= size[axis])
        outside = beyond if outside is None else outside | beyond
    return outside
