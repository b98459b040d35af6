r"""CCD by stock operators with an analytic backward: any device, any floating dtype, any layout.

The maths of the backward, with r = 1 / (std + eps) and P = H * W; sums over c are over the channels of a group, l is
the gradient of the logit and delta that of dhat:

.. math::
    q_i &= \sum_{c \in g} gy_{c,i} x_{c,i}, \qquad
    l_i = q_i\, gain\, \sigma_i (1 - \sigma_i), \qquad \delta_i = scale_g\, l_i \\
    gscale_g &= \sum_{n,i} l_i \hat d_i, \qquad gbias_g = \sum_{n,i} l_i \\
    gd_i &= r \Big(\delta_i - \bar\delta
            - \hat d_i \frac{(std + \epsilon) \sum_j \delta_j \hat d_j}{(P - 1)\, std}\Big)
            \quad\text{(z-score; 0 where flat)} \\
    gu_{c,cell} &= \sum_{i \in cell} gd_i x_{c,i}, \qquad v = \mathrm{pool}^T(gu) \\
    gx_{c,i} &= gy_{c,i}\, gate_i + gd_i\, u_{c,cell(i)} + v_{c,i}

Min-max: gd = delta / range, plus what flows into the minimum, sum(delta (dhat - 1)) / range, and into the maximum,
-sum(delta dhat) / range, shared evenly among ties. Cosine: gd / (|x| |u|) stands for gd in gu and gx, and the norms
add -gd d / |x|^2 times x to gx and -sum(gd d) / |u|^2 times u to gu, where they are above MIN_NORM.

Neither the upsampled context nor its gradient exists at full size: rows and columns are cut into segments
(:mod:`mmccd.ops.geometry`), so that pooling is a sum over segments and a product with small matrices, and both are
constant on a segment. Only for maps of at most ``SMALL`` pixels, where the number of operators counts and not the
memory, is everything done at full size, pooling by one product with a matrix. Devices other than the CPU do everything
at full size, whatever the map, and pool by sums (:mod:`mmccd.ops.torch_sums`): they launch no more kernels than the
definition, and nothing is rounded to TF32 or waits for the host.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from . import torch_sums
from .backends import Inputs, Saved, add_relu_, affine, compute_dtype, with_affine_and_residual
from .geometry import Axis, cell_of, cell_of_pixel, context_weights, cut_axis
from .options import FLATNESS, MIN_NORM, Options

# Pixels up to which a product with a (pixels, S * S) matrix is faster than sums over segments, on the CPU.
SMALL = 800


def unavailable(x: Tensor, options: Options) -> str | None:
    """It can run everywhere."""
    return None


def forward(inputs: Inputs, options: Options, keep: bool, overwrite: bool = False) -> tuple[Tensor, Saved]:
    """See :class:`mmccd.ops.backends.Backend`."""
    x, residual, scale, bias, weight, shift = inputs
    x = affine(x, weight, shift)
    compute, g = compute_dtype(x.dtype), options.groups
    n, c, h, w = x.shape
    y = torch.empty_like(x)
    if x.numel() == 0:
        s = max(options.scales)
        context, d, stats = (x.new_zeros(shape, dtype=compute) for shape in ((n, c, s, s), (n, g, h, w), (n, g, 2)))
        return y, (context, d, stats)
    rows, cols = cut_axis(h, options.scales), cut_axis(w, options.scales)
    converts = not torch_sums.wanted(x)  # other devices convert in the kernel that multiplies
    x5, y5 = x.unflatten(1, (g, -1)), y.unflatten(1, (g, -1))  # (N, G, K, H, W)
    context = _pool(x, options, rows, cols)
    d = x.new_empty(n, g, h, w, dtype=compute)
    for a, b, u in _row_blocks(context, options, rows, cols):
        block = x5[:, :, :, a:b]
        if converts or options.similarity == 'cosine':
            block = block.to(compute)
        torch.sum(block * u, 2, out=d[:, :, a:b])
        if options.similarity == 'cosine':
            d[:, :, a:b] /= _norms(block).clamp_min(MIN_NORM) * _norms(u).clamp_min(MIN_NORM)
    stats = statistics(d, options)
    gate = sigmoid_gate(normalized(d, stats, options)[0], scale, bias)  # (N, G, H, W)
    if options.gain != 1:
        gate = gate * options.gain
    torch.mul(x5, gate.unsqueeze(2).to(x.dtype), out=y5)
    saved = (context, d, stats) if keep else (context.new_empty(0), d.new_empty(0), stats.new_empty(0))
    return add_relu_(y, residual), saved


@with_affine_and_residual
def backward(
    grad_y: Tensor, x: Tensor, scale: Tensor, bias: Tensor, saved: Saved, options: Options, need_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    context, d, stats = saved
    compute, g = compute_dtype(x.dtype), options.groups
    h, w = x.shape[-2:]
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    rows, cols = cut_axis(h, options.scales), cut_axis(w, options.scales)
    x5, grad_y5 = x.unflatten(1, (g, -1)), grad_y.unflatten(1, (g, -1))

    q = torch.empty_like(d)
    for a, b, *_ in [(0, h)] if _at_full_size(x) else rows.segments:
        torch.sum(x5[:, :, :, a:b].to(compute) * grad_y5[:, :, :, a:b], 2, out=q[:, :, a:b])
    dhat, factor = normalized(d, stats, options)
    sigmoid = sigmoid_gate(dhat, scale, bias)
    delta = torch.ops.aten.sigmoid_backward(q, sigmoid)
    if options.gain != 1:
        delta *= options.gain
    sums, along = delta.sum((2, 3)), (delta * dhat).sum((2, 3))  # (N, G)
    grad_bias, grad_scale = sums.sum(0).to(bias.dtype), along.sum(0).to(scale.dtype)
    if not need_x:
        return grad_x, grad_scale, grad_bias
    gd = _through_normalization(delta, sums, along, d, dhat, factor, stats, options)
    gd *= scale.to(compute).view(1, -1, 1, 1)

    blocks = _row_blocks(context, options, rows, cols)
    per_product = gd  # factor of u in gx and of x in gu
    per_x = None
    if options.similarity == 'cosine':
        per_product, per_x = torch.empty_like(gd), torch.empty_like(gd)
        for a, b, u in blocks:
            norm = _norms(x5[:, :, :, a:b].to(compute))
            per_product[:, :, a:b] = gd[:, :, a:b] / (norm.clamp_min(MIN_NORM) * _norms(u).clamp_min(MIN_NORM))
            per_x[:, :, a:b] = torch.where(
                norm >= MIN_NORM, -gd[:, :, a:b] * d[:, :, a:b] / norm.square().clamp_min(MIN_NORM**2), 0
            )
    grad_context = _context_gradient(x5, gd, d, per_product, context, options, rows, cols)
    gate = options.gain * sigmoid if options.gain != 1 else sigmoid
    grad_x5 = grad_x.unflatten(1, (g, -1))
    if torch_sums.wanted(x):
        whole = grad_x if grad_x.dtype == compute else torch.empty_like(grad_x, dtype=compute)
        block = torch.mul(grad_y5, gate.unsqueeze(2), out=whole.unflatten(1, (g, -1)))
        block.addcmul_(per_product.unsqueeze(2), blocks[0][2])
        if per_x is not None:
            block.addcmul_(per_x.unsqueeze(2), x5.to(compute))
        torch_sums.add_pool_transposed_(whole, grad_context, options.scales)
        if whole is not grad_x:
            grad_x.copy_(whole)
        return grad_x, grad_scale, grad_bias
    v = _pool_transposed(grad_context, options, rows, cols)
    for (a, b, u), v_block in zip(blocks, v):
        block = grad_y5[:, :, :, a:b].to(compute) * gate[:, :, None, a:b]
        block.addcmul_(per_product[:, :, None, a:b], u)
        block += v_block.unflatten(1, (g, -1))
        if per_x is not None:
            block.addcmul_(per_x[:, :, None, a:b], x5[:, :, :, a:b].to(compute))
        grad_x5[:, :, :, a:b] = block
    return grad_x, grad_scale, grad_bias


# ------------------------------------------------------------------------------------------ pooling, and its transpose


def _at_full_size(x: Tensor) -> bool:
    """Whether nothing is cut into segments, for x (N, C, H, W) or (N, G, K, H, W)."""
    return torch_sums.wanted(x) or x.shape[-2:].numel() <= SMALL


@lru_cache(maxsize=1024)
def _pool_matrices(size: int, scales: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """``Axis.pool`` as a tensor (scales, S, segments)."""
    return torch.tensor(cut_axis(size, scales).pool, dtype=dtype, device=device)


@lru_cache(maxsize=1024)
def _dense_matrices(
    h: int, w: int, scales: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(P, S * S): weight of a pixel in a cell's context, and 1 where the pixel reads the cell."""
    pool = context_weights(*(cut_axis(size, scales).pool_by_pixel for size in (h, w))).T
    grid = max(scales)
    reads = torch.nn.functional.one_hot(torch.from_numpy(cell_of_pixel(h, w, grid)), grid * grid)
    return torch.tensor(pool, dtype=dtype, device=device), reads.to(device, dtype)


def _column_sums(t: Tensor, cols: Axis) -> Tensor:
    """Sums over segments of columns, (..., W) to (..., segments)."""
    return torch.stack([t[..., a:b].sum(-1) for a, b, _ in cols.segments], -1)


def _pool(x: Tensor, options: Options, rows: Axis, cols: Axis) -> Tensor:
    """Context (N, C, S, S), reading x once."""
    if torch_sums.wanted(x):
        return torch_sums.pool(x, options.scales)
    compute = compute_dtype(x.dtype)
    h, w = x.shape[-2:]
    if h * w <= SMALL:
        pool = _dense_matrices(h, w, options.scales, x.device, compute)[0]
        return (x.flatten(2).to(compute) @ pool).unflatten(2, (max(options.scales), -1))
    t = torch.stack([x[:, :, a:b].sum(2, dtype=compute) for a, b, _ in rows.segments], 2)  # (N, C, segments, W)
    t = _column_sums(t, cols)
    row_pool = _pool_matrices(h, options.scales, x.device, compute)
    col_pool = _pool_matrices(w, options.scales, x.device, compute)
    pooled = [r @ (t @ c.T) for r, c in zip(row_pool, col_pool)]
    return sum(pooled[1:], pooled[0]) / len(options.scales)


def _pool_transposed(grad: Tensor, options: Options, rows: Axis, cols: Axis) -> list[Tensor]:
    """Gradient (N, C, S, S) of the context to what pixels get, (N, C, rows or 1, W) for every block of rows."""
    h, w = rows.bounds[-1], cols.bounds[-1]
    if h * w <= SMALL:
        pool = _dense_matrices(h, w, options.scales, grad.device, grad.dtype)[0]
        return [(grad.flatten(2) @ pool.T).unflatten(2, (h, w))]
    row_pool = _pool_matrices(h, options.scales, grad.device, grad.dtype)
    col_pool = _pool_matrices(w, options.scales, grad.device, grad.dtype)
    v = sum(r.T @ (grad @ c) for r, c in zip(row_pool, col_pool)) / len(options.scales)  # (N, C, segments, segments)
    lengths = torch.tensor(cols.lengths, device=grad.device)
    v = v.repeat_interleave(lengths, dim=3, output_size=w)  # (N, C, row segments, W)
    return [v[:, :, i : i + 1] for i in range(v.shape[2])]


def _row_blocks(context: Tensor, options: Options, rows: Axis, cols: Axis) -> list[tuple[int, int, Tensor]]:
    """(first row, end, the context that these rows read: (N, G, K, rows or 1, W)) for all blocks of rows."""
    h, w, grid = rows.bounds[-1], cols.bounds[-1], context.shape[-1]
    if torch_sums.wanted(context):
        return [(0, h, torch_sums.upsample(context, h, w).unflatten(1, (options.groups, -1)))]
    wide = context.index_select(3, cell_of(torch.arange(w, device=context.device), w, grid))  # (N, C, S, W)
    wide = wide.unflatten(1, (options.groups, -1))
    if h * w <= SMALL:
        return [(0, h, wide.index_select(3, cell_of(torch.arange(h, device=context.device), h, grid)))]
    return [(a, b, wide[:, :, :, cell : cell + 1]) for a, b, cell in rows.segments]


def _context_gradient(
    x5: Tensor, gd: Tensor, d: Tensor, per_product: Tensor, context: Tensor, options: Options, rows: Axis, cols: Axis
) -> Tensor:
    """Gradient of the context, (N, C, S, S)."""
    grid = context.shape[-1]
    cosine = options.similarity == 'cosine'
    n, g, k, h, w = x5.shape
    if torch_sums.wanted(x5):
        grad = torch_sums.sum_over_cells((x5 * per_product.unsqueeze(2)).flatten(1, 2), grid).unflatten(1, (g, k))
        weight = torch_sums.sum_over_cells(gd * d, grid) if cosine else gd
    elif h * w <= SMALL:
        weight = gd  # for the cosine: sum of gd * d over a cell
        reads = _dense_matrices(h, w, options.scales, gd.device, gd.dtype)[1]
        grad = ((x5.to(gd.dtype) * per_product.unsqueeze(2)).flatten(3) @ reads).unflatten(3, (grid, grid))
        if cosine:
            weight = ((gd * d).flatten(2) @ reads).unflatten(2, (grid, grid))
    else:
        grad, weight = context.new_zeros(n, g, k, grid, grid), context.new_zeros(n, g, grid, grid)
    for a, b, cell in () if _at_full_size(x5) else rows.segments:
        block = (x5[:, :, :, a:b].to(gd.dtype) * per_product[:, :, None, a:b]).sum(3)  # (N, G, K, W)
        row = (gd[:, :, a:b] * d[:, :, a:b]).sum(2) if cosine else gd
        for begin, end, col in cols.segments:
            grad[..., cell, col] += block[..., begin:end].sum(-1)
            if cosine:
                weight[..., cell, col] += row[..., begin:end].sum(-1)
    if cosine:
        u5 = context.unflatten(1, (g, -1))
        norm = _norms(u5)
        per_u = torch.where(norm >= MIN_NORM, -weight / norm.square().clamp_min(MIN_NORM**2), 0)
        grad.addcmul_(per_u.unsqueeze(2), u5)
    return grad.flatten(1, 2)


# --------------------------------------------------------------------------------- similarity, normalisation, gate


def _norms(u: Tensor) -> Tensor:
    """Norm over the channels of a group, (N, G, K, ...) to (N, G, ...)."""
    return torch.linalg.vector_norm(u, dim=2)


def statistics(d: Tensor, options: Options) -> Tensor:
    """(N, G, 2) of d (N, G, H, W): mean and deviation, or minimum and range; the second exactly 0 where flat."""
    n, g = d.shape[:2]
    tolerance = FLATNESS * torch.finfo(d.dtype).eps
    if options.normalize is None:
        return d.new_ones(n, g, 2)
    if d.shape[-2:].numel() == 1:
        return torch.stack([d[..., 0, 0], torch.zeros_like(d[..., 0, 0])], -1)
    if options.normalize == 'zscore':
        std_or_range, mean_or_min = torch.std_mean(d, dim=(2, 3))  # N - 1
        flat = std_or_range <= tolerance * mean_or_min.abs()
    else:
        mean_or_min, high = d.amin((2, 3)), d.amax((2, 3))
        std_or_range = high - mean_or_min
        flat = std_or_range <= tolerance * torch.maximum(mean_or_min.abs(), high.abs())
    return torch.stack([mean_or_min, torch.where(flat, 0, std_or_range)], -1)


def normalized(d: Tensor, stats: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """(dhat (N, G, H, W), its factor (N, G, 1, 1)), both 0 where flat."""
    if options.normalize is None:
        return d, torch.ones_like(stats[..., :1, None])
    mean_or_min, std_or_range = stats[..., :1, None], stats[..., 1:, None]
    divisor = (
        std_or_range + options.eps
        if options.normalize == 'zscore'
        else std_or_range.clamp_min(torch.finfo(d.dtype).tiny)
    )
    factor = std_or_range.sign() / divisor
    if d.shape[-2:].numel() == 1:  # flat, and perhaps NaN or infinite
        return torch.zeros_like(d), factor
    return (d - mean_or_min) * factor, factor


def sigmoid_gate(dhat: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Sigmoid of the logit, (N, G, H, W), without the gain."""
    scale, bias = (t.to(dhat.dtype).view(1, -1, 1, 1) for t in (scale, bias))
    return torch.addcmul(bias, scale, dhat).sigmoid_()


def _through_normalization(
    delta: Tensor,
    sums: Tensor,
    along: Tensor,
    d: Tensor,
    dhat: Tensor,
    factor: Tensor,
    stats: Tensor,
    options: Options,
) -> Tensor:
    """Gradient of d (N, G, H, W) from delta, that of dhat, and its sums and those of delta * dhat, both (N, G)."""
    if options.normalize is None:
        return delta
    sums, along = sums[..., None, None], along[..., None, None]
    if options.normalize == 'zscore':
        pixels = d.shape[-2:].numel()
        slope = along / (stats[..., 1:, None] * factor).clamp_min(torch.finfo(d.dtype).tiny)
        gd = torch.sub(delta, sums, alpha=1 / pixels).addcmul_(dhat, slope, value=-1 / max(pixels - 1, 1))
        return gd.mul_(factor)
    lowest = d == stats[..., :1, None]
    highest = d == d.amax((2, 3), keepdim=True)
    to_low = (along - sums) / lowest.sum((2, 3), keepdim=True)
    to_high = -along / highest.sum((2, 3), keepdim=True)
    return factor * (delta + torch.where(lowest, to_low, 0) + torch.where(highest, to_high, 0))
