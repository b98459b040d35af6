"""Triplet Attention (WACV 2021, "Rotate to Attend", arXiv:2010.03045), as an mmcv plugin layer.

Three gates, each over two of the dimensions channel, height and width: maximum and mean over the third (Z-pool), a 7x7
convolution without bias, BatchNorm (momentum 0.01, as in the authors' code) and a sigmoid. The features gated by each
are averaged. In two of them, channels are one of the axes of the convolution.

Added: ``norm_cfg`` and ``conv_cfg`` of the network, ``identity_init``, and gates computed in float32 under autocast.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmccd.registry import MODELS

from .base import AttentionLayer, check_int, check_odd
from .cbam import SpatialGate


@MODELS.register_module()
class TripletAttention(AttentionLayer):
    """Mean of three gates: over channel and width, over height and channel, over height and width.

    Args:
        in_channels (int): Channels of the input.
        kernel_size (int): Kernel of the gates' convolutions, odd. Default: 7.
        identity_init (bool): Initialise as the identity: the gates are 1/2 everywhere and are divided by it. Part of
            the model, so test with the same setting. Default: False.
        conv_cfg (dict | None): The gates' convolutions. Default: None (Conv2d).
        norm_cfg (dict | None): The gates' norms, of one channel each. Default: None (BatchNorm). A BatchNorm has
            momentum 0.01 unless ``norm_cfg`` names one; GroupNorm has one group.
        init_cfg (dict | list[dict] | None): Initialisation that replaces PyTorch's default one. Default: None.

    Raises:
        TypeError, ValueError: If an argument breaks a rule above, or a norm without weights shall be the identity.

    Example:
        >>> from mmccd.models import TripletAttention
        >>> sum(p.numel() for p in TripletAttention(256).parameters())  # 3 * (2 * 7 * 7 + 2), whatever the channels
        300
    """

    _abbr_ = 'triplet_attention'

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 7,
        identity_init: bool = False,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_int('in_channels', in_channels)
        check_odd('kernel_size', kernel_size)
        self.in_channels = in_channels
        self.identity_init = identity_init
        # By the two dimensions that a gate is over.
        self.cw = SpatialGate(kernel_size, conv_cfg, norm_cfg, identity_init)
        self.hc = SpatialGate(kernel_size, conv_cfg, norm_cfg, identity_init)
        self.hw = SpatialGate(kernel_size, conv_cfg, norm_cfg, identity_init)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.reset_inner_layers()
        if self.identity_init:
            for gate in (self.cw, self.hc, self.hw):
                nn.init.zeros_(gate.bn.weight)

    def gate(self, x: Tensor) -> Tensor:
        """Gate of the shape of ``x``."""
        self.check_channels(x)
        over_cw = self.cw(x.transpose(1, 2)).transpose(1, 2)  # (N, C, 1, W)
        over_hc = self.hc(x.transpose(1, 3)).transpose(1, 3)  # (N, C, H, 1)
        gate = (over_cw + over_hc + self.hw(x)) / 3
        return gate * 2 if self.identity_init else gate

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return dict(spatial=self.gate(x))

    def forward(self, x: Tensor) -> Tensor:
        """Gate features of shape (N, in_channels, H, W)."""
        return x * self.gate(x)
