"""LSK: Large Selective Kernel (LSKNet, ICCV 2023, arXiv:2303.09030), as an mmcv plugin layer.

Two depth-wise convolutions in sequence, 5x5 and 7x7 with dilation 3, see 5 and 23 pixels. Each result is reduced to
half of the channels by a 1x1 convolution. From the mean and the maximum over the channels of both, a 7x7 convolution
and a sigmoid make one map for each, by which every position selects its kernel; the weighted sum of both, through a 1x1
convolution, is what the features are multiplied by. All convolutions have a bias, and names of layers are those of the
authors' code.

The factor is not bounded: there is no sigmoid at its end, so that the output grows as the square of the input. Added:
``identity_init``, and the factor computed in float32 under autocast; the output of half-precision features is infinite
only where it is too large to be written down.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmccd.registry import MODELS

from .base import AttentionLayer, check_int, without_autocast


@MODELS.register_module()
class LSK(AttentionLayer):
    """Factor of every element from two large neighbourhoods, between which every position selects.

    Args:
        in_channels (int): Channels of the input, 2 or more.
        identity_init (bool): Initialise as the identity: the last convolution has the weight 0 and the bias 1 at first.
            The model is the same with and without. Default: False.
        init_cfg (dict | list[dict] | None): Initialisation that replaces PyTorch's default one. Default: None.

    Raises:
        TypeError, ValueError: If ``in_channels`` is no int of at least 2.

    Example:
        >>> from mmccd.models import LSK
        >>> sum(p.numel() for p in LSK(256).parameters())  # 1.5 C^2 + 78 C + 198
        118470
    """

    _abbr_ = 'lsk'
    gate_labels = dict(spatial='factor')

    def __init__(
        self, in_channels: int, identity_init: bool = False, init_cfg: dict | list[dict] | None = None
    ) -> None:
        super().__init__(init_cfg)
        check_int('in_channels', in_channels, minimum=2)
        half = in_channels // 2
        self.in_channels = in_channels
        self.identity_init = identity_init
        self.conv0 = nn.Conv2d(in_channels, in_channels, 5, padding=2, groups=in_channels)
        self.conv_spatial = nn.Conv2d(in_channels, in_channels, 7, padding=9, dilation=3, groups=in_channels)
        self.conv1 = nn.Conv2d(in_channels, half, 1)
        self.conv2 = nn.Conv2d(in_channels, half, 1)
        self.conv_squeeze = nn.Conv2d(2, 2, 7, padding=3)
        self.conv = nn.Conv2d(half, in_channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.reset_inner_layers()
        if self.identity_init:
            assert self.conv.bias is not None
            nn.init.zeros_(self.conv.weight)
            nn.init.ones_(self.conv.bias)

    def gate(self, x: Tensor) -> Tensor:
        """Factor of the shape of ``x``, in the dtype of the weights."""
        self.check_channels(x)
        with without_autocast(x):
            near = self.conv0(x.to(self.conv0.weight.dtype))
            far = self.conv2(self.conv_spatial(near))  # (N, C / 2, H, W)
            near = self.conv1(near)
            both = torch.cat((near, far), 1)
            pooled = torch.cat((both.mean(1, keepdim=True), both.amax(1, keepdim=True)), 1)  # (N, 2, H, W)
            selected = torch.sigmoid(self.conv_squeeze(pooled))
            return self.conv(near * selected[:, :1] + far * selected[:, 1:])

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return dict(spatial=self.gate(x))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply features of shape (N, in_channels, H, W)."""
        return (x * self.gate(x)).to(x.dtype)  # in half precision, the factor alone may be too large
