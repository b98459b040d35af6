"""Synchronised BatchNorm's five steps in plain PyTorch; mmcv's ``SyncBatchNorm`` exchanges between them.

``torch.nn.SyncBatchNorm`` has no CPU kernels and exchanges other sums, so that mmcv's ``stats_mode`` would be lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .operators import operator

if TYPE_CHECKING:
    from torch import Tensor


@operator
def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Mean over samples and space of input (N, C, L), written to mean (C, ), float32."""
    mean.copy_(input.float().mean((0, 2)))


@operator
def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Mean square distance of input (N, C, L) from mean (C, ), which may be that of all processes, written to var."""
    var.copy_((input.float() - mean[:, None]).square_().mean((0, 2)))


@operator
def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float | Tensor,
    group_size: int,
) -> None:
    """Normalised input, written to norm and, with weight and bias, to output; std and running statistics updated.

    The running variance is the unbiased one, of as many values as group_size processes have if all have as many.
    """
    std.copy_((var + eps).sqrt_())
    norm.copy_((input.float() - mean[:, None]).div_(std[:, None]))
    output.copy_(norm * weight[:, None] + bias[:, None])
    count = input.size(0) * input.size(2) * group_size
    unbiased = var * count / (count - 1) if count > 1 else var
    running_mean.mul_(1 - momentum).add_(momentum * mean)
    running_var.mul_(1 - momentum).add_(momentum * unbiased)


@operator
def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Gradients of weight and bias (C, ), written."""
    grad = grad_output.float()
    grad_weight.copy_((grad * norm).sum((0, 2)))
    grad_bias.copy_(grad.sum((0, 2)))


@operator
def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Gradient of the input (N, C, L), written; the other two gradients are the means over all processes."""
    count = grad_output.size(0) * grad_output.size(2)
    grad = grad_output.float() - (grad_weight[:, None] * norm + grad_bias[:, None]).div_(count)
    grad_input.copy_(grad.mul_((weight / std)[:, None]))
