"""Coordinate Attention (CVPR 2021, arXiv:2103.02907), as an mmcv plugin layer.

Features are averaged over rows and over columns. Both strips go through one 1x1 convolution to in_channels / 32
channels (8 or more), BatchNorm and h-swish, and then each through a 1x1 convolution and a sigmoid: a position's gate is
the product of its row's and its column's. All convolutions have a bias, as in the authors' code, whose names of layers
are those here.

Added: ``norm_cfg`` of the network, ``identity_init``, and gates computed in float32 under autocast.
"""

from __future__ import annotations

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from mmccd.registry import MODELS

from .base import AttentionLayer, check_int, fit_norm_cfg, set_to_zero, statistics_dtype, without_autocast

MIN_HIDDEN = 8  # channels between the two layers, at the least


@MODELS.register_module()
class CoordAttention(AttentionLayer):
    """Gate from features averaged over each row, and over each column.

    Args:
        in_channels (int): Channels of the input.
        ratio (int): Reduction of the hidden layer, in_channels // ratio channels, but 8 or more. Default: 32.
        identity_init (bool): Initialise as the identity: the last convolutions are zero at first, and both factors are
            divided by their initial value, 1/2. Part of the model, so test with the same setting. Default: False.
        norm_cfg (dict | None): The hidden layer's norm. Default: None (BatchNorm).
        init_cfg (dict | list[dict] | None): Initialisation that replaces PyTorch's default one. Default: None.

    Raises:
        TypeError, ValueError: If ``in_channels`` or ``ratio`` is no positive int.

    Example:
        >>> from mmccd.models import CoordAttention
        >>> sum(p.numel() for p in CoordAttention(256).parameters())  # 3 * 256 * 8 + 3 * 8 + 2 * 256
        6680
    """

    _abbr_ = 'coord_attention'

    def __init__(
        self,
        in_channels: int,
        ratio: int = 32,
        identity_init: bool = False,
        norm_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_int('in_channels', in_channels)
        check_int('ratio', ratio)
        hidden = max(MIN_HIDDEN, in_channels // ratio)
        self.in_channels = in_channels
        self.identity_init = identity_init
        self.conv1 = nn.Conv2d(in_channels, hidden, 1)
        # Called bn1 whichever norm it is: its name in checkpoints.
        self.bn1 = build_norm_layer(fit_norm_cfg(norm_cfg, hidden), hidden)[1]
        self.act = nn.Hardswish()
        self.conv_h = nn.Conv2d(hidden, in_channels, 1)
        self.conv_w = nn.Conv2d(hidden, in_channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.reset_inner_layers()
        if self.identity_init:
            set_to_zero(self.conv_h, self.conv_w)

    def gate(self, x: Tensor) -> Tensor:
        """Gate of the shape of ``x``."""
        self.check_channels(x)
        with without_autocast(x):
            dtype = statistics_dtype(x)
            strips = torch.cat((x.mean(3, dtype=dtype), x.mean(2, dtype=dtype)), 2)  # (N, C, H + W)
            hidden = self.act(self.bn1(self.conv1(strips.unsqueeze(3).to(self.conv1.weight.dtype))))
            rows, columns = hidden.split((x.shape[2], x.shape[3]), 2)
            of_rows = torch.sigmoid(self.conv_h(rows))  # (N, C, H, 1)
            of_columns = torch.sigmoid(self.conv_w(columns)).transpose(2, 3)  # (N, C, 1, W)
            if self.identity_init:
                of_rows, of_columns = of_rows * 2, of_columns * 2
            return (of_rows * of_columns).to(x.dtype)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return dict(spatial=self.gate(x))

    def forward(self, x: Tensor) -> Tensor:
        """Gate features of shape (N, in_channels, H, W)."""
        return x * self.gate(x)
