"""Datasets that tolerate a few broken images in training, and hide none in evaluation."""

from __future__ import annotations

import logging
import os
import os.path as osp
from collections.abc import Sequence
from typing import Any

import torch
from mmdet import datasets
from mmengine import fileio
from mmengine.logging import print_log

from mmccd.env import is_local
from mmccd.errors import UserError
from mmccd.registry import DATASETS

from . import of_mmpretrain
from .checks.coco import DOCTOR
from .coco_api import COCO
from .image_files import SUFFIXES, LeftOut, is_inside, is_left_behind, left_out, looks_cut, why_broken
from .transforms import LoadImageFromFile


class BrokenImageError(UserError):
    """An image that cannot be used where it must not be skipped, or too many of them."""

    everywhere = False

    def __init__(self, message: str) -> None:
        # A loader's worker raises it in the main process with its traceback as the message.
        super().__init__(message.rsplit(f'{type(self).__name__}: ', 1)[-1].rstrip())


class FilledDataset:
    """Mixin before one of mmengine's datasets: one without images is refused before a sampler stumbles over it.

    Raises:
        UserError: If there are none, or none is left after filtering.
    """

    def filter_data(self) -> list[dict]:
        """The samples that ``filter_cfg`` leaves."""
        kept = super().filter_data()
        if kept:
            return kept
        source = self.ann_file or ', '.join(self.data_prefix.values())
        if not self.data_list:
            raise UserError(f'{source} has no images; {DOCTOR}')
        raise UserError(
            f'none of the {len(self.data_list):,} images of {source} is left: filter_cfg={self.filter_cfg} leaves out '
            f'{self._count_left_out()} {", ".join(self.metainfo.get("classes", ())[:10])}; {DOCTOR}'
        )

    def _count_left_out(self) -> str:
        size = (self.filter_cfg or {}).get('min_size', 0)
        small = sum(min(info.get('width', size), info.get('height', size)) < size for info in self.data_list)
        empty = sum(not info.get('instances') for info in self.data_list)
        return f'{small:,} with a side below {size}, and those without a box, {empty:,}, of the classes'


class GuardedDataset(FilledDataset):
    """Mixin before one of mmengine's datasets: what an image or an annotation file can do wrong has a clear end.

    An image that is not there, cut short or cannot be decoded is skipped and counted if ``max_broken`` allows any:
    another one, drawn at random, takes its place (:class:`mmengine.dataset.BaseDataset` does that). Else, and always
    with ``test_mode=True``, it is an error that names the image. Counts stand in memory that the loader's worker
    processes share; :class:`mmccd.engine.SkippedImagesHook` reports them.

    Paths out of annotations may leave neither ``data_root`` nor ``data_prefix``.

    Args:
        max_broken (float): Share of the images that may be broken, 0 to 1. Default: 0.

    Raises:
        ValueError: If ``max_broken`` is none of 0 to 1.
        UserError: If the annotations cannot be read, a sample has no ``img_path``, or a path leaves the root.
        BrokenImageError: From ``dataset[i]``, for a broken image that may not be skipped.
    """

    def __init__(self, *args: Any, max_broken: float = 0.0, **kwargs: Any) -> None:
        if isinstance(max_broken, bool) or not isinstance(max_broken, (int, float)) or not 0 <= max_broken <= 1:
            raise ValueError(f'max_broken must be a share from 0 to 1, got {max_broken!r}')
        self.max_broken = max_broken
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """The annotations, every image's path inside the root."""
        source = self.ann_file or ', '.join(self.data_prefix.values())
        try:
            data = super().load_data_list()
        except UserError:
            raise
        except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as e:
            reason = f'{type(e).__name__}: {e}'.rstrip(': ')
            raise UserError(f'the annotations {source} cannot be used ({reason}); {DOCTOR}') from e
        roots = [root for root in (self.data_root, *self.data_prefix.values()) if root] or ['.']
        plain = tuple(osp.join(root, '') for root in roots)
        for i, info in enumerate(data):
            path = self._path(i, info)
            if path.startswith(plain) and os.pardir not in path:
                continue  # of a million paths nearly all
            if not any(is_inside(path, root) for root in roots):
                raise UserError(f'{source} names an image outside of the data root {roots[0]}: {path}; {DOCTOR}')
        return data

    def full_init(self) -> None:
        """Load the annotations, once."""
        if not self._fully_initialized:
            super().full_init()
            # How often each image was skipped: shared, forked or spawned.
            self.skipped = torch.zeros(len(self), dtype=torch.int32).share_memory_()

    def _path(self, idx: int, info: dict) -> str:
        """Where the image of a sample is."""
        path = info.get('img_path')
        if not isinstance(path, str):
            has = ', '.join(map(str, info)) if path is None else f'img_path={path!r}'
            raise UserError(
                f'{type(self).__name__} needs the path of an image as img_path in every sample, to name it if it is '
                f'broken; sample {idx} has {has or "nothing"}'
            )
        return path

    def prepare_data(self, idx: int) -> Any:
        """The pipeline's result; None, which draws another one, for a broken image that may be skipped."""
        backend_args, reason = getattr(self, 'backend_args', None), ''
        try:
            if not self._loader_checks() and backend_args is None:
                path = self._path(idx, self.get_data_info(idx))
                if is_local(path) and looks_cut(path):
                    reason = why_broken(path)
            if not reason:
                return super().prepare_data(idx)
        except Exception:
            path = self._path(idx, self.get_data_info(idx))
            reason = why_broken(path, backend_args)
            if not reason:  # no fault of the image
                raise
        if self.test_mode or not self.max_broken:
            raise BrokenImageError(f'image {path} cannot be used: {reason}; {DOCTOR}')
        self._skip(idx, path, reason)
        return None

    def _loader_checks(self) -> bool:
        """Whether the pipeline itself finds an image that is cut short; it may be exchanged at any time."""
        return any(isinstance(transform, LoadImageFromFile) for transform in self.pipeline.transforms[:1])

    def broken(self) -> dict[str, int]:
        """How often each broken image was skipped, by its path, in this process and its workers."""
        return {self.get_data_info(i)['img_path']: int(self.skipped[i]) for i in self.skipped.nonzero()[:, 0].tolist()}

    def _skip(self, idx: int, path: str, reason: str) -> None:
        if not self.skipped[idx]:
            print_log(f'image {path} is skipped: {reason}', 'current', logging.WARNING)
        self.skipped[idx] += 1
        self.check_share(self.skipped.count_nonzero().item(), path)

    def check_share(self, broken: int, example: str) -> None:
        """Raise BrokenImageError if ``broken`` images are more than ``max_broken`` allows."""
        if broken > self.max_broken * len(self):
            raise BrokenImageError(
                f'{broken} of {len(self)} training images cannot be used, more than max_broken={self.max_broken:g} '
                f'of the dataset allows, {example} among them; {DOCTOR}'
            )


@DATASETS.register_module()
class CocoDataset(GuardedDataset, datasets.CocoDataset):
    """``mmdet.CocoDataset`` with the argument ``max_broken`` of :class:`GuardedDataset`.

    Its annotation file is repaired where what is meant is certain, else refused
    (:func:`mmccd.data.checks.coco.read_coco`).
    """

    COCOAPI = COCO


@DATASETS.register_module()
class UnguardedCocoDataset(FilledDataset, datasets.CocoDataset):
    """``mmdet.CocoDataset`` that reads annotations as :class:`CocoDataset`: the tools put it in its place."""

    COCOAPI = COCO


class ClassFolders:
    """Mixin before MMPretrain's CustomDataset: images are those that can be read, and what is left out is said.

    What systems leave behind in class folders is no class and no image. ``extensions`` are by default those of all
    formats that are read (:data:`mmccd.data.image_files.SUFFIXES`); MMPretrain has seven.

    Raises:
        UserError: If there are no images, or more or fewer folders than classes.
    """

    IMG_EXTENSIONS = SUFFIXES  # where MMPretrain's ImageNet looks
    without_class: Sequence[str] = ()  # images beside the class folders

    @property
    def left_out(self) -> list[LeftOut]:
        """Files in the folders that are no images by their suffix; empty with an annotation file."""
        return left_out(getattr(self, '_others', ()))

    def _find_samples(self) -> list:
        """(path, label) of each image in the class folders; without labels, paths."""
        self._others: list[str] = []
        samples = self._labelled() if self.with_label else self._valid(None)
        others = ', '.join(map(str, self.left_out))
        if not samples:
            where = f'the class folders of {self.img_prefix}' if self.with_label else self.img_prefix
            has = f', but {others}' if others else ''
            raise UserError(f'{where} have no image in them ({", ".join(self.extensions)}){has}; {DOCTOR}')
        if others:
            self._warn(f'left out by their suffixes: {others}')
        return samples

    def _labelled(self) -> list[tuple[str, int]]:
        found = of_mmpretrain.find_folders(self.img_prefix)[0]
        classes = [name for name in found if not is_left_behind(name)]
        if len(classes) < len(found):
            self._warn(f'{", ".join(name for name in found if name not in classes)} are taken for no classes')
        if self.CLASSES is None:
            self._metainfo['classes'] = tuple(classes)
        elif len(self.CLASSES) != len(classes):
            raise UserError(f'there are {len(self.CLASSES)} classes, and {len(classes)} folders in {self.img_prefix}')
        self.folder_to_idx = {name: i for i, name in enumerate(classes)}
        samples = [sample for name in classes for sample in self._valid(name)]
        empty = set(classes) - {classes[label] for _, label in samples}
        if empty and samples:
            self._warn(f'no image in {", ".join(sorted(empty))}')
        beside = sorted(fileio.list_dir_or_file(self.img_prefix, list_dir=False))
        self.without_class = [name for name in beside if self.is_valid_file(name) and not is_left_behind(name)]
        if self.without_class:
            n = len(self.without_class)
            self._warn(f'left out, in no class folder: {n:,} image{"s" * (n > 1)} (e.g. {self.without_class[0]})')
        return samples

    def _valid(self, folder: str | None) -> list:
        """Samples of one class folder, or without labels of all."""

        def is_valid(name: str) -> bool:
            if is_left_behind(name):
                return False
            valid = self.is_valid_file(name)
            if not valid:
                self._others.append(name if folder is None else f'{folder}/{name}')
            return valid

        folders = None if folder is None else {folder: self.folder_to_idx[folder]}
        return of_mmpretrain.get_samples(self.img_prefix, folders, is_valid)[0]

    def _warn(self, text: str) -> None:
        print_log(f'{self.img_prefix.rstrip("/")}: {text}', 'current', logging.WARNING)


class _ImagesOfAllFormats(ClassFolders):
    """ClassFolders of a CustomDataset, which takes ``extensions`` as its fifth argument."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) < 5:
            kwargs.setdefault('extensions', SUFFIXES)
        super().__init__(*args, **kwargs)


@DATASETS.register_module()
class CustomDataset(_ImagesOfAllFormats, GuardedDataset, of_mmpretrain.CustomDataset):
    """``mmpretrain.CustomDataset`` with the argument ``max_broken`` of :class:`GuardedDataset`.

    Folders and files that systems leave behind (``.ipynb_checkpoints``, ``@eaDir``, ``Thumbs.db``) are left out, and
    ``extensions`` are by default all that can be read (:class:`ClassFolders`).
    """


@DATASETS.register_module()
class ImageNet(ClassFolders, GuardedDataset, of_mmpretrain.ImageNet):
    """``mmpretrain.ImageNet`` with ``max_broken``; takes and leaves out what :class:`CustomDataset` does."""


@DATASETS.register_module()
class UnguardedCustomDataset(_ImagesOfAllFormats, FilledDataset, of_mmpretrain.CustomDataset):
    """``mmpretrain.CustomDataset`` that takes images as :class:`CustomDataset`: the tools put it in its place."""


@DATASETS.register_module()
class UnguardedImageNet(ClassFolders, FilledDataset, of_mmpretrain.ImageNet):
    """``mmpretrain.ImageNet`` that takes images as :class:`ImageNet`: the tools put it in its place."""
