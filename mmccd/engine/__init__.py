"""What extends mmengine's runner: hooks."""

from .hooks import CheckFiniteHook, CheckpointHook, InterruptHook, ShowBoxesHook, ShowClassesHook, SkippedImagesHook

__all__ = [
    'CheckFiniteHook',
    'CheckpointHook',
    'InterruptHook',
    'ShowBoxesHook',
    'ShowClassesHook',
    'SkippedImagesHook',
]
