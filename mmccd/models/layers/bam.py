"""BAM: Bottleneck Attention Module (BMVC 2018, arXiv:1807.06514), as an mmcv plugin layer.

F' = F + F * M(F) with M(F) = sigmoid(Mc(F) + Ms(F)). Mc, one number a channel, is global average pooling and two fully
connected layers; Ms, one number a position, is a 1x1 convolution to in_channels / 16 channels, two 3x3 convolutions
with dilation 4, and a 1x1 convolution to one. As in the authors' code, BatchNorm and ReLU follow every layer but each
branch's last; the paper's equations have one BatchNorm, at the end of each branch, and name no ReLU. Both give
ResNet-50 the 25.92 M parameters of the paper.

The paper puts it between the stages of a ResNet, behind the last block of the first three, where this layer goes by
``mmccd.attach(model, 'mmccd.BAM', where=['layer1', 'layer2', 'layer3'])``. As the ``attention`` of a backbone it is at
the end of every block's residual branch, like the others here.

Added: ``norm_cfg`` of the network, ``identity_init``, and the gate computed in float32 under autocast.
"""

from __future__ import annotations

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from mmccd.registry import MODELS

from .base import AttentionLayer, GlobalAvgPool, check_int, check_ratio, fit_norm_cfg, set_to_zero, without_autocast


def _norm(norm_cfg: dict | None, channels: int) -> nn.Module:
    return build_norm_layer(fit_norm_cfg(norm_cfg, channels), channels)[1]


class ChannelBranch(nn.Module):
    """(N, C, H, W) to (N, C, 1, 1)."""

    def __init__(self, in_channels: int, hidden: int, norm_cfg: dict | None) -> None:
        super().__init__()
        self.pool = GlobalAvgPool()
        self.fc1 = nn.Conv2d(in_channels, hidden, 1)
        # Called bn whichever norm it is: its name in checkpoints.
        self.bn = _norm(norm_cfg, hidden)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.relu(self.bn(self.fc1(self.pool(x).to(self.fc1.weight.dtype)))))


class SpatialBranch(nn.Module):
    """(N, C, H, W) to (N, 1, H, W)."""

    def __init__(self, in_channels: int, hidden: int, dilation: int, norm_cfg: dict | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, hidden, 1), _norm(norm_cfg, hidden)
        self.conv2, self.bn2 = (
            nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation),
            _norm(norm_cfg, hidden),
        )
        self.conv3, self.bn3 = (
            nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation),
            _norm(norm_cfg, hidden),
        )
        self.relu = nn.ReLU(inplace=True)
        self.conv4 = nn.Conv2d(hidden, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x.to(self.conv1.weight.dtype))))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.relu(self.bn3(self.conv3(x)))
        return self.conv4(x)


@MODELS.register_module()
class BAM(AttentionLayer):
    """Add features gated by the sum of a channel branch and a spatial branch.

    Args:
        in_channels (int): Channels of the input.
        ratio (int): Reduction of both branches' hidden layers, in_channels // ratio channels. Default: 16.
        dilation (int): Dilation of the spatial branch's 3x3 convolutions. Default: 4.
        identity_init (bool): Initialise as the identity: both branches are zero at first, and the output is divided by
            its factor then, 3/2. Part of the model, so test with the same setting. Default: False.
        norm_cfg (dict | None): Norms of the hidden layers. Default: None (BatchNorm).
        init_cfg (dict | list[dict] | None): Initialisation that replaces PyTorch's default one. Default: None.

    Raises:
        TypeError, ValueError: If an argument is no positive int, or no channel is left.

    Example:
        >>> from mmccd.models import BAM
        >>> sum(p.numel() for p in BAM(256).parameters())  # 3 C h + 18 h^2 + 13 h + C + 1 with h = C / 16 = 16
        17361
    """

    _abbr_ = 'bam'

    def __init__(
        self,
        in_channels: int,
        ratio: int = 16,
        dilation: int = 4,
        identity_init: bool = False,
        norm_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_ratio(ratio, in_channels)
        check_int('dilation', dilation)
        hidden = in_channels // ratio
        self.in_channels = in_channels
        self.identity_init = identity_init
        self.channel_branch = ChannelBranch(in_channels, hidden, norm_cfg)
        self.spatial_branch = SpatialBranch(in_channels, hidden, dilation, norm_cfg)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.reset_inner_layers()
        if self.identity_init:
            set_to_zero(self.channel_branch.fc2, self.spatial_branch.conv4)

    def gate(self, x: Tensor) -> Tensor:
        """1 + M(x), of the shape of ``x``."""
        self.check_channels(x)
        with without_autocast(x):
            gate = 1 + torch.sigmoid(self.channel_branch(x) + self.spatial_branch(x))
            return (gate / 1.5 if self.identity_init else gate).to(x.dtype)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return dict(spatial=self.gate(x))

    def forward(self, x: Tensor) -> Tensor:
        """Gate features of shape (N, in_channels, H, W)."""
        return x * self.gate(x)
