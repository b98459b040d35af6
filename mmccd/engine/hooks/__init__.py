"""Hooks: checkpoints that survive, endings on a signal, numbers that go wrong, broken images, padding."""

from .checkpoint import CheckpointHook
from .finite import CheckFiniteHook
from .interrupt import InterruptHook
from .padding import IgnorePaddingHook
from .show import ShowBoxesHook, ShowClassesHook
from .skipped_images import SkippedImagesHook

__all__ = [
    'CheckFiniteHook',
    'CheckpointHook',
    'IgnorePaddingHook',
    'InterruptHook',
    'ShowBoxesHook',
    'ShowClassesHook',
    'SkippedImagesHook',
]
