"""GE: Gather-Excite (NeurIPS 2018, arXiv:1810.12348), as an mmcv plugin layer.

Written from the paper. Names of the variants there: GE-theta-minus gathers by average pooling and has no parameters
(the default here, with global extent: pool, sigmoid, multiply); GE-theta gathers by depthwise convolutions
(``extra_params=True``); GE-theta-plus adds two 1x1 convolutions to that (``mlp=True`` as well). Added: ``norm_cfg``
and ``conv_cfg`` of the network, and a gate computed in float32 under autocast.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from mmcv.cnn import build_conv_layer, build_norm_layer
from torch import Tensor, nn

from mmccd.registry import MODELS

from .base import AttentionLayer, check_int, check_ratio, fit_norm_cfg, statistics_dtype, without_autocast

EXTENTS = (0, 2, 4, 8)


def _height_and_width(feat_size: int | tuple[int, int]) -> tuple[int, int]:
    sizes = tuple(feat_size) if isinstance(feat_size, (list, tuple)) else (feat_size, feat_size)
    if len(sizes) != 2:
        raise ValueError(f'feat_size must be one int or two, got {feat_size}')
    for size in sizes:
        check_int('feat_size', size)
    return sizes


@MODELS.register_module()
class GE(AttentionLayer):
    """Gate from features gathered over a neighbourhood of every position.

    Args:
        in_channels (int): Channels of the input.
        extent (int): The map is gathered to 1/extent of its size: 2, 4 or 8; 0 gathers the whole map into one
            position. Default: 0.
        extra_params (bool): Gather by learned depthwise convolutions with norms (stride-2 3x3 ones, one for each factor
            of two; one over the whole map if ``extent=0``) instead of average pooling. Default: False.
        feat_size (int | tuple[int, int] | None): Height and width of the input, which ``extent=0`` with
            ``extra_params=True`` needs for its kernel. Default: None.
        mlp (bool): Excite through two 1x1 convolutions with bias, ReLU between. Default: False.
        ratio (int): Reduction between these two. Default: 16.
        conv_cfg (dict | None): The learned gather's convolutions. Default: None (Conv2d).
        norm_cfg (dict | None): The learned gather's norms. Default: None (BatchNorm).
        init_cfg (dict | list[dict] | None): Initialisation that replaces PyTorch's default one. Default: None.

    Raises:
        TypeError, ValueError: If an argument breaks a rule above, or the input has another size than ``feat_size``.

    Example:
        >>> import torch
        >>> from mmccd.models import GE
        >>> sum(p.numel() for p in GE(64).parameters())
        0
        >>> GE(64, extent=4, extra_params=True)(torch.rand(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])
    """

    _abbr_ = 'ge'

    def __init__(
        self,
        in_channels: int,
        extent: int = 0,
        extra_params: bool = False,
        feat_size: int | tuple[int, int] | None = None,
        mlp: bool = False,
        ratio: int = 16,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_int('in_channels', in_channels)
        if mlp:
            check_ratio(ratio, in_channels)
        check_int('extent', extent, minimum=0)
        if extent not in EXTENTS:
            raise ValueError(f'extent must be one of {EXTENTS} (0: the whole map), got {extent!r}')
        if (feat_size is not None) != (extra_params and extent == 0):
            raise ValueError(
                'feat_size must be given for extent=0 with extra_params=True, and for nothing else; got '
                f'extent={extent}, extra_params={extra_params}, feat_size={feat_size}'
            )
        self.in_channels = in_channels
        self.extent = extent
        self.extra_params = extra_params
        self.feat_size = None if feat_size is None else _height_and_width(feat_size)
        self.gather = self._make_gather(in_channels, conv_cfg, norm_cfg) if extra_params else None
        self.mlp = None
        if mlp:
            hidden = in_channels // ratio
            self.mlp = nn.Sequential(
                nn.Conv2d(in_channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, in_channels, 1)
            )

    def _make_gather(self, channels: int, conv_cfg: dict | None, norm_cfg: dict | None) -> nn.Sequential:
        kernel = dict(kernel_size=3, stride=2, padding=1) if self.extent else dict(kernel_size=self.feat_size)
        count = max(self.extent.bit_length() - 1, 1)  # a factor of two each; one over the whole map
        layers = OrderedDict()
        for i in range(1, count + 1):
            layers[f'conv{i}'] = build_conv_layer(conv_cfg, channels, channels, groups=channels, bias=False, **kernel)
            # Called bn whichever norm it is: its name in checkpoints.
            layers[f'bn{i}'] = build_norm_layer(fit_norm_cfg(norm_cfg, channels), channels)[1]
            if i < count:
                layers[f'relu{i}'] = nn.ReLU(inplace=True)
        return nn.Sequential(layers)

    def reset_parameters(self) -> None:
        self.reset_inner_layers()

    def gate(self, x: Tensor) -> Tensor:
        """Gate of shape (N, C, 1, 1) for a global extent, else (N, C, H, W)."""
        self.check_channels(x)
        dtype = statistics_dtype(x)
        with without_autocast(x):
            if self.gather is not None:
                if self.feat_size is not None and tuple(x.shape[-2:]) != self.feat_size:
                    raise ValueError(f'input must have the size feat_size={self.feat_size}, got {tuple(x.shape[-2:])}')
                context = self.gather(x.to(next(self.gather.parameters()).dtype))
            elif self.extent == 0:
                context = x.mean((2, 3), keepdim=True, dtype=dtype)
            else:
                # Windows of 2 * extent - 1 around every extent-th position, the border's cut off at the border.
                context = F.avg_pool2d(
                    x.to(dtype), 2 * self.extent - 1, self.extent, padding=self.extent - 1, count_include_pad=False
                )
            if self.mlp is not None:
                context = self.mlp(context.to(self.mlp[0].weight.dtype))
            if self.extent:
                context = F.interpolate(context, size=x.shape[-2:])  # nearest
            return torch.sigmoid(context).to(x.dtype)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        gate = self.gate(x)
        return dict(spatial=gate) if self.extent else dict(channel=gate.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """Gate features of shape (N, in_channels, H, W)."""
        return x * self.gate(x)
