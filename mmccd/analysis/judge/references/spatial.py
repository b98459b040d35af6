"""Definitions whose gate differs from position to position."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmccd.ops.reference import ccd_reference

from .base import Mutant, Reference


class CCD(Reference):
    """The dependency of every position on its context, pooled on grids of 1, 2 x 2 and 4 x 4 cells."""

    paper = 'Cascaded Context Dependency, ICIP 2020'
    formula = '2 groups'
    searched = dict(groups=(1, 2, 4, 8, 16, 32, 64, 128))
    mutants = (
        Mutant('has the context of the whole map alone, as SGE', dict(scales=(1,))),
        Mutant('has a cosine in place of the dot product', dict(similarity='cosine')),
        Mutant('does not normalise over space', dict(normalize=None)),
        Mutant('normalises by minimum and maximum', dict(normalize='minmax')),
        Mutant('adds its input once more (x + x * gate)', {}, lambda x, y: x + y),
    )

    def __init__(
        self,
        channels: int,
        groups: int = 64,
        scales: tuple[int, ...] = (1, 2, 4),
        similarity: str = 'dot',
        normalize: str | None = 'zscore',
        eps: float = 1e-7,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.scale = nn.Parameter(torch.zeros(groups))
        self.shift = nn.Parameter(torch.ones(groups))
        self.options = (groups, tuple(scales), similarity, normalize, eps)

    def forward(self, x: Tensor) -> Tensor:
        return ccd_reference(x, self.scale, self.shift, *self.options)


class SGE(CCD):
    """The dependency of every position on the mean of its group."""

    paper = 'Spatial Group-wise Enhance, arXiv:1905.09646'
    mutants = (
        Mutant('has the contexts of CCD', dict(scales=(1, 2, 4))),
        Mutant('does not normalise over space', dict(normalize=None)),
        Mutant('has a cosine in place of the dot product', dict(similarity='cosine')),
    )

    def __init__(
        self, channels: int, groups: int = 64, scales: tuple[int, ...] = (1,), eps: float = 1e-5, **options: Any
    ) -> None:
        super().__init__(channels, groups, scales, eps=eps, **options)


class SimAM(Reference):
    """The inverse energy of every neuron, sigmoid; no parameters."""

    paper = 'SimAM, ICML 2021'
    formula = '0'
    mutants = (Mutant('divides by H W in place of H W - 1', dict(missing=0)),)

    def __init__(self, channels: int, e_lambda: float = 1e-4, missing: int = 1, **shared: Any) -> None:
        super().__init__(**shared)
        self.e_lambda, self.missing = e_lambda, missing

    def forward(self, x: Tensor) -> Tensor:
        d = (x - x.mean((2, 3), keepdim=True)) ** 2
        variance = d.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - self.missing)
        return x * self.squash(d / (4 * (variance + self.e_lambda)) + 0.5)


class CoordAttention(Reference):
    """Averages along rows and along columns, through a shared bottleneck; a gate for each row and each column."""

    paper = 'Coordinate Attention, CVPR 2021, arXiv:2103.02907'
    formula = '3 C h + 2 h (norm), and h + 2 C with biases; h = max(8, C / ratio)'
    variants = ({}, dict(bias=False))
    searched = dict(ratio=(1, 2, 4, 8, 16, 32), bias=(True, False))
    mutants = (
        Mutant('has a ReLU in place of h-swish', dict(act=torch.relu)),
        Mutant('has the gate of the columns alone', dict(rows=False)),
        Mutant('has the gate of the rows alone', dict(columns=False)),
    )

    def __init__(
        self,
        channels: int,
        ratio: int = 32,
        bias: bool = True,
        minimum: int = 8,
        act: Any = F.hardswish,
        rows: bool = True,
        columns: bool = True,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        hidden = max(minimum, channels // ratio)
        self.act, self.rows, self.columns = act, rows, columns
        self.conv1 = nn.Conv2d(channels, hidden, 1, bias=bias)
        self.bn = nn.BatchNorm2d(hidden)
        self.conv_h = nn.Conv2d(hidden, channels, 1, bias=bias)
        self.conv_w = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        by_row, by_column = self.average(x, (3,)), self.average(x, (2,)).transpose(2, 3)
        hidden = self.act(self.bn(self.conv1(torch.cat((by_row, by_column), 2))))
        row, column = hidden.split((x.shape[2], x.shape[3]), 2)
        gate_h = self.squash(self.conv_h(row)) if self.rows else 1.0
        gate_w = self.squash(self.conv_w(column.transpose(2, 3))) if self.columns else 1.0
        return x * gate_h * gate_w


class EMAttention(Reference):
    """Efficient multi-scale attention: two branches in each group of channels, each weighed by the other's context."""

    paper = 'EMA, ICASSP 2023, arXiv:2305.13563'
    formula = '10 c c + 4 c, c = C / groups'
    searched = dict(groups=(1, 2, 4, 8, 16, 32, 64))
    mutants = (
        Mutant('has no softmax', dict(normalize=False)),
        Mutant('has the first of its two products alone', dict(cross=False)),
    )

    def __init__(
        self, channels: int, groups: int = 8, normalize: bool = True, cross: bool = True, **shared: Any
    ) -> None:
        super().__init__(**shared)
        c = channels // groups
        self.groups, self.normalize, self.cross = groups, normalize, cross
        self.conv1 = nn.Conv2d(c, c, 1)
        self.conv3 = nn.Conv2d(c, c, 3, padding=1)
        self.norm = nn.GroupNorm(c, c)

    def _context(self, x: Tensor) -> Tensor:
        """(N, 1, c)."""
        context = x.mean((2, 3)).unsqueeze(1)
        return context.softmax(2) if self.normalize else context

    def forward(self, x: Tensor) -> Tensor:
        g = x.reshape(x.shape[0] * self.groups, -1, *x.shape[2:])  # (N groups, c, H, W)
        lines = torch.cat((self.average(g, (3,)), self.average(g, (2,)).transpose(2, 3)), 2)
        row, column = self.conv1(lines).split((x.shape[2], x.shape[3]), 2)
        first = self.norm(g * torch.sigmoid(row) * torch.sigmoid(column.transpose(2, 3)))
        second = self.conv3(g)
        weight = self._context(first) @ second.flatten(2)  # (N groups, 1, H W)
        if self.cross:
            weight = weight + self._context(second) @ first.flatten(2)
        return (g * self.squash(weight.unflatten(2, x.shape[2:]))).reshape(x.shape)


class TripletAttention(Reference):
    """Gates over (H, W), (C, W) and (H, C), each from maximum and mean over the third, averaged."""

    paper = 'Rotate to Attend, WACV 2021, arXiv:2010.03045'
    formula = '3 (2 k k + 2)'
    searched = dict(kernel_size=(3, 5, 7, 9))
    mutants = (
        Mutant('adds up its branches in place of their mean', {}, lambda x, y: 3 * y),
        Mutant('has no branch over (H, W)', dict(spatial=False)),
    )

    def __init__(self, channels: int, kernel_size: int = 7, spatial: bool = True, **shared: Any) -> None:
        super().__init__(**shared)
        orders = [(0, 2, 1, 3), (0, 3, 2, 1), (0, 1, 2, 3)]  # each its own inverse
        self.orders = orders if spatial else orders[:2]
        self.convs = nn.ModuleList(
            nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False) for _ in self.orders
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(1) for _ in self.orders)

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for order, conv, norm in zip(self.orders, self.convs, self.norms):
            turned = x.permute(order)
            pooled = torch.cat((self.maximum(turned, (1,)), self.average(turned, (1,))), 1)
            total = total + (turned * self.squash(norm(conv(pooled)))).permute(order)
        return total / len(self.orders)


class ShuffleAttention(Reference):
    """Groups of channels in halves, one with a channel gate, one with a spatial gate; then a shuffle."""

    paper = 'SA-Net, ICASSP 2021, arXiv:2102.00240'
    formula = '6 c, c = C / (2 groups)'
    searched = dict(groups=(1, 2, 4, 8, 16, 32, 64))
    mutants = (Mutant('does not shuffle', dict(shuffle=False)),)

    def __init__(self, channels: int, groups: int | None = None, shuffle: bool = True, **shared: Any) -> None:
        super().__init__(**shared)
        groups = groups or math.gcd(64, channels // 2)
        c = channels // (2 * groups)
        self.groups, self.shuffle = groups, shuffle
        self.cweight, self.cbias = nn.Parameter(torch.zeros(1, c, 1, 1)), nn.Parameter(torch.ones(1, c, 1, 1))
        self.sweight, self.sbias = nn.Parameter(torch.zeros(1, c, 1, 1)), nn.Parameter(torch.ones(1, c, 1, 1))
        self.norm = nn.GroupNorm(c, c)

    def forward(self, x: Tensor) -> Tensor:
        g = x.reshape(x.shape[0] * self.groups, -1, *x.shape[2:])
        first, second = g.chunk(2, 1)
        first = first * self.squash(self.average(first, (2, 3)) * self.cweight + self.cbias)
        second = second * self.squash(self.norm(second) * self.sweight + self.sbias)
        y = torch.cat((first, second), 1).reshape(x.shape)
        return y.unflatten(1, (2, -1)).transpose(1, 2).reshape(x.shape) if self.shuffle else y


class LSK(Reference):
    """Large selective kernel: two depthwise convolutions in a row, mixed at every position."""

    paper = 'LSKNet, ICCV 2023, arXiv:2303.09030'
    formula = '26 C + 50 C + 3 C C / 2 + 2 C + 198'
    mutants = (Mutant('has one weight for both kernels', dict(one=True)),)

    def __init__(self, channels: int, one: bool = False, **shared: Any) -> None:
        super().__init__(**shared)
        half, self.one = channels // 2, one
        self.conv0 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.conv_spatial = nn.Conv2d(channels, channels, 7, padding=9, groups=channels, dilation=3)
        self.conv1 = nn.Conv2d(channels, half, 1)
        self.conv2 = nn.Conv2d(channels, half, 1)
        self.conv_squeeze = nn.Conv2d(2, 2, 7, padding=3)
        self.conv = nn.Conv2d(half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        near = self.conv0(x)
        far = self.conv_spatial(near)
        near, far = self.conv1(near), self.conv2(far)
        both = torch.cat((near, far), 1)
        weight = self.squash(self.conv_squeeze(torch.cat((self.average(both, (1,)), self.maximum(both, (1,))), 1)))
        mixed = near * weight[:, :1] + far * weight[:, : 1 if self.one else None][:, -1:]
        return x * self.conv(mixed)
