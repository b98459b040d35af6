"""NAM: Normalization-based Attention Module (NeurIPS 2021 workshop ImageNet PPF, arXiv:2111.12419), as an mmcv plugin
layer.

The channel attention: features go through a BatchNorm, whose scaling factors say how important a channel is. Each
channel is weighted by its factor's share in all, |w_c| / sum |w|, and the sigmoid of that is the gate.

Deviations: shares are of absolute values, as in the authors' code, so that they stay shares; gradients flow through
them, where the authors' code stops them. The paper's spatial attention, which has a scaling factor for each pixel, is
not here, as it is not in the authors' code: it would need maps of one size. Nor is its penalty on the factors, which is
part of the loss. Added: ``norm_cfg`` of the network, and the gate computed in float32 under autocast. There is no
``identity_init``: for a gate without the features all factors would have to be 0, where shares are not defined.
"""

from __future__ import annotations

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor

from mmccd.registry import MODELS

from .base import AttentionLayer, check_int, fit_norm_cfg, without_autocast


@MODELS.register_module()
class NAM(AttentionLayer):
    """Gate of every element from the normalised features, weighted by the norm's own scaling factors.

    Args:
        in_channels (int): Channels of the input.
        norm_cfg (dict | None): The norm, one with a weight for each channel. Default: None (BatchNorm).
        init_cfg (dict | list[dict] | None): Initialisation that replaces PyTorch's default one. Default: None.

    Raises:
        TypeError, ValueError: If ``in_channels`` is no positive int, or the norm has no weight.

    Example:
        >>> from mmccd.models import NAM
        >>> sum(p.numel() for p in NAM(256).parameters())  # the norm's weight and bias
        512
    """

    _abbr_ = 'nam'

    def __init__(
        self, in_channels: int, norm_cfg: dict | None = None, init_cfg: dict | list[dict] | None = None
    ) -> None:
        super().__init__(init_cfg)
        check_int('in_channels', in_channels)
        # Called bn whichever norm it is: its name in checkpoints.
        self.in_channels = in_channels
        self.bn = build_norm_layer(fit_norm_cfg(norm_cfg, in_channels), in_channels)[1]
        if getattr(self.bn, 'weight', None) is None:
            raise ValueError(f'norm_cfg must be a norm with a weight, got {norm_cfg}')
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.reset_inner_layers()

    def gate(self, x: Tensor) -> Tensor:
        """Gate of the shape of ``x``."""
        self.check_channels(x)
        with without_autocast(x):
            factors = self.bn.weight.abs()
            shares = factors / factors.sum().clamp_min(torch.finfo(factors.dtype).tiny)
            return torch.sigmoid(self.bn(x.to(factors.dtype)) * shares[:, None, None]).to(x.dtype)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return dict(spatial=self.gate(x))

    def forward(self, x: Tensor) -> Tensor:
        """Gate features of shape (N, in_channels, H, W)."""
        return x * self.gate(x)
