r"""CCD by stock operators with an analytic backward: any device, any floating dtype, any layout.

The interface that every implementation of CCD has (``ccd_torch``, ``ccd_cpu``, ``ccd_triton``):

* ``unavailable(x) -> str | None``: why it cannot run on this tensor; None if it can. Allocates nothing.
* ``forward(x, scale, bias, options, keep=True) -> (y, saved)`` with ``saved = (context, d, stats)``, all in the
  computing dtype (float32 for half precision, else that of ``x``):

  - context (N, C, S, S): the cascade's mean of pools on the finest grid, S = max(scales);
  - d (N, G, H, W): the similarity before normalisation (of the cosine: after the division by the lengths);
  - stats (N, G, 2): z-score: mean and deviation of d; min-max: minimum and range; none: not read. The second number is
    exactly 0 where the map is flat: the decision is taken once, and backward reads it here.

  With ``keep=False`` nothing is kept: saved is three tensors without elements.
* ``backward(grad_y, x, scale, bias, saved, options, need_x=True) -> (grad_x, grad_scale, grad_bias)``, of the dtypes of
  x, scale and bias; ``need_x=False`` may return a grad_x without elements. ``grad_y`` has any strides.

``x`` is (N, C, H, W) with N and C possibly 0, H and W at least 1; arguments are checked already.

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
-sum(delta dhat) / range, shared evenly among ties. Cosine: gd / (|x| |u|) stands for gd in gu and gx, and the lengths
add -gd d / |x|^2 times x to gx and -sum(gd d) / |u|^2 times u to gu, where they are above MIN_NORM.

Neither the upsampled context nor its gradient exists at full size: rows and columns are cut into segments where any
nearest cell or any adaptive bin begins or ends (overlapping bins included), so that pooling is a sum over segments and
a product with small matrices, and both are constant on a segment. Only for maps of at most ``SMALL`` pixels, where the
number of operators counts and not the memory, is everything done at full size, pooling by one product with a matrix.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .functional import FLATNESS, MIN_NORM, CCDOptions

# Pixels up to which a product with a (pixels, S * S) matrix is faster than sums over segments.
SMALL = 800


class Axis(NamedTuple):
    """One axis of ``size`` pixels, cut into segments.

    Attributes:
        bounds (tuple[int, ...]): Where segments begin, and ``size`` at the end; segments + 1 numbers.
        cell (tuple[int, ...]): Cell of the finest grid that a segment's pixels read; one a segment.
        pool (tuple): (scales, S, segments): weight of a pixel of the segment in the pool that a cell reads.
    """

    bounds: tuple[int, ...]
    cell: tuple[int, ...]
    pool: tuple[tuple[tuple[float, ...], ...], ...]

    @property
    def segments(self) -> list[tuple[int, int, int]]:
        """(begin, end, cell) of every segment."""
        return list(zip(self.bounds, self.bounds[1:], self.cell))


@lru_cache(maxsize=4096)
def cut_axis(size: int, scales: tuple[int, ...]) -> Axis:
    """Segments of an axis; see :class:`Axis`."""
    grid = max(scales)
    edges = {-(-a * size // grid) for a in range(grid + 1)}  # cell a is read from pixel ceil(a * size / S) on
    for s in scales:
        edges |= {a * size // s for a in range(s)} | {-(-(a + 1) * size // s) for a in range(s)}
    bounds = tuple(sorted(edges))
    begins = bounds[:-1]
    pool = []
    for s in scales:
        weights = []
        for a in range(grid):
            i = a * s // grid
            begin, end = i * size // s, -(-(i + 1) * size // s)
            weights.append(tuple(1 / (end - begin) if begin <= b < end else 0.0 for b in begins))
        pool.append(tuple(weights))
    return Axis(bounds, tuple(b * grid // size for b in begins), tuple(pool))


@lru_cache(maxsize=1024)
def _pool_matrices(size: int, scales: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """``cut_axis(...).pool`` as a tensor (scales, S, segments)."""
    return torch.tensor(cut_axis(size, scales).pool, dtype=dtype, device=device)


@lru_cache(maxsize=1024)
def _dense_matrices(
    h: int, w: int, scales: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(P, S * S): weight of a pixel in a cell's context, and 1 where the pixel reads the cell."""
    by_row, by_col = (
        (
            torch.tensor(axis.pool, dtype=torch.float64).repeat_interleave(
                torch.tensor([b - a for a, b, _ in axis.segments]), 2
            )
        )
        for axis in (cut_axis(h, scales), cut_axis(w, scales))
    )
    grid = max(scales)
    pool = torch.einsum('sai,sbj->ijab', by_row, by_col).reshape(h * w, -1) / len(scales)
    cell = torch.arange(h)[:, None] * grid // h * grid + torch.arange(w) * grid // w
    reads = torch.nn.functional.one_hot(cell.flatten(), grid * grid)
    return pool.to(device, dtype), reads.to(device, dtype)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of sums and statistics."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def unavailable(x: Tensor) -> str | None:
    """None: stock operators run everywhere."""
    return None


def _column_sums(t: Tensor, cols: Axis) -> Tensor:
    """(..., W) to sums over column segments, (..., segments)."""
    return torch.stack([t[..., a:b].sum(-1) for a, b, _ in cols.segments], -1)


def _pool(x: Tensor, options: CCDOptions, rows: Axis, cols: Axis) -> Tensor:
    """Context (N, C, S, S), reading x once."""
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
    return sum(pooled) / len(options.scales)


def _lengths(u: Tensor) -> Tensor:
    """Length over the channels of a group, (N, G, K, ...) to (N, G, ...)."""
    return torch.linalg.vector_norm(u, dim=2)


def _statistics(d: Tensor, options: CCDOptions) -> Tensor:
    """(N, G, 2) of d (N, G, H, W): centre and spread, the spread exactly 0 where flat."""
    n, g = d.shape[:2]
    tolerance = FLATNESS * torch.finfo(d.dtype).eps
    if options.normalize is None:
        return d.new_ones(n, g, 2)
    if d.shape[-2:].numel() == 1:
        return torch.stack([d[..., 0, 0], torch.zeros_like(d[..., 0, 0])], -1)
    if options.normalize == 'zscore':
        spread, centre = torch.std_mean(d, dim=(2, 3))  # N - 1
        flat = spread <= tolerance * centre.abs()
    else:
        centre, high = d.amin((2, 3)), d.amax((2, 3))
        spread = high - centre
        flat = spread <= tolerance * torch.maximum(centre.abs(), high.abs())
    return torch.stack([centre, torch.where(flat, 0, spread)], -1)


def _normalized(d: Tensor, stats: Tensor, options: CCDOptions) -> tuple[Tensor, Tensor]:
    """(dhat (N, G, H, W), its factor (N, G, 1, 1))."""
    if options.normalize is None:
        return d, torch.ones_like(stats[..., :1, None])
    centre, spread = stats[..., :1, None], stats[..., 1:, None]
    flat = spread == 0
    divisor = spread + options.eps if options.normalize == 'zscore' else spread
    factor = torch.where(flat, 0, 1 / torch.where(flat, 1, divisor))
    return torch.where(flat, 0, (d - centre) * factor), factor


def _gate(dhat: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Sigmoid of the logit, (N, G, H, W), without the gain."""
    return torch.sigmoid(scale.to(dhat.dtype).view(1, -1, 1, 1) * dhat + bias.to(dhat.dtype).view(1, -1, 1, 1))


def forward(
    x: Tensor, scale: Tensor, bias: Tensor, options: CCDOptions, keep: bool = True
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """See the interface above."""
    compute, g = compute_dtype(x.dtype), options.groups
    n, c, h, w = x.shape
    y = torch.empty_like(x)
    if x.numel() == 0:
        s = max(options.scales)
        return y, (
            x.new_zeros(n, c, s, s, dtype=compute),
            x.new_zeros(n, g, h, w, dtype=compute),
            x.new_zeros(n, g, 2, dtype=compute),
        )
    rows, cols = cut_axis(h, options.scales), cut_axis(w, options.scales)
    x5, y5 = x.unflatten(1, (g, -1)), y.unflatten(1, (g, -1))  # (N, G, K, H, W)
    context = _pool(x, options, rows, cols)
    d = x.new_empty(n, g, h, w, dtype=compute)
    for a, b, u in _row_blocks(context, options, rows, cols):
        block = x5[:, :, :, a:b].to(compute)
        d[:, :, a:b] = (block * u).sum(2)
        if options.similarity == 'cosine':
            d[:, :, a:b] /= _lengths(block).clamp_min(MIN_NORM) * _lengths(u).clamp_min(MIN_NORM)
    stats = _statistics(d, options)
    gate = _gate(_normalized(d, stats, options)[0], scale, bias)
    if options.gain != 1:
        gate = gate * options.gain
    torch.mul(x5, gate.unsqueeze(2).to(x.dtype), out=y5)
    return y, (context, d, stats) if keep else (context.new_empty(0), d.new_empty(0), stats.new_empty(0))


def _row_blocks(context: Tensor, options: CCDOptions, rows: Axis, cols: Axis) -> list[tuple[int, int, Tensor]]:
    """(first row, end, the context that these rows read: (N, G, K, rows or 1, W)) for all blocks of rows."""
    h, w, grid = rows.bounds[-1], cols.bounds[-1], context.shape[-1]
    wide = context.index_select(3, torch.arange(w, device=context.device) * grid // w)  # (N, C, S, W)
    wide = wide.unflatten(1, (options.groups, -1))
    if h * w <= SMALL:
        return [(0, h, wide.index_select(3, torch.arange(h, device=context.device) * grid // h))]
    return [(a, b, wide[:, :, :, cell : cell + 1]) for a, b, cell in rows.segments]


def backward(
    grad_y: Tensor,
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    options: CCDOptions,
    need_x: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """See the interface above."""
    context, d, stats = saved
    compute, g = compute_dtype(x.dtype), options.groups
    h, w = x.shape[-2:]
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    if x.numel() == 0:
        return grad_x, torch.zeros_like(scale), torch.zeros_like(bias)
    rows, cols = cut_axis(h, options.scales), cut_axis(w, options.scales)
    x5, grad_y5 = x.unflatten(1, (g, -1)), grad_y.unflatten(1, (g, -1))

    q = torch.empty_like(d)
    for a, b, *_ in [(0, h)] if h * w <= SMALL else rows.segments:
        q[:, :, a:b] = (x5[:, :, :, a:b].to(compute) * grad_y5[:, :, :, a:b].to(compute)).sum(2)
    dhat, factor = _normalized(d, stats, options)
    sigmoid = _gate(dhat, scale, bias)
    delta = q * (options.gain * sigmoid * (1 - sigmoid))
    grad_bias = delta.sum((0, 2, 3)).to(bias.dtype)
    grad_scale = (delta * dhat).sum((0, 2, 3)).to(scale.dtype)
    if not need_x:
        return grad_x, grad_scale, grad_bias
    gd = _through_normalization(delta * scale.to(compute).view(1, -1, 1, 1), d, dhat, factor, stats, options)

    blocks = _row_blocks(context, options, rows, cols)
    per_product = gd  # factor of u in gx and of x in gu
    per_x = None
    if options.similarity == 'cosine':
        per_product, per_x = torch.empty_like(gd), torch.empty_like(gd)
        for a, b, u in blocks:
            length = _lengths(x5[:, :, :, a:b].to(compute))
            per_product[:, :, a:b] = gd[:, :, a:b] / (length.clamp_min(MIN_NORM) * _lengths(u).clamp_min(MIN_NORM))
            per_x[:, :, a:b] = torch.where(
                length >= MIN_NORM, -gd[:, :, a:b] * d[:, :, a:b] / length.square().clamp_min(MIN_NORM**2), 0
            )
    v = _pool_transposed(_context_gradient(x5, gd, d, per_product, context, options, rows, cols), options, rows, cols)
    gate = options.gain * sigmoid if options.gain != 1 else sigmoid
    grad_x5 = grad_x.unflatten(1, (g, -1))
    for (a, b, u), v_block in zip(blocks, v):
        block = grad_y5[:, :, :, a:b].to(compute) * gate[:, :, None, a:b]
        block.addcmul_(per_product[:, :, None, a:b], u)
        block += v_block.unflatten(1, (g, -1))
        if per_x is not None:
            block.addcmul_(per_x[:, :, None, a:b], x5[:, :, :, a:b].to(compute))
        grad_x5[:, :, :, a:b] = block
    return grad_x, grad_scale, grad_bias


def _through_normalization(
    delta: Tensor, d: Tensor, dhat: Tensor, factor: Tensor, stats: Tensor, options: CCDOptions
) -> Tensor:
    """Gradient of d (N, G, H, W) from delta, that of dhat."""
    if options.normalize is None:
        return delta
    spread = stats[..., 1:, None]
    along = (delta * dhat).sum((2, 3), keepdim=True)
    if options.normalize == 'zscore':
        pixels = d.shape[-2:].numel()
        slope = torch.where(spread == 0, 0, (spread + options.eps) / torch.where(spread == 0, 1, spread))
        slope = along * slope / max(pixels - 1, 1)
        return factor * (delta - delta.mean((2, 3), keepdim=True) - dhat * slope)
    lowest = d == stats[..., :1, None]
    highest = d == d.amax((2, 3), keepdim=True)
    to_low = (along - delta.sum((2, 3), keepdim=True)) / lowest.sum((2, 3), keepdim=True)
    to_high = -along / highest.sum((2, 3), keepdim=True)
    return factor * (delta + torch.where(lowest, to_low, 0) + torch.where(highest, to_high, 0))


def _context_gradient(
    x5: Tensor, gd: Tensor, d: Tensor, per_product: Tensor, context: Tensor, options: CCDOptions, rows: Axis, cols: Axis
) -> Tensor:
    """Gradient of the context, (N, C, S, S)."""
    grid = context.shape[-1]
    cosine = options.similarity == 'cosine'
    n, g, k, h, w = x5.shape
    grad = context.new_zeros(n, g, k, grid, grid)
    weight = context.new_zeros(n, g, grid, grid)  # sum of gd * d over a cell
    if h * w <= SMALL:
        reads = _dense_matrices(h, w, options.scales, gd.device, gd.dtype)[1]
        grad = ((x5.to(gd.dtype) * per_product.unsqueeze(2)).flatten(3) @ reads).unflatten(3, (grid, grid))
        if cosine:
            weight = ((gd * d).flatten(2) @ reads).unflatten(2, (grid, grid))
    for a, b, cell in rows.segments if h * w > SMALL else ():
        block = (x5[:, :, :, a:b].to(gd.dtype) * per_product[:, :, None, a:b]).sum(3)  # (N, G, K, W)
        row = (gd[:, :, a:b] * d[:, :, a:b]).sum(2) if cosine else None
        for begin, end, col in cols.segments:
            grad[..., cell, col] += block[..., begin:end].sum(-1)
            if cosine:
                weight[..., cell, col] += row[..., begin:end].sum(-1)
    if cosine:
        u5 = context.unflatten(1, (g, -1))
        length = _lengths(u5)
        per_u = torch.where(length >= MIN_NORM, -weight / length.square().clamp_min(MIN_NORM**2), 0)
        grad.addcmul_(per_u.unsqueeze(2), u5)
    return grad.flatten(1, 2)


def _pool_transposed(grad: Tensor, options: CCDOptions, rows: Axis, cols: Axis) -> list[Tensor]:
    """Gradient (N, C, S, S) of the context to what pixels get, (N, C, rows or 1, W) for every block of rows."""
    h, w = rows.bounds[-1], cols.bounds[-1]
    if h * w <= SMALL:
        pool = _dense_matrices(h, w, options.scales, grad.device, grad.dtype)[0]
        return [(grad.flatten(2) @ pool.T).unflatten(2, (h, w))]
    row_pool = _pool_matrices(h, options.scales, grad.device, grad.dtype)
    col_pool = _pool_matrices(w, options.scales, grad.device, grad.dtype)
    v = sum(r.T @ (grad @ c) for r, c in zip(row_pool, col_pool)) / len(options.scales)  # (N, C, segments, segments)
    lengths = torch.tensor([b - a for a, b, _ in cols.segments], device=grad.device)
    v = v.repeat_interleave(lengths, dim=3, output_size=w)  # (N, C, row segments, W)
    return [v[:, :, i : i + 1] for i in range(v.shape[2])]
