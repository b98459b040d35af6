"""ECA: Efficient Channel Attention (CVPR 2020, arXiv:1910.03151), as an mmcv plugin layer.

Written from the paper. Its kernel is the odd number nearest to (log2(C) + 1) / 2, the larger one of two: 3 from 8
channels on, 5 from 128 on, 7 from 2,048 on. Added: ``identity_init``, and a gate computed in float32 under autocast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmccd.registry import MODELS

from .base import AttentionLayer, GlobalAvgPool, check_int, check_odd, without_autocast


def adaptive_kernel_size(channels: int, gamma: float = 2, b: float = 1) -> int:
    """The paper's kernel for a number of channels."""
    return int((math.log2(channels) + b) / gamma) | 1  # an even number gives the odd one above it


@MODELS.register_module()
class ECA(AttentionLayer):
    """Channel gate from global average pooling and a convolution over neighbouring channels.

    Args:
        in_channels (int): Channels of the input.
        kernel_size (int | None): Neighbours that decide on a channel, odd. Default: None, from ``in_channels``.
        identity_init (bool): Initialise as the identity: the convolution is zero at first, and the gate is divided by
            its initial value, 1/2. Part of the model, so test with the same setting. Default: False.
        init_cfg (dict | list[dict] | None): Initialisation that replaces PyTorch's default one. Default: None.

    Raises:
        TypeError, ValueError: If ``in_channels`` or ``kernel_size`` is no positive int, or the latter is even.

    Example:
        >>> from mmccd.models import ECA
        >>> [ECA(channels).conv.kernel_size for channels in (64, 2048)]
        [(3,), (7,)]
    """

    _abbr_ = 'eca'

    def __init__(
        self,
        in_channels: int,
        kernel_size: int | None = None,
        identity_init: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_int('in_channels', in_channels)
        if kernel_size is None:
            kernel_size = adaptive_kernel_size(in_channels)
        check_odd('kernel_size', kernel_size)
        self.in_channels = in_channels
        self.identity_init = identity_init
        self.pool = GlobalAvgPool()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.reset_inner_layers()
        if self.identity_init:
            nn.init.zeros_(self.conv.weight)

    def gate(self, x: Tensor) -> Tensor:
        """Gate of shape (N, C, 1, 1)."""
        self.check_channels(x)
        with without_autocast(x):
            context = self.pool(x).to(self.conv.weight.dtype)  # (N, C, 1, 1)
            logit = self.conv(context.flatten(2).transpose(1, 2))  # (N, 1, C): the channels are the line
            gate = torch.sigmoid(logit).transpose(1, 2).unsqueeze(-1).to(x.dtype)
        return gate * 2 if self.identity_init else gate

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return dict(channel=self.gate(x).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """Gate features of shape (N, in_channels, H, W)."""
        return x * self.gate(x)
