"""What extends mmengine's runner: hooks."""
from .hooks import CheckFiniteHook, CheckpointHook, InterruptHook

__all__ = ['CheckFiniteHook', 'CheckpointHook', 'InterruptHook']
