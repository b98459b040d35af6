"""EMA: Efficient Multi-Scale Attention with cross-spatial learning (ICASSP 2023, arXiv:2305.13563), as an mmcv plugin
layer. Not to be taken for the exponential moving average of weights, hence its longer name.

Each group of channels is a sample of its own, with weights that all groups share. One branch gates it by its rows and
columns (one 1x1 convolution over both strips, without the bottleneck of Coordinate Attention) and normalises every
channel over space; the other is a 3x3 convolution. Each branch's averages over space, through a softmax over channels,
weight the channels of the other branch, and the sigmoid of the sum of both is one gate for the group.

8 groups, as in the authors' code, whose names of layers are those here. Added: ``identity_init``; gates computed in
float32 under autocast; a map of one pixel is normalised to the norm's bias at any batch size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmccd.registry import MODELS

from .base import AttentionLayer, check_int, instance_norm, set_to_zero, statistics_dtype, without_autocast


@MODELS.register_module()
class EMAttention(AttentionLayer):
    """Spatial gate of each group of channels, from its rows and columns and from a 3x3 neighbourhood.

    Args:
        in_channels (int): Channels of the input.
        groups (int): Groups of neighbouring channels that share a gate; divides ``in_channels``. Default: 8.
        identity_init (bool): Initialise as the identity: the norm and the 3x3 convolution are zero at first, and the
            gate is divided by its initial value, 1/2. Part of the model, so test with the same setting. Default: False.
        init_cfg (dict | list[dict] | None): Initialisation that replaces PyTorch's default one. Default: None.

    Raises:
        TypeError, ValueError: If an argument breaks a rule above.

    Example:
        >>> from mmccd.models import EMAttention
        >>> sum(p.numel() for p in EMAttention(256).parameters())  # 10 c^2 + 4 c for groups of c = 32 channels
        10368
    """

    _abbr_ = 'em_attention'

    def __init__(
        self,
        in_channels: int,
        groups: int = 8,
        identity_init: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_int('in_channels', in_channels)
        check_int('groups', groups)
        if in_channels % groups:
            raise ValueError(f'groups must divide in_channels={in_channels}, got groups={groups}')
        channels = in_channels // groups
        self.in_channels = in_channels
        self.groups = groups
        self.identity_init = identity_init
        self.gn = nn.GroupNorm(channels, channels)
        self.conv1x1 = nn.Conv2d(channels, channels, 1)
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.reset_inner_layers()
        if self.identity_init:
            set_to_zero(self.gn, self.conv3x3)

    def gate(self, x: Tensor) -> Tensor:
        """Gate of shape (N, groups, H, W)."""
        self.check_channels(x)
        h, w = x.shape[2:]
        with without_autocast(x):
            dtype, inner = statistics_dtype(x), self.conv1x1.weight.dtype
            z = x.to(dtype).unflatten(1, (self.groups, -1)).flatten(0, 1)  # (N * G, C / G, H, W)
            strips = torch.cat((z.mean(3), z.mean(2)), 2).unsqueeze(3)  # (N * G, C / G, H + W, 1)
            rows, columns = torch.sigmoid(self.conv1x1(strips.to(inner))).to(dtype).split((h, w), 2)
            first = instance_norm(z * rows * columns.transpose(2, 3), self.gn)
            second = self.conv3x3(z.to(inner)).to(dtype)
            of_first, of_second = (torch.softmax(branch.mean((2, 3)), 1).unsqueeze(1) for branch in (first, second))
            logit = of_first @ second.flatten(2) + of_second @ first.flatten(2)  # (N * G, 1, H * W)
            gate = torch.sigmoid(logit).view(-1, self.groups, h, w).to(x.dtype)
        return gate * 2 if self.identity_init else gate

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return dict(spatial=self.gate(x))

    def forward(self, x: Tensor) -> Tensor:
        """Gate features of shape (N, in_channels, H, W)."""
        gate = self.gate(x).unsqueeze(2)
        return (x.unflatten(1, (self.groups, -1)) * gate).flatten(1, 2)
