"""Which images a training skipped."""

from __future__ import annotations

import logging
import os.path as osp
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmccd.data.image_files import why_broken
from mmccd.env import warn_renamed
from mmccd.registry import HOOKS

FILE = 'skipped_images.txt'


def guarded_datasets(dataset: Any) -> Iterator[Any]:
    """Every guarded dataset inside a dataset and its wrappers."""
    from mmccd.data import GuardedDataset  # imports both tasks' packages: not before there is a dataset

    if isinstance(dataset, GuardedDataset):
        yield dataset
    for inner in (getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())):
        if inner is not None:
            yield from guarded_datasets(inner)


@HOOKS.register_module()
class SkippedImagesHook(Hook):
    """Gather what the processes skipped, write it to ``<work_dir>/skipped_images.txt``, and stop if it is too much.

    A line for each image: its path, how often it was skipped in this run, and what is wrong with it. The share that
    may be broken is the dataset's ``max_broken`` (:class:`mmccd.data.GuardedDataset`); a process counts its own
    images immediately, those of all processes are put together here.

    Args:
        interval (int): Iterations between two counts; there is one at every epoch's end as well. Default: 100.

    Raises:
        ValueError: If ``interval`` is less than 1.
        BrokenImageError: While training, if too many images are broken.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 100) -> None:
        if interval < 1:
            raise ValueError(f'interval must be at least 1, got {interval}')
        self.interval = interval
        self._written = 0

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count every ``interval`` iterations."""
        if self.every_n_train_iters(runner, self.interval):
            self._count(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Count, and say how many there are."""
        broken = self._count(runner)
        if broken:
            runner.logger.warning(
                f'{len(broken)} broken images were skipped so far, listed in {osp.join(runner.work_dir, FILE)}'
            )

    def _count(self, runner: Runner) -> Counter:
        """How often each image was skipped, by all processes."""
        datasets = list(guarded_datasets(runner.train_dataloader.dataset))
        counts: list[Counter] = [Counter() for _ in datasets]
        for of_process in all_gather_object([dataset.broken() for dataset in datasets]):
            for count, own in zip(counts, of_process):
                count.update(own)
        broken = sum(counts, Counter())
        times = sum(broken.values())
        if times != self._written and runner.rank == 0:
            with open(osp.join(runner.work_dir, FILE), 'w', encoding='utf-8') as f:
                f.writelines(
                    f'{path}\t{n}\t{why_broken(path) or "it can be read now"}\n' for path, n in sorted(broken.items())
                )
            self._written = times
        for dataset, count in zip(datasets, counts):
            if count:
                dataset.check_share(len(count), next(iter(count)))
        return broken


@HOOKS.register_module()
class BrokenPicturesHook(SkippedImagesHook):
    """Former name of :class:`SkippedImagesHook`, in configs of mmccd 0.1."""

    def __init__(self, interval: int = 100) -> None:
        warn_renamed(
            'mmccd.BrokenPicturesHook',
            'mmccd.SkippedImagesHook',
            lambda text: print_log(text, logger='current', level=logging.WARNING),
        )
        super().__init__(interval)
