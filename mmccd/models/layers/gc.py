"""GC: Global Context block (GCNet, ICCVW 2019, arXiv:1904.11492), as an mmcv plugin layer.

The layer is mmcv's ``ContextBlock`` with attention pooling and channel addition, so the keys are its keys. Different
here: ``ratio`` is the reduction (16), as in the other layers; it takes channels_last and any other strided input; the
context is computed in float32 under autocast; and its initial state, identity, survives a backbone's ``init_cfg``.
"""

from __future__ import annotations

import copy

from mmcv.cnn.bricks import ContextBlock
from torch import Tensor

from mmccd.registry import MODELS

from .base import AttentionLayer, check_ratio, without_autocast


@MODELS.register_module()
class GC(ContextBlock, AttentionLayer):
    """Add a transformed global context, pooled by a learned attention, to every position.

    Args:
        in_channels (int): Channels of the input.
        ratio (int): Reduction of the hidden layer, in_channels // ratio channels. Default: 16.
        init_cfg (dict | list[dict] | None): Initialisation that replaces mmcv's (the last convolution at zero, so
            that the layer is the identity at first). Default: None.

    Raises:
        TypeError, ValueError: If ``in_channels`` or ``ratio`` is no positive int, or no channel is left.

    Example:
        >>> import torch
        >>> from mmccd.models import GC
        >>> layer, x = GC(64), torch.rand(2, 64, 7, 7)
        >>> torch.equal(layer(x), x)
        True
    """

    _abbr_ = 'context_block'
    gate_labels = dict(spatial='weight in the context, mean 1', channel='added to the channel')

    def __init__(self, in_channels: int, ratio: int = 16, init_cfg: dict | list[dict] | None = None) -> None:
        check_ratio(ratio, in_channels)
        # ContextBlock truncates in_channels * ratio: aim at the middle, where rounding cannot lose a channel.
        super().__init__(in_channels, ratio=(in_channels // ratio + 0.5) / in_channels)
        self.ratio = ratio
        self.init_cfg = copy.deepcopy(init_cfg)

    def reset_parameters(self) -> None:
        for layer in (self.conv_mask, self.channel_add_conv[0], self.channel_add_conv[1]):
            layer.reset_parameters()
        super().reset_parameters()

    def spatial_pool(self, x: Tensor) -> Tensor:
        """Context of shape (N, C, 1, 1): positions weighted by a softmax over space."""
        context = x.flatten(2) @ self._weight(x).transpose(1, 2)  # (N, C, 1)
        return context.unsqueeze(-1)

    def _weight(self, x: Tensor) -> Tensor:
        return self.softmax(self.conv_mask(x).flatten(2))  # (N, 1, H * W)

    def _term(self, x: Tensor) -> Tensor:
        self.check_channels(x)
        with without_autocast(x):
            return self.channel_add_conv(self.spatial_pool(x.to(self.conv_mask.weight.dtype)))  # (N, C, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Add the context to features of shape (N, in_channels, H, W)."""
        return x + self._term(x).to(x.dtype)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """Weights of the pooling, times H * W so that their mean is 1 at any size; what is added to each channel."""
        self.check_channels(x)
        with without_autocast(x):
            weight = self._weight(x.to(self.conv_mask.weight.dtype))
        positions = x.shape[-2:]
        return dict(spatial=weight.unflatten(2, positions) * positions.numel(), channel=self._term(x).flatten(1))
