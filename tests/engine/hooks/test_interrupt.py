"""Signals: saved, ended with the code, continued as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from mmccd.checkpoints.resume import newest_checkpoint
from mmccd.engine.hooks import interrupt
from mmccd.engine.hooks.interrupt import CTRL_C_CODE, EXIT_CODE, Interrupted, _WorkerOutlives

CODES = {signal.SIGTERM: 85, signal.SIGUSR1: 85, signal.SIGINT: 130}


def send(signum):
    return lambda runner: os.kill(os.getpid(), signum)


def interrupt_at(runner, place, number, signum=signal.SIGUSR1):
    runner.log.at[place, number] = send(signum)
    with pytest.raises(Interrupted) as caught:
        runner.train()
    assert caught.value.code == CODES[signum]


@pytest.fixture
def untouched(make_runner, tmp_path):
    runner = make_runner(tmp_path / 'untouched')
    runner.train()
    return tmp_path / 'untouched', runner.log


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('signum', CODES)
def test_within_an_epoch(make_runner, untouched, assert_same, tmp_path, monkeypatch, signum, workers):
    """After the iteration that ran; the rest of the epoch has the samples that it would have had."""
    monkeypatch.setenv('MMCCD_INTERRUPTED', str(tmp_path / 'marker'))
    before = signal.getsignal(signum)
    runner = make_runner(workers=workers)
    interrupt_at(runner, 'iter', 7, signum)
    assert signal.getsignal(signum) is before
    assert (tmp_path / 'marker').read_text() == str(CODES[signum])
    assert sorted(runner.log.batches) == list(range(8))
    path, skipped = newest_checkpoint(str(tmp_path / 'work'))
    assert (path, skipped) == (str(tmp_path / 'work' / 'interrupted.pth'), {})
    content = torch.load(path, weights_only=False)
    assert (content['meta']['epoch'], content['meta']['iter']) == (1, 8)
    resumed = make_runner(resume=path, workers=workers)
    resumed.train()
    assert {**runner.log.batches, **resumed.log.batches} == untouched[1].batches
    assert sorted(resumed.log.batches) == list(range(8, 20))
    assert_same(tmp_path / 'work' / 'epoch_4.pth', untouched[0] / 'epoch_4.pth')
    assert not (tmp_path / 'work' / 'interrupted.pth').exists()
    assert not (tmp_path / 'work' / '.interrupted.pth.sha256').exists()


def test_twice_within_an_epoch(make_runner, untouched, assert_same, tmp_path):
    for at in (6, 7):
        work = tmp_path / 'work'
        path = work / 'interrupted.pth'
        interrupt_at(make_runner(resume=path if path.exists() else None), 'iter', at)
    make_runner(resume=path).train()
    assert_same(work / 'epoch_4.pth', untouched[0] / 'epoch_4.pth')


@pytest.mark.parametrize(('place', 'number', 'epoch'), [('iter', 9, 2), ('val', 2, 2)])
def test_at_an_epochs_end(make_runner, untouched, assert_same, tmp_path, place, number, epoch):
    """In the last iteration or in the validation: the regular checkpoint does, and the validation is made up for."""
    interrupt_at(make_runner(), place, number)
    assert not (tmp_path / 'work' / 'interrupted.pth').exists()
    resumed = make_runner(resume=tmp_path / 'work' / f'epoch_{epoch}.pth')
    resumed.train()
    assert resumed.log.scores == {e: s for e, s in untouched[1].scores.items() if e >= 2}
    assert_same(tmp_path / 'work' / 'epoch_4.pth', untouched[0] / 'epoch_4.pth')


@pytest.mark.parametrize(('place', 'number'), [('iter', 9), ('val', 2)])
def test_at_the_end_of_an_epoch_that_is_not_saved(make_runner, untouched, assert_same, tmp_path, place, number):
    """During validation the model has the EMA's parameters: that is waited for."""
    options = dict(checkpoint=dict(interval=4))
    interrupt_at(make_runner(**options), place, number)
    path = tmp_path / 'work' / 'interrupted.pth'
    content = torch.load(path, weights_only=False)
    assert (content['meta']['epoch'], content['meta']['iter']) == (2, 10)
    make_runner(resume=path, **options).train()
    assert_same(tmp_path / 'work' / 'epoch_4.pth', untouched[0] / 'epoch_4.pth')


def test_gradients_that_are_being_collected_are_used_first(make_runner, tmp_path):
    """Three batches make a step: the signal in the 7th waits for the 9th."""
    runner = make_runner(wrapper=dict(accumulative_counts=3))
    interrupt_at(runner, 'iter', 6)
    assert max(runner.log.batches) == 8


def test_signals_do_what_they_did_after_a_training(make_runner):
    before = [signal.getsignal(s) for s in CODES]
    make_runner(epochs=1).train()
    assert [signal.getsignal(s) for s in CODES] == before


def test_ctrl_c_twice_ends_at_once(make_runner, tmp_path, capfd):
    """Within the iteration, without saving; the first says so."""
    runner = make_runner()

    def twice(runner):
        os.kill(os.getpid(), signal.SIGINT)
        assert capfd.readouterr().err == '\nsaving after this iteration; Ctrl-C again ends at once\n'
        os.kill(os.getpid(), signal.SIGINT)

    runner.log.at['iter', 7] = twice
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert not (tmp_path / 'work' / 'interrupted.pth').exists()
    assert (tmp_path / 'work' / 'epoch_1.pth').exists()


def test_ctrl_c_is_repeated_in_a_group(make_runner, monkeypatch):
    """torchrun passes on what the terminal has sent to its processes as well; all of them save."""
    monkeypatch.setattr(interrupt, 'get_world_size', lambda: 2)
    runner = make_runner()

    def twice(runner):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    runner.log.at['iter', 7] = twice
    with pytest.raises(Interrupted) as caught:
        runner.train()
    assert caught.value.code == CTRL_C_CODE


def test_ignored_ctrl_c_stays_ignored(make_runner):
    """As under nohup, and in a demo, which sends SIGTERM instead."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    runner = make_runner(epochs=2)
    runner.log.at['iter', 3] = send(signal.SIGINT)
    runner.train()
    assert runner.iter == 10
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_ctrl_c_of_another_process_decides_the_code(make_runner, monkeypatch):
    """This one has got SIGTERM: nothing may start the training again."""

    def all_reduce(code, op, group):
        assert (op, code.item()) in (('max', 0), ('max', EXIT_CODE))
        code.fill_(max(code.item(), CTRL_C_CODE if code else 0))

    monkeypatch.setattr(interrupt, 'all_reduce', all_reduce)
    runner = make_runner()
    runner.log.at['iter', 7] = send(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        runner.train()
    assert caught.value.code == CTRL_C_CODE


def test_without_our_checkpoint_hook(make_runner):
    runner = make_runner(epochs=1, checkpoint=dict(type='CheckpointHook'))
    messages = []
    runner.logger.warning = messages.append
    before = signal.getsignal(signal.SIGTERM)
    runner.log.at['iter', 2] = lambda r: messages.append(signal.getsignal(signal.SIGTERM))
    runner.train()
    assert any(str(m).startswith('Ctrl-C, SIGTERM and SIGUSR1 end this training without saving') for m in messages)
    assert before in messages


def test_under_nccl_the_processes_agree_on_the_cpu(make_runner, tmp_path, monkeypatch):
    """Of one process here, whose group is said to be nccl's."""
    used = []
    monkeypatch.setattr(interrupt, 'get_backend', lambda: 'nccl')
    all_reduce = interrupt.all_reduce

    def noted(data, op, group):
        used.append(torch.distributed.get_backend(group))
        all_reduce(data, op, group)

    monkeypatch.setattr(interrupt, 'all_reduce', noted)
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    default = torch.distributed.group.WORLD
    try:
        made = []
        new_group = torch.distributed.new_group
        monkeypatch.setattr(torch.distributed, 'new_group', lambda **k: made.append(new_group(**k)) or made[-1])
        runner = make_runner()
        interrupt_at(runner, 'iter', 7)
        assert len(made) == 1 and made[0] is not default
    finally:
        torch.distributed.destroy_process_group()
    assert used and set(used) == {'gloo'}


def work(ready) -> None:
    """A loader's worker that has plenty to do."""
    _WorkerOutlives(ready.put)(3)
    time.sleep(600)


@pytest.mark.slow
def test_workers_end_with_their_process_only():
    """A worker continues after signals of others, and ends without complaint after SIGTERM of its own process."""
    context = torch.multiprocessing.get_context('fork')
    ready = context.Queue()
    worker = context.Process(target=work, args=(ready,), daemon=True)
    worker.start()
    try:
        assert ready.get(timeout=60) == 3
        for signum in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            subprocess.run([sys.executable, '-c', f'import os; os.kill({worker.pid}, {int(signum)})'], check=True)
            worker.join(0.3)
            assert worker.is_alive()
        worker.terminate()
        worker.join(60)
        assert worker.exitcode == 0
    finally:
        worker.kill()
