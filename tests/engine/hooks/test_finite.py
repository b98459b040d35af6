"""Numbers that go wrong stop the training before they spoil anything."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub

from mmccd.checkpoints.resume import newest_checkpoint
from mmccd.engine.hooks.finite import CheckFiniteHook, NonFiniteError, _finite


def spoil_gradient(value):
    """In the iteration that begins, one entry of one gradient becomes ``value``."""

    def spoil(runner):
        weight = runner.model.fc1.weight
        handle = weight.register_hook(
            lambda g: (handle.remove(), g.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(value)))[1]
        )

    return spoil


def report_of(tmp_path):
    return json.loads((tmp_path / 'work' / 'nonfinite' / 'rank_0.json').read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_gradient(make_runner, tmp_path, value):
    """The parameters are as before; the report has what is needed to look."""
    runner = make_runner()
    before = {}

    def remember(r):
        before.update({k: v.clone() for k, v in r.model.named_parameters()})
        spoil_gradient(value)(r)

    runner.log.at['iter', 7] = remember
    with pytest.raises(NonFiniteError) as caught:
        runner.train()
    assert all(torch.equal(before[k], v) for k, v in runner.model.named_parameters())
    report = report_of(tmp_path)
    assert (report['found'], report['first'], report['epoch'], report['iteration']) == ('gradient', 'fc1.weight', 2, 8)
    assert report['last_checkpoint'] == str(tmp_path / 'work' / 'epoch_1.pth')
    assert set(report['losses']) == {'loss_fit', 'loss_size'}
    assert report['learning_rates']['lr'] == [pytest.approx(0.05 * 0.8)]
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        'a gradient is NaN or infinite in epoch 2, iteration 8, first in fc1.weight. '
        'The parameters are as they were before this iteration.'
    )
    assert any(line.startswith('Likely causes') for line in lines)
    assert str(tmp_path / 'work' / 'nonfinite' / 'rank_0.json') in str(caught.value)


def test_loss_between_two_looks(make_runner, tmp_path):
    """Gradients are looked at once in 100 iterations: the loss of the next iteration tells, and nothing is saved."""
    runner = make_runner(finite=dict(interval=100))
    runner.log.at['iter', 7] = spoil_gradient(math.nan)
    with pytest.raises(NonFiniteError, match='a loss is NaN or infinite in epoch 2, iteration 9'):
        runner.train()
    report = report_of(tmp_path)
    assert report['first'] == 'fc1.weight'
    assert report['losses']['loss_fit'] == ['nan']  # a text: JSON has no such number
    assert newest_checkpoint(str(tmp_path / 'work'))[0] == str(tmp_path / 'work' / 'epoch_1.pth')


def test_no_checkpoint_of_spoilt_parameters(make_runner, tmp_path):
    """Spoilt in an epoch's last iteration, unseen until the checkpoint: the one before it stays the newest."""
    runner = make_runner(finite=dict(interval=100), checkpoint=dict(max_keep_ckpts=1))
    runner.log.at['iter', 9] = spoil_gradient(math.nan)
    with pytest.raises(NonFiniteError, match=r'a parameter is NaN or infinite .* first in module\.fc1'):
        runner.train()
    assert [p.name for p in (tmp_path / 'work').glob('epoch*.pth')] == ['epoch_1.pth']


def test_images_of_the_batch(tmp_path):
    """Ids and paths, from detection's data samples."""
    samples = [SimpleNamespace(metainfo=dict(img_id=i, img_path=f'{i}.jpg', scale=1)) for i in (4, 7)]
    runner = SimpleNamespace(
        epoch=0,
        iter=0,
        seed=3,
        work_dir=str(tmp_path / 'work'),
        message_hub=MessageHub.get_instance('images'),
        optim_wrapper=SimpleNamespace(get_lr=lambda: dict(lr=[0.1])),
    )
    hook = CheckFiniteHook()
    hook.before_train_iter(runner, 0, dict(inputs=[], data_samples=samples))
    hook._losses = dict(loss_cls=torch.tensor([math.inf]), loss_bbox=[torch.tensor(1.0), torch.tensor(math.nan)])
    with pytest.raises(NonFiniteError) as caught:
        hook._stop(runner, 'loss', {}, 'x')
    assert '  images: 4.jpg, 7.jpg' in str(caught.value).splitlines()
    assert '  loss_bbox: [1.0, nan]' in str(caught.value).splitlines()
    assert report_of(tmp_path)['images'] == [dict(img_id=4, img_path='4.jpg'), dict(img_id=7, img_path='7.jpg')]


class Scaler:
    """A loss scaler in half precision, which leaves out steps with overflowing gradients."""

    def __init__(self, scale):
        self.scale = scale

    def is_enabled(self):
        return True

    def get_scale(self):
        return self.scale


@pytest.mark.parametrize(('scale', 'stops'), [(2.0**16, False), (2.0**-10, False), (2.0**-11, True)])
def test_steps_that_a_scaler_leaves_out(make_runner, tmp_path, scale, stops):
    """An overflow is the scaler's business, until its scale has come down to nothing."""
    runner = make_runner(epochs=1)
    hook = next(h for h in runner.hooks if isinstance(h, CheckFiniteHook))
    original = hook.before_train

    def with_scaler(r):
        r.optim_wrapper.loss_scaler = Scaler(scale)
        original(r)

    hook.before_train = with_scaler
    if stops:
        with pytest.raises(NonFiniteError, match='The loss scaler has left out one step after another'):
            runner.train()
    else:
        runner.train()
        assert not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_finite(dtype):
    """Large numbers, whose squares overflow, are numbers; empty tensors hold nothing wrong."""
    big = torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)
    assert _finite([])
    assert _finite([big, torch.zeros(0, dtype=dtype)])
    for value in (math.nan, math.inf, -math.inf):
        broken = big.clone()
        broken[2, 1] = value
        assert not _finite([big, broken])


def test_interval():
    with pytest.raises(ValueError, match='interval must be at least 1 or None, got 0'):
        CheckFiniteHook(interval=0)


def test_nothing_is_left_on_model_and_optimizer(make_runner):
    runner = make_runner(epochs=1)
    runner.train()
    assert not runner.model._forward_hooks
    assert not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks
