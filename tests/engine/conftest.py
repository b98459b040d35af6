"""A training that takes a tenth of a second, with everything that has a state: dropout, augmentation, momentum, EMA."""

from __future__ import annotations

import itertools
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

import mmccd.engine  # noqa: F401
from mmccd.checkpoints.read import allow_mmengine_checkpoints

SAMPLES, BATCH, ITERATIONS = 20, 4, 5
_numbers = itertools.count()


class Points(Dataset):
    """Points with three kinds of noise; a sample knows its index."""

    metainfo = dict(name='points')

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict:
        assert type(index) is int  # what the loader carries along is not the data set's business
        x = torch.tensor([index / SAMPLES, random.random(), np.random.rand(), torch.rand(()).item()])
        return dict(inputs=x, data_samples=index)


class Net(BaseModel):
    """Two linear layers with dropout and a norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.fc2 = nn.Linear(8, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs, data_samples=None, mode='loss'):
        x = torch.stack(list(inputs))
        if mode == 'predict':  # no noise: validation is the same each time
            x = x[:, :1].expand(-1, 4)
        out = self.fc2(self.dropout(self.norm(self.fc1(x))))
        if mode == 'loss':
            return dict(loss_fit=(out - x.sum(1, keepdim=True)).square().mean(), loss_size=0.01 * out.abs().mean())
        return [dict(out=o) for o in out]


class Mean(BaseMetric):
    """Mean output on the points: another number for other parameters."""

    def process(self, data_batch, data_samples) -> None:
        self.results += [s['out'].item() for s in data_samples]

    def compute_metrics(self, results) -> dict:
        random.random(), np.random.rand(), torch.rand(1)  # validation draws numbers, too
        return dict(score=float(np.mean(results)))


class Log(Hook):
    """Which samples were used, and what was validated; does what a test asks for at some point."""

    priority = 'HIGHEST'

    def __init__(self) -> None:
        self.batches: dict[int, list[int]] = {}
        self.scores: dict[int, float] = {}
        self.at: dict[tuple[str, int], Callable[[Runner], None]] = {}

    def _do(self, place: str, number: int, runner: Runner) -> None:
        if (place, number) in self.at:
            self.at.pop((place, number))(runner)

    def before_train_epoch(self, runner):
        self._do('epoch', runner.epoch, runner)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batches[runner.iter] = list(data_batch['data_samples'])
        self._do('iter', runner.iter, runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._do('after_iter', runner.iter, runner)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self._do('val', runner.epoch, runner)

    def after_val_epoch(self, runner, metrics=None):
        self.scores[runner.epoch] = metrics['score']


@pytest.fixture
def make_runner(tmp_path) -> Iterator[Callable[..., Runner]]:
    """A runner in ``tmp_path/work`` (``work_dir``), with ``runner.log``; ``resume`` is a path."""
    runners = []

    def make(
        work_dir: Path | None = None,
        resume: Path | None = None,
        workers: int = 0,
        epochs: int = 4,
        seed: int | None = 0,
        checkpoint: dict | None = None,
        optimizer: dict | None = None,
        wrapper: dict | None = None,
        finite: dict | None = None,
        batch: int = BATCH,
        schedule: dict | None = None,
    ) -> Runner:
        allow_mmengine_checkpoints()
        log = Log()
        loader = dict(
            dataset=dict(type=Points),
            batch_size=batch,
            num_workers=workers,
            persistent_workers=workers > 0,
            sampler=dict(type='DefaultSampler', shuffle=True),
        )
        optim_wrapper = dict(optimizer=optimizer or dict(type='SGD', lr=0.05, momentum=0.9), **(wrapper or {}))
        train_cfg = dict(by_epoch=True, max_epochs=epochs)
        runner = Runner(
            cfg=dict(  # what a config file would say
                optim_wrapper=optim_wrapper,
                train_cfg=train_cfg,
                train_dataloader=dict(batch_size=batch, num_workers=workers),
            ),
            model=dict(type=Net),
            work_dir=str(work_dir or tmp_path / 'work'),
            train_dataloader=loader,
            val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
            val_evaluator=dict(type=Mean),
            train_cfg=train_cfg,
            val_cfg=dict(),
            optim_wrapper=optim_wrapper,
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=7),
                schedule or dict(type='ExponentialLR', gamma=0.8, by_epoch=True),
            ],
            default_hooks=dict(
                checkpoint=dict(dict(type='mmccd.CheckpointHook', interval=1), **(checkpoint or {})),
                logger=dict(type='LoggerHook', interval=1),
                interrupt=dict(type='mmccd.InterruptHook'),
                finite=dict(type='mmccd.CheckFiniteHook', **(finite or {})),
            ),
            custom_hooks=[dict(type='EMAHook', momentum=0.1), log],
            randomness=dict(seed=seed),
            load_from=str(resume) if resume else None,
            resume=resume is not None,
            default_scope='mmengine',
            experiment_name=f'engine_{next(_numbers)}',
        )
        runner.log = log
        runners.append(runner)
        return runner

    yield make
    for runner in runners:  # workers of those that were interrupted
        for loop in (runner._train_loop, runner._val_loop):
            iterator = getattr(getattr(loop, 'dataloader', None), '_iterator', None)
            if iterator is not None:
                iterator._shutdown_workers()


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Handlers as they were, whatever a test leaves."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def state_of(path: Path) -> dict:
    """What has to be the same after an interrupted and an uninterrupted training."""
    content = torch.load(path, weights_only=False)
    return {k: content[k] for k in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')}


@pytest.fixture
def assert_same() -> Callable[[Path, Path], None]:
    """Two checkpoints are the same to the last bit."""

    def compare(a: object, b: object, where: str) -> None:
        assert type(a) is type(b), where
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b), where
        elif isinstance(a, dict):
            assert a.keys() == b.keys(), where
            for key in a:
                compare(a[key], b[key], f'{where}.{key}')
        elif isinstance(a, (list, tuple)):
            assert len(a) == len(b), where
            for i, (x, y) in enumerate(zip(a, b)):
                compare(x, y, f'{where}.{i}')
        else:
            assert a == b, where

    def check(a: Path, b: Path) -> None:
        compare(state_of(a), state_of(b), '')

    return check
