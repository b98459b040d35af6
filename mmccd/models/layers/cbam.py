"""CBAM: Convolutional Block Attention Module (ECCV 2018, arXiv:1807.06521), as an mmcv plugin layer.

Written from the paper and from the parameter counts of the models it is compared with: a shared two-layer perceptron
with bias over average and max pooling, then a 7x7 convolution without bias and a BatchNorm (momentum 0.01) over the
two channel poolings (maximum first). Added: ``norm_cfg`` and ``conv_cfg`` of the network, ``identity_init``, and gates
computed in float32 under autocast.
"""

from __future__ import annotations

import torch
from mmcv.cnn import build_conv_layer, build_norm_layer
from torch import Tensor, nn

from mmccd.registry import MODELS

from .base import (
    AttentionLayer,
    check_can_vanish,
    check_odd,
    check_ratio,
    fit_norm_cfg,
    statistics_dtype,
    without_autocast,
)


class ChannelGate(nn.Module):
    """Gate of shape (N, C, 1, 1) from the average and the maximum over space."""

    def __init__(self, in_channels: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels, in_channels // ratio)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(in_channels // ratio, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            mean = x.mean((2, 3), dtype=statistics_dtype(x))
            pooled = torch.stack((mean, x.amax((2, 3)).to(mean.dtype)))  # (2, N, C)
            logit = self.fc2(self.relu(self.fc1(pooled.to(self.fc1.weight.dtype)))).sum(0)
            return torch.sigmoid(logit)[:, :, None, None].to(x.dtype)


class SpatialGate(nn.Module):
    """Gate of shape (N, 1, H, W) from the maximum and the average over channels.

    With ``identity_init``, the norm's weight can be set to 0, or ValueError is raised.
    """

    def __init__(
        self, kernel_size: int, conv_cfg: dict | None, norm_cfg: dict | None, identity_init: bool = False
    ) -> None:
        super().__init__()
        self.conv = build_conv_layer(conv_cfg, 2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        # Called bn whichever norm it is: its name in checkpoints.
        self.bn = build_norm_layer(fit_norm_cfg(norm_cfg, 1, momentum=0.01), 1)[1]
        if identity_init:
            check_can_vanish(self.bn, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            mean = x.mean(1, keepdim=True, dtype=statistics_dtype(x))
            pooled = torch.cat((x.amax(1, keepdim=True).to(mean.dtype), mean), 1)  # (N, 2, H, W)
            return torch.sigmoid(self.bn(self.conv(pooled.to(self.conv.weight.dtype)))).to(x.dtype)


@MODELS.register_module()
class CBAM(AttentionLayer):
    """Channel gate, then spatial gate.

    Args:
        in_channels (int): Channels of the input.
        ratio (int): Reduction of the perceptron's hidden layer, in_channels // ratio. Default: 16.
        kernel_size (int): Kernel of the spatial gate's convolution, odd. Default: 7.
        identity_init (bool): Initialise as the identity: both gates are 1/2 everywhere and are divided by it. Part of
            the model, so test with the same setting. Default: False.
        conv_cfg (dict | None): The spatial gate's convolution. Default: None (Conv2d).
        norm_cfg (dict | None): The spatial gate's norm, over its one channel. Default: None (BatchNorm). A BatchNorm
            has momentum 0.01 unless ``norm_cfg`` names one; GroupNorm has one group.
        init_cfg (dict | list[dict] | None): Initialisation that replaces PyTorch's default one. Default: None.

    Raises:
        TypeError, ValueError: If an argument breaks a rule above, or a norm without weights shall be the identity.

    Example:
        >>> import torch
        >>> from mmccd.models import CBAM
        >>> {name: tuple(gate.shape) for name, gate in CBAM(64).gates(torch.rand(2, 64, 7, 7)).items()}
        {'spatial': (2, 1, 7, 7), 'channel': (2, 64)}
    """

    _abbr_ = 'cbam'

    def __init__(
        self,
        in_channels: int,
        ratio: int = 16,
        kernel_size: int = 7,
        identity_init: bool = False,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_ratio(ratio, in_channels)
        check_odd('kernel_size', kernel_size)
        self.in_channels = in_channels
        self.gain = 2 if identity_init else 1
        self.identity_init = identity_init
        self.channel_gate = ChannelGate(in_channels, ratio)
        self.spatial_gate = SpatialGate(kernel_size, conv_cfg, norm_cfg, identity_init)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.reset_inner_layers()
        if self.identity_init:
            nn.init.zeros_(self.channel_gate.fc2.weight)
            nn.init.zeros_(self.channel_gate.fc2.bias)
            nn.init.zeros_(self.spatial_gate.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Gate features of shape (N, in_channels, H, W)."""
        self.check_channels(x)
        x = x * (self.channel_gate(x) * self.gain)
        return x * (self.spatial_gate(x) * self.gain)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        self.check_channels(x)
        channel = self.channel_gate(x) * self.gain
        return dict(spatial=self.spatial_gate(x * channel) * self.gain, channel=channel.flatten(1))
