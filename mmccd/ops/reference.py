r"""Cascaded Context Dependency (CCD): the definition, as a composition of stock operators.

Paper: *Cascaded Context Dependency: An Extremely Lightweight Module for Deep Convolutional Neural Networks*, ICIP
2020. For an input :math:`x` of shape (N, C, H, W) whose channels are split into G groups of C/G neighbours:

.. math::
    p_s &= \mathrm{AdaptiveAvgPool}_{s \times s}(x), \quad s \in scales \\
    u &= \mathrm{up}_{H \times W}\Big(\frac{1}{|scales|} \sum_s \mathrm{up}_{S \times S}(p_s)\Big),
         \quad S = \max scales \\
    d_{n,g,i} &= \sum_{c \in g} x_{n,c,i}\, u_{n,c,i} \\
    \hat d &= (d - \mathrm{mean}_i\, d) / (\mathrm{std}_i\, d + \epsilon) \\
    y_{n,c,i} &= x_{n,c,i}\, \sigma(scale_g\, \hat d_{n,g,i} + bias_g)

Upsampling is to the nearest cell: row i of H reads cell floor(i * S / H), in integers. The deviation is the unbiased
one (N - 1). With scales (1,) it is Spatial Group-wise Enhance (SGE, arXiv:1905.09646).

Deviations from the original implementation, all where that one gives no usable number:

* A map whose similarity is the same everywhere, a single pixel among them, has a normalised similarity of 0 and no
  gradient through it; the original gives NaN for a single pixel, and amplified rounding errors for constant maps.
  "The same" is up to rounding: the std_or_range is at most ``FLATNESS`` times the dtype's epsilon times the mean.
* Half precision is computed in float32 and rounded once, so sums of products cannot overflow.
* Cells are found in integers (:mod:`mmccd.ops.geometry`). ``F.interpolate`` multiplies by a rounded ratio and reads
  the neighbouring cell at the borders of some sizes (82, 94, 110, 164, 166, 188, ... pixels for 4 cells).

This is what is right; :func:`mmccd.ops.ccd` computes the same faster. It has second derivatives, which that has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import onnx as onnx_form
from .backends import compute_dtype
from .geometry import cell_of
from .options import FLATNESS, MIN_NORM, Options


def ccd_reference(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    groups: int,
    scales: Sequence[int] = (1, 2, 4),
    similarity: str = 'dot',
    normalize: str | None = 'zscore',
    eps: float = 1e-7,
    gain: float = 1.0,
) -> Tensor:
    """The textbook composition of stock operators; defines what is correct.

    Arguments as of :func:`mmccd.ops.ccd`, unchecked.

    Returns:
        Tensor: (N, C, H, W), of the dtype of ``x``.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 8, 7, 7)
        >>> y = ccd_reference(x, torch.zeros(4), torch.ones(4), groups=4)
        >>> torch.allclose(y, x * torch.sigmoid(torch.tensor(1.)))
        True
    """
    gate = ccd_gate(x, scale, bias, groups, scales, similarity, normalize, eps, gain)  # (N, G, H, W)
    return (_grouped(x, groups) * gate.unsqueeze(2).to(x.dtype)).reshape(x.shape)


def ccd_gate(x: Tensor, scale: Tensor, bias: Tensor, *options: Any, **named: Any) -> Tensor:
    """What :func:`ccd` multiplies by: (N, groups, H, W), float32 for half precision.

    Args:
        x, scale, bias: As of :func:`mmccd.ops.ccd`, unchecked.
        options, named: The options, as of :class:`mmccd.ops.options.Options`, unchecked.
    """
    groups, scales, similarity, normalize, eps, gain = Options(*options, **named)
    pooled_context, normalize_over_space = _pooled_context, _normalize_over_space
    if torch.onnx.is_in_onnx_export():
        pooled_context, normalize_over_space = onnx_form.pooled_context, onnx_form.normalize_over_space
    z = x.to(compute_dtype(x.dtype))
    context = pooled_context(z, scales)  # (N, C, H, W)

    z, context = (_grouped(v, groups) for v in (z, context))  # (N, G, C/G, H, W)
    d = (z * context).sum(2)  # (N, G, H, W)
    if similarity == 'cosine':
        norms = [torch.linalg.vector_norm(v, dim=2).clamp_min(MIN_NORM) for v in (z, context)]
        d = d / (norms[0] * norms[1])
    d = normalize_over_space(d, normalize, eps)
    logit = scale.to(d.dtype).view(1, -1, 1, 1) * d + bias.to(d.dtype).view(1, -1, 1, 1)
    gate = torch.sigmoid(logit)
    return gate * gain if gain != 1 else gate


def _pooled_context(z: Tensor, scales: Sequence[int]) -> Tensor:
    """Mean of the poolings, upsampled to the size of ``z``, (N, C, H, W)."""
    grid = max(scales)
    pooled = [upsample(F.adaptive_avg_pool2d(z, s), grid, grid) for s in scales]  # each (N, C, S, S)
    return upsample(sum(pooled[1:], pooled[0]) / len(scales), *z.shape[-2:])


def _normalize_over_space(d: Tensor, normalize: str | None, eps: float) -> Tensor:
    """Normalise (N, G, H, W) over H and W; 0 where it is flat."""
    if normalize is None:
        return d
    if d.shape[-2:].numel() == 1:
        return torch.zeros_like(d)
    tolerance = FLATNESS * torch.finfo(d.dtype).eps
    if normalize == 'zscore':
        std, mean = torch.std_mean(d, dim=(2, 3), keepdim=True)  # N - 1
        flat = std <= tolerance * mean.abs()
        return torch.where(flat, 0, (d - mean) / (std + eps))
    low, high = d.amin((2, 3), keepdim=True), d.amax((2, 3), keepdim=True)
    flat = high - low <= tolerance * torch.maximum(low.abs(), high.abs())
    return torch.where(flat, 0, (d - low) / torch.where(flat, 1, high - low))


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(N, C, H, W) to (N, groups, C / groups, H, W). Not by unflatten: ONNX fixes the other sizes with that."""
    n, _, height, width = x.shape
    return x.reshape(n, groups, -1, height, width)


def upsample(p: Tensor, height: int, width: int) -> Tensor:
    """Nearest upsampling of (N, C, h, w) to (N, C, height, width)."""
    if p.shape[-2:] == (height, width):
        return p
    if _interpolate_is_exact(int(height), int(p.shape[2])) and _interpolate_is_exact(int(width), int(p.shape[3])):
        return F.interpolate(p, size=(height, width), mode='nearest')
    # Slower by far in its backward, but right.
    p = p.index_select(2, cell_of(torch.arange(height, device=p.device), height, p.shape[2]))
    return p.index_select(3, cell_of(torch.arange(width, device=p.device), width, p.shape[3]))


@lru_cache(maxsize=4096)
def _interpolate_is_exact(size: int, cells: int) -> bool:
    """Whether ``F.interpolate``, which multiplies by cells / size in float32, reads the right cells."""
    if cells == 1:
        return True
    i = np.arange(size)
    read = np.minimum(np.floor(i.astype(np.float32) * (np.float32(cells) / np.float32(size))), cells - 1)
    return np.array_equal(read, cell_of(i, size, cells))
