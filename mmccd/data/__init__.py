"""Datasets of MMDetection and MMPretrain that are guarded against broken images, and checks of what they read.

The datasets are imported when they are first asked for: :mod:`mmccd.data.classes` and the checks do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .datasets import BrokenImageError, CocoDataset, CustomDataset, GuardedDataset, ImageNet

__all__ = ['BrokenImageError', 'CocoDataset', 'CustomDataset', 'GuardedDataset', 'ImageNet']


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from . import datasets  # imports the packages of both tasks

    return getattr(datasets, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
