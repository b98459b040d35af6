"""Hooks: checkpoints that survive, endings on a signal, numbers that go wrong, pictures that cannot be read."""
from .broken_pictures import BrokenPicturesHook
from .checkpoint import CheckpointHook
from .finite import CheckFiniteHook
from .interrupt import InterruptHook

__all__ = ['BrokenPicturesHook', 'CheckFiniteHook', 'CheckpointHook', 'InterruptHook']
