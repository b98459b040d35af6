"""MMDetection's and MMPretrain's data sets, guarded against broken pictures and annotations."""
from importlib.util import find_spec

from .guarded import BrokenPictureError, CocoDataset, GuardedDataset

__all__ = ['BrokenPictureError', 'CocoDataset', 'GuardedDataset']

if find_spec('mmpretrain') is not None:  # detection does without
    from .guarded_cls import CustomDataset, ImageNet

    __all__ += ['CustomDataset', 'ImageNet']
