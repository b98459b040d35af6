"""SimAM: a simple, parameter-free attention module (ICML 2021, https://proceedings.mlr.press/v139/yang21o.html), as an
mmcv plugin layer.

A neuron is the more important, the better one line separates it from the others of its channel. With the channel's mean
m and variance v over space, the inverse of its minimal energy is (x - m)^2 / (4 (v + lambda)) + 1/2, whose sigmoid is
the gate.

Deviations: the variance has N - 1 in it, as in the paper's listing; its equations have N. A map of one pixel, where the
listing gives NaN, has the variance 0 and a gate of sigmoid(1/2). The gate of half-precision features is computed in
float32, where their squares do not overflow. There is no ``identity_init``: without parameters, the gate depends on the
features from the first step on.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from mmccd.registry import MODELS

from .base import AttentionLayer, centred, check_int, statistics_dtype, without_autocast


@MODELS.register_module()
class SimAM(AttentionLayer):
    """Gate of every element, from its distance to the mean of its channel. No parameters.

    Args:
        in_channels (int): Channels of the input.
        e_lambda (float): Added to the variance, above 0: the smaller, the closer to 1 the gates of elements far from
            the mean in flat channels. Default: 1e-4.
        init_cfg (dict | list[dict] | None): Without effect, there is nothing to initialise. Default: None.

    Raises:
        TypeError, ValueError: If an argument breaks a rule above.

    Example:
        >>> import torch
        >>> from mmccd.models import SimAM
        >>> layer = SimAM(64)
        >>> sum(p.numel() for p in layer.parameters()), layer(torch.rand(2, 64, 7, 7)).shape
        (0, torch.Size([2, 64, 7, 7]))
    """

    _abbr_ = 'simam'
    e_lambda: float

    def __init__(self, in_channels: int, e_lambda: float = 1e-4, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        check_int('in_channels', in_channels)
        if isinstance(e_lambda, bool) or not isinstance(e_lambda, Real):
            raise TypeError(f'e_lambda must be a number, got {e_lambda!r}')
        if not 0 < e_lambda < math.inf:
            raise ValueError(f'e_lambda must be above 0 and finite, got {e_lambda}')
        self.in_channels = in_channels
        self.e_lambda = e_lambda

    def gate(self, x: Tensor) -> Tensor:
        """Gate of the shape of ``x``."""
        self.check_channels(x)
        with without_autocast(x):
            squares = centred(x.to(statistics_dtype(x))).square()
            variance = squares.sum((2, 3), keepdim=True) / max(x.shape[2] * x.shape[3] - 1, 1)  # (N, C, 1, 1)
            return torch.sigmoid(squares / (4 * (variance + self.e_lambda)) + 0.5).to(x.dtype)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return dict(spatial=self.gate(x))

    def forward(self, x: Tensor) -> Tensor:
        """Gate features of shape (N, in_channels, H, W)."""
        return x * self.gate(x)
