"""Hooks: checkpoints that survive, endings on a signal, numbers that go wrong, pictures that cannot be read."""
from .checkpoint import CheckpointHook
from .finite import CheckFiniteHook
from .interrupt import InterruptHook
from .skipped_images import BrokenPicturesHook

__all__ = ['BrokenPicturesHook', 'CheckFiniteHook', 'CheckpointHook', 'InterruptHook']
