"""MMPretrain's data sets of folders, guarded."""

from mmpretrain import datasets

from mmccd.registry import DATASETS

from .datasets import GuardedDataset


@DATASETS.register_module()
class CustomDataset(GuardedDataset, datasets.CustomDataset):
    """``mmpretrain.CustomDataset`` with the argument ``max_broken`` of :class:`GuardedDataset`."""


@DATASETS.register_module()
class ImageNet(GuardedDataset, datasets.ImageNet):
    """``mmpretrain.ImageNet`` with the argument ``max_broken`` of :class:`GuardedDataset`."""
