"""What --resume can continue; all else is one sentence that says what has changed and what to do."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmccd.checkpoints.handover import OpenedCheckpoint
from mmccd.cli.resuming import check_resumed
from mmccd.engine.hooks.checkpoint import recipe_of
from mmccd.errors import UserError

LINEAR, STEPS = dict(type='LinearLR', start_factor=0.1), dict(type='MultiStepLR', milestones=[1])


def config(**changes) -> Config:
    cfg = dict(
        model=dict(type='X'),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        param_scheduler=[LINEAR, STEPS],
        train_cfg=dict(by_epoch=True, max_epochs=2),
    )
    return Config({**cfg, **changes})


def net(width: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))


def checkpoint(cfg: Config, model: nn.Module, ours: bool = True, **changes) -> OpenedCheckpoint:
    """What a training with this config saves after an epoch."""
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    wrapper.update_params(model(torch.rand(2, 3)).sum())
    content = dict(
        state_dict=model.state_dict(),
        meta=dict(epoch=1, iter=5, cfg=cfg.pretty_text),
        message_hub={},
        optimizer=wrapper.state_dict(),
        param_schedulers=[{}] * len(cfg.param_scheduler),
    )
    if ours:
        content['resume'] = dict(course=recipe_of(cfg))
    return OpenedCheckpoint('e.pth', {**content, **changes})


ADAM, ADAMW = (dict(type='OptimWrapper', optimizer=dict(type=name, lr=0.1)) for name in ('Adam', 'AdamW'))
GROUPS = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)


@pytest.mark.parametrize('ours', [True, False])
def test_what_continues(ours):
    cfg, model = config(), net()
    check_resumed(cfg, model, checkpoint(cfg, model, ours))
    # Options take the checkpoint's values; the hook says so.
    other = config(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.5, momentum=0.1)))
    check_resumed(other, model, checkpoint(cfg, model, ours))
    check_resumed(config(param_scheduler=[LINEAR, dict(STEPS, milestones=[3])]), model, checkpoint(cfg, model, ours))
    # Mixed precision before: the loss scaler's state is left out.
    saved = checkpoint(cfg, model, ours)
    saved.content['optimizer']['loss_scaler'] = dict(scale=1.0)
    check_resumed(cfg, model, saved)
    build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper)).load_state_dict(saved.content['optimizer'])


@pytest.mark.parametrize('ours', [True, False])
@pytest.mark.parametrize(
    ('then', 'now', 'rule'),
    [
        (
            {},
            dict(optim_wrapper=ADAMW),
            "has the state of SGD, and the config has optim_wrapper.optimizer.type='AdamW'",
        ),
        (dict(optim_wrapper=ADAM), {}, "has the state of Adam, and the config has optim_wrapper.optimizer.type='SGD'"),
        (
            dict(optim_wrapper=ADAM),
            dict(optim_wrapper=ADAMW),
            'has the state of Adam, and the config has optim_wrapper.o',
        ),
        (
            dict(optim_wrapper=GROUPS),
            {},
            'an optimizer of 4 parameter groups with 4 tensors, and the config makes 1 parameter group with 4 tens',
        ),
        (
            {},
            dict(param_scheduler=[STEPS]),
            'and the config has MultiStepLR: set param_scheduler back, or start another',
        ),
        # mmengine would leave the schedule out, or begin it again.
        ({}, dict(param_scheduler=None), ', and the config has none: set param_scheduler back, or start another'),
        ({}, dict(param_scheduler=[]), ', and the config has none: set param_scheduler back, or start another'),
        (
            dict(param_scheduler=[]),
            {},
            'has no state of a schedule, and the config has LinearLR, MultiStepLR, which would begin again: set ',
        ),
    ],
)
def test_what_has_changed(ours, then, now, rule):
    model = net()
    saved = checkpoint(config(**then), model, ours)
    with pytest.raises(UserError) as e:
        check_resumed(config(**now), model, saved)
    text = str(e.value)
    assert text.startswith('checkpoint e.pth has ')
    assert rule in text
    assert text.endswith('start another training from its weights, without --resume: --cfg-options load_from=PATH')
    assert '\n' not in text


def test_other_schedules():
    """Of the same number: only mmccd's checkpoints say of which kind they are."""
    model = net()
    cosine = config(param_scheduler=[LINEAR, dict(type='CosineAnnealingLR', T_max=2)])
    with pytest.raises(
        UserError, match=r'has the schedule LinearLR, MultiStepLR, and the config has LinearLR, CosineA'
    ):
        check_resumed(cosine, model, checkpoint(config(), model))


def test_average_of_the_weights():
    """Its state dict has the average: without the hook, that would be trained with the optimizer of other weights."""
    cfg, model = config(), net()
    saved = checkpoint(cfg, model, ema_state_dict={})
    with pytest.raises(
        UserError, match=r'^checkpoint e\.pth has an average of the weights \(EMAHook\), and the config'
    ):
        check_resumed(cfg, model, saved)
    check_resumed(config(custom_hooks=[dict(type='EMAHook')]), model, saved)


def test_other_model():
    cfg = config()
    saved = checkpoint(cfg, net(3))
    with pytest.raises(UserError) as e:
        check_resumed(cfg, net(), saved)
    lines = str(e.value).splitlines()
    assert lines[0] == 'checkpoint e.pth does not fit the config, nothing was done:'
    assert lines[1].startswith('  size mismatch of 6 tensors: 0.weight (3, 3) in the checkpoint, (2, 3) in the model')
    assert lines[2] == ('To start another training from its weights, without --resume: --cfg-options load_from=PATH')


@pytest.mark.parametrize(
    ('drop', 'has'),
    [(['optimizer'], 'no optimizer, as the best and published ones'), (['meta'], 'nothing of a training but weights')],
)
def test_weights_alone(drop, has):
    cfg, model = config(), net()
    saved = checkpoint(cfg, model)
    for name in drop:
        del saved.content[name]
    with pytest.raises(UserError, match=rf'^checkpoint e\.pth has {has}: it cannot be resumed from\. Name an epoch_N'):
        check_resumed(cfg, model, saved)


def test_schedules_that_were_not_saved():
    """``save_param_scheduler=False``: the schedule would begin again, with the warm-up."""
    cfg, model = config(), net()
    saved = checkpoint(cfg, model)
    del saved.content['param_schedulers']
    with pytest.raises(UserError, match='which would begin again: set param_scheduler=None to keep the learning rate'):
        check_resumed(cfg, model, saved)
    check_resumed(config(param_scheduler=None), model, saved)


def test_several_optimizers_and_another_runner():
    """mmengine fails with KeyError."""
    cfg, model = config(), net()
    saved = checkpoint(cfg, model)
    one = saved.content['optimizer']
    saved.content['optimizer'] = dict(generator=one, critic=one)
    with pytest.raises(UserError, match=r'e\.pth has several optimizers, and the config one: set optim_wrapper back'):
        check_resumed(cfg, model, saved)
    saved.content['optim_wrapper'] = saved.content.pop('optimizer')
    with pytest.raises(UserError, match=r"e\.pth was saved with runner_type='FlexibleRunner': set it back, or start"):
        check_resumed(cfg, model, saved)


def test_a_config_in_the_checkpoint_is_not_run():
    """mmengine reads ``meta['config']`` as a config, which is code."""
    cfg, model = config(), net()
    saved = checkpoint(cfg, model)
    saved.content['meta']['config'] = "raise RuntimeError('run')"
    check_resumed(cfg, model, saved)
    assert 'config' not in saved.content['meta']


def test_nothing_left_to_train(capsys):
    cfg, model = config(train_cfg=dict(max_epochs=1)), net()
    check_resumed(cfg, model, checkpoint(cfg, model))
    assert capsys.readouterr().out == (
        '--resume: e.pth has 1 of 1 epochs, nothing is left to train; for more, set train_cfg.max_epochs\n'
    )
    cfg = config(train_cfg=dict(by_epoch=False, max_iters=5))
    check_resumed(cfg, model, checkpoint(cfg, model))
    assert capsys.readouterr().out == (
        '--resume: e.pth has 5 of 5 iterations, nothing is left to train; for more, set train_cfg.max_iters\n'
    )
