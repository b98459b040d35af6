"""Training sharded over the processes (``configs/_base_/fsdp.py``): what is a unit, and resuming."""

from __future__ import annotations

from mmengine._strategy import FSDPStrategy as MMEngineFSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmccd.models.backbones.attention_resnet import AttentionBasicBlock, AttentionBottleneck
from mmccd.registry import STRATEGIES


@STRATEGIES.register_module()
class FSDPStrategy(MMEngineFSDPStrategy):
    """mmengine's, which cannot resume: it calls PyTorch with the order of arguments that version 2.0 had."""

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load a whole optimizer state, each process its shard of it."""
        shard = FullyShardedDataParallel.optim_state_dict_to_load(self.model, self.optim_wrapper.optimizer, state_dict)
        self.optim_wrapper.load_state_dict(shard)


def wrap_residual_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """``auto_wrap_policy``: every residual block of the backbone is a unit, everything else is one more.

    Heads stay in the outermost unit: detectors call their ``loss`` and ``predict``, and the hooks that gather a
    unit's parameters run on ``forward`` alone. That rules out torch's policies by size.
    """
    return recurse or isinstance(module, (AttentionBasicBlock, AttentionBottleneck))
