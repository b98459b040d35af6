"""SE: Squeeze-and-Excitation (CVPR 2018, arXiv:1709.01507), as an mmcv plugin layer.

The layer is mmdet's ``SELayer``: two fully connected layers with bias, as 1x1 convolutions, so that MMPretrain's
SE-ResNet checkpoints have the same keys. Added here: the ratio in the plugin contract, ``identity_init``, and a gate
computed in float32 under autocast.
"""

from __future__ import annotations

from mmdet.models.layers import SELayer
from torch import Tensor, nn

from mmccd.registry import MODELS

from .base import AttentionLayer, GlobalAvgPool, check_ratio, without_autocast


@MODELS.register_module()
class SE(AttentionLayer, SELayer):
    """Channel gate from global average pooling.

    Args:
        in_channels (int): Channels of the input.
        ratio (int): Reduction of the hidden layer, in_channels // ratio channels. Default: 16.
        identity_init (bool): Initialise as the identity: the second layer is zero at first, and the gate is divided by
            its initial value, 1/2. Part of the model, so test with the same setting. Default: False.
        init_cfg (dict | list[dict] | None): Initialisation that replaces PyTorch's default one. Default: None.

    Raises:
        TypeError, ValueError: If ``in_channels`` or ``ratio`` is no positive int, or no channel is left.

    Example:
        >>> from mmccd.models import SE
        >>> sum(p.numel() for p in SE(64).parameters())  # 64 * 4 and 4 * 64 weights, 4 and 64 biases
        580
    """

    _abbr_ = 'se_layer'

    def __init__(
        self, in_channels: int, ratio: int = 16, identity_init: bool = False, init_cfg: dict | list[dict] | None = None
    ) -> None:
        check_ratio(ratio, in_channels)
        SELayer.__init__(self, in_channels, ratio=ratio, init_cfg=init_cfg)
        self.global_avgpool = GlobalAvgPool()
        self.in_channels = in_channels
        self.identity_init = identity_init
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.reset_inner_layers()
        if self.identity_init:
            nn.init.zeros_(self.conv2.conv.weight)
            nn.init.zeros_(self.conv2.conv.bias)

    def gate(self, x: Tensor) -> Tensor:
        """Gate of shape (N, C, 1, 1)."""
        self.check_channels(x)
        with without_autocast(x):
            context = self.global_avgpool(x).to(self.conv1.conv.weight.dtype)
            gate = self.conv2(self.conv1(context)).to(x.dtype)
        return gate * 2 if self.identity_init else gate

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return dict(channel=self.gate(x).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """Gate features of shape (N, in_channels, H, W)."""
        return x * self.gate(x)
