"""MMDetection's and MMPretrain's data sets, guarded against broken pictures and annotations."""
from contextlib import suppress

from .datasets import BrokenPictureError, CocoDataset, GuardedDataset

__all__ = ['BrokenPictureError', 'CocoDataset', 'GuardedDataset']

with suppress(ImportError):  # detection does without MMPretrain
    from .mmpretrain_datasets import CustomDataset, ImageNet

    __all__ += ['CustomDataset', 'ImageNet']
