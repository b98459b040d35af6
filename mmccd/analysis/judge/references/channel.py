"""Definitions whose gate is, or begins as, one number a channel."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Mutant, Reference

SPACE = (2, 3)


class SE(Reference):
    """Average over space, two fully connected layers with a ReLU between, sigmoid."""

    paper = 'Squeeze-and-Excitation Networks, CVPR 2018, arXiv:1709.01507'
    formula = '2 C (C / ratio), and C / ratio + C with biases'
    variants = ({}, dict(bias=False))
    searched = dict(ratio=(1, 2, 4, 8, 16, 32, 64), bias=(True, False))
    mutants = (Mutant('has no ReLU between its layers', dict(act=lambda t: t)),)

    def __init__(self, channels: int, ratio: int = 16, bias: bool = True, act: Any = torch.relu, **shared: Any) -> None:
        super().__init__(**shared)
        self.act = act
        self.fc1 = nn.Conv2d(channels, channels // ratio, 1, bias=bias)
        self.fc2 = nn.Conv2d(channels // ratio, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.squash(self.fc2(self.act(self.fc1(self.average(x, SPACE)))))


class ECA(Reference):
    """Average over space, a convolution over neighbouring channels, sigmoid."""

    paper = 'ECA-Net, CVPR 2020, arXiv:1910.03151'
    formula = 'k, the odd number next to (log2 C + 1) / 2'
    searched = dict(kernel_size=(3, 5, 7, 9), bias=(False, True))
    mutants = ()

    def __init__(self, channels: int, kernel_size: int | None = None, bias: bool = False, **shared: Any) -> None:
        super().__init__(**shared)
        k = kernel_size or int(abs((math.log2(channels) + 1) / 2)) | 1
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        line = self.average(x, SPACE).flatten(2).transpose(1, 2)  # (N, 1, C)
        return x * self.squash(self.conv(line)).transpose(1, 2).unsqueeze(-1)


class GE(Reference):
    """Gather over the whole map by averaging, excite by a sigmoid: GE-theta-minus, without parameters."""

    paper = 'Gather-Excite, NeurIPS 2018, arXiv:1810.12348'
    formula = '0'

    def __init__(self, channels: int, **shared: Any) -> None:
        super().__init__(**shared)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.squash(self.average(x, SPACE))


class CBAM(Reference):
    """Channel gate by average and maximum over space through one perceptron; then a spatial gate by a 7 x 7 convolution
    over average and maximum over channels. The paper leaves biases and the norm open.
    """

    paper = 'CBAM, ECCV 2018, arXiv:1807.06521'
    formula = '2 C (C / ratio) + 2 k k, and C / ratio + C with biases, 2 with a norm, 1 with a bias of the convolution'
    variants = (
        {},
        dict(bias=False),
        dict(norm=False),
        dict(bias=False, norm=False),
        dict(norm=False, conv_bias=True),
        dict(bias=False, norm=False, conv_bias=True),
    )
    searched = dict(ratio=(1, 2, 4, 8, 16, 32), kernel_size=(3, 7), bias=(True, False), norm=(True, False))
    mutants = (
        Mutant('has no maximum branch in its channel gate', dict(channel_max=False)),
        Mutant('has no average branch in its channel gate', dict(channel_average=False)),
        Mutant('has no maximum branch in its spatial gate', dict(spatial_max=False)),
        Mutant('has no average branch in its spatial gate', dict(spatial_average=False)),
        Mutant('has no maximum branches', dict(channel_max=False, spatial_max=False)),
        Mutant('has no spatial gate', dict(spatial=False)),
        Mutant('has no channel gate', dict(channel=False)),
        Mutant('has both gates computed from its input, side by side', dict(parallel=True)),
        Mutant('has the spatial gate first', dict(spatial_first=True)),
        Mutant('takes the mean of both branches in place of their sum', dict(halve=True)),
        Mutant(
            'has one fully connected layer and no maximum branch in its channel gate',
            dict(channel_max=False, single=True),
        ),
        Mutant(
            'has one fully connected layer and no maximum branch in its channel gate, and no norm',
            dict(channel_max=False, single=True, norm=False),
        ),
    )

    def __init__(
        self,
        channels: int,
        ratio: int = 16,
        kernel_size: int = 7,
        bias: bool = True,
        norm: bool = True,
        conv_bias: bool = False,
        channel_max: bool = True,
        channel_average: bool = True,
        spatial_max: bool = True,
        spatial_average: bool = True,
        spatial: bool = True,
        channel: bool = True,
        parallel: bool = False,
        spatial_first: bool = False,
        halve: bool = False,
        single: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.channel_pools = [p for p, used in ((self.average, channel_average), (self.maximum, channel_max)) if used]
        self.spatial_pools = [p for p, used in ((self.maximum, spatial_max), (self.average, spatial_average)) if used]
        self.parallel, self.spatial_first, self.halve, self.single = parallel, spatial_first, halve, single
        if channel:
            hidden = channels if single else channels // ratio
            self.fc1 = nn.Linear(channels, hidden, bias=bias)
            if not single:
                self.fc2 = nn.Linear(hidden, channels, bias=bias)
        if spatial:
            self.conv = nn.Conv2d(len(self.spatial_pools), 1, kernel_size, padding=kernel_size // 2, bias=conv_bias)
            self.bn = nn.BatchNorm2d(1) if norm else nn.Identity()
        self.channel, self.spatial = channel, spatial

    def _channel_gate(self, x: Tensor) -> Tensor | float:
        if not self.channel:
            return 1.0
        branches = [self.fc1(pool(x, SPACE).flatten(1)) for pool in self.channel_pools]
        if not self.single:
            branches = [self.fc2(torch.relu(b)) for b in branches]
        total = sum(branches) / (len(branches) if self.halve else 1)
        return self.squash(total)[:, :, None, None]

    def _spatial_gate(self, x: Tensor) -> Tensor | float:
        if not self.spatial:
            return 1.0
        return self.squash(self.bn(self.conv(torch.cat([pool(x, (1,)) for pool in self.spatial_pools], 1))))

    def forward(self, x: Tensor) -> Tensor:
        if self.spatial_first:
            x = x * self._spatial_gate(x)
            return x * self._channel_gate(x)
        channel = self._channel_gate(x)
        return x * channel * self._spatial_gate(x if self.parallel else x * channel)


class BAM(Reference):
    """1 + sigmoid of a channel and a spatial branch, added up (the paper) or multiplied (its authors' code)."""

    paper = 'BAM, BMVC 2018, arXiv:1807.06514'
    formula = 'two bottlenecks with norms: a perceptron, and 1x1, 3x3, 3x3 (dilated), 1x1 convolutions'
    variants = (
        dict(last_norm=False),
        dict(last_norm=False, multiply=True),
        dict(inner_norms=False, hidden_norm=False),
        {},
    )
    searched = dict(ratio=(4, 8, 16, 32))

    def __init__(
        self,
        channels: int,
        ratio: int = 16,
        dilation: int = 4,
        hidden_norm: bool = True,
        inner_norms: bool = True,
        last_norm: bool = True,
        multiply: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        hidden, self.multiply = channels // ratio, multiply

        def bn(n: int, there: bool = True) -> nn.Module:
            return nn.BatchNorm2d(n) if there else nn.Identity()

        self.channel = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            bn(hidden, hidden_norm),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            bn(channels, last_norm),
        )
        layers: list[nn.Module] = [nn.Conv2d(channels, hidden, 1), bn(hidden, inner_norms), nn.ReLU()]
        for _ in range(2):
            conv = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
            layers += [conv, bn(hidden, inner_norms), nn.ReLU()]
        self.spatial = nn.Sequential(*layers, nn.Conv2d(hidden, 1, 1), bn(1, last_norm))

    def forward(self, x: Tensor) -> Tensor:
        channel, spatial = self.channel(self.average(x, SPACE)), self.spatial(x)
        return x * (1 + self.squash(channel * spatial if self.multiply else channel + spatial))


class GC(Reference):
    """Context by a softmax over space, through a bottleneck with LayerNorm, added to every position."""

    paper = 'GCNet, ICCVW 2019, arXiv:1904.11492'
    formula = 'C + 1 + 2 C (C / ratio) + 3 C / ratio + C'
    searched = dict(ratio=(1, 2, 4, 8, 16, 32))
    mutants = (
        Mutant('has a softmax over channels in place of space', dict(axis=1)),
        Mutant('has a softmax over the batch in place of space', dict(axis=0)),
        Mutant('has no softmax', dict(axis=None)),
        Mutant('multiplies by a sigmoid of its context in place of adding it', dict(multiply=True)),
    )

    def __init__(
        self, channels: int, ratio: int = 16, axis: int | None = 2, multiply: bool = False, **shared: Any
    ) -> None:
        super().__init__(**shared)
        hidden, self.axis, self.multiply = channels // ratio, axis, multiply
        self.mask = nn.Conv2d(channels, 1, 1)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.norm = nn.LayerNorm([hidden, 1, 1])
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.mask(x).flatten(2)  # (N, 1, H * W)
        weight = weight if self.axis is None else weight.softmax(self.axis)
        context = (x.flatten(2) * weight).sum(2)[:, :, None, None]
        term = self.fc2(torch.relu(self.norm(self.fc1(context))))
        return x * torch.sigmoid(term) if self.multiply else x + term


class NAM(Reference):
    """A BatchNorm, weighed by its own scales, sigmoid: the channel attention of the paper."""

    paper = 'NAM, NeurIPS 2021 workshop, arXiv:2111.12419'
    formula = '2 C'
    mutants = (Mutant('leaves the scales out of the weights', dict(weigh=False)),)

    def __init__(self, channels: int, weigh: bool = True, **shared: Any) -> None:
        super().__init__(**shared)
        self.bn, self.weigh = nn.BatchNorm2d(channels), weigh

    def forward(self, x: Tensor) -> Tensor:
        weight = self.bn.weight.abs()
        weight = (weight / weight.sum())[:, None, None] if self.weigh else 1.0
        return x * self.squash(self.bn(x) * weight)


# The 16 frequencies that did best on ImageNet, (row, column) in a grid of 7 x 7.
TOP16 = ((0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0), (5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3),
         (3, 5), (2, 2))  # fmt: skip


class FCA(Reference):
    """SE with a two-dimensional DCT, another frequency for each sixteenth of the channels, in place of the average."""

    paper = 'FcaNet, ICCV 2021, arXiv:2012.11879'
    formula = '2 C (C / ratio)'
    variants = ({}, dict(bias=True))
    searched = dict(ratio=(4, 8, 16, 32), bias=(False, True))
    mutants = (Mutant('has the average alone, as SE', dict(frequencies=((0, 0),))),)

    def __init__(
        self,
        channels: int,
        ratio: int = 16,
        bias: bool = False,
        grid: int = 7,
        frequencies: tuple[tuple[int, int], ...] = TOP16,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.fc1 = nn.Conv2d(channels, channels // ratio, 1, bias=bias)
        self.fc2 = nn.Conv2d(channels // ratio, channels, 1, bias=bias)
        self.grid, self.frequencies = grid, frequencies

    def _basis(self, x: Tensor) -> Tensor:
        """(C, grid, grid)."""
        grid = self.grid
        at = torch.arange(grid, dtype=x.dtype) + 0.5

        def wave(k: int) -> Tensor:
            return torch.cos(math.pi * k * at / grid) / math.sqrt(grid) * (math.sqrt(2) if k else 1)

        each = x.shape[1] // len(self.frequencies)
        return torch.cat([torch.outer(wave(u), wave(v)).expand(each, grid, grid) for u, v in self.frequencies])

    def forward(self, x: Tensor) -> Tensor:
        pooled = x if x.shape[2:] == (self.grid, self.grid) else F.adaptive_avg_pool2d(x, self.grid)
        context = (pooled * self._basis(x)).sum((2, 3), keepdim=True)
        return x * self.squash(self.fc2(torch.relu(self.fc1(context))))
