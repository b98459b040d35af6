"""MMDetection's and MMPretrain's data sets, guarded against broken images and annotations."""

from contextlib import suppress

from .datasets import BrokenImageError, CocoDataset, GuardedDataset

__all__ = ['BrokenImageError', 'CocoDataset', 'GuardedDataset']

with suppress(ImportError):  # detection does without MMPretrain
    from .mmpretrain_datasets import CustomDataset, ImageNet

    __all__ += ['CustomDataset', 'ImageNet']
