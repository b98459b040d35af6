"""Training by the fast operator is training by the textbook's."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import mmccd.models.layers.ccd as layer
from mmccd.ops import ccd_reference
from mmccd.ops.backends import affine

pytestmark = pytest.mark.long

STEPS = 50


class Losses(Hook):
    """Notes the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.values.append(outputs['loss'].item())


def train(root, work_dir) -> list[float]:
    """Losses of the demo's detector, from random weights, over the first steps."""
    cfg = Config.fromfile(root / 'configs/retinanet_ccd_r18_fpn_digits.py')
    cfg.update(work_dir=str(work_dir), log_level='ERROR', val_dataloader=None, val_evaluator=None, val_cfg=None)
    cfg.train_cfg = dict(by_epoch=False, max_iters=STEPS)
    cfg.default_hooks.checkpoint = None
    cfg.model.backbone.init_cfg = None
    cfg.train_dataloader.update(
        batch_size=2, num_workers=0, persistent_workers=False, sampler=dict(type='InfiniteSampler', shuffle=True)
    )
    runner = Runner.from_cfg(cfg)
    losses = Losses()
    runner.register_hook(losses)
    runner.train()
    return losses.values


def textbook(x, residual, scale, bias, options, weight=None, shift=None, overwrite=False, norm=None):
    assert norm is None  # for inference
    y = ccd_reference(affine(x, weight, shift), scale, bias, *options)
    return y if residual is None else torch.relu(y + residual)


def test_fast_and_reference(root, workplace, monkeypatch):
    """50 steps from one seed: losses differ as little as those of the reference do from its own, its inputs rounded.

    Training makes differences grow, now more, now less, hence three controls.
    """
    fast = train(root, workplace / 'fast')
    monkeypatch.setattr(layer, 'ccd_with_options', textbook)
    reference = train(root, workplace / 'reference')

    def rounded(x, *rest, **more):
        return textbook(x + x * (torch.rand(x.shape, generator=rng).round() * 2 - 1) * one_ulp, *rest, **more)

    one_ulp = torch.finfo(torch.float32).eps
    monkeypatch.setattr(layer, 'ccd_with_options', rounded)
    controls = []
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        controls.append(train(root, workplace / f'control_{seed}'))
    assert len(fast) == STEPS
    assert reference[-1] < 0.8 * reference[0]  # it does train

    def furthest(losses: list[float], steps: int) -> float:
        return max(abs(a / b - 1) for a, b in zip(losses[:steps], reference))

    assert furthest(fast, 3) < 1e-5
    assert furthest(fast, STEPS) < 2 * max(furthest(control, STEPS) for control in controls)
