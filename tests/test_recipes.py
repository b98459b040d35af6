"""The authors' recipes, read off the objects that a runner builds, not off the text of the configs."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATA_SAMPLERS, DATASETS, PARAM_SCHEDULERS, DefaultScope

CONFIGS = {p.stem: p for p in sorted((Path(__file__).parents[1] / 'configs').glob('*.py'))}
IMAGENET = [n for n in CONFIGS if n.endswith('_8xb32_in1k')]
# Those of names like ema-1x have other recipes (test_modern_recipes.py; fsdp-1x clips no gradients); 24e is an old
# name of the same.
COCO = [n for n in CONFIGS if re.match('retinanet|cascade_rcnn', n) and n.endswith('_coco')]
COCO = [n for n in COCO if '-1x_' not in n and '_24e_' not in n]
ITERATIONS = 600  # of an epoch, here: more than the warm-up has


class Net(torch.nn.Module):
    """Enough of a model to build an optimizer on: a convolution, a norm, a gate."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)
        self.bn = torch.nn.BatchNorm2d(4)
        self.scale = torch.nn.Parameter(torch.zeros(4))


class Images:
    """A dataset of sizes alone: wide, then tall."""

    metainfo = {}

    def __len__(self):
        return 12

    def get_data_info(self, i):
        return dict(width=640 if i % 3 else 480, height=480 if i % 3 else 640)


def load(name):
    return Config.fromfile(CONFIGS[name])


def built(cfg):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return build_optim_wrapper(Net(), copy.deepcopy(cfg.optim_wrapper))


def learning_rates(cfg, wrapper):
    """Learning rate of every iteration of every epoch, as the runner steps the schedulers."""
    given = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
    schedulers = [PARAM_SCHEDULERS.build(dict(s, optimizer=wrapper)) for s in given]
    epochs = []
    for _ in range(cfg.train_cfg.max_epochs):
        rates = []
        by_iteration = [s for s in schedulers if not s.by_epoch]
        for _ in range(ITERATIONS if by_iteration else 1):
            rates.append(wrapper.param_groups[0]['lr'])
            wrapper.optimizer.step()
            for s in by_iteration:
                s.step()
        epochs.append(np.broadcast_to(rates, ITERATIONS))
        for s in schedulers:
            if s.by_epoch:
                s.step()
    return epochs


def pipeline(loader):
    with DefaultScope.overwrite_default_scope('mmdet' if 'Coco' in loader.dataset.type else 'mmpretrain'):
        return DATASETS.build(dict(loader.dataset, lazy_init=True)).pipeline.transforms


def check_optimizer(wrapper, lr):
    (group,) = wrapper.param_groups  # one: decay on norms and gates too
    assert isinstance(wrapper.optimizer, torch.optim.SGD)
    assert len(group['params']) == 5
    assert (group['lr'], group['momentum'], group['weight_decay']) == (lr, 0.9, 1e-4)
    assert group['nesterov'] is False


@pytest.mark.parametrize('name', IMAGENET)
def test_imagenet(name):
    cfg = load(name)
    wrapper = built(cfg)
    check_optimizer(wrapper, 0.1)
    assert not wrapper.clip_grad_kwargs
    rates = learning_rates(cfg, wrapper)
    assert len(rates) == 100
    for epoch, of_epoch in enumerate(rates):
        expected = 0.1 * 0.1 ** sum(epoch >= m for m in (30, 60, 90))
        np.testing.assert_allclose(of_epoch, expected, rtol=1e-6)  # no warm-up
    assert cfg.train_dataloader.batch_size == 32
    sampler = DATA_SAMPLERS.build(dict(cfg.train_dataloader.sampler, dataset=Images()))
    assert isinstance(sampler, DefaultSampler)
    assert sampler.shuffle

    load_image, crop, flip, _ = pipeline(cfg.train_dataloader)
    assert type(load_image).__name__ == 'LoadImageFromFile'
    assert (crop.scale, crop.crop_ratio_range, crop.aspect_ratio_range) == ((224, 224), (0.1, 1.0), (0.8, 1.25))
    assert (flip.prob, flip.direction) == (0.5, 'horizontal')
    _, resize, centre, _ = pipeline(cfg.val_dataloader)
    assert (resize.scale, resize.edge) == (256, 'short')
    assert centre.crop_size == (224, 224)
    pre = cfg.model.data_preprocessor
    assert pre.to_rgb
    assert [m / 255 for m in pre.mean] == pytest.approx([0.485, 0.456, 0.406])
    assert [s / 255 for s in pre.std] == pytest.approx([0.229, 0.224, 0.225])
    assert cfg.model.backbone.zero_init_residual is False
    assert cfg.model.head.loss.type == 'CrossEntropyLoss'


@pytest.mark.parametrize('name', COCO)
def test_coco(name):
    cfg = load(name)
    lr = 0.01 if name.startswith('retinanet') else 0.02
    wrapper = built(cfg)
    check_optimizer(wrapper, lr)
    assert wrapper.clip_func is torch.nn.utils.clip_grad_norm_
    assert wrapper.clip_grad_kwargs == dict(max_norm=35, norm_type=2)
    rates = learning_rates(cfg, wrapper)
    epochs, milestones = (12, (8, 11)) if '_1x_' in name else (24, (16, 22))
    assert len(rates) == epochs
    assert rates[0][0] == pytest.approx(lr / 3)
    np.testing.assert_allclose(rates[0][:500], lr * (1 / 3 + 2 / 3 * np.arange(500) / 499), rtol=1e-2)
    np.testing.assert_allclose(rates[0][500:], lr, rtol=1e-6)
    for epoch, of_epoch in enumerate(rates[1:], 1):
        np.testing.assert_allclose(of_epoch, lr * 0.1 ** sum(epoch >= m for m in milestones), rtol=1e-6)

    assert cfg.train_dataloader.batch_size == 2
    with DefaultScope.overwrite_default_scope('mmdet'):
        sampler = DATA_SAMPLERS.build(dict(cfg.train_dataloader.sampler, dataset=Images()))
        batches = DATA_SAMPLERS.build(dict(cfg.train_dataloader.batch_sampler, sampler=sampler, batch_size=2))
    assert sampler.shuffle
    wide = [[p['width'] > p['height'] for p in (Images().get_data_info(i) for i in b)] for b in batches]
    assert all(len(set(b)) == 1 for b in wide)  # wide with wide, tall with tall

    _, _, resize, flip, _ = pipeline(cfg.train_dataloader)
    assert (resize.scale, resize.keep_ratio, flip.prob) == ((1333, 800), True, 0.5)
    assert pipeline(cfg.val_dataloader)[1].scale == (1333, 800)
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
    backbone = cfg.model.backbone
    assert (backbone.frozen_stages, backbone.norm_eval) == (1, True)
    if name.startswith('retinanet'):
        neck = cfg.model.neck
        assert (neck.start_level, neck.num_outs, neck.add_extra_convs) == (1, 5, 'on_input')  # P3 to P7 from C5
        assert cfg.model.train_cfg.assigner.ignore_iof_thr == -1  # crowd boxes have no effect
    else:
        head, test = cfg.model.roi_head, cfg.model.test_cfg.rcnn
        assert [c.assigner.pos_iou_thr for c in cfg.model.train_cfg.rcnn] == [0.5, 0.6, 0.7]
        assert head.stage_loss_weights == [1, 0.5, 0.25]
        assert (test.score_thr, test.nms.iou_threshold, test.max_per_img) == (0.05, 0.5, 100)
