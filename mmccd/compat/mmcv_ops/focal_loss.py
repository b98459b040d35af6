"""Sigmoid and softmax focal loss in plain PyTorch, as mmcv's ``*_focal_loss_cuda_kernel.cuh`` compute them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .operators import c_float, in_float32, operator

if TYPE_CHECKING:
    from torch import Tensor

_FLT_MIN = 2.0**-126  # C's FLT_MIN, which the kernel uses for every dtype
CHUNK = 2**22  # elements at a time, 16 MiB a temporary: the kernel needs no memory at all


@operator
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of logits (N, C) for labels target (N, ), written to output (N, C).

    With p = sigmoid(x) the element of the target's class is ``-alpha (1 - p)^gamma log p`` and any
    other ``-(1 - alpha) p^gamma log(1 - p)``, where the argument of a logarithm is at least FLT_MIN. Label C
    is the background, for which all C classes are others. weight: empty, or (C, ), whose element
    at the target multiplies the whole row.
    """
    num_classes = input.size(1)
    _check(target, target <= num_classes, f'target must be at most the number of classes, {num_classes}')
    _focal_loss(input, target, weight, output, gamma, alpha, gradient=False)


@operator
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Each element's derivative for its logit, written to grad_input (N, C)."""
    _focal_loss(input, target, weight, grad_input, gamma, alpha, gradient=True)


def _check(target: Tensor, allowed: Tensor, rule: str) -> None:
    """Raise ValueError for labels (N, ) that are not allowed (N, ); on a GPU the device does, without a wait for it."""
    import torch

    if target.is_cuda:
        torch._assert_async(allowed.all(), rule)
    elif not allowed.all():
        raise ValueError(f'{rule}, got {target[~allowed][0].item()}')


def _focal_loss(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float, gradient: bool
) -> None:
    """Focal loss or its derivative, some rows at a time.

    The kernel's two branches are one formula in u, the probability given to the truth, and
    v = 1 - u::

        loss = -w v^gamma log u                        w = alpha,     u = p      target's class
        grad = -+ w v^gamma (v - gamma u log u)        w = 1 - alpha, u = 1 - p  any other
    """
    import torch

    num_classes = input.size(1)
    row_weight = None
    if weight.numel():
        _check(
            target,
            (target >= 0) & (target < num_classes),
            f'target must be in 0..{num_classes - 1} where a weight is given: it '
            f'has an element for each class, none for the background',
        )
        row_weight = weight[target]  # (N, )
    gamma, alpha = c_float(gamma), c_float(alpha)
    classes = torch.arange(num_classes, device=target.device)
    rows = max(1, CHUNK // max(1, num_classes))
    for start in range(0, input.size(0), rows):
        chunk = slice(start, start + rows)
        x = in_float32(input[chunk])  # (n, C)
        hit = target[chunk, None] == classes  # (n, C)
        p = x.sigmoid()
        q = 1 - p  # not 1 - v below: that would round twice
        u, v = torch.where(hit, p, q), torch.where(hit, q, p)
        w = torch.where(hit, x.new_full((), -alpha), x.new_full((), alpha - 1))
        value = u.clamp(min=_FLT_MIN).log_()
        if gradient:
            value = value.mul_(u).mul_(-gamma).add_(v)
            w = torch.where(hit, w, -w)
        value = value.mul_(v.pow_(gamma)).mul_(w)
        if row_weight is not None:
            value *= row_weight[chunk, None]
        output[chunk] = value


@operator
def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of probabilities (N, C) for labels target (N, ), written to output (N, ).

    With p the probability of the target's class it is ``-alpha (1 - p)^gamma log p``, where p is at least FLT_MIN in
    the logarithm, and 0 for a negative label. weight: empty, or (C, ), whose element at the target is a factor. For
    label C mmcv's kernel reads the next row's first element; here it is an error.
    """
    p, hit = _probability(input, target)
    gamma, alpha = c_float(gamma), c_float(alpha)
    loss = p.clamp(min=_FLT_MIN).log_().mul_((1 - p).pow_(gamma)).mul_(-alpha)
    output.copy_(_weighted(loss, target, weight).masked_fill_(~hit, 0))


@operator
def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative for the logits, written to grad_input (N, C), through that for log p, written to buff (N, )."""
    import torch

    p, hit = _probability(input, target)
    gamma, alpha = c_float(gamma), c_float(alpha)
    q = 1 - p
    factor = (gamma * q.pow(gamma - 1) * p * p.clamp(min=_FLT_MIN).log() - q.pow(gamma)) * alpha
    factor = _weighted(factor, target, weight).masked_fill_(~hit, 0)
    buff.copy_(factor)
    truth = target[:, None] == torch.arange(input.size(1), device=target.device)
    grad_input.copy_(factor[:, None] * (truth.to(factor.dtype) - in_float32(input)))


def _probability(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The probability (N, ) of each target, and whether there is one: its label is not negative."""
    num_classes = input.size(1)
    _check(target, target < num_classes, f'target must be less than the number of classes, {num_classes}')
    return in_float32(input).gather(1, target.clamp(min=0)[:, None])[:, 0], target >= 0


def _weighted(values: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Values (N, ) times the weight of each target, if there is one."""
    return values * weight[target.clamp(min=0)] if weight.numel() else values
