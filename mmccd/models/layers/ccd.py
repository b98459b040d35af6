"""CCD: Cascaded Context Dependency (ICIP 2020), as an mmcv plugin layer.

The definition, and where it departs from the original implementation, is in :mod:`mmccd.ops.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.fx
from torch import Tensor, nn

from mmccd.ops import ccd_gate
from mmccd.ops.backends import RunningNorm, fuses_affine
from mmccd.ops.functional import ccd_with_options
from mmccd.ops.options import make_options
from mmccd.registry import MODELS

from .base import AttentionLayer, check_int

torch.fx.wrap('ccd_with_options')  # one node of a graph that torch.fx traces, its checks not looked into


@MODELS.register_module()
class CCD(AttentionLayer):
    """Spatial gate by the dependency of every position on its pooled context.

    Two parameters a group: ``scale`` (initialised to 0) and ``bias`` (to 1), both of shape (groups,), so that the
    initial gate is sigmoid(1) = 0.731 everywhere. Statistics are taken in float32 for half-precision input.

    Args:
        in_channels (int): Channels of the input.
        groups (int): Groups of neighbouring channels that share a gate; divides ``in_channels``. Default: 64.
        scales (Sequence[int]): Grid sizes of the context poolings. Default: (1, 2, 4). (1,) gives SGE.
        similarity (str): ``'dot'`` or ``'cosine'``. Default: ``'dot'``.
        normalize (str | None): Normalisation over space, ``'zscore'``, ``'minmax'`` or None. Default: ``'zscore'``.
        eps (float): Added to the deviation. Default: 1e-7.
        identity_init (bool): Divide the gate by its initial value, so that the layer is the identity at first: for
            training from weights of a network without it. Part of the model, so test with the same setting.
            Default: False.
        init_cfg (dict | list[dict] | None): Initialisation that replaces the one above. Default: None.

    Raises:
        TypeError, ValueError: If an argument breaks a rule above.

    Example:
        >>> import torch
        >>> from mmccd.models import CCD
        >>> CCD(256)(torch.rand(2, 256, 7, 7)).shape
        torch.Size([2, 256, 7, 7])
    """

    _abbr_ = 'ccd'
    takes_residual = True

    def __init__(
        self,
        in_channels: int,
        groups: int = 64,
        scales: Sequence[int] = (1, 2, 4),
        similarity: str = 'dot',
        normalize: str | None = 'zscore',
        eps: float = 1e-7,
        identity_init: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_int('in_channels', in_channels)
        gain = 1 + math.exp(-1) if identity_init else 1.0  # 1 / sigmoid(1)
        self.options = make_options(groups, scales, similarity, normalize, eps, gain)
        self.options.check_channels(in_channels)
        self.in_channels = in_channels
        self.identity_init = identity_init
        self.scale = nn.Parameter(torch.empty(groups))
        self.bias = nn.Parameter(torch.empty(groups))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.scale)
        nn.init.ones_(self.bias)

    def takes_affine(self, x: Tensor) -> bool:
        return fuses_affine(x, self.options)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        weight: Tensor | None = None,
        shift: Tensor | None = None,
        overwrite: bool = False,
        norm: RunningNorm | None = None,
    ) -> Tensor:
        """Gate features of shape (N, in_channels, H, W); same shape and dtype out.

        With a ``residual`` of the same shape: relu(gated features + residual), the end of a residual block at once.
        With ``weight`` and ``shift``, (in_channels,), x * weight + shift is gated; with ``overwrite``, nobody else has
        ``x``, and where no gradient is wanted the result may lie in its memory. ``norm`` stands for these two there.
        """
        self.check_channels(x)
        return ccd_with_options(
            x,
            residual,
            self.scale,
            self.bias,
            self.options,
            weight=weight,
            shift=shift,
            overwrite=overwrite,
            norm=norm,
        )

    def gate(self, x: Tensor) -> Tensor:
        """Gate of shape (N, groups, H, W), by the textbook composition."""
        self.check_channels(x)
        return ccd_gate(x, self.scale, self.bias, *self.options)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return dict(spatial=self.gate(x))

    # What configs set, to be read: the options were checked together.
    @property
    def groups(self) -> int:
        return self.options.groups

    @property
    def scales(self) -> tuple[int, ...]:
        return self.options.scales

    @property
    def similarity(self) -> str:
        return self.options.similarity

    @property
    def normalize(self) -> str | None:
        return self.options.normalize

    @property
    def eps(self) -> float:
        return self.options.eps

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, groups={self.groups}, scales={self.scales}, similarity={self.similarity!r}, '
            f'normalize={self.normalize!r}, identity_init={self.identity_init}'
        )
