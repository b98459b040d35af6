"""CCD, as it is called: arguments and their checks, and which way a call goes. The definition is in ``reference.py``.

A call runs in a backend (:mod:`mmccd.ops.backends`), through autograd alone or as a custom operator
(:mod:`mmccd.ops.library`). Where a graph of stock operators is wanted (torch.jit.trace, ONNX), the reference runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import check_impl, choose
from .library import Direct, is_eager, without_autocast
from .options import Options, make_options
from .reference import ccd_reference


def ccd(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    groups: int,
    scales: Sequence[int] = (1, 2, 4),
    similarity: str = 'dot',
    normalize: str | None = 'zscore',
    eps: float = 1e-7,
    gain: float = 1.0,
    impl: str = 'auto',
    residual: Tensor | None = None,
) -> Tensor:
    """Gate ``x`` by the dependency of every position on its pooled context.

    Args:
        x (Tensor): Features, (N, C, H, W), any floating dtype and memory layout, H and W from 1 up.
        scale (Tensor): Factor of the normalised similarity, (groups,).
        bias (Tensor): Offset of the normalised similarity, (groups,).
        groups (int): Number of groups of neighbouring channels; divides C.
        scales (Sequence[int]): Grid sizes of the poolings, each at least 1. Default: (1, 2, 4).
        similarity (str): ``'dot'`` or ``'cosine'``, over the channels of a group. Default: ``'dot'``.
        normalize (str | None): ``'zscore'``, ``'minmax'`` or None, over the positions of a group. Default:
            ``'zscore'``.
        eps (float): Added to the deviation, above 0. Default: 1e-7, the original's.
        gain (float): Factor of the gate. Default: 1, the original's.
        impl (str): ``'auto'`` takes compiled loops on the CPU and stock operators elsewhere; if the loops cannot run,
            it takes stock operators and logs why, once. ``'cpu'``, ``'torch'`` and ``'triton'`` (CUDA; so far run in
            Triton's interpreter alone) name one, which runs or raises. The environment variable ``MMCCD_CCD_IMPL``
            names one for every ``'auto'``. Default: ``'auto'``.
        residual (Tensor | None): Makes it ``relu(ccd(x, ...) + residual)``, the end of a residual block, of the shape
            of ``x``; the compiled loops do it in one pass, with the same numbers to the last bit. Default: None.

    Returns:
        Tensor: (N, C, H, W), of the dtype and, if dense, the memory layout of ``x``.

    Raises:
        TypeError, ValueError: If an argument breaks a rule above, or a named ``impl`` cannot run these tensors and
            options (with the reason); nothing was computed then.

    There is no second derivative (PyTorch raises); that of :func:`ccd_reference` works.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 8, 7, 7)
        >>> y = ccd(x, torch.zeros(4), torch.ones(4), groups=4)
        >>> torch.allclose(y, x * torch.sigmoid(torch.tensor(1.)))
        True
    """
    return ccd_with_options(
        x, residual, scale, bias, make_options(groups, scales, similarity, normalize, eps, gain), impl
    )


def ccd_add_relu(x: Tensor, residual: Tensor, scale: Tensor, bias: Tensor, *options: Any, **more: Any) -> Tensor:
    """``relu(ccd(x, scale, bias, *options) + residual)``, an older name of ``ccd(..., residual=residual)``."""
    more['residual'] = residual
    return ccd(x, scale, bias, *options, **more)


def ccd_with_options(
    x: Tensor, residual: Tensor | None, scale: Tensor, bias: Tensor, options: Options, impl: str = 'auto'
) -> Tensor:
    """:func:`ccd` with options that :func:`make_options` has checked."""
    _check_tensors(x, residual, scale, bias, options)
    check_impl(impl)
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return _add_relu(ccd_reference(x, scale, bias, *options), residual)
    keep = torch.is_grad_enabled() and (
        x.requires_grad
        or scale.requires_grad
        or bias.requires_grad
        or (residual is not None and residual.requires_grad)
    )
    if torch.compiler.is_compiling():
        # The operator looks for a backend when it runs. Addition and ReLU are left to the compiler, which joins them
        # with what follows.
        y = torch.ops.mmccd.ccd_forward(x, None, scale, bias, *options, impl, keep)[0]
        return _add_relu(y, residual)
    backend = choose(impl, x, options)
    if not is_eager(x, residual, scale, bias):
        return torch.ops.mmccd.ccd_forward(x, residual, scale, bias, *options, impl, keep)[0]
    with without_autocast(x):
        if keep:
            return Direct.apply(x, residual, scale, bias, options, impl, backend)
        return backend.forward(x, residual, scale, bias, options, False)[0]


def _add_relu(y: Tensor, residual: Tensor | None) -> Tensor:
    return y if residual is None else F.relu_(y.add_(residual))


def _check_tensors(x: Tensor, residual: Tensor | None, scale: Tensor, bias: Tensor, options: Options) -> None:
    groups = options.groups
    if not isinstance(x, Tensor):
        raise TypeError(f'x must be a Tensor, got {type(x).__name__}')
    if x.dim() != 4:
        raise ValueError(f'x must have shape (N, C, H, W), got {tuple(x.shape)}')
    if not x.is_floating_point():
        raise TypeError(f'x must be floating point, got {x.dtype}')
    if x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f'x must be at least one pixel high and wide, got {tuple(x.shape)}')
    options.check_channels(x.shape[1])
    for name, value in (('scale', scale), ('bias', bias)):
        if not isinstance(value, Tensor):
            raise TypeError(f'{name} must be a Tensor, got {type(value).__name__}')
        if tuple(value.shape) != (groups,):
            raise ValueError(f'{name} must have shape ({groups},), one number a group, got {tuple(value.shape)}')
        if not value.is_floating_point():
            raise TypeError(f'{name} must be floating point, got {value.dtype}')
        if value.device != x.device:
            raise ValueError(f'{name} must be on the device of x: x is on {x.device}, {name} on {value.device}')
    if residual is not None:
        if not isinstance(residual, Tensor):
            raise TypeError(f'residual must be a Tensor, got {type(residual).__name__}')
        if residual.shape != x.shape:
            raise ValueError(f'residual must have the shape of x, {tuple(x.shape)}, got {tuple(residual.shape)}')
        if residual.device != x.device:
            raise ValueError(f'residual must be on the device of x: x is on {x.device}, residual on {residual.device}')
