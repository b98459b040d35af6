"""What extends mmengine's runner: hooks."""
from .hooks import BrokenPicturesHook, CheckFiniteHook, CheckpointHook, InterruptHook

__all__ = ['BrokenPicturesHook', 'CheckFiniteHook', 'CheckpointHook', 'InterruptHook']
