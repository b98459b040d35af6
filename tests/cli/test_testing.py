"""What --tta and --show-dir put into a config."""

from __future__ import annotations

import pytest
from mmengine.config import Config

import mmccd
from mmccd.cli.testing import show_predictions, use_tta
from mmccd.errors import UserError


@pytest.mark.parametrize(
    ('name', 'model'),
    [('ccd_r18_digits', 'AverageClsScoreTTA'), ('retinanet_ccd_r18_fpn_digits', 'DetTTAModel')],
)
def test_flips(name, model):
    """The model is wrapped; every step of the pipeline but the last stays, and is followed by both flips."""
    cfg = mmccd.get_config(name)
    before = mmccd.get_config(name)
    use_tta(cfg)
    assert cfg.model.type == model
    assert cfg.model.module == before.model
    *steps, augmented = cfg.test_dataloader.dataset.pipeline
    assert steps == list(before.test_dataloader.dataset.pipeline[:-1])
    assert augmented.type == 'TestTimeAug'
    flips, [last] = augmented.transforms
    assert [(flip['type'], flip['prob']) for flip in flips] == [('RandomFlip', 1.0), ('RandomFlip', 0.0)]
    assert last['type'] == before.test_dataloader.dataset.pipeline[-1].type
    assert 'flip' in last.get('meta_keys', ('flip',))


def test_a_configs_own_augmentation():
    cfg = mmccd.get_config('ccd_r18_digits')
    cfg.tta_model, cfg.tta_pipeline = dict(type='Mine'), [dict(type='Load')]
    use_tta(cfg)
    assert cfg.model.type == 'Mine'
    assert cfg.test_dataloader.dataset.pipeline == [dict(type='Load')]


def test_shown():
    """MMDetection's hook takes a folder below the run's, MMPretrain's a path."""
    cfg = mmccd.get_config('retinanet_ccd_r18_fpn_digits')
    show_predictions(cfg, True, 'shown', 0.5)
    hook = cfg.default_hooks.visualization
    assert (hook.draw, hook.show, hook.wait_time, hook.test_out_dir) == (True, True, 0.5, 'shown')
    cfg = mmccd.get_config('ccd_r18_digits')
    cfg.work_dir = 'work'
    show_predictions(cfg, False, 'shown', 2, {'猫': 'U+732B', "a's\n猫": 'x'})
    hook = cfg.default_hooks.visualization
    assert (hook.enable, hook.show, hook.out_dir, hook.interval) == (True, False, 'work/shown', 1)
    assert hook.texts == [['猫', 'U+732B'], ["a's\n猫", 'x']]
    assert Config.fromstring(cfg.pretty_text, '.py').default_hooks.visualization.texts == hook.texts  # the run dumps it
    with pytest.raises(UserError, match=r'--show and --show-dir need default_hooks\.visualization'):
        show_predictions(Config(dict(default_hooks=dict())), True, None, 2)
