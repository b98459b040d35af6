"""What the datasets and transforms here extend of MMPretrain, or what says why it is not available."""

from __future__ import annotations

from typing import Any

from mmccd.env import OPTIONAL
from mmccd.errors import UserError

__all__ = ['CustomDataset', 'ImageNet', 'PackInputs', 'RandomResizedCrop', 'find_folders', 'get_samples']

try:
    from mmpretrain import datasets
    from mmpretrain.datasets.custom import find_folders, get_samples
except Exception as error:  # a broken installation raises anything; detection does without
    _reason = f'it cannot be imported ({type(error).__name__}: {error})'
    if isinstance(error, ModuleNotFoundError) and error.name == 'mmpretrain':
        _oldest, _distributions = OPTIONAL['mmpretrain']
        _reason = f'it is not installed: pip install "{_distributions[0]}>={_oldest}"'

    class _NotAvailable:
        """In the place of MMPretrain's classes: says why there are none, once one is asked for."""

        reason = _reason

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise UserError(f'{type(self).__name__} needs MMPretrain, and {self.reason}')

    find_folders = get_samples = None  # of the datasets, which there are none of
    CustomDataset = ImageNet = PackInputs = RandomResizedCrop = _NotAvailable
else:
    CustomDataset, ImageNet = datasets.CustomDataset, datasets.ImageNet
    PackInputs, RandomResizedCrop = datasets.PackInputs, datasets.RandomResizedCrop
