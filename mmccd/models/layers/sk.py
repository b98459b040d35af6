"""SK: Selective Kernel (CVPR 2019, arXiv:1903.06586), in place of a residual block's 3x3 convolution.

Written from the paper and from the parameter counts of the model it is compared with. That model selects between the
block's dense 3x3 convolution and a 3x3 convolution with 32 groups (the paper: grouped ones of 3x3 and dilated 3x3).
Added: weights of the branches computed in float32 under autocast.
"""

from __future__ import annotations

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from mmccd.registry import MODELS

from .base import AttentionLayer, check_int, check_ratio, fit_norm_cfg, statistics_dtype, without_autocast


@MODELS.register_module()
class SK(AttentionLayer):
    """Two 3x3 convolutions, mixed channel by channel with weights from their pooled sum.

    Norm and ReLU of the convolution it replaces are inside, one of each a branch.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int | None): Channels of the output. Default: None, as many as the input has.
        stride (int): Stride of both convolutions. Default: 1.
        dilation (int): Dilation, and padding, of both convolutions. Default: 1.
        groups (int): Groups of the second convolution; divides both channel numbers. Default: 32.
        ratio (int): Reduction of the attention's hidden layer. Default: 16.
        conv_cfg (dict | None): Convolution of the branches. Default: None (Conv2d).
        norm_cfg (dict | None): Norm of the branches and of the hidden layer. Default: None (BatchNorm). GroupNorm in
            the hidden layer has one group where its own number would leave one channel each.
        init_cfg (dict | list[dict] | None): Initialisation of everything in the layer. Default: None, what the
            backbone gives to its convolutions and norms.

    Raises:
        TypeError, ValueError: If an argument breaks a rule above.

    Example:
        >>> import torch
        >>> from mmccd.models import SK
        >>> SK(64, 128, stride=2)(torch.rand(2, 64, 14, 14)).shape
        torch.Size([2, 128, 7, 7])
    """

    replaces_conv = True
    gate_labels = dict(channel='weight of the dense convolution')

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 32,
        ratio: int = 16,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        out_channels = in_channels if out_channels is None else out_channels
        check_int('in_channels', in_channels)
        check_ratio(ratio, out_channels, 'out_channels')
        for name, value in (('stride', stride), ('dilation', dilation), ('groups', groups)):
            check_int(name, value)
        for name, value in (('in_channels', in_channels), ('out_channels', out_channels)):
            if value % groups:
                raise ValueError(f'groups must divide {name}={value}, got groups={groups}')
        norm_cfg = dict(type='BN') if norm_cfg is None else norm_cfg
        self.in_channels = in_channels
        options = dict(stride=stride, padding=dilation, dilation=dilation, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        self.branches = nn.ModuleList(
            [
                ConvModule(in_channels, out_channels, 3, groups=1, **options),
                ConvModule(in_channels, out_channels, 3, groups=groups, **options),
            ]
        )
        hidden = out_channels // ratio
        self.fc1 = ConvModule(out_channels, hidden, 1, norm_cfg=fit_norm_cfg(norm_cfg, hidden))
        self.fc2 = nn.Conv2d(hidden, 2 * out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        first, second, weight = self._select(x)
        return first * weight[:, 0] + second * weight[:, 1]

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """Weight of the dense convolution, one for each output channel; the other one has the rest to 1."""
        return dict(channel=self._select(x)[2][:, 0].flatten(1))

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both branches, (N, C, h, w), and their weights, (N, 2, C, 1, 1)."""
        self.check_channels(x)
        first, second = (branch(x) for branch in self.branches)
        with without_autocast(x):
            dtype = statistics_dtype(first)
            context = sum(b.mean((2, 3), keepdim=True, dtype=dtype) for b in (first, second))  # (N, C, 1, 1)
            logit = self.fc2(self.fc1(context.to(self.fc2.weight.dtype))).unflatten(1, (2, -1))  # (N, 2, C, 1, 1)
            return first, second, torch.softmax(logit, 1).to(first.dtype)
