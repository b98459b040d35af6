"""Configs that name classes, or whole paths of them, and files that are no configs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

import mmccd
from mmccd.cli.own_config import read_base
from mmccd.configs import config_name, load_config, with_names
from mmccd.errors import UserError
from mmccd.models.build import build_model

NEW = """
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmpretrain.datasets import LoadImageFromFile, PackInputs
from mmcv.transforms import Resize
from mmpretrain.models import CrossEntropyLoss, GlobalAveragePooling, ImageClassifier, LinearClsHead
from mmengine.optim import MultiStepLR
from torch.optim import SGD

from mmccd.models import CCD, AttentionResNet

with read_base():
    from .part import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=AttentionResNet, depth=18, out_indices=(3,), attention=dict(type=CCD)),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=10, in_channels=512, loss=dict(type=CrossEntropyLoss)),
)
pipeline = [dict(type=LoadImageFromFile), dict(type=Resize, scale=(32, 32)), dict(type=PackInputs)]
train_dataloader = dict(batch_size=2, sampler=dict(type=DefaultSampler, shuffle=True))
optim_wrapper.update(dict(optimizer=dict(type=SGD, lr=0.1)))
param_scheduler = [dict(type=MultiStepLR, milestones=[1])]
"""


@pytest.fixture
def new(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path('part.py').write_text(
        'from mmengine.optim import OptimWrapper\n\ndefault_scope = None\noptim_wrapper = dict(type=OptimWrapper)\n'
    )
    Path('new.py').write_text(NEW)
    return 'new.py'


def types(value: object) -> list:
    if isinstance(value, dict):
        own = [value['type']] if 'type' in value else []
        return own + [t for v in value.values() for t in types(v)]
    return [t for v in value for t in types(v)] if isinstance(value, (list, tuple)) else []


def test_new_style(new):
    """Classes become the names of the registry, and the model's scope the default one; the model is the same."""
    cfg = load_config(new, {'model.backbone.depth': 34})
    assert cfg.default_scope == 'mmpretrain'
    assert types(cfg.model.to_dict()) == [
        'ImageClassifier',
        'mmccd.AttentionResNet',
        'mmccd.CCD',
        'GlobalAveragePooling',
        'LinearClsHead',
        'CrossEntropyLoss',
    ]
    assert [t['type'] for t in cfg.pipeline] == ['LoadImageFromFile', 'Resize', 'PackInputs']
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.optimizer.type) == ('OptimWrapper', 'SGD')
    assert (cfg.param_scheduler[0].type, cfg.train_dataloader.sampler.type) == ('MultiStepLR', 'DefaultSampler')
    assert cfg.model.backbone.depth == 34
    model = build_model(cfg)
    assert model.backbone.layer2[3].ccd.scale.shape == (64,)
    dumped = Config.fromstring(cfg.pretty_text, '.py')
    assert dumped.to_dict() == cfg.to_dict()
    assert with_names(cfg) is cfg  # nothing is left to name


def test_dump_of_the_new_style(new):
    """As other tools leave it beside their checkpoints: whole paths of classes, and no scope."""
    whole = Config.fromfile(new)
    assert whole.to_dict()['model']['backbone']['type'].startswith('mmccd.models.')
    whole.dump('dumped.py')
    assert "type='mmpretrain.models." in Path('dumped.py').read_text()
    dumped, cfg = load_config('dumped.py'), load_config(new)
    assert dumped.default_scope == 'mmpretrain'
    assert sorted(types(dumped.to_dict())) == sorted(types(cfg.to_dict()))  # a dump is in alphabetical order


def test_classes_in_a_config_from_python():
    """As init_model is given one."""
    cfg = mmccd.get_config('ccd_r18_digits')
    cfg.model.head.type = MODELS.get('mmpretrain.LinearClsHead')
    named = with_names(cfg)
    assert named.model.head.type == 'LinearClsHead'
    assert named.filename == cfg.filename
    model = mmccd.init_model(cfg, device='cpu')
    assert type(model.head).__name__ == 'LinearClsHead'


@pytest.mark.parametrize(
    ('name', 'text', 'rule'),
    [
        ('x.py', 'a = b', r"cannot be read: NameError: name 'b' is not defined \(line 1\)$"),
        ('x.py', "a = 1\nraise RuntimeError('no')", r'cannot be read: RuntimeError: no \(line 2\)$'),
        ('x.py', "custom_imports = dict(imports=['no_such'])", r"cannot be read: ImportError: .*'?no_such'?"),
        ('x.py', "_base_ = 'mmdet::retinanet/no.py'", r'^config .* cannot be (read|found): '),
        ('x.py', "_base_ = 'part.p'", r'cannot be read: '),
        ('x.py', "_base_ = ['near.py']", r"did you mean '.*nea\.py'\?$"),
        ('x.py', "_base_ = 'mmccd::retinanet_ccd_r18_fpn_digit'", r"did you mean 'mmccd::retinanet_ccd_r18_fpn_digits"),
        ('x.txt', 'a = 1', r'cannot be read: OSError: Only py/yml/yaml/json'),
        ('x.pth', '\x80\x02', r'cannot be read: OSError: Only'),
        ('x.json', '[1]', r'cannot be read: '),
        ('x.json', '{', r'cannot be read: '),
        ('x.yaml', 'a: [', r'cannot be read: '),
    ],
)
def test_what_is_no_config(tmp_path, monkeypatch, name, text, rule):
    """One line, for whatever its code, or its reader, raises."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    Path('nea.py').write_text('')
    with pytest.raises(UserError, match=rule) as e:
        load_config(name)
    assert len(str(e.value).splitlines()) <= 2
    assert name in str(e.value)


def test_a_folder_and_a_package(tmp_path):
    with pytest.raises(UserError, match=rf'^config {str(tmp_path)!r} is a folder$'):
        load_config(str(tmp_path))
    assert load_config('mmccd::ccd_r18_digits.py').to_dict() == mmccd.get_config('ccd_r18_digits').to_dict()
    assert load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model.backbone.depth == 18
    with pytest.raises(
        UserError, match=r"^config 'mmccd::ccd_r18_digit' is none of .*; did you mean 'mmccd::ccd_r18_digits\.py"
    ):
        load_config('mmccd::ccd_r18_digit')
    with pytest.raises(UserError, match=r"^config 'mmdet::no/such\.py' cannot be found"):
        load_config('mmdet::no/such.py')


def test_own_bases_beside_others(tmp_path, monkeypatch):
    """In a list, with one of MMDetection and a file; a mistake in any of them is named with what was meant."""
    monkeypatch.chdir(tmp_path)
    Path('mine.py').write_text('max_epochs = 7')
    bases = ['mmdet::_base_/models/retinanet_r50_fpn.py', 'mmccd::_base_/datasets/digits_det.py', './mine.py']
    Path('x.py').write_text(f'_base_ = {bases}\ntrain_cfg = dict(max_epochs=_base_.max_epochs)')
    cfg = load_config('x.py')
    assert (cfg.model.type, cfg.train_cfg.max_epochs) == ('RetinaNet', 7)
    assert cfg.train_dataloader.dataset.data_root == 'data/digits/det/'
    for wrong, right in (
        ('mmccd::_base_/datasets/digit_det.py', 'mmccd::_base_/datasets/digits_det.py'),
        ('mmccd::retinanet_ccd_r18_fpn_digit.py', 'mmccd::retinanet_ccd_r18_fpn_digits.py'),
        ('mmdet::_base_/schedules/schedule_1.py', 'mmdet::_base_/schedules/schedule_1x.py'),
        ('mmpretrain::_base_/models/resnet5.py', 'mmpretrain::_base_/models/resnet50.py'),
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coc.py', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'),
    ):
        Path('x.py').write_text(f'_base_ = {[*bases, wrong]}')
        with pytest.raises(UserError, match=rf'did you mean .*{re.escape(repr(right))}') as e:
            load_config('x.py')
        assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(
    'path',
    ['configs/ccd_r18_digits.py', 'mmccd::ccd_r18_digits.py', 'mmccd::ccd_r18_digits', 'mmdet::a/ccd_r18_digits'],
)
def test_work_folder(path):
    """``::`` is no part of a name: on Windows, no folder can be called so."""
    assert config_name(path) == 'ccd_r18_digits'


def test_own_configs_by_the_name_of_a_base():
    """As in ``_base_``, wherever a name is taken."""
    assert mmccd.get_config('mmccd::ccd_r18_digits.py').filename == mmccd.get_config('ccd_r18_digits').filename
    assert read_base('mmccd::ccd_r18_digits', 'mmpretrain').model.backbone.depth == 18
    with pytest.raises(UserError, match=r"is called 'mmccd::ccd_r18_digit'; did you mean 'ccd_r18_digits'"):
        mmccd.get_config('mmccd::ccd_r18_digit')


@pytest.mark.long
def test_own_bases_in_a_script(tmp_path):
    """mmengine's own reader knows them once mmccd.configs is imported."""
    (tmp_path / 'x.py').write_text("_base_ = 'mmccd::ccd_r18_digits.py'")
    code = (
        "import mmccd.configs\nfrom mmengine.config import Config\nprint(Config.fromfile('x.py').model.backbone.depth)"
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, text=True, capture_output=True, check=True)
    assert done.stdout == '18\n'


@pytest.mark.parametrize(
    ('option', 'value', 'stored'),
    [
        ('p.0.scale', [128, 128], (128, 128)),  # 128,128 on the command line
        ('p.1.scale', [128, 128], (128, 128)),
        ('p.1.scale', 64, 64),
        ('p.2.scales', [[1, 2], [3, 4]], [(1, 2), (3, 4)]),
        ('p.0.crop_size', [8, 8], (8, 8)),  # not there before
        ('mean', [1, 2], [1, 2]),
        ('pipeline.0.pair', [1, 2], (1, 2)),  # a tuple before
        ('pair', [1, 2], [1, 2]),
        ('sizes.scale', [1, 2], [1, 2]),  # a list before
    ],
)
def test_tuples_in_options(tmp_path, monkeypatch, option, value, stored):
    """The command line has lists alone; what reads sizes of images takes tuples."""
    monkeypatch.chdir(tmp_path)
    Path('c.py').write_text(
        'test_dataloader = dict(p=[dict(scale=(1, 1)), dict(scale=32), dict(scales=[(1, 1)])],\n'
        '    mean=[0], pair=(0, 0), pipeline=[dict(pair=(0, 0))],\n'
        '    sizes=dict(scale=[3, 3]))'
    )
    cfg = load_config('c.py', {f'test_dataloader.{option}': value})
    found = cfg.test_dataloader
    for name in option.split('.'):
        found = found[int(name) if name.isdecimal() else name]
    assert (found, type(found)) == (stored, type(stored))


def test_sizes_that_are_words(tmp_path):
    (tmp_path / 'c.py').write_text('test_dataloader = dict(scale=(1, 1))')
    rule = re.escape("--cfg-options test_dataloader.scale: must be a number, or numbers as 128,128; got '128x128'")
    with pytest.raises(UserError, match=rule):
        load_config(str(tmp_path / 'c.py'), {'test_dataloader.scale': '128x128'})


def test_tensors_of_a_new_style_model(new):
    """The same names and shapes as by mmengine's own way."""
    ours = build_model(load_config(new)).state_dict()
    with torch.device('meta'):
        theirs = MODELS.build(Config.fromfile(new).model).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
