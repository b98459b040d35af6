r"""Cascaded Context Dependency: the operator.

Paper: *Cascaded Context Dependency: An Extremely Lightweight Module for Deep Convolutional Neural Networks*, ICIP
2020. Definition, for an input :math:`x` of shape (N, C, H, W) whose channels are split into G groups of C/G neighbours:

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
  "The same" is up to rounding: the spread is at most ``FLATNESS`` times the dtype's epsilon times the mean.
* Half precision is computed in float32 and rounded once, so sums of products cannot overflow.
* Cells are found in integers. ``F.interpolate`` multiplies by a rounded ratio and reads the neighbouring cell at the
  borders of some sizes (82, 94, 110, 164, 166, 188, ... pixels for 4 cells).

Implementations, chosen by ``impl``: ``ccd_cpu`` (compiled loops), ``ccd_triton`` (CUDA kernels) and ``ccd_torch``
(stock operators, everywhere); :func:`ccd_reference` is the textbook composition that defines what is correct. They run
as the custom operators ``mmccd::ccd_forward`` and ``mmccd::ccd_backward``, which torch.compile and torch.export keep
whole; where a graph of stock operators is wanted (torch.jit.trace; ONNX, where ``ccd_onnx`` keeps it free of the size),
and with torch before 2.4, which has no such operators, the reference runs. Second derivatives: not of the operators
(PyTorch raises); those of the reference work.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib import import_module
from numbers import Integral, Real
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

SIMILARITIES = ('dot', 'cosine')
NORMALIZERS = ('zscore', 'minmax', None)
IMPLEMENTATIONS = ('auto', 'torch', 'cpu', 'triton')
_MODULES = dict(torch='torch_backend', cpu='numba_backend.launch', triton='triton_backend.kernels')
# A constant map's similarity varies by some tens of ulp through the poolings' rounding; real maps vary by far more.
FLATNESS = 64.0
# Smallest length that the cosine divides by.
MIN_NORM = 1e-8


class CCDOptions(NamedTuple):
    """Options of the operator, checked; what :func:`ccd` hands to an implementation."""

    groups: int
    scales: tuple[int, ...] = (1, 2, 4)
    similarity: str = 'dot'
    normalize: str | None = 'zscore'
    eps: float = 1e-7
    gain: float = 1.0


def check_ccd_options(
    groups: int,
    scales: Sequence[int] = (1, 2, 4),
    similarity: str = 'dot',
    normalize: str | None = 'zscore',
    eps: float = 1e-7,
    channels: int | None = None,
) -> tuple[int, ...]:
    """Raise TypeError or ValueError for options that CCD cannot have; return ``scales`` as a tuple."""
    if isinstance(groups, bool) or not isinstance(groups, Integral):
        raise TypeError(f'groups must be an int, got {groups!r}')
    if groups < 1:
        raise ValueError(f'groups must be at least 1, got {groups}')
    if channels is not None:
        _check_channels(groups, channels)
    if isinstance(scales, (str, bytes)) or not isinstance(scales, Sequence):
        raise TypeError(f'scales must be a sequence of ints, got {scales!r}')
    if not scales:
        raise ValueError('scales must name at least one grid size, got an empty sequence')
    for s in scales:
        if isinstance(s, bool) or not isinstance(s, Integral):
            raise TypeError(f'scales must be ints, got {s!r} in scales={tuple(scales)}')
        if s < 1:
            raise ValueError(f'every scale must be at least 1, got {s} in scales={tuple(scales)}')
    if similarity not in SIMILARITIES:
        raise ValueError(f'similarity must be one of {SIMILARITIES}, got {similarity!r}')
    if normalize not in NORMALIZERS:
        raise ValueError(f'normalize must be one of {NORMALIZERS}, got {normalize!r}')
    if isinstance(eps, bool) or not isinstance(eps, Real):
        raise TypeError(f'eps must be a number, got {eps!r}')
    if not eps > 0:
        raise ValueError(f'eps must be above 0, got {eps}')
    return tuple(int(s) for s in scales)


@lru_cache(maxsize=1024, typed=True)
def _checked(
    groups: int,
    scales: tuple[int, ...],
    _: tuple[type, ...],
    similarity: str,
    normalize: str | None,
    eps: float,
    gain: float,
) -> CCDOptions:
    return CCDOptions(
        groups, check_ccd_options(groups, scales, similarity, normalize, eps), similarity, normalize, eps, gain
    )


def _options(
    groups: int, scales: Sequence[int], similarity: str, normalize: str | None, eps: float, gain: float
) -> CCDOptions:
    """Options, checked; what was checked once is not checked again."""
    if isinstance(scales, (tuple, list)):
        scales = tuple(scales)
        try:
            return _checked(groups, scales, tuple(map(type, scales)), similarity, normalize, eps, gain)
        except TypeError as e:
            if 'unhashable' not in str(e):
                raise
    return CCDOptions(
        groups, check_ccd_options(groups, scales, similarity, normalize, eps), similarity, normalize, eps, gain
    )


def _check_channels(groups: int, channels: int) -> None:
    if channels % groups:
        raise ValueError(f'groups must divide the number of channels: {channels} channels, got groups={groups}')


def _check_tensors(x: Tensor, scale: Tensor, bias: Tensor, groups: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f'x must be a Tensor, got {type(x).__name__}')
    if x.dim() != 4:
        raise ValueError(f'x must have shape (N, C, H, W), got {tuple(x.shape)}')
    if not x.is_floating_point():
        raise TypeError(f'x must be floating point, got {x.dtype}')
    if x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f'x must be at least one pixel high and wide, got {tuple(x.shape)}')
    for name, value in (('scale', scale), ('bias', bias)):
        if not isinstance(value, Tensor):
            raise TypeError(f'{name} must be a Tensor, got {type(value).__name__}')
        if tuple(value.shape) != (groups,):
            raise ValueError(f'{name} must have shape ({groups},), one number a group, got {tuple(value.shape)}')
        if not value.is_floating_point():
            raise TypeError(f'{name} must be floating point, got {value.dtype}')
        if value.device != x.device:
            raise ValueError(f'{name} must be on the device of x: x is on {x.device}, {name} on {value.device}')


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
) -> Tensor:
    """Gate ``x`` by the dependency of every position on its pooled context.

    Args:
        x (Tensor): Features, (N, C, H, W), any floating dtype and memory layout, H and W from 1 up.
        scale (Tensor): Factor of the normalised similarity, (groups,).
        bias (Tensor): Offset of the normalised similarity, (groups,).
        groups (int): Number of groups of neighbouring channels; divides C.
        scales (Sequence[int]): Grid sizes of the poolings, each at least 1.
        similarity (str): ``'dot'`` or ``'cosine'``, over the channels of a group.
        normalize (str | None): ``'zscore'``, ``'minmax'`` or None, over the positions of a group.
        eps (float): Added to the deviation; 1e-7 is the original's.
        gain (float): Factor of the gate; 1 is the original's.
        impl (str): ``'auto'`` takes compiled loops on the CPU, if numba is there, and stock operators elsewhere.
            ``'cpu'``, ``'torch'`` and ``'triton'`` (CUDA; so far run in Triton's interpreter alone) name one. Default:
            ``'auto'``.

    Returns:
        Tensor: (N, C, H, W), of the dtype and, if dense, the memory layout of ``x``.

    Raises:
        TypeError, ValueError: If an argument breaks a rule above, or a named ``impl`` cannot run here (with the
            reason); nothing was computed then.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 8, 7, 7)
        >>> y = ccd(x, torch.zeros(4), torch.ones(4), groups=4)
        >>> torch.allclose(y, x * torch.sigmoid(torch.tensor(1.)))
        True
    """
    options = _options(groups, scales, similarity, normalize, eps, gain)
    _check_tensors(x, scale, bias, groups)
    _check_channels(groups, x.shape[1])
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f'impl must be one of {IMPLEMENTATIONS}, got {impl!r}')
    if not _HAS_CUSTOM_OPS or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return ccd_reference(x, scale, bias, *options)
    keep = torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad or bias.requires_grad)
    if not torch.compiler.is_compiling():  # compiled, the operator looks for an implementation when it runs
        module = _implementation(x, impl)
        if _is_eager(x, scale, bias):
            return _run(module, impl, x, None, scale, bias, options, keep)
    return torch.ops.mmccd.ccd_forward(x, scale, bias, *options, impl, keep)[0]


def _without_autocast(x: Tensor) -> AbstractContextManager:
    """Where implementations run: float32 sums stay so in products with matrices, too."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _is_eager(*tensors: Tensor) -> bool:
    """Whether nothing but autograd listens: no subclass, no mode, no transform, which take note of operators."""
    return (
        all(type(t) in (Tensor, Parameter) and not t.is_meta for t in tensors)
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
    )


def _run(
    module: ModuleType,
    impl: str,
    x: Tensor,
    residual: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    options: CCDOptions,
    keep: bool,
) -> Tensor:
    """What the operators do, without the Python of torch.library around them, some 0.2 ms a layer."""
    with _without_autocast(x):
        if keep:
            return _Direct.apply(module, impl, options, x, residual, scale, bias)
        extra = () if residual is None else (residual,)
        return module.forward(x, scale, bias, options, False, *extra)[0]


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        module: ModuleType,
        impl: str,
        options: CCDOptions,
        x: Tensor,
        residual: Tensor | None,
        scale: Tensor,
        bias: Tensor,
    ) -> Tensor:
        extra = () if residual is None else (residual,)
        y, saved = module.forward(x, scale, bias, options, True, *extra)
        ctx.module, ctx.impl, ctx.options, ctx.adds = module, impl, options, residual is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y if ctx.adds else None, x, scale, bias, *saved)
        return y

    @staticmethod
    def backward(ctx, grad_y: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_y is None:
            return (None,) * 7
        y, x, scale, bias, *saved = ctx.saved_tensors
        need = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # the operators say what is wrong, should this be differentiated once more
            if ctx.adds:
                grads = torch.ops.mmccd.ccd_add_relu_backward(grad_y, y, x, scale, bias, *saved, *ctx.options, need[0])
            else:
                grads = torch.ops.mmccd.ccd_backward(grad_y, x, scale, bias, *saved, *ctx.options, ctx.impl, need[0])
                grads = (grads[0], None, *grads[1:])
        else:
            extra = (y, torch.empty_like(x)) if ctx.adds else ()
            with _without_autocast(x):
                grad_x, *grads = ctx.module.backward(grad_y, x, scale, bias, tuple(saved), ctx.options, need[0], *extra)
            grads = (grad_x, extra[1] if ctx.adds else None, *grads)
        return (None, None, None, *(g if n else None for g, n in zip(grads, need)))


def ccd_add_relu(
    x: Tensor,
    residual: Tensor,
    scale: Tensor,
    bias: Tensor,
    groups: int,
    scales: Sequence[int] = (1, 2, 4),
    similarity: str = 'dot',
    normalize: str | None = 'zscore',
    eps: float = 1e-7,
    gain: float = 1.0,
    impl: str = 'auto',
) -> Tensor:
    """``relu(ccd(x, ...) + residual)``: the end of a residual block.

    The compiled loops of the CPU do it in one pass over memory, with the same numbers to the last bit; elsewhere, and
    for channels_last, half precision and maps of less than 16 pixels, it is :func:`ccd`, an addition and a ReLU.

    Args:
        residual (Tensor): What is added, of the shape of ``x``.
        x, scale, bias, groups, scales, similarity, normalize, eps, gain, impl: As of :func:`ccd`.

    Returns:
        Tensor: (N, C, H, W).

    Raises:
        TypeError, ValueError: As :func:`ccd`, and if ``residual`` has another shape.
    """
    options = _options(groups, scales, similarity, normalize, eps, gain)
    _check_tensors(x, scale, bias, groups)
    _check_channels(groups, x.shape[1])
    if not isinstance(residual, Tensor):
        raise TypeError(f'residual must be a Tensor, got {type(residual).__name__}')
    if residual.shape != x.shape:
        raise ValueError(f'residual must have the shape of x, {tuple(x.shape)}, got {tuple(residual.shape)}')
    # A compiler joins the three by itself.
    if (
        impl not in ('auto', 'cpu')
        or not _HAS_CUSTOM_OPS
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.onnx.is_in_onnx_export()
        or not import_module(f'{__package__}.numba_backend.launch').adds_residual(x, residual)
    ):
        return F.relu_(ccd(x, scale, bias, *options, impl=impl).add_(residual))
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, residual, scale, bias))
    if _is_eager(x, residual, scale, bias):
        return _run(
            import_module(f'{__package__}.numba_backend.launch'), 'cpu', x, residual, scale, bias, options, keep
        )
    return torch.ops.mmccd.ccd_add_relu_forward(x, residual, scale, bias, *options, keep)[0]


def _implementation(x: Tensor, impl: str) -> ModuleType:
    """Module that runs on ``x``; ValueError if a named one cannot."""
    if impl == 'auto':
        # Not Triton yet: its kernels have run in the interpreter alone, and on no GPU.
        if x.device.type == 'cpu':
            module = import_module(f'{__package__}.numba_backend.launch')
            if module.unavailable(x) is None:
                return module
        impl = 'torch'
    module = import_module(f'{__package__}.{_MODULES[impl]}')
    reason = module.unavailable(x)
    if reason is not None:
        raise ValueError(f'impl={impl!r} cannot run here: {reason}')
    return module


def nearest_cells(size: int, cells: int, device: torch.device | None = None) -> Tensor:
    """Cell that each of ``size`` positions reads on a grid of ``cells``: floor(i * cells / size), (size,) int64."""
    return torch.arange(size, device=device) * cells // size


@lru_cache(maxsize=4096)
def _interpolate_is_exact(size: int, cells: int) -> bool:
    """Whether ``F.interpolate``, which multiplies by cells / size in float32, reads the right cells."""
    if cells == 1:
        return True
    i = torch.arange(size, dtype=torch.float32)
    read = (i * (torch.tensor(cells, dtype=torch.float32) / size)).floor().clamp_max(cells - 1)
    return torch.equal(read.long(), nearest_cells(size, cells))


def _upsample(p: Tensor, height: int, width: int) -> Tensor:
    """Nearest upsampling of (N, C, h, w) to (N, C, height, width)."""
    if p.shape[-2:] == (height, width):
        return p
    if _interpolate_is_exact(int(height), int(p.shape[2])) and _interpolate_is_exact(int(width), int(p.shape[3])):
        return F.interpolate(p, size=(height, width), mode='nearest')
    # Slower by far in its backward, but right.
    p = p.index_select(2, nearest_cells(height, p.shape[2], p.device))
    return p.index_select(3, nearest_cells(width, p.shape[3], p.device))


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(N, C, H, W) to (N, groups, C / groups, H, W). Not by unflatten: ONNX fixes the other sizes with that."""
    n, _, height, width = x.shape
    return x.reshape(n, groups, -1, height, width)


def _pooled_context(z: Tensor, scales: Sequence[int]) -> Tensor:
    """Mean of the poolings, upsampled to the size of ``z``, (N, C, H, W)."""
    grid = max(scales)
    pooled = [_upsample(F.adaptive_avg_pool2d(z, s), grid, grid) for s in scales]
    return _upsample(sum(pooled) / len(scales), *z.shape[-2:])


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


def ccd_gate(
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
    """What :func:`ccd` multiplies by: (N, groups, H, W), float32 for half precision. Arguments as there, unchecked."""
    compute = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    pooled_context, normalize_over_space = _pooled_context, _normalize_over_space
    if torch.onnx.is_in_onnx_export():
        onnx_form = import_module(f'{__package__}.onnx')
        pooled_context, normalize_over_space = onnx_form.pooled_context, onnx_form.normalize_over_space
    z = x.to(compute)
    context = pooled_context(z, scales)  # (N, C, H, W)

    z, context = (_grouped(v, groups) for v in (z, context))  # (N, G, C/G, H, W)
    d = (z * context).sum(2)  # (N, G, H, W)
    if similarity == 'cosine':
        lengths = [torch.linalg.vector_norm(v, dim=2).clamp_min(MIN_NORM) for v in (z, context)]
        d = d / (lengths[0] * lengths[1])
    d = normalize_over_space(d, normalize, eps)
    logit = scale.to(compute).view(1, -1, 1, 1) * d + bias.to(compute).view(1, -1, 1, 1)
    gate = torch.sigmoid(logit)
    return gate * gain if gain != 1 else gate


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
    """The textbook composition of stock operators; defines what is correct. Arguments as :func:`ccd`, unchecked."""
    gate = ccd_gate(x, scale, bias, groups, scales, similarity, normalize, eps, gain)
    return (_grouped(x, groups) * gate.unsqueeze(2).to(x.dtype)).reshape(x.shape)


_HAS_CUSTOM_OPS = hasattr(torch.library, 'custom_op') and hasattr(torch.library, 'register_autograd')


def _ccd_forward(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    groups: int,
    scales: Sequence[int],
    similarity: str,
    normalize: str | None,
    eps: float,
    gain: float,
    impl: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``forward`` of an implementation, see ``ccd_torch``: (y, context, d, stats)."""
    options = CCDOptions(groups, tuple(scales), similarity, normalize, eps, gain)
    with _without_autocast(x):
        y, saved = _implementation(x, impl).forward(x, scale, bias, options, keep)
    return (y, *saved)


def _ccd_backward(
    grad_y: Tensor,
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    context: Tensor,
    d: Tensor,
    stats: Tensor,
    groups: int,
    scales: Sequence[int],
    similarity: str,
    normalize: str | None,
    eps: float,
    gain: float,
    impl: str,
    need_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``backward`` of an implementation, see ``ccd_torch``: gradients of x, scale and bias."""
    options = CCDOptions(groups, tuple(scales), similarity, normalize, eps, gain)
    with _without_autocast(x):
        return _implementation(x, impl).backward(grad_y, x, scale, bias, (context, d, stats), options, need_x)


def _fake_forward(x, scale, bias, groups, scales, similarity, normalize, eps, gain, impl, keep):
    y = torch.empty_like(x)
    compute = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    if not keep:
        return y, *(x.new_empty(0, dtype=compute) for _ in range(3))
    n, c, h, w = x.shape
    grid = max(scales)
    return (
        y,
        x.new_empty((n, c, grid, grid), dtype=compute),
        x.new_empty((n, groups, h, w), dtype=compute),
        x.new_empty((n, groups, 2), dtype=compute),
    )


def _fake_backward(
    grad_y, x, scale, bias, context, d, stats, groups, scales, similarity, normalize, eps, gain, impl, need_x
):
    return torch.empty_like(x) if need_x else x.new_empty(0), torch.empty_like(scale), torch.empty_like(bias)


def _setup_context(ctx, inputs, output) -> None:
    x, scale, bias, *options, keep = inputs
    ctx.options = options
    ctx.keep = keep
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    if keep:
        ctx.save_for_backward(x, scale, bias, *output[1:])


def _autograd(ctx, grad_y, *_):
    none = (None,) * 8
    if grad_y is None or not ctx.keep:
        return (None, None, None, *none)
    need_x, need_scale, need_bias = ctx.needs_input_grad[:3]
    grads = torch.ops.mmccd.ccd_backward(grad_y, *ctx.saved_tensors, *ctx.options, need_x)
    return (*(g if need else None for g, need in zip(grads, (need_x, need_scale, need_bias))), *none)


def _no_second_derivative(*_):
    raise RuntimeError('ccd has no second derivative; take it through mmccd.ops.ccd_reference')


def _ccd_add_relu_forward(
    x: Tensor,
    residual: Tensor,
    scale: Tensor,
    bias: Tensor,
    groups: int,
    scales: Sequence[int],
    similarity: str,
    normalize: str | None,
    eps: float,
    gain: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = CCDOptions(groups, tuple(scales), similarity, normalize, eps, gain)
    y, saved = import_module(f'{__package__}.numba_backend.launch').forward(x, scale, bias, options, keep, residual)
    return (y, *saved)


def _ccd_add_relu_backward(
    grad_y: Tensor,
    y: Tensor,
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    context: Tensor,
    d: Tensor,
    stats: Tensor,
    groups: int,
    scales: Sequence[int],
    similarity: str,
    normalize: str | None,
    eps: float,
    gain: float,
    need_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = CCDOptions(groups, tuple(scales), similarity, normalize, eps, gain)
    grad_residual = torch.empty_like(x)
    grads = import_module(f'{__package__}.numba_backend.launch').backward(
        grad_y, x, scale, bias, (context, d, stats), options, need_x, y, grad_residual
    )
    return (grads[0], grad_residual, *grads[1:])


def _fake_add_relu_forward(x, residual, scale, bias, groups, scales, similarity, normalize, eps, gain, keep):
    return _fake_forward(x, scale, bias, groups, scales, similarity, normalize, eps, gain, 'cpu', keep)


def _fake_add_relu_backward(
    grad_y, y, x, scale, bias, context, d, stats, groups, scales, similarity, normalize, eps, gain, need_x
):
    return (
        torch.empty_like(x) if need_x else x.new_empty(0),
        torch.empty_like(x),
        torch.empty_like(scale),
        torch.empty_like(bias),
    )


def _setup_add_relu_context(ctx, inputs, output) -> None:
    x, _, scale, bias, *options, keep = inputs
    ctx.options = options
    ctx.keep = keep
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    if keep:
        ctx.save_for_backward(output[0], x, scale, bias, *output[1:])


def _add_relu_autograd(ctx, grad_y, *_):
    none = (None,) * 7
    if grad_y is None or not ctx.keep:
        return (None, None, None, None, *none)
    grads = torch.ops.mmccd.ccd_add_relu_backward(grad_y, *ctx.saved_tensors, *ctx.options, ctx.needs_input_grad[0])
    return (*(g if need else None for g, need in zip(grads, ctx.needs_input_grad)), *none)


_SIZES = 'int groups, int[] scales, str similarity, str? normalize, float eps, float gain'
_OPTIONS = f'{_SIZES}, str impl'
if _HAS_CUSTOM_OPS:
    _forward_op = torch.library.custom_op(
        'mmccd::ccd_forward',
        _ccd_forward,
        mutates_args=(),
        schema=f'(Tensor x, Tensor scale, Tensor bias, {_OPTIONS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor)',
    )
    _forward_op.register_fake(_fake_forward)
    _forward_op.register_autograd(_autograd, setup_context=_setup_context)
    _backward_op = torch.library.custom_op(
        'mmccd::ccd_backward',
        _ccd_backward,
        mutates_args=(),
        schema='(Tensor grad_y, Tensor x, Tensor scale, Tensor bias, Tensor context, Tensor d, Tensor stats, '
        f'{_OPTIONS}, bool need_x) -> (Tensor, Tensor, Tensor)',
    )
    _backward_op.register_fake(_fake_backward)
    _backward_op.register_autograd(_no_second_derivative)
    _add_relu_op = torch.library.custom_op(
        'mmccd::ccd_add_relu_forward',
        _ccd_add_relu_forward,
        mutates_args=(),
        device_types='cpu',
        schema='(Tensor x, Tensor residual, Tensor scale, Tensor bias, '
        f'{_SIZES}, bool keep) -> (Tensor, Tensor, Tensor, Tensor)',
    )
    _add_relu_op.register_fake(_fake_add_relu_forward)
    _add_relu_op.register_autograd(_add_relu_autograd, setup_context=_setup_add_relu_context)
    _add_relu_backward_op = torch.library.custom_op(
        'mmccd::ccd_add_relu_backward',
        _ccd_add_relu_backward,
        mutates_args=(),
        device_types='cpu',
        schema='(Tensor grad_y, Tensor y, Tensor x, Tensor scale, Tensor bias, Tensor context, Tensor d, '
        f'Tensor stats, {_SIZES}, bool need_x) -> (Tensor, Tensor, Tensor, Tensor)',
    )
    _add_relu_backward_op.register_fake(_fake_add_relu_backward)
    _add_relu_backward_op.register_autograd(_no_second_derivative)
