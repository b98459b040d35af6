"""What is written, and that training continues from it as if nothing had happened."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import Runner

from mmccd.checkpoints.files import verify_checksum
from mmccd.checkpoints.read import read_checkpoint
from mmccd.checkpoints.resume import newest_checkpoint
from mmccd.engine import CheckpointHook
from mmccd.engine.hooks.checkpoint import recipe_of
from mmccd.errors import UserError


class Killed(BaseException):
    """Stands for SIGKILL: nothing is tidied up."""


def kill(runner: Runner) -> None:
    raise Killed


def kill_at(runner: Runner, place: str, number: int) -> None:
    """Train until there, and no further."""
    runner.log.at[place, number] = kill
    with pytest.raises(Killed):
        runner.train()


@pytest.fixture
def untouched(make_runner, tmp_path):
    """Work folder and log of four epochs without interruption."""
    runner = make_runner(tmp_path / 'untouched')
    runner.train()
    return tmp_path / 'untouched', runner.log


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('epoch', [1, 3])
def test_resumed_at_an_epochs_end(make_runner, untouched, assert_same, tmp_path, epoch, workers):
    """Killed in the next epoch: parameters, EMA, optimizer, schedule, samples, scores to the last bit.

    The number of workers may be another than before.
    """
    kill_at(make_runner(workers=2 - workers), 'iter', epoch * 5 + 2)
    work = tmp_path / 'work'
    runner = make_runner(resume=work / f'epoch_{epoch}.pth', workers=workers)
    runner.train()
    assert_same(work / 'epoch_4.pth', untouched[0] / 'epoch_4.pth')
    assert runner.log.batches == {i: b for i, b in untouched[1].batches.items() if i >= epoch * 5}
    assert runner.log.scores == {e: s for e, s in untouched[1].scores.items() if e > epoch}


def test_samples_differ_by_epoch_and_index_only(make_runner):
    """The noise of a sample is its own, and new in each epoch."""
    seen = {}

    def note(runner, batch_idx, data_batch=None):
        for index, x in zip(data_batch['data_samples'], data_batch['inputs']):
            seen.setdefault(index, []).append(tuple(x.tolist()))

    runner = make_runner(epochs=2)
    runner.log.before_train_iter = note
    runner.train()
    assert all(len(set(v)) == 2 for v in seen.values())
    assert len({v[0][1:] for v in seen.values()}) == 20


def test_validation_that_was_cut_off_is_made_up_for(make_runner, untouched, assert_same, tmp_path):
    """Also that of the last epoch, after which nothing is left to train."""
    for epoch in (2, 4):
        work = tmp_path / f'work_{epoch}'
        kill_at(make_runner(work, checkpoint=dict(save_best='score', rule='greater')), 'val', epoch)
        runner = make_runner(
            work, resume=work / f'epoch_{epoch}.pth', checkpoint=dict(save_best='score', rule='greater')
        )
        runner.train()
        assert runner.log.scores == {e: s for e, s in untouched[1].scores.items() if e >= epoch}
        assert_same(work / 'epoch_4.pth', untouched[0] / 'epoch_4.pth')
        runner = make_runner(work, resume=work / 'epoch_4.pth', checkpoint=dict(save_best='score', rule='greater'))
        runner.train()
        assert runner.log.scores == {}  # this time it was complete


def with_plateau(make_runner, scores, save_best=None):
    """Runners with a schedule by the validations' scores, which are these."""
    options = dict(
        schedule=dict(type='ReduceOnPlateauLR', monitor='score', rule='greater', patience=1, factor=0.5),
        checkpoint=dict(save_best=save_best, rule='greater'),
    )

    def make(*args, **kwargs):
        runner = make_runner(*args, **options, **kwargs)

        def scored(r, metrics=None):
            metrics['score'] = scores[r.epoch - 1]

        runner.log.after_val_epoch = scored
        return runner

    return make


@pytest.mark.parametrize(
    ('place', 'moved', 'save_best', 'scores'),
    [
        (('val', 2), False, None, [1.0, 2.0, 1.0, 3.0]),
        (('val', 2), True, 'score', [1.0, 2.0, 1.0, 3.0]),
        (('iter', 12), False, None, [1.0, 2.0, 1.0, 3.0]),
        (('iter', 12), True, 'score', [1.0, 2.0, 1.0, 3.0]),
        (('iter', 12), False, None, [2.0, math.nan, 1.0, 1.0]),
    ],
)
def test_a_plateau_counts_each_validation_once(make_runner, assert_same, tmp_path, place, moved, save_best, scores):
    """Cut off in or after the validation of a checkpoint, which is resumed where it is or alone in another folder."""
    make = with_plateau(make_runner, scores, save_best)
    make(tmp_path / 'untouched').train()
    kill_at(make(tmp_path / 'work'), *place)
    source = tmp_path / 'work'
    if moved:
        source = tmp_path / 'moved'
        source.mkdir()
        shutil.copy(tmp_path / 'work' / 'epoch_2.pth', source)
    make(source, resume=source / 'epoch_2.pth').train()
    assert_same(source / 'epoch_4.pth', tmp_path / 'untouched' / 'epoch_4.pth')


def test_a_plateau_does_not_count_a_later_epoch(make_runner, tmp_path):
    """Resumed from an earlier checkpoint than the one that was validated last."""
    make = with_plateau(make_runner, [1.0, 5.0, 2.0, 3.0])
    work = tmp_path / 'work'
    kill_at(make(work), 'iter', 12)
    first = read_checkpoint(str(work / 'epoch_1.pth'))['param_schedulers'][1]['last_step']
    make(work, resume=work / 'epoch_1.pth').train()
    plateau = read_checkpoint(str(work / 'epoch_4.pth'))['param_schedulers'][1]
    assert plateau['last_step'] == first + 2  # epochs 2 and 3; that of 4 comes after its checkpoint


def test_unknown_seed(make_runner, tmp_path):
    """Without a seed in the config, the order of the samples continues all the same."""
    runner = make_runner(seed=None)
    kill_at(runner, 'epoch', 1)
    seed = runner.train_dataloader.sampler.seed
    resumed = make_runner(seed=None, resume=tmp_path / 'work' / 'epoch_1.pth', epochs=2)
    resumed.train()
    assert resumed.train_dataloader.sampler.seed == seed
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed + 1)).tolist()
    assert [i for n in range(5, 10) for i in resumed.log.batches[n]] == order


def test_checkpoints_of_mmengines_hook_resume(make_runner, tmp_path):
    kill_at(make_runner(checkpoint=dict(type='CheckpointHook')), 'epoch', 2)
    path = tmp_path / 'work' / 'epoch_2.pth'
    assert 'resume' not in torch.load(path, weights_only=False)
    assert newest_checkpoint(str(path.parent)) == (str(path), {})
    runner = make_runner(resume=path)
    runner.train()
    assert sorted(runner.log.batches) == list(range(10, 20))
    assert verify_checksum(str(tmp_path / 'work' / 'epoch_4.pth'))


def test_old_checkpoint_within_an_epoch(make_runner, tmp_path):
    """mmengine's hook, saving by iterations: its loop would begin the epoch again."""
    kill_at(make_runner(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3)), 'iter', 8)
    runner = make_runner(resume=tmp_path / 'work' / 'iter_6.pth', epochs=2)
    runner.train()
    assert sorted(runner.log.batches) == [6, 7, 8, 9]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1)).tolist()
    assert [i for n in range(6, 10) for i in runner.log.batches[n]] == order[4:]


def test_files(make_runner, tmp_path):
    """Two are kept and the best, each with its checksum, in the form of sha256sum; no code is in them."""
    runner = make_runner(checkpoint=dict(max_keep_ckpts=2, save_best='score', rule='greater'))
    runner.train()
    work = tmp_path / 'work'
    names = sorted(p.name for p in work.iterdir() if p.is_file() and 'best' not in p.name and p.suffix != '.py')
    assert names == [
        '.epoch_3.pth.sha256',
        '.epoch_4.pth.sha256',
        'epoch_3.pth',
        'epoch_4.pth',
        'last_checkpoint',
        'last_validation.json',
    ]
    [best] = work.glob('best_*.pth')
    for path in (best, work / 'epoch_3.pth', work / 'epoch_4.pth'):
        text = path.with_name(f'.{path.name}.sha256').read_text()
        assert text == f'{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n'
        assert 'state_dict' in read_checkpoint(str(path))
    assert list(work.glob('best_*')) == list(work.glob('*best_*.pth')) == [best]  # as users look for it
    assert (work / f'.{best.name}.sha256').is_file()
    assert (work / 'last_checkpoint').read_text() == str(work / 'epoch_4.pth')
    last = json.loads((work / 'last_validation.json').read_text())
    assert last == dict(iter=20, metrics=dict(score=runner.log.scores[4]))


def test_half_written_files_are_cleared_away(make_runner, tmp_path):
    (tmp_path / 'work').mkdir()
    for name in ('epoch_1.pth.partial', 'epoch_1.pth.sha256.partial', '.epoch_1.pth.sha256.partial', 'notes.partial'):
        (tmp_path / 'work' / name).write_text('half')
    make_runner(epochs=1).train()
    assert [p.name for p in (tmp_path / 'work').glob('*.partial')] == ['notes.partial']


@pytest.mark.parametrize('best', [False, True])
def test_full_disk(make_runner, tmp_path, best):
    """The only checkpoint stays; the message has path, reason and sizes; after that, training can continue."""
    options = dict(max_keep_ckpts=1, **(dict(save_best='score', rule='greater') if best else {}))
    runner = make_runner(checkpoint=options)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    runner.log.at['iter', 7] = lambda r: resource.setrlimit(resource.RLIMIT_FSIZE, (12000, limits[1]))
    runner.logger.handlers.clear()  # the log would reach the limit, too
    try:
        with pytest.raises(
            OSError,
            match=r'epoch_2\.pth could not be written: File too large\. It takes [0-9.]+ MB, '
            r'and [0-9.]+ MB are free there\. Earlier checkpoints are as they were',
        ) as caught:
            runner.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    work = tmp_path / 'work'
    assert [p.name for p in sorted([*work.glob('epoch*'), *work.glob('.epoch*')])] == [
        '.epoch_1.pth.sha256',
        'epoch_1.pth',
    ]
    assert not list(work.glob('*.partial'))
    path, skipped = newest_checkpoint(str(work))
    assert (path, skipped) == (str(work / 'epoch_1.pth'), {})
    resumed = make_runner(resume=Path(path), checkpoint=options)
    resumed.train()
    assert [p.name for p in sorted(work.glob('epoch*.pth'))] == ['epoch_4.pth']


def test_the_old_one_goes_last(make_runner, tmp_path, monkeypatch):
    """When a checkpoint is removed, the one that takes its place has its checksum already."""
    from mmccd.checkpoints import files

    removed = []

    def remove(path):
        if path.endswith('.pth'):
            work = tmp_path / 'work'
            removed.append(Path(path).name)
            step = int(Path(path).stem.rsplit('_', 1)[1]) + 1
            new = [p for p in work.glob(f'*epoch_{step}.pth') if p.name.startswith('best') == ('best' in path)]
            assert new
            assert verify_checksum(str(new[0]))
        os.remove(path)

    monkeypatch.setattr(files, 'remove_with_checksum', remove)
    scores = iter([1.0, 2.0, 3.0, 4.0])
    runner = make_runner(checkpoint=dict(max_keep_ckpts=1, save_best='score', rule='greater'))
    original = runner.log.after_val_epoch

    def better(r, metrics=None):
        metrics['score'] = next(scores)
        original(r, metrics)

    runner.log.after_val_epoch = better
    runner.train()
    assert removed == [f'{b}epoch_{n}.pth' for n in (1, 2, 3) for b in ('', 'best_score_')]


def test_best_of_a_metric_that_may_be_better_either_way(make_runner):
    """Of evaluators whose metrics are known, it is said at the start (tests/cli/test_metric_names.py)."""
    with pytest.raises(
        UserError, match=r"^save_best='auto' takes the first metric, score, .*: set default_hooks\.check"
    ):
        make_runner(checkpoint=dict(save_best='auto')).train()
    with pytest.raises(
        UserError, match=r"the validation has no such metric, it gives score; .*; did you mean 'score'\?$"
    ):
        make_runner(checkpoint=dict(save_best='scor', rule='greater')).train()


@pytest.mark.parametrize('save_best', [None, 'auto', 'score', ['score']])
@pytest.mark.parametrize('trained', [False, True])
def test_validation_alone_saves_nothing(make_runner, tmp_path, save_best, trained):
    """``Runner.val()``: metrics, and no files, whether the hook would save the best or not; checkpoint or none."""
    path = None
    if trained:
        make_runner(tmp_path / 'before', epochs=1).train()
        path = tmp_path / 'before' / 'epoch_1.pth'
    options = {} if save_best is None else dict(save_best=save_best, rule='greater')
    runner = make_runner(checkpoint=options)
    if trained:
        runner._load_from = str(path)
    assert set(runner.val()) == {'score'}
    assert not list((tmp_path / 'work').rglob('*.pth'))
    assert not (tmp_path / 'work' / 'last_validation.json').exists()


def test_changes_are_named(make_runner, tmp_path, caplog):
    make_runner(epochs=1).train()
    runner = make_runner(
        resume=tmp_path / 'work' / 'epoch_1.pth',
        epochs=2,
        batch=5,
        workers=2,
        optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
    )
    messages = []
    runner.logger.warning = messages.append
    runner.train()
    text = '\n'.join(m for m in messages if 'checkpoint' in m)
    assert 'The batch of all processes was 4 in the checkpoint and is 5 now: the learning rate may not fit' in text
    assert 'The config has changed since the checkpoint:' in text
    for line in (
        '  train_dataloader.batch_size: 4 -> 5',
        '  train_cfg.max_epochs: 1 -> 2',
        '  optim_wrapper.optimizer.lr: 0.05 -> 0.01',
    ):
        assert line in text.splitlines()
    assert 'workers' not in text
    assert 'The number of processes was' not in text


def test_nothing_to_name(make_runner, tmp_path):
    kill_at(make_runner(), 'epoch', 1)
    runner = make_runner(resume=tmp_path / 'work' / 'epoch_1.pth', workers=2)
    messages = []
    runner.logger.warning = messages.append
    runner.train()
    assert not [m for m in messages if 'checkpoint' in m]


def test_recipe():
    """Lists of plain values are one entry, other lists one an item; tuples count as lists."""
    cfg = dict(
        model=dict(type='A', sizes=(1, 2), blocks=[dict(n=1), dict(n=2)]),
        work_dir='x',
        train_dataloader=dict(num_workers=3, batch_size=2, dataset=dict(num_workers=1)),
        optim_wrapper={},
    )
    assert recipe_of(cfg) == {
        'model.type': "'A'",
        'model.sizes': '[1, 2]',
        'model.blocks.0.n': '1',
        'model.blocks.1.n': '2',
        'train_dataloader.batch_size': '2',
        'train_dataloader.dataset.num_workers': '1',
        'optim_wrapper': '{}',
    }


def test_other_storage_is_left_to_mmengine(make_runner, tmp_path):
    """A backend of the user's is not replaced."""
    make_runner(epochs=1, checkpoint=dict(backend_args=dict(backend='local'))).train()
    work = tmp_path / 'work'
    assert (work / 'epoch_1.pth').is_file()
    assert not list(work.glob('*.sha256'))


def test_from_every_scope():
    from mmengine.registry import HOOKS, DefaultScope

    for scope in ('mmdet', 'mmpretrain', 'mmengine'):
        with DefaultScope.overwrite_default_scope(scope):
            assert isinstance(HOOKS.build(dict(type='mmccd.CheckpointHook')), CheckpointHook)
            assert type(HOOKS.build(dict(type='mmengine.CheckpointHook'))) is MMEngineCheckpointHook
