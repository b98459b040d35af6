"""What the attention layers have in common: checks of their arguments, and a start that a backbone cannot overwrite."""
from __future__ import annotations

from numbers import Integral

from mmengine.model import BaseModule, initialize


def check_channels(in_channels: int, ratio: int | None = None) -> None:
    """Raise TypeError or ValueError unless ``in_channels`` is a positive int and ``ratio`` leaves a channel of it."""
    for name, value in (('in_channels', in_channels), ('ratio', ratio)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f'{name} must be an int, got {value!r}')
        if value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')
    if ratio is not None and ratio > in_channels:
        raise ValueError(f'ratio must be at most in_channels={in_channels}, got {ratio}')


class AttentionLayer(BaseModule):
    """Base of the layers whose start is part of their definition.

    A backbone's ``init_cfg`` (Kaiming for every Conv2d) runs before its children's ``init_weights``, so that what
    :meth:`reset_parameters` sets here stays, unless the layer was given an ``init_cfg`` of its own.
    """

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
