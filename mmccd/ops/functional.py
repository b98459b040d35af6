"""CCD, as it is called: arguments and their checks, and which way a call goes. The definition is in ``reference.py``.

A call runs in a backend (:mod:`mmccd.ops.backends`), through autograd alone or as a custom operator
(:mod:`mmccd.ops.library`). Where a graph of stock operators is wanted (torch.jit.trace, ONNX), the reference runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .backends import Inputs, RunningNorm, add_relu_, affine, check_impl, choose
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
    weight: Tensor | None = None,
    shift: Tensor | None = None,
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
        impl (str): ``'auto'`` takes compiled loops on the CPU, on CUDA the Triton kernels if they pass a self-test, and
            stock operators elsewhere, or where those cannot run, and logs why, once. ``'cpu'``, ``'torch'`` and
            ``'triton'`` (so far run in Triton's interpreter alone) name one, which runs or raises. The environment
            variable ``MMCCD_CCD_IMPL`` names one for every ``'auto'``. Default: ``'auto'``.
        residual (Tensor | None): Makes it ``relu(ccd(x, ...) + residual)``, the end of a residual block, of the shape
            of ``x``; loops and kernels do it in one pass, with the same numbers, on the CPU to the last bit. Default:
            None.
        weight (Tensor | None), shift (Tensor | None): Both or neither, (C,), any floating dtype: ``x * weight + shift``
            is gated instead of ``x``, which is what a norm with running statistics does to its input. The compiled
            loops do it in the same pass. Default: None.

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
    options = make_options(groups, scales, similarity, normalize, eps, gain)
    return ccd_with_options(x, residual, scale, bias, options, impl, weight, shift)


def ccd_add_relu(x: Tensor, residual: Tensor, scale: Tensor, bias: Tensor, *options: Any, **more: Any) -> Tensor:
    """``relu(ccd(x, scale, bias, *options) + residual)``, an older name of ``ccd(..., residual=residual)``."""
    more['residual'] = residual
    return ccd(x, scale, bias, *options, **more)


def ccd_with_options(
    x: Tensor,
    residual: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    options: Options,
    impl: str = 'auto',
    weight: Tensor | None = None,
    shift: Tensor | None = None,
    overwrite: bool = False,
    norm: RunningNorm | None = None,
) -> Tensor:
    """:func:`ccd` with options that :func:`make_options` has checked.

    With ``overwrite``, nobody else has ``x`` or reads it later: where no gradient is wanted, y may lie in its memory.
    ``norm`` stands for ``weight`` and ``shift``: where no gradient is wanted, a backend may read its numbers itself.
    """
    _check_tensors(x, residual, scale, bias, options)
    check_impl(impl)
    if norm is not None:
        if weight is not None or shift is not None:
            raise ValueError('norm stands for weight and shift: give it alone, got both')
        _check_norm(x, norm)
        backend = choose(impl, x, options)
        eager = is_eager(x, residual, scale, bias) and not torch.is_grad_enabled()
        if eager and getattr(backend, 'reads_norms', False):
            forward: Any = backend.forward
            with without_autocast(x):
                return forward(Inputs(x, residual, scale, bias), options, False, overwrite, norm)[0]
        weight, shift, _ = norm.affine()
    if weight is not None or shift is not None:
        _check_affine(x, weight, shift)
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return add_relu_(ccd_reference(affine(x, weight, shift), scale, bias, *options), residual)
    tensors = Inputs(x, residual, scale, bias, weight, shift)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if torch.compiler.is_compiling():
        # The operator looks for a backend when it runs. Affine, addition and ReLU are left to the compiler, which joins
        # them with what is around.
        y = torch.ops.mmccd.ccd_forward(affine(x, weight, shift), None, scale, bias, None, None, *options, impl, keep)[
            0
        ]
        return add_relu_(y, residual)
    backend = choose(impl, x, options)
    if not is_eager(*tensors):
        return torch.ops.mmccd.ccd_forward(*tensors, *options, impl, keep)[0]
    with without_autocast(x):
        if keep:
            return Direct.apply(*tensors, options, impl, backend)
        return backend.forward(tensors, options, False, overwrite)[0]


def _fit(x: Tensor, residual: Tensor | None, scale: Tensor, bias: Tensor, options: Options) -> bool:
    """Whether the tensors are plain ones without a fault: the short way through :func:`_check_tensors`."""
    for t in (x, scale, bias, x if residual is None else residual):
        if type(t) not in (Tensor, Parameter) or not t.is_floating_point() or t.device != x.device:
            return False
    if x.dim() != 4 or x.shape[1] % options.groups or x.shape[2] < 1 or x.shape[3] < 1:
        return False
    vector = (options.groups,)
    return scale.shape == vector == bias.shape and (residual is None or residual.shape == x.shape)


def _check_tensors(x: Tensor, residual: Tensor | None, scale: Tensor, bias: Tensor, options: Options) -> None:
    groups = options.groups
    if _fit(x, residual, scale, bias, options):
        return
    if not isinstance(x, Tensor):
        raise TypeError(f'x must be a Tensor, got {type(x).__name__}')
    if x.dim() != 4:
        raise ValueError(f'x must have shape (N, C, H, W), got {tuple(x.shape)}')
    if not x.is_floating_point():
        raise TypeError(f'x must be floating point, got {x.dtype}')
    if x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f'x must be at least one pixel high and wide, got {tuple(x.shape)}')
    options.check_channels(x.shape[1])
    _check_vector('scale', scale, x, groups, 'group')
    _check_vector('bias', bias, x, groups, 'group')
    if residual is not None:
        if not isinstance(residual, Tensor):
            raise TypeError(f'residual must be a Tensor, got {type(residual).__name__}')
        if residual.shape != x.shape:
            raise ValueError(f'residual must have the shape of x, {tuple(x.shape)}, got {tuple(residual.shape)}')
        if residual.device != x.device:
            raise ValueError(f'residual must be on the device of x: x is on {x.device}, residual on {residual.device}')
        if not residual.is_floating_point():
            raise TypeError(f'residual must be floating point, got {residual.dtype}')


def _check_affine(x: Tensor, weight: Tensor | None, shift: Tensor | None) -> None:
    if weight is None or shift is None:
        given, missing = ('weight', 'shift') if shift is None else ('shift', 'weight')
        raise ValueError(f'weight and shift must be given together, got {given} and {missing}=None')
    _check_vector('weight', weight, x, x.shape[1], 'channel')
    _check_vector('shift', shift, x, x.shape[1], 'channel')


def _check_norm(x: Tensor, norm: RunningNorm) -> None:
    if not isinstance(norm, RunningNorm):
        mode = ' in training mode' if getattr(norm, 'training', False) else ''
        wanted = 'a RunningNorm, the numbers of a batch norm in evaluation mode'
        raise TypeError(f'norm must be {wanted}, got {type(norm).__name__}{mode}')
    a, b, c, d = vectors = norm[:4]
    try:  # the short way, which every layer of a network takes
        fits = a.shape == b.shape == c.shape == d.shape == x.shape[1:2]
        if fits and a.device == b.device == c.device == d.device == x.device:
            return
    except AttributeError:
        pass
    for name, value in zip(norm._fields, vectors):
        _check_vector(f'norm.{name}', value, x, x.shape[1], 'channel')


def _check_vector(name: str, value: Tensor, x: Tensor, size: int, unit: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f'{name} must be a Tensor, got {type(value).__name__}')
    if tuple(value.shape) != (size,):
        raise ValueError(f'{name} must have shape ({size},), one number a {unit}, got {tuple(value.shape)}')
    if not value.is_floating_point():
        raise TypeError(f'{name} must be floating point, got {value.dtype}')
    if value.device != x.device:
        raise ValueError(f'{name} must be on the device of x: x is on {x.device}, {name} on {value.device}')
