"""Recipes beside the authors', read off the objects that a runner builds; test_recipes_run.py runs them."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, MODELS, PARAM_SCHEDULERS, DefaultScope

import mmccd
from mmccd.models import CCD

FOLDER = Path(__file__).parents[1] / 'configs'
EPOCH = 10  # iterations, here


class Net(torch.nn.Module):
    """Enough of a model to build an optimizer on: a convolution, a norm, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 64, 1)
        self.bn = torch.nn.BatchNorm2d(64)
        self.ccd = CCD(64)


def load(name: str) -> Config:
    return Config.fromfile(FOLDER / f'{name}.py')


def optimizer_of(cfg: Config):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return build_optim_wrapper(Net(), copy.deepcopy(cfg.optim_wrapper))


def schedulers_of(cfg: Config, wrapper, epoch: int = EPOCH) -> list:
    given = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
    built = []
    for one in given:
        one = dict(one)
        if one.pop('convert_to_iter_based', False):
            built.append(
                PARAM_SCHEDULERS.get(one.pop('type')).build_iter_from_epoch(
                    **one, optimizer=wrapper, epoch_length=epoch
                )
            )
        else:
            built.append(PARAM_SCHEDULERS.build(dict(one, optimizer=wrapper)))
    return built


def rates(cfg: Config, epoch: int = EPOCH) -> np.ndarray:
    """Learning rate of each iteration, (epochs, iterations of an epoch), as the runner steps the schedulers."""
    wrapper = optimizer_of(cfg)
    schedulers, found = schedulers_of(cfg, wrapper, epoch), []
    wrapper.optimizer.step()  # before the schedulers' first, or PyTorch warns
    for _ in range(cfg.train_cfg.max_epochs):
        for _ in range(epoch):
            found.append(wrapper.param_groups[0]['lr'])
            for s in schedulers:
                if not s.by_epoch:
                    s.step()
        for s in schedulers:
            if s.by_epoch:
                s.step()
    return np.array(found).reshape(-1, epoch)


def validate(cfg: Config, key: str, scores: list[float]) -> list[float]:
    """Learning rate after validations with these scores, one an epoch, without a warm-up."""
    wrapper = optimizer_of(cfg)
    given = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
    cfg.param_scheduler = [s for s in given if 'Plateau' in s.type]
    [scheduler] = [s for s in schedulers_of(cfg, wrapper) if getattr(s, 'need_val_args', False)]
    found = []
    for score in scores:
        scheduler.step()
        scheduler.step({key: score})
        found.append(wrapper.param_groups[0]['lr'])
    return found


def hooks_of(cfg: Config) -> list:
    """The hooks that a recipe adds, without their place in the order."""
    return [HOOKS.build({k: v for k, v in c.items() if k != 'priority'}) for c in cfg.custom_hooks]


def test_cosine_on_imagenet():
    found = rates(load('ccd_r50_8xb32-coslr_in1k'))
    assert found.shape == (100, EPOCH)
    np.testing.assert_allclose(found[0, 0], 0.001, rtol=1e-6)
    assert (np.diff(found[:5].ravel()) > 0).all() and (np.diff(found[5:].ravel()) < 0).all()
    steps = np.arange(95 * EPOCH)
    np.testing.assert_allclose(found[5:].ravel(), 0.05 * (1 + np.cos(np.pi * steps / len(steps))), rtol=0.02, atol=1e-6)


def test_cosine_on_coco():
    found = rates(load('retinanet_ccd_r50_fpn_coslr-1x_coco'), epoch=100)
    assert found.shape == (12, 100)
    np.testing.assert_allclose(found[0, 0], 0.01 / 3, rtol=1e-6)
    half = found[6, 0]
    np.testing.assert_allclose([half, found[-1, -1]], [0.005, 0], rtol=0.02, atol=1e-6)
    assert (np.diff(found.ravel()[500:]) < 0).all()


@pytest.mark.parametrize(
    ('name', 'momentum'), [('ccd_r50_8xb32-ema_in1k', 1e-4), ('retinanet_ccd_r50_fpn_ema-1x_coco', 2e-4)]
)
def test_average_of_the_weights(name, momentum):
    """One step takes the average that much nearer; norms' statistics, and gates, too."""
    cfg, net = load(name), Net()
    [hook] = hooks_of(cfg)
    hook.before_run(SimpleNamespace(model=net))
    net.ccd.scale.data.fill_(1.0)
    net.bn.running_mean.fill_(1.0)
    runner = SimpleNamespace(iter=0, epoch=0)
    hook.after_train_iter(runner, 0)  # the first call copies
    assert hook.ema_model.module.ccd.scale[0] == 1
    net.ccd.scale.data.fill_(2.0)
    net.bn.running_mean.fill_(2.0)
    hook.after_train_iter(runner, 1)
    assert hook.ema_model.module.ccd.scale[0].item() == pytest.approx(1 + momentum, rel=1e-6)
    assert hook.ema_model.module.bn.running_mean[0].item() == pytest.approx(1 + momentum, rel=1e-6)
    plain = load(name.replace('-ema', '').replace('ema-', '')).to_dict()
    assert {k: v for k, v in cfg.to_dict().items() if k != 'custom_hooks'} == plain  # nothing else is different


def test_plateau_on_imagenet():
    """Five validations in a row without 0.1 points more, then a tenth; never below 1e-4."""
    better = [50.0, 60.0, 70.0]
    found = validate(load('ccd_r50_8xb32-plateau_in1k'), 'accuracy/top1', better + [70.05] * 25)
    np.testing.assert_allclose(found[:8], [0.1] * 7 + [0.01], rtol=1e-6)
    np.testing.assert_allclose(found[12], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(found[-1], 1e-4, rtol=1e-6)


def test_plateau_on_coco():
    cfg = load('retinanet_ccd_r50_fpn_plateau-1x_coco')
    assert (cfg.train_cfg.max_epochs, cfg.param_scheduler[0].type, cfg.param_scheduler[0].end) == (24, 'LinearLR', 500)
    found = validate(cfg, 'coco/bbox_mAP', [0.1, 0.2, 0.2005, 0.2004, 0.2003, 0.202])
    np.testing.assert_allclose(found, [0.01] * 4 + [0.001] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ('name', 'plateau', 'key', 'scores', 'ended'),
    [
        ('ccd_r50_8xb32-earlystop_in1k', '8xb32-plateau', 'accuracy/top1', [50.0, 60.0] + [60.05] * 12, 12),
        ('retinanet_ccd_r50_fpn_earlystop-1x_coco', 'plateau-1x', 'coco/bbox_mAP', [0.1, 0.2] + [0.2005] * 12, 8),
    ],
)
def test_early_stopping(name, plateau, key, scores, ended):
    """After ten and six validations in a row that bring next to nothing; else the plateau's recipe."""
    cfg = load(name)
    [hook] = hooks_of(cfg)
    runner = SimpleNamespace(
        train_loop=SimpleNamespace(stop_training=False), logger=SimpleNamespace(info=lambda _: None)
    )
    done = 0
    for score in scores:
        done += 1
        hook.after_val_epoch(runner, {key: score})
        if runner.train_loop.stop_training:
            break
    assert done == ended
    ours = cfg.to_dict()
    ours.pop('custom_hooks')
    other = '8xb32-earlystop' if 'in1k' in name else 'earlystop-1x'
    assert ours == load(name.replace(other, plateau)).to_dict()


def classifier_with(name: str, classes: int = 5):
    """The head and the batch augmentation of a config, for a few classes."""
    from mmpretrain.models import ImageClassifier

    cfg = load(name).model
    cfg.backbone.update(depth=18, base_channels=8, stem_channels=8)
    cfg.backbone.attention.groups = 8
    cfg.head.update(num_classes=classes, in_channels=64)
    cfg.data_preprocessor.num_classes = classes
    if 'num_classes' in cfg.head.loss:
        cfg.head.loss.num_classes = classes
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg)
    assert isinstance(model, ImageClassifier)
    return model


def batch(model, classes: int = 5):
    from mmpretrain.structures import DataSample

    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    return model.data_preprocessor(
        dict(inputs=images, data_samples=[DataSample().set_gt_label(i % classes) for i in range(4)]), training=True
    )


@pytest.mark.parametrize('name', ['ccd_r50_8xb32-mixup-cutmix-lbs_in1k', 'ccd_r50_8xb256-rsb-a3-100e_in1k'])
def test_mixed_images_and_labels(name):
    """Labels are mixed as images are, and the loss is that of the mixed labels, worked out by hand."""
    np.random.seed(0)  # Mixup's and CutMix's shares
    torch.manual_seed(0)
    model = classifier_with(name).train()
    for _ in range(10):
        data = batch(model)
        target = torch.stack([sample.gt_score for sample in data['data_samples']])
        assert target.shape == (4, 5)
        torch.testing.assert_close(target.sum(1), torch.ones(4))
        if (target.max(1).values < 0.9).any():
            break
    assert ((target > 0).sum(1) == 2).any()  # two labels in one
    logits = model.head(model.extract_feat(data['inputs']))
    loss = model.head.loss(model.extract_feat(data['inputs']), data['data_samples'])['loss']
    if 'rsb' in name:  # of each class by itself, summed over the classes
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction='sum') / 4
    else:
        smooth = 0.9 * target + 0.1 / 5
        expected = -(smooth * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_a3():
    """Optimizer, decay, schedule, batch and image sizes of "ResNet strikes back", Table 2, column A3."""
    cfg = load('ccd_r50_8xb256-rsb-a3-100e_in1k')
    wrapper = optimizer_of(cfg)
    assert type(wrapper.optimizer).__name__ == 'Lamb'
    groups = wrapper.optimizer.param_groups  # one for each parameter
    names = [name for name, _ in Net().named_parameters()]
    decay = dict(zip(names, (group['weight_decay'] for group in groups)))
    assert len(names) == len(groups) == 6
    assert {name for name, value in decay.items() if value} == {'conv.weight'}
    assert decay['conv.weight'] == 0.02
    found = rates(cfg)
    np.testing.assert_allclose([found[0, 0], found[5, 0], found[52, 0]], [8e-7, 0.008, 0.004], rtol=0.02)
    assert found[-1, -1] < 1e-5
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (256, 2048)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        train, test = (
            DATASETS.build(dict(cfg[f'{split}_dataloader'].dataset, lazy_init=True)).pipeline.transforms
            for split in ('train', 'val')
        )
    assert [type(t).__name__ for t in train][1:4] == ['RandomResizedCrop', 'RandomFlip', 'RandAugment']
    assert train[1].scale == (160, 160)
    assert (test[1].scale, test[2].crop_size) == (236, (224, 224))
    assert round(224 / 0.95) == 236


@pytest.mark.parametrize('name', mmccd.list_configs('ccd_r50_8xb*-*_in1k') + mmccd.list_configs('*_ccd_*-1x_coco'))
def test_attentions_and_recipes_combine(name):
    """Any attention in any recipe, by one option."""
    cfg = load(name)
    if 'fsdp' not in name:
        cfg.merge_from_dict({'model.backbone.attention.type': 'mmccd.SE'})
    assert cfg.model.backbone.attention.type.startswith('mmccd.')
    assert cfg.default_hooks.checkpoint.type == 'mmccd.CheckpointHook'
    assert cfg.custom_imports.imports == ['mmccd']
