"""Own data: what is read, what is decided, and the config's text, by hand-worked cases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import ConfigDict

import mmccd
from mmccd.cli.config_text import code, comment, names
from mmccd.cli.own_data import read_coco
from mmccd.cli.own_recipe import (
    anchor_sides,
    decide,
    fit_anchors,
    fit_scale,
    matched_share,
    plan_epochs,
    plan_initial_weights,
    plan_schedulers,
    resize_factors,
)
from mmccd.errors import UserError

RETINA = ConfigDict(octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128])
RPN = ConfigDict(scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64])


def test_anchor_sides_are_mmdets():
    from mmdet.models.task_modules import AnchorGenerator

    for generator in (RETINA, RPN):
        base = np.concatenate([a.numpy() for a in AnchorGenerator(**generator).base_anchors])
        ours = anchor_sides(generator)[:, :2]
        assert np.allclose(np.sort(base[:, 2:] - base[:, :2], 0), np.sort(ours, 0), atol=1e-3)


def test_matched_share():
    """One anchor of 32 x 32 with stride 8: its centre is 2 pixels off.

    32 x 32: overlap 30 x 30, IoU 900 / (1024 + 1024 - 900) = 0.78.  20 x 20 lies inside: 400 / 1024 = 0.39.
    23 x 23 as well: 529 / 1024 = 0.52.  32 x 80: 30 x 32, 960 / (2560 + 1024 - 960) = 0.37.
    """
    anchor = np.array([[32.0, 32.0, 8.0]])
    cases = {(32, 32): 1, (20, 20): 0, (23, 23): 1, (32, 80): 0}
    assert [matched_share(np.array([sides], float), anchor) for sides in cases] == list(cases.values())
    assert matched_share(np.array(list(cases), float), anchor) == 0.5


@pytest.mark.parametrize(
    ('generator', 'sides', 'change'),
    [
        (RETINA, (60, 60), {}),
        # 16 x 16: 13 x 13 of 14 x 14 overlap, 169 / (196 + 256 - 169) = 0.6; 24 x 24 gives 196 / 576 = 0.34
        (RETINA, (14, 14), dict(octave_base_scale=2)),
        # Tall as 6 : 1. At best 2 : 1 of the same area, IoU 0.41; of 6 : 1, 21 x 124 and an IoU of 0.79.
        (RETINA, (20, 120), dict(ratios=[6.0])),
        # 24 x 24 as above; 16 x 16 with stride 4: 13 x 13 ... (14 + 16) / 2 - 1 = 14 of 14, 196 / 256 = 0.77
        (RPN, (14, 14), dict(scales=[4])),
    ],
)
def test_anchors(generator, sides, change):
    fitted = fit_anchors(generator, np.tile(np.array(sides, float), (10, 1)))
    assert fitted.change == change
    assert (fitted.base_share, fitted.share) == (float(not change), 1.0)


def test_anchors_stay_while_few_boxes_are_too_small():
    sides = np.full((100, 2), 60.0)
    sides[:10] = 10
    assert fit_anchors(RETINA, sides).change == {}
    sides[:11] = 10
    assert fit_anchors(RETINA, sides).base_share == pytest.approx(0.89)
    assert fit_anchors(RETINA, sides).share >= 0.9


@pytest.mark.parametrize(
    ('images', 'base', 'task', 'epochs'),
    [
        (117_266, 12, 'mmdet', 12),  # COCO
        (5_000, 12, 'mmdet', 12),  # 60,000 / 5,000
        (1_000, 12, 'mmdet', 60),
        (100, 12, 'mmdet', 192),  # 600, and 16 x 12 at most
        (234_532, 12, 'mmdet', 6),  # twice COCO: as many iterations as COCO
        (6, 5, 'mmdet', 80),
        (1_281_167, 100, 'mmpretrain', 30),
        (4_000, 100, 'mmpretrain', 50),  # 200,000 / 4,000
        (500, 100, 'mmpretrain', 200),
        (12_811_670, 100, 'mmpretrain', 10),
    ],
)
def test_epochs(images, base, task, epochs):
    assert plan_epochs(images, base, task) == epochs


@pytest.mark.parametrize(('iterations', 'warm_up'), [(1000, 500), (501, 500), (250, 249), (1, 2)])
def test_schedulers(iterations, warm_up):
    base = mmccd.get_config('retinanet_ccd_r50_fpn_1x_coco').param_scheduler
    linear, steps = plan_schedulers(base, 12, 60, iterations)
    assert (linear['end'], steps['end'], steps['milestones']) == (warm_up, 60, [40, 55])
    assert base[1].milestones == [8, 11]
    assert plan_schedulers(base, 12, 1, iterations)[1]['milestones'] == []
    cosine = plan_schedulers(mmccd.get_config('ccd_r18_digits').param_scheduler, 5, 80, iterations)[1]
    assert (cosine['end'], cosine['T_max'], cosine['eta_min_ratio']) == (80, 80, 0.01)


@pytest.mark.parametrize(
    ('name', 'gpus', 'batch', 'lr'),
    [
        ('retinanet_ccd_r50_fpn_1x_coco', 8, None, 0.01),
        ('retinanet_ccd_r50_fpn_1x_coco', 1, None, 0.00125),  # 2 / 16
        ('retinanet_ccd_r50_fpn_1x_coco', 2, 4, 0.005),  # 8 / 16
        ('cascade_rcnn_ccd_r50_fpn_1x_coco', 4, None, 0.01),
        ('retinanet_ccd_r18_fpn_digits', 1, None, 0.002),
        ('ccd_r50_8xb32_in1k', 8, None, 0.01),  # a tenth: it is fine-tuned
    ],
)
def test_learning_rate(toy_coco, name, gpus, batch, lr):
    split = read_coco('--train', str(toy_coco / 'train'), str(toy_coco / 'train.json'))
    cfg = mmccd.get_config(name)
    decisions = decide(cfg, name, split, gpus, batch)
    assert decisions.lr == pytest.approx(lr)
    assert decisions.total_batch == gpus * (batch or cfg.train_dataloader.batch_size)


def test_scale():
    """At most twice as large, the short side in steps of 32."""
    assert fit_scale((1333, 800), np.array([[640.0, 480.0]])) is None
    assert fit_scale((1333, 800), np.array([[500.0, 375.0]])) == (1280, 768)
    assert fit_scale((1333, 800), np.array([[40.0, 30.0], [30.0, 40.0], [4000.0, 3000.0]])) == (107, 64)
    factors = resize_factors((1333, 800), np.array([[1000.0, 500.0], [400.0, 400.0]]))
    assert np.allclose(factors, [1.333, 2.0])


def test_initial_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torchvision = 'torchvision://resnet50'

    def weights(name: str) -> tuple:
        change, _, warning = plan_initial_weights(mmccd.get_config(name).model.backbone, name)
        init = change.get('init_cfg', {})
        return init.get('checkpoint'), init.get('allow_missing'), change.get('attention'), bool(warning)

    identity = dict(identity_init=True)
    assert weights('retinanet_ccd_r50_fpn_1x_coco') == (torchvision, 'ccd', identity, False)
    assert weights('retinanet_se_r50_fpn_1x_coco') == (torchvision, 'se_layer', identity, False)
    assert weights('retinanet_r50_fpn_1x_coco') == (None, None, None, False)  # torchvision as it is
    assert weights('ccd_r50_8xb32_in1k') == (torchvision, 'ccd', identity, False)
    assert weights('r50_8xb32_in1k') == (torchvision, None, None, False)
    # Gates that cannot be initialised as the identity: the missing file stays, and training without it is refused.
    assert weights('retinanet_gc_r50_fpn_1x_coco') == (None, None, None, True)
    assert weights('sk_r50_8xb32_in1k') == ('checkpoints/sk_r50_in1k.pth', None, None, True)
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'checkpoints' / 'ccd_r50_in1k.pth').touch()
    assert weights('retinanet_ccd_r50_fpn_1x_coco') == (None, None, None, False)  # the base's
    assert weights('ccd_r50_8xb32_in1k') == ('checkpoints/ccd_r50_in1k.pth', None, None, False)


def test_read_coco(toy_coco):
    """Ids that are texts or gaps, crowds, boxes that nothing can be made of."""
    content = json.loads((toy_coco / 'train.json').read_text())
    content['categories'].append(dict(id=7, name='bird'))
    content['annotations'][0]['iscrowd'] = 1
    content['annotations'][1]['image_id'] = 99
    content['annotations'][2]['bbox'][2] = float('nan')
    (toy_coco / 'train.json').write_text(json.dumps(content))
    split = read_coco('--train', str(toy_coco / 'train'), str(toy_coco / 'train.json'))
    assert split.classes == ('cat', 'dog', 'bird')
    assert split.counts == dict(cat=4, dog=5)  # of 6 each
    assert (split.images, split.filled, len(split.sides)) == (6, 5, 9)
    assert split.sizes.tolist() == [[40, 30]] * 6
    assert split.owners.tolist() == [1, 2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize(
    ('text', 'rule'),
    [
        ('', 'Expecting value'),
        ('{"images": [', 'Expecting value'),
        ('[]', 'list and no JSON object without the lists images, annotations, categories'),
        ('{"images": [], "annotations": []}', 'a JSON object without the lists categories'),
        ('{"images": [], "annotations": [], "categories": []}', 'has no categories'),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', 'has no usable images'),
        (
            '{"images": [{"id": 1, "file_name": "1.jpg", "width": 9, "height": 9}], "annotations": [], '
            '"categories": [{"id": 1, "name": "a"}]}',
            'has no usable boxes',
        ),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', 'no list of categories with names'),
    ],
)
def test_no_coco(tmp_path, text, rule):
    Path(tmp_path / 'x.json').write_text(text)
    with pytest.raises(UserError, match=rule) as e:
        read_coco('--val', str(tmp_path), str(tmp_path / 'x.json'))
    assert str(e.value).startswith('--val: ')


def test_code():
    assert code(dict(a=1, b=dict(c=(1,), d='x'))) == "dict(a=1, b=dict(c=(1,), d='x'))"
    wide = code(dict(a='x' * 60, b=dict(c='y' * 60, d=[1, 0.5])))
    assert wide == f"dict(\n    a='{'x' * 60}',\n    b=dict(c='{'y' * 60}', d=[1, 0.5]))"
    assert eval(wide) == dict(a='x' * 60, b=dict(c='y' * 60, d=[1, 0.5]))
    deep = dict(a=1, b=dict(c=dict(d='z' * 90, e='e' * 30), f=[dict(g='g' * 70), dict(h='h' * 70)]), i=2)
    assert eval(code(deep)) == deep
    assert max(map(len, code(deep).splitlines())) <= 120
    many = tuple(f'class {i} of many' for i in range(80))
    for classes in (('a',), ('a', 'b'), ("it's", 'a "b"'), many):
        text = names(classes)
        assert max(map(len, text.splitlines())) <= 120
        assert eval(text.removeprefix('classes = ')) == classes
    assert all(line.startswith('# ') for line in comment('word ' * 60).splitlines())
