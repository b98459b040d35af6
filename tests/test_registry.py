import subprocess
import sys

import pytest
from mmengine.registry import MODELS, DefaultScope, build_from_cfg

import mmccd.models
from mmccd.models.layers import attention_types

pytestmark = pytest.mark.smoke
CLASSES = {**attention_types(), 'AttentionResNet': mmccd.models.AttentionResNet}


def test_public_classes():
    for name in ('CCD', 'SE', 'GE', 'CBAM', 'ECA', 'GC', 'SK', 'AttentionResNet'):
        assert getattr(mmccd.models, name) is CLASSES[name]
        assert name in mmccd.models.__all__


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain', 'mmengine'])
@pytest.mark.parametrize('name', CLASSES)
def test_every_class_resolves_from_every_scope(scope, name):
    registry = MODELS.children.get(scope, MODELS)
    if scope != 'mmengine':
        registry = __import__(f'{scope}.registry', fromlist=['MODELS']).MODELS
    with DefaultScope.overwrite_default_scope(scope):
        assert registry.get(f'mmccd.{name}') is CLASSES[name]
        options = dict(depth=18) if name == 'AttentionResNet' else dict(in_channels=64)
        assert isinstance(build_from_cfg(dict(type=f'mmccd.{name}', **options), registry), CLASSES[name])


def test_resolves_without_any_import_of_ours_first():
    # mmengine imports mmccd.registry when it meets the prefix, and that puts the operators in place.
    code = (
        'from mmengine.registry import MODELS\n'
        "print(MODELS.build(dict(type='mmccd.AttentionResNet', depth=18,"
        " attention=dict(type='mmccd.CCD'))).layer1[0].ccd.groups)"
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert out.stdout.strip().endswith('64'), out.stderr


def test_no_collision_with_a_class_of_the_same_name():
    from mmdet.registry import MODELS as MMDET
    from mmpretrain.registry import MODELS as MMPRETRAIN

    for registry in (MMDET, MMPRETRAIN):
        for name in CLASSES:
            found = registry.get(name)
            assert found is None or not found.__module__.startswith('mmccd')
