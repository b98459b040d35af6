"""What the attention layers have in common: checks of arguments, statistics in float32, and a start of their own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from numbers import Integral

import torch
from mmengine.model import BaseModule, initialize
from torch import Tensor, nn


def check_int(name: str, value: int, least: int = 1) -> None:
    """Raise TypeError or ValueError unless ``value`` is an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f'{name} must be an int, got {value!r}')
    if value < least:
        raise ValueError(f'{name} must be at least {least}, got {value}')


def check_ratio(ratio: int, channels: int, name: str = 'in_channels') -> None:
    """Raise TypeError or ValueError unless both are ints and a channel is left; ``name`` is that of ``channels``."""
    check_int(name, channels)
    check_int('ratio', ratio)
    if ratio > channels:
        raise ValueError(f'ratio must be at most {name}={channels}, got {ratio}')


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Dtype of what is summed up over ``x``: float32 for half precision, whose sums overflow, else its own."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Where a gate is computed: its small layers see sums of large features, which overflow in autocast's float16."""
    return nullcontext() if x.device.type == 'meta' else torch.autocast(x.device.type, enabled=False)


class GlobalAvgPool(nn.AdaptiveAvgPool2d):
    """Mean over space, (N, C, H, W) to (N, C, 1, 1), in float32 for half precision."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x: Tensor) -> Tensor:
        dtype = statistics_dtype(x)
        return super().forward(x) if dtype == x.dtype else x.mean((2, 3), keepdim=True, dtype=dtype)


class AttentionLayer(BaseModule):
    """Base of the layers whose start is part of their definition.

    A backbone's ``init_cfg`` (Kaiming for every Conv2d) runs before its children's ``init_weights``, so that what
    :meth:`reset_parameters` sets here stays, unless the layer was given an ``init_cfg`` of its own.

    A layer with a method ``gates(x)`` can be looked at (:mod:`mmccd.analysis`): a dict of ``'spatial'``
    (N, maps, H, W), ``'channel'`` (N, C) or both, what the layer does to ``x`` of shape (N, C, H, W).

    Attributes:
        gate_labels (dict[str, str]): What the numbers of ``gates`` are, for legends.
    """

    gate_labels = dict(spatial='gate', channel='gate')

    def reset_parameters(self) -> None:
        """Set the parameters to their start. Called at the end of ``init_weights``."""

    def init_weights(self) -> None:
        first = not self.is_init
        super().init_weights()
        if not first:
            return
        if self.init_cfg:
            initialize(self, self.init_cfg)  # again: children like ConvModule have overwritten it
        else:
            self.reset_parameters()
