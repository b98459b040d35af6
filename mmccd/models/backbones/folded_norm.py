"""The last norm of a residual block, as two numbers a channel that the layer behind it takes along in its own pass.

A batch norm with running statistics is x * weight + shift. Only such a norm is folded, and only where nobody would
miss it: without hooks, outside of everything that records modules or operators. The norm stays where it is, with its
keys, and its parameters get their gradients.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmccd.ops.backends import RunningNorm
from mmccd.ops.library import is_eager


def affine_of_norm(conv: nn.Module, norm: Any, layer: Any, x: Tensor) -> dict[str, Any]:
    """Arguments for ``layer`` that stand for ``norm``, or none where that has to run itself.

    Args:
        conv (nn.Module): What has computed ``x``.
        norm (nn.Module): Between ``conv`` and ``layer``.
        layer (nn.Module): Takes ``weight`` and ``shift``, or ``norm``, and ``overwrite``, if its ``takes_affine(x)``
            says so.
        x (Tensor): Input of the norm, (N, C, H, W).
    """
    numbers = _running_norm(norm)
    if numbers is None or x.dtype not in (numbers.weight.dtype, torch.float16, torch.bfloat16):
        return {}
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return {}
    if not is_eager(x, numbers.weight, numbers.bias) or _is_watched(norm, layer):
        return {}
    if not getattr(layer, 'takes_affine', lambda _: False)(x):
        return {}
    # A convolution's result is new, and nobody else has it unless a hook is given it.
    return dict(_affine(numbers), overwrite=type(conv) is nn.Conv2d and not _is_watched(conv))


@cache
def _is_batch_norm(kind: Any) -> bool:
    """Whether modules of this class normalise as PyTorch's batch norms do; mmengine's SyncBN is a subclass."""
    return issubclass(kind, (nn.BatchNorm2d, nn.SyncBatchNorm)) and kind.forward in (
        nn.BatchNorm2d.forward,
        nn.SyncBatchNorm.forward,
    )


def _running_norm(norm: Any) -> RunningNorm | None:
    """The numbers of a batch norm that uses its running statistics, None for any other module."""
    if norm.training or not _is_batch_norm(norm.__class__):
        return None
    # Not by attribute: seven times the cost, which counts at batch 1.
    parameters, buffers = norm._parameters, norm._buffers
    weight, bias = parameters.get('weight'), parameters.get('bias')
    mean, variance = buffers['running_mean'], buffers['running_var']
    if weight is None or bias is None or mean is None or variance is None:
        return None
    return RunningNorm(weight, bias, mean, variance, norm.eps)


def _is_watched(*modules: nn.Module) -> bool:
    """Whether somebody has hooks on these modules, or on all, or calls them in a way of their own."""
    if (
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    ):
        return True
    for m in modules:
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            return True
        if m._compiled_call_impl is not None or 'forward' in m.__dict__:
            return True
    return False


def _affine(norm: RunningNorm) -> dict[str, Any]:
    """``norm``, or where gradients are wanted the (weight, shift) of x * weight + shift, each (C,)."""
    if not torch.is_grad_enabled():
        return dict(norm=norm)
    if norm.weight.requires_grad or norm.bias.requires_grad:
        weight, shift = _Affine.apply(*norm)
    else:
        weight, shift, _ = norm.affine()
    return dict(weight=weight, shift=shift)


class _Affine(torch.autograd.Function):
    """Weight and shift in float64, so that their gradients are, too: a norm's is the difference of the two."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        factor, shift, inverse = RunningNorm(weight, bias, mean, variance, eps).affine()
        ctx.save_for_backward(mean, inverse)
        ctx.dtypes = weight.dtype, bias.dtype
        return factor.double(), shift.double()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_factor: Tensor, grad_shift: Tensor) -> tuple[Tensor | None, ...]:
        mean, inverse = ctx.saved_tensors
        grad_weight = torch.addcmul(grad_factor, mean.double(), grad_shift, value=-1).mul_(inverse)
        return grad_weight.to(ctx.dtypes[0]), grad_shift.to(ctx.dtypes[1]), None, None, None
