"""Shuffle Attention (SA-Net, ICASSP 2021, arXiv:2102.00240), as an mmcv plugin layer.

Channels are split into groups, and each group into two halves. The first is gated channel by channel, by the sigmoid of
a scaled and shifted global average; the second position by position, by that of the scaled and shifted features,
normalised over space. The weights are shared by all groups, 3 C / G in all. At the end all channels are shuffled: those
of the first half of the result alternate with those of the second.

Names and shapes of parameters, and their initial values, are those of the authors' code. Different here: gates are
computed in float32 under autocast; a map of one pixel is normalised to the norm's bias at any batch size; below 128
channels the default has fewer groups, down to one channel in each half. There is no ``identity_init``: shuffled
channels are not where they were, whatever the gates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmccd.registry import MODELS

from .base import AttentionLayer, check_int, instance_norm, statistics_dtype, without_autocast

GROUPS = 64  # of the paper


@MODELS.register_module()
class ShuffleAttention(AttentionLayer):
    """Channel gates for one half of every group, spatial gates for the other, and a shuffle of the channels.

    Args:
        in_channels (int): Channels of the input, even.
        groups (int | None): Groups of neighbouring channels; twice as many divide ``in_channels``. Default: None, 64,
            or the largest divisor of that which fits.
        init_cfg (dict | list[dict] | None): Initialisation that replaces weights 0 and biases 1. Default: None.

    Raises:
        TypeError, ValueError: If an argument breaks a rule above.

    Example:
        >>> from mmccd.models import ShuffleAttention
        >>> sum(p.numel() for p in ShuffleAttention(256).parameters())  # 3 * 256 / 64
        12
    """

    _abbr_ = 'shuffle_attention'
    gate_labels = dict(spatial='gate, in the order of the input')

    def __init__(self, in_channels: int, groups: int | None = None, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        check_int('in_channels', in_channels)
        if in_channels % 2:
            raise ValueError(f'in_channels must be even, got {in_channels}')
        if groups is None:
            groups = math.gcd(GROUPS, in_channels // 2)
        check_int('groups', groups)
        if in_channels % (2 * groups):
            raise ValueError(
                f'groups must divide half of the channels, in_channels / 2 = {in_channels // 2}, got groups={groups}'
            )
        half = in_channels // (2 * groups)
        self.in_channels = in_channels
        self.groups = groups
        self.cweight = nn.Parameter(torch.empty(1, half, 1, 1))
        self.cbias = nn.Parameter(torch.empty(1, half, 1, 1))
        self.sweight = nn.Parameter(torch.empty(1, half, 1, 1))
        self.sbias = nn.Parameter(torch.empty(1, half, 1, 1))
        self.gn = nn.GroupNorm(half, half)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.reset_inner_layers()
        for weight, bias in ((self.cweight, self.cbias), (self.sweight, self.sbias)):
            nn.init.zeros_(weight)
            nn.init.ones_(bias)

    def gate(self, x: Tensor) -> Tensor:
        """Gate of the shape of ``x``, in the order of its channels."""
        self.check_channels(x)
        with without_autocast(x):
            halves = x.to(statistics_dtype(x)).unflatten(1, (self.groups, 2, -1))  # (N, G, 2, C / 2G, H, W)
            first, second = halves[:, :, 0], halves[:, :, 1]
            means = first.mean((3, 4), keepdim=True)  # (N, G, C / 2G, 1, 1)
            of_first = torch.sigmoid(means * self.cweight + self.cbias).expand_as(second)
            of_second = torch.sigmoid(instance_norm(second, self.gn) * self.sweight + self.sbias)
            return torch.stack((of_first, of_second), 2).flatten(1, 3).to(x.dtype)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return dict(spatial=self.gate(x))

    def forward(self, x: Tensor) -> Tensor:
        """Gate features of shape (N, in_channels, H, W), and shuffle them."""
        return (x * self.gate(x)).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
