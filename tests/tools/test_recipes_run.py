"""Each recipe beside the authors', trained for two epochs of few small images, and resumed to the last bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmccd
from mmccd.checkpoints.read import read_checkpoint
from mmccd.cli.config_rows import RECIPES, SCHEDULES

CLASSIFIERS = [f'ccd_r50_{name}_in1k' for name in RECIPES]
DETECTORS = [f'retinanet_ccd_r50_fpn_{name}_coco' for name in SCHEDULES if name.endswith('-1x')]
# Small networks, no worker processes; two epochs of four iterations.
COMMON = """
train_cfg = dict(max_epochs=2)
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=1))
"""
CLASSIFIER = """\
_base_ = '{config}'
model = dict(
    backbone=dict(depth=18, base_channels=8, stem_channels=8, attention=dict(groups=8)),
    head=dict(num_classes=2, in_channels=64, topk=(1,)),
    data_preprocessor=dict(num_classes=2),
)
if 'num_classes' in _base_.model.head.loss:
    model['head']['loss'] = dict(num_classes=2)
data = dict(_delete_=True, type='mmccd.CustomDataset', data_root='images', metainfo=dict(classes=('dark', 'light')))
loader = dict(batch_size=4, num_workers=0, persistent_workers=False, pin_memory=False)
train_dataloader = dict(loader, dataset=dict(data, data_prefix='train', pipeline=_base_.train_pipeline))
val_dataloader = dict(loader, dataset=dict(data, data_prefix='val', pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
"""
DETECTOR = """\
_base_ = '{config}'
model = dict(
    backbone=dict(
        depth=18, base_channels=8, stem_channels=8, frozen_stages=-1, attention=dict(groups=8), init_cfg=None
    ),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=8),
    bbox_head=dict(in_channels=8, feat_channels=8, stacked_convs=1),
)
loader = dict(batch_size=1, num_workers=0, persistent_workers=False)
train_dataloader = dict(loader, dataset=dict(filter_cfg=dict(filter_empty_gt=True, min_size=1)))
val_dataloader = dict(loader)
test_dataloader = val_dataloader
"""


@pytest.fixture
def place(tmp_path, monkeypatch, coco) -> Path:
    """The current folder, with data/coco and images/{train,val}/{dark,light}."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 8), ('val', 2)):
        for name, high in (('dark', 100), ('light', 256)):
            folder = tmp_path / 'images' / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, high, (40, 48, 3), dtype=np.uint8)).save(folder / f'{i}.png')
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'coco').symlink_to(coco)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.long
@pytest.mark.parametrize('name', [*CLASSIFIERS, *DETECTORS])
def test_train_and_resume(name, place, run_tool):
    """Without an interruption and with one after the first epoch: the same weights, the same average of them."""
    text = (CLASSIFIER if name in CLASSIFIERS else DETECTOR).format(config=mmccd.config_path(name))
    (place / 'tiny.py').write_text(text + COMMON)
    run_tool('train.py', 'tiny.py', '--work-dir', 'work', cwd=place)
    (place / 'resumed').mkdir()
    shutil.copy(place / 'work' / 'epoch_1.pth', place / 'resumed')
    run_tool('train.py', 'tiny.py', '--work-dir', 'resumed', '--resume', cwd=place)
    first, whole, resumed = (
        read_checkpoint(place / path) for path in ('work/epoch_1.pth', 'work/epoch_2.pth', 'resumed/epoch_2.pth')
    )
    assert same(whole['state_dict'], resumed['state_dict'])
    assert not same(whole['state_dict'], first['state_dict'])
    assert all(t.isfinite().all() for t in whole['state_dict'].values())
    assert ('ema_state_dict' in whole) == ('ema' in name)
    if 'ema' in name:  # the average is what is loaded and tested; what is trained stands beside it
        trained = {k.removeprefix('module.'): v for k, v in whole['ema_state_dict'].items() if k.startswith('module.')}
        assert same(whole['ema_state_dict'], resumed['ema_state_dict'])
        assert trained.keys() == whole['state_dict'].keys() and not same(trained, whole['state_dict'])
    for a, b in zip(whole['param_schedulers'], resumed['param_schedulers']):
        assert {k: a[k] for k in a if k != 'optimizer'} == {k: b[k] for k in b if k != 'optimizer'}
    run_tool('test.py', 'tiny.py', 'resumed/epoch_2.pth', '--work-dir', 'tested', cwd=place)
