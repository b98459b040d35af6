"""Two planted controls of the attention bench, whose outcome is known. They are no attentions and have no configs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmccd.registry import MODELS


class _Control(nn.Module):
    """Draws a random number, so that a network with it starts from other weights, as with an attention's own weights.

    Args:
        in_channels (int): Channels of the input; any.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        torch.rand(1)


@MODELS.register_module()
class NothingControl(_Control):
    """Returns its input, and must come out as no difference: that between two trainings of one network."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        return x


@MODELS.register_module()
class DestroyingControl(_Control):
    """Replaces each map by its mean, and must come out as worse: what is left of a branch has no place."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        return x.mean((2, 3), keepdim=True).expand_as(x).contiguous()
