"""Building a model out of a config."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config

from mmccd.errors import UserError
from mmccd.models.build import build_model


def config(**backbone: object) -> Config:
    return Config(dict(default_scope='mmpretrain', model=dict(type='ImageClassifier', backbone=dict(backbone))))


@pytest.mark.parametrize(
    'backbone', [dict(type='ResNet', depth=18), dict(type='VisionTransformer', arch='deit-tiny', drop_path_rate=0.1)]
)
def test_networks_that_need_numbers_while_they_are_built(backbone):
    """MMPretrain's stock backbones: ``[x.item() for x in torch.linspace(...)]`` has none on the meta device."""
    model = build_model(config(**backbone))
    assert {p.device.type for p in model.parameters()} == {'meta'}
    shapes = {k: v.shape for k, v in build_model(config(**backbone), 'cpu').state_dict().items()}
    assert {k: v.shape for k, v in model.state_dict().items()} == shapes


def test_other_runtime_errors_stay(monkeypatch):
    def fail(model: object) -> None:
        raise RuntimeError('out of memory')

    monkeypatch.setattr('mmccd.models.build.MODELS.build', fail)
    with pytest.raises(RuntimeError, match='out of memory'):
        build_model(config(type='ResNet', depth=18))


@pytest.mark.parametrize(
    ('backbone', 'rule'),
    [
        (dict(type='ResNet'), "missing 1 required positional argument: 'depth'"),
        (dict(type='ResNet', depht=18, depth=18), "unexpected keyword argument 'depht'"),
    ],
)
def test_arguments_that_do_not_fit(backbone, rule):
    with pytest.raises(UserError, match=f'^the model of the config cannot be built: .*{rule}'):
        build_model(config(**backbone))


def test_teacher_whose_config_is_not_there():
    """MMDetection's own configs name it relative to a checkout."""
    part = dict(type='ResNet', depth=18)
    teacher = dict(type='KnowledgeDistillationSingleStageDetector', teacher_config='configs/gfl/gone.py', backbone=part)
    head = dict(type='RetinaHead', num_classes=1, in_channels=512)
    cfg = Config(dict(default_scope='mmdet', model=dict(teacher, neck=None, bbox_head=head)))
    with pytest.raises(
        UserError, match=r'^the model of the config cannot be built: .*configs/gfl/gone\.py does not exist$'
    ):
        build_model(cfg)


def test_the_config_stays():
    cfg = config(type='ResNet', depth=18)
    before = cfg.to_dict()
    with torch.device('cpu'):
        build_model(cfg)
    assert cfg.to_dict() == before
