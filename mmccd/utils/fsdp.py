"""What is sharded together under FullyShardedDataParallel (``configs/_base_/fsdp.py``)."""
from __future__ import annotations

from torch import nn

from mmccd.models.backbones.attention_resnet import AttentionBasicBlock, AttentionBottleneck


def wrap_residual_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """``auto_wrap_policy``: every residual block of the backbone is a unit, everything else is one more.

    Heads stay in the outermost unit: detectors call their ``loss`` and ``predict``, and the hooks that gather a
    unit's parameters run on ``forward`` alone. That rules out torch's policies by size.
    """
    return recurse or isinstance(module, (AttentionBasicBlock, AttentionBottleneck))
