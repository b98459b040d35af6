"""What extends mmengine's runner: hooks."""

from .hooks import CheckFiniteHook, CheckpointHook, InterruptHook, SkippedImagesHook

__all__ = ['CheckFiniteHook', 'CheckpointHook', 'InterruptHook', 'SkippedImagesHook']
