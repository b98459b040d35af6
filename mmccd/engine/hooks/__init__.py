"""Hooks: checkpoints that survive, endings on a signal, numbers that go wrong, images that cannot be read."""

from .checkpoint import CheckpointHook
from .finite import CheckFiniteHook
from .interrupt import InterruptHook
from .show import ShowBoxesHook, ShowClassesHook
from .skipped_images import SkippedImagesHook

__all__ = [
    'CheckFiniteHook',
    'CheckpointHook',
    'InterruptHook',
    'ShowBoxesHook',
    'ShowClassesHook',
    'SkippedImagesHook',
]
