"""The last norm of a residual block, as two numbers a channel that the layer behind it takes along in its own pass.

A batch norm with running statistics is x * weight + shift. Only such a norm is folded, and only where nobody would
miss it: without hooks, outside of everything that records modules or operators. The norm stays where it is, with its
keys, and its parameters get their gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmccd.ops.backends import compute_dtype
from mmccd.ops.library import is_eager


def affine_of_norm(conv: nn.Module, norm: Any, layer: Any, x: Tensor) -> dict[str, Any]:
    """Arguments for ``layer`` that stand for ``norm``, or none where that has to run itself.

    Args:
        conv (nn.Module): What has computed ``x``.
        norm (nn.Module): Between ``conv`` and ``layer``.
        layer (nn.Module): Takes ``weight``, ``shift`` and ``overwrite`` if its ``takes_affine(x)`` says so.
        x (Tensor): Input of the norm, (N, C, H, W).
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return {}
    if not _uses_running_statistics(norm) or not is_eager(x, norm.weight, norm.bias) or _is_watched(norm, layer):
        return {}
    if x.dtype not in (norm.weight.dtype, torch.float16, torch.bfloat16):
        return {}
    if not getattr(layer, 'takes_affine', lambda _: False)(x):
        return {}
    weight, shift = _affine(norm)
    # A convolution's result is new, and nobody else has it unless a hook is given it.
    return dict(weight=weight, shift=shift, overwrite=type(conv) is nn.Conv2d and not _is_watched(conv))


def _uses_running_statistics(norm: Any) -> bool:
    return (
        isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
        and type(norm).forward in (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)  # mmengine's SyncBN is a subclass
        and not norm.training
        and norm.weight is not None
        and norm.running_mean is not None
        and norm.running_var is not None
    )


def _is_watched(*modules: nn.Module) -> bool:
    """Whether somebody has hooks on these modules, or on all, or calls them in a way of their own."""
    if any(
        (
            torch_module._global_forward_hooks,
            torch_module._global_forward_pre_hooks,
            torch_module._global_backward_hooks,
            torch_module._global_backward_pre_hooks,
        )
    ):
        return True
    return any(
        m._forward_hooks
        or m._forward_pre_hooks
        or m._backward_hooks
        or m._backward_pre_hooks
        or m._compiled_call_impl is not None
        or 'forward' in m.__dict__
        for m in modules
    )


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """(weight, shift) of x * weight + shift, each (C,)."""
    numbers = norm.weight, norm.bias, norm.running_mean, norm.running_var
    if torch.is_grad_enabled() and (norm.weight.requires_grad or norm.bias.requires_grad):
        return _Affine.apply(*numbers, norm.eps)
    return _by_running_statistics(*numbers, norm.eps)[:2]


def _by_running_statistics(
    weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(weight, shift, 1 / deviation), to the bit what PyTorch's batch norm on the CPU computes with."""
    dtype = compute_dtype(weight.dtype)
    weight, bias, mean, variance = (t if t.dtype == dtype else t.to(dtype) for t in (weight, bias, mean, variance))
    inverse = torch.rsqrt(variance + eps)
    factor = inverse * weight
    return factor, torch.addcmul(bias, mean, factor, value=-1), inverse


class _Affine(torch.autograd.Function):
    """Weight and shift in float64, so that their gradients are, too: a norm's is the difference of the two."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        factor, shift, inverse = _by_running_statistics(weight, bias, mean, variance, eps)
        ctx.save_for_backward(mean, inverse)
        ctx.dtypes = weight.dtype, bias.dtype
        return factor.double(), shift.double()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_factor: Tensor, grad_shift: Tensor) -> tuple[Tensor | None, ...]:
        mean, inverse = ctx.saved_tensors
        grad_weight = torch.addcmul(grad_factor, mean.double(), grad_shift, value=-1).mul_(inverse)
        return grad_weight.to(ctx.dtypes[0]), grad_shift.to(ctx.dtypes[1]), None, None, None
