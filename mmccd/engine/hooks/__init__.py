"""Hooks: checkpoints that survive, endings on a signal, numbers that go wrong."""
from .checkpoint import CheckpointHook
from .finite import CheckFiniteHook
from .interrupt import InterruptHook

__all__ = ['CheckFiniteHook', 'CheckpointHook', 'InterruptHook']
