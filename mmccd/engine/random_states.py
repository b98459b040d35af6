"""Random numbers that a resumed training continues where the interrupted one was.

The model draws from the generators of the process, whose states go into the checkpoint. Images are augmented in
worker processes, whose states cannot be saved; there, each sample gets a seed of its own, from the training's seed, the
epoch and the sample's index. The augmentation then depends neither on the number of workers nor on what was loaded
before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset


def get_random_states() -> dict[str, Any]:
    """States of Python's, NumPy's, PyTorch's and the current GPU's generator, as plain data and tensors."""
    name, keys, *rest = np.random.get_state()
    states = dict(
        python=random.getstate(),
        numpy=[name, torch.from_numpy(keys.astype(np.int64)), *rest],
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states['cuda'] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Back to what :func:`get_random_states` returned."""
    version, numbers, gauss = states['python']
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = states['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states['torch'].cpu())
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'].cpu())


@contextmanager
def kept_random_states() -> Iterator[None]:
    """The CPU's generators are afterwards as before, no matter what is drawn inside."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SampleIndex(int):
    """Index of a sample that brings its seed along to the worker process."""

    seed: int

    def __new__(cls, index: int, seed: int = 0) -> SampleIndex:
        self = super().__new__(cls, index)
        self.seed = seed
        return self


class SeededSamples:
    """PyTorch's protocol for loading a batch of samples, each with its own seed.

    Args:
        dataset (Dataset): The dataset, which becomes indexable as before.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __call__(self, indices: Sequence[SampleIndex]) -> list:
        samples = []
        with kept_random_states():
            for index in indices:
                random.seed(index.seed)
                np.random.seed(index.seed)
                torch.default_generator.manual_seed(index.seed)
                samples.append(self.dataset[int(index)])
        return samples


class ResumableBatches:
    """Batch sampler that can leave out the first batches of an epoch, and gives each sample a seed.

    Args:
        batch_sampler (Sampler): The batch sampler, whose order depends on the epoch alone.
        seed (int): Seed of the training's data, the same for all processes.

    Attributes:
        epoch (int): The epoch, which the seeds depend on.
        skip (int): Batches to leave out of the next epoch; none of their images is loaded.
    """

    def __init__(self, batch_sampler: Any, seed: int) -> None:
        self.batch_sampler = batch_sampler
        self.seed = seed
        self.epoch = 0
        self.skip = 0

    def __getattr__(self, name: str) -> Any:
        if name == 'batch_sampler':  # not there yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        skip, self.skip = self.skip, 0
        for i, batch in enumerate(self.batch_sampler):
            if i >= skip:
                yield [SampleIndex(index, self._seed_of(index)) for index in batch]

    def _seed_of(self, index: int) -> int:
        entropy = [abs(int(self.seed)), self.epoch, int(index)]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def make_resumable(dataloader: DataLoader, seed: int) -> ResumableBatches | None:
    """Let a loader, not iterated yet, seed its samples and skip batches; None if it has no batches of indices."""
    if isinstance(dataloader.dataset, IterableDataset) or dataloader.batch_sampler is None:
        return None
    batches = ResumableBatches(dataloader.batch_sampler, seed)
    # PyTorch guards the attribute against changes after workers have started, which they have not.
    object.__setattr__(dataloader, 'batch_sampler', batches)
    if not hasattr(dataloader.dataset, '__getitems__'):
        dataloader.dataset.__getitems__ = SeededSamples(dataloader.dataset)
    # The loader draws a seed when it starts workers: not from the model's generator.
    dataloader.generator = torch.Generator().manual_seed(0)
    return batches
