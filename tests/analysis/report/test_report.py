"""Reports of runs: what is read from work folders, what is made of it, and what the page says."""

from __future__ import annotations

import io
import json
import os
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn

from mmccd.analysis.report import Options, Report, attention, cost, measure, read_runs, record
from mmccd.analysis.report import classification as cls
from mmccd.analysis.report import detection as det
from mmccd.analysis.report.curves import MAX_POINTS, Curve, Plot, labels, line_style, short, thin, ticks
from mmccd.analysis.report.differences import MISSING, config_differences, show
from mmccd.analysis.report.images import image_name
from mmccd.analysis.report.run import Run
from mmccd.analysis.report.tables import compared, decimal
from mmccd.errors import UserError

CPU = torch.device('cpu')
NOTHING = Options(images=0, gates=0, seconds=0)
PLAIN, CCD = 'retinanet_r18_fpn_digits', 'retinanet_ccd_r18_fpn_digits'


# ---------------------------------------------------------------------------------------------- work folders


def test_resumed_run(made_up, tmp_path):
    """Stopped in epoch 2, resumed after epoch 1: what was done again replaces the first time. Tested afterwards."""
    run = tmp_path / 'run'
    made_up.write_lines(
        run / '20260101_000000',
        [
            *made_up.training(range(10, 21, 10), 20),
            {'coco/bbox_mAP': 0.1, 'time': 0.3, 'step': 1},
            *made_up.training(range(30, 51, 10), 20),
            {'coco/bbox_mAP': 0.2, 'step': 2},
            '{"lr": 0.01, "loss": 0.',
            '[1]',
            '{"loss": NaN, "lr": 0.01, "iter": 50, "step": 50, "time": 0.5}',
        ],
    )
    made_up.write_lines(
        run / '20260101_000100',
        [
            *made_up.training(range(30, 41, 10), 20, loss=2.0),
            {'coco/bbox_mAP': 0.3, 'coco/bbox_mAP_l': -1.0, 'step': 2},
        ],
    )
    made_up.write_lines(run / '20260101_000200', [])
    for name, lr in (('20260101_000000', 1), ('20260101_000100', 2), ('20260101_000200', 3)):
        (run / name / 'vis_data' / 'config.py').write_text(f"default_scope = 'mmdet'\nlr = {lr}")
    (read,) = read_runs([str(run)])
    assert [(line['step'], line['loss']) for line in read.training] == [(10, 0.1), (20, 0.05), (30, 2 / 30), (40, 0.05)]
    assert [(line['step'], line['coco/bbox_mAP']) for line in read.validation] == [(1, 0.1), (2, 0.3)]
    assert read.cfg.lr == 2, "the newest training's, not the test's"
    assert read.seconds == pytest.approx(0.5 * 40)
    assert (read.task, read.name, read.checkpoint, read.results) == ('detection', 'run', None, None)
    assert read.notes == [f'{run}/20260101_000000/vis_data/scalars.json: 3 damaged lines left out, wholly or partly']


def test_validations_by_iteration(made_up, tmp_path):
    for start, steps in (('20260101_000000', range(10, 41, 10)), ('20260101_000100', range(30, 41, 10))):
        made_up.write_lines(
            tmp_path / start,
            [
                *({k: v for k, v in line.items() if k != 'epoch'} for line in made_up.training(steps, 20)),
                *({'accuracy/top1': float(s), 'step': s} for s in steps if s != 40 or start.endswith('000000')),
            ],
        )
        (tmp_path / start / 'vis_data' / 'config.py').write_text('train_cfg = dict(by_epoch=False)')
    (read,) = read_runs([str(tmp_path)])
    assert [line['step'] for line in read.validation] == [10, 20, 30]
    assert read.task == 'classification', 'by its metrics'


def test_nothing_there(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'bad').mkdir()
    (tmp_path / 'bad' / 'config.py').write_text('x = (')
    (tmp_path / 'bad' / 'last_checkpoint').write_text('/elsewhere/epoch_7.pth')
    (tmp_path / 'bad' / 'recorded.json').write_text('[]')
    empty, bad, none = read_runs([str(tmp_path / n) for n in ('empty', 'bad', 'none')])
    assert not any(run.usable for run in (empty, bad, none))
    assert none.notes == ['the folder does not exist']
    assert empty.notes == ['there is no config that can be read', 'there is no log of a training (scalars.json)']
    assert bad.notes[0].startswith(f'{tmp_path}/bad/config.py cannot be read: SyntaxError: ')
    assert bad.notes[-2:] == [
        'last_checkpoint names epoch_7.pth, which does not exist',
        f'{tmp_path}/bad/recorded.json cannot be read: it is not a JSON object',
    ]


def test_names_checkpoints_and_results(tmp_path):
    for folder in ('a/x', 'b/x', 'b/y'):
        path = tmp_path / folder
        path.mkdir(parents=True)
        (path / 'x.py').write_text(f"test_evaluator = dict(outfile_prefix='{tmp_path}/{folder[0]}')")
    (tmp_path / 'b.bbox.json').write_text('[]')  # both of b: whose are they?
    (tmp_path / 'a/x/epoch_3.pth').write_text('')
    (tmp_path / 'a/x/last_checkpoint').write_text('/moved/since/epoch_3.pth')
    (tmp_path / 'a/x/val.bbox.json').write_text('[]')
    os.utime(tmp_path / 'a/x/val.bbox.json', (1, 1))
    folders = [str(tmp_path / f) for f in ('a/x', 'b/x', 'b/y', 'a/../a/x')]
    first, second, third = read_runs(folders)
    assert [r.name for r in (first, second, third)] == ['a/x', 'b/x', 'y']
    assert first.checkpoint == f'{tmp_path}/a/x/epoch_3.pth'
    assert first.results is None and 'is older than' in first.notes[-1]
    assert second.results is None and third.results is None and 'was left out: the tests of several' in third.notes[-1]
    (tmp_path / 'a/x/val.bbox.json').touch()
    assert read_runs(folders)[0].results == f'{tmp_path}/a/x/val.bbox.json'


# ------------------------------------------------------------------------------------------------ detections


@pytest.fixture
def truth(toy_coco):
    return det.Truth(str(toy_coco / 'val.json'), str(toy_coco / 'val'))


def test_average_precision(made_up, truth):
    e = det.evaluate(truth, made_up.DETECTIONS)
    assert e.classes == {'cat': pytest.approx(made_up.AP_CAT), 'dog': pytest.approx(made_up.AP_DOG)}
    assert e.metrics['AP'] == e.metrics['AP small'] == pytest.approx((made_up.AP_CAT + made_up.AP_DOG) / 2)
    assert e.metrics['AP50'] == pytest.approx((made_up.AP_CAT + 1) / 2)
    assert e.metrics['AP75'] == pytest.approx(made_up.AP_CAT / 2)
    assert e.metrics['AP large'] is None
    counts = {i: [p.count(s) for s in ('found', 'missed', 'false')] for i, p in e.images.items()}
    assert counts == {1: [2, 0, 1], 2: [2, 0, 0], 3: [1, 1, 0]}  # a score of 0.2 is not shown
    assert [e.images[i].f1 for i in (1, 2, 3)] == [pytest.approx(0.8), 1, pytest.approx(2 / 3)]
    assert det.evaluate(truth, made_up.DETECTIONS, [2]).metrics['AP50'] == pytest.approx(1)


def test_no_detections_and_crowds(toy_coco, made_up):
    path = toy_coco / 'val.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['iscrowd'] = 1  # the cat of the first image
    path.write_text(json.dumps(content))
    truth = det.Truth(str(path), '')
    assert truth.objects() == {'cat': 2, 'dog': 3}
    e = det.evaluate(truth, [])
    assert e.classes == {'cat': 0, 'dog': 0}
    assert [e.images[i].count('missed') for i in (1, 2, 3)] == [1, 2, 2]
    e = det.evaluate(truth, made_up.DETECTIONS)
    assert [b.name for b in e.images[1].boxes] == ['dog', 'dog'], 'one on a crowd is neither found nor false'


def test_stored_detections(made_up, truth, tmp_path):
    path = tmp_path / 'packed.json'
    path.write_bytes(det.pack_detections([dict(d, bbox=[v + 0.04 for v in d['bbox']]) for d in made_up.DETECTIONS]))
    assert det.read_detections(str(path), truth) == made_up.DETECTIONS
    assert path.stat().st_size < 40 * len(made_up.DETECTIONS) + 100
    for content, message in (
        ('[{', 'is not a JSON file'),
        ('{}', 'has no list of detections'),
        ('[{"image_id": 1, "category_id": 10, "bbox": [1, 2, 3], "score": 1}]', 'a detection needs image_id'),
        ('[{"image_id": 1, "category_id": 10, "bbox": [1, 2, 3, NaN], "score": 1}]', 'a detection needs image_id'),
        ('[{"image_id": 9, "category_id": 10, "bbox": [1, 2, 3, 4], "score": 1}]', 'is of other images or classes'),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=re.escape(str(path)) + '.*' + message):
            det.read_detections(str(path), truth)


def test_annotation_file_that_is_none(tmp_path):
    for i, content in enumerate(('{', '[]', '{"images": []}', '{"images": [], "categories": [], "annotations": [1]}')):
        path = tmp_path / f'{i}.json'
        path.write_text(content)
        with pytest.raises(ValueError, match=f'{i}.json'):
            det.Truth(str(path), '')


# ----------------------------------------------------------------------------------------------- predictions


def test_accuracy(tmp_path):
    p = [
        cls.Prediction('a', 0, (0, 1, 2), (0.7, 0.2, 0.1)),
        cls.Prediction('b', 0, (1, 0, 2), (0.6, 0.3, 0.1)),
        cls.Prediction('c', 2, (1, 2, 0), (0.5, 0.4, 0.1)),
        cls.Prediction('d', 2, (1, 0, 2), (0.5, 0.3, 0.2)),
    ]
    assert [cls.accuracy(p, n) for n in (1, 2, 3)] == [25, 75, 100]
    assert cls.class_accuracy(p, ['x', 'y', 'z']) == {'x': 50, 'y': None, 'z': 0}
    assert cls.confusions(p) == {(0, 1): 1, (2, 1): 2}
    assert [q.score for q in p] == [0.7, -0.6, -0.5, -0.5]
    path = tmp_path / 'p.json'
    path.write_bytes(cls.pack_predictions(p))
    assert cls.read_predictions(str(path)) == p
    path.write_text('{"columns": []}')
    with pytest.raises(ValueError, match=r'p\.json has no predictions'):
        cls.read_predictions(str(path))


# --------------------------------------------------------------------------------- elements of the page alone


def test_config_differences():
    a = Config(
        dict(
            model=dict(type='A', depth=18, heads=[dict(n=1), dict(n=2)], sizes=[1, 2]),
            variable=1,
            work_dir='a',
            val_dataloader=dict(batch_size=1),
            test_dataloader=dict(batch_size=1, workers=1),
            resume=False,
        )
    )
    b = Config(
        dict(
            model=dict(type='A', depth=50, heads=[dict(n=1), dict(n=3)], sizes=[1], extra=dict(x=(1,))),
            variable=2,
            val_dataloader=dict(batch_size=2),
            test_dataloader=dict(batch_size=2, workers=2),
            work_dir='b',
        )
    )
    assert config_differences([a, a, b]) == [
        ('model.depth', [18, 18, 50]),
        ('model.extra', [MISSING, MISSING, dict(x=(1,))]),
        ('model.heads.1.n', [2, 2, 3]),
        ('model.sizes', [[1, 2], [1, 2], [1]]),
        ('test_dataloader.workers', [1, 1, 2]),
        ('val_dataloader.batch_size', [1, 1, 2]),
    ]
    assert config_differences([a, a]) == []
    assert [show(v) for v in (MISSING, dict(x=(1,), y=[None]), 'a')] == ['not set', 'dict(x=(1,), y=[None])', "'a'"]


def test_rows():
    first, *cells = compared('AP', [0.5, 0.5004, None, 0.512], decimal(3))
    assert (first.text, [c.text for c in cells]) == ('AP', ['0.500', '0.500', '–', '0.512'])  # noqa: RUF001
    assert [c.change for c in cells] == ['', '', '', '+0.012']
    assert [c.best for c in cells] == [False, False, False, True]
    assert [c.key for c in cells] == [0.5, 0.5004, None, 0.512]
    assert [c.best for c in compared('ms', [2.0, 1.0, 1.0], decimal(1), 'low')] == [False, False, True, True]
    assert compared('ms', [2.0, 1.0], decimal(1), 'low')[2].change == '\N{MINUS SIGN}1.0'
    # Exact, and as logged with three digits: the same difference.
    for values in ([0.0836, 0.0554], [0.084, 0.055]):
        assert compared('AP', values, decimal(3))[2].change == '\N{MINUS SIGN}0.029'
    assert compared('params', [11_674_358, 11_675_382], decimal(0), None)[2].change == '+1,024'
    assert not any(c.best for c in compared('AP', [0.5, 0.5], decimal(3)))
    assert not any(c.best for c in compared('params', [1, 2], decimal(0), None))


def test_ticks_and_numbers():
    assert ticks(0, 1, 4) == [0, 0.5, 1]
    assert ticks(0.62, 0.81, 4) == [0.6, 0.65, 0.7, 0.75, 0.8, 0.85]
    assert ticks(1, 5, 5, whole=True) == [1, 2, 3, 4, 5]
    assert ticks(3, 3, 4) == [3, 4]
    assert [short(v) for v in (12000, 0.80512, 1.24e-5, 0.0, -2.5)] == ['12,000', '0.8051', '1.2e-05', '0', '-2.5']


def test_thin():
    points = [(float(i), float(i % 2)) for i in range(3002)]
    few = thin(points)
    assert len(few) == MAX_POINTS
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert all(0.3 < y < 0.7 for _, y in few[1:-1])
    assert np.all(np.diff([x for x, _ in few]) > 0)
    assert thin(points[:20]) == points[:20]


def test_plot():
    svg = str(Plot('<b>', 'epoch', [Curve(0, 'a"b', [(1, 0.0), (2, 0.5), (3, 1.0)]), Curve(9, 'c', [(2, 0.25)])]).svg())
    assert 'points="48.0,190.0 199.0,100.0 350.0,10.0"' in svg  # the corners of the axes, and the middle
    assert 'class="curve run-1" stroke-dasharray="2 3" points="199.0,145.0"' in svg
    assert '<b>' not in svg and 'a"b' not in svg
    assert len({line_style(run) for run in range(32)}) == 32


def test_numbers_of_an_axis_are_not_cut_off():
    svg = str(Plot('learning rate', 'iteration', [Curve(0, 'a', [(1, 0.00096), (2, 0.00098)])]).svg())
    found = re.findall(r'class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="end">([^<i]+)<', svg)
    assert [text for _, text in found] == ['0.00096', '0.000965', '0.00097', '0.000975', '0.00098']
    assert all(float(x) >= 7 * len(text) for x, text in found)
    assert 'points="62.0,190.0 350.0,10.0"' in svg
    assert labels([0.8, 0.80001]) == ['0.8', '0.80001']


def test_test_size(tmp_path):
    def size(*steps, scope='mmdet', divisor=1, ann_file=None):
        return measure.test_size(
            Config(
                dict(
                    default_scope=scope,
                    model=dict(data_preprocessor=dict(pad_size_divisor=divisor)),
                    test_dataloader=dict(dataset=dict(pipeline=[dict(type='Load'), *steps], ann_file=ann_file)),
                )
            )
        )

    assert size(dict(type='Resize', scale=(1333, 800), keep_ratio=True), divisor=32) == (800, 1344)
    assert size(dict(type='Resize', scale=(128, 128))) == (128, 128)
    assert size(dict(type='ResizeEdge', scale=256), dict(type='CenterCrop', crop_size=224), scope='mmpretrain') == (
        224,
        224,
    )
    assert size(dict(type='Resize', scale=64), scope='mmpretrain') == (64, 64)
    # The image with most pixels, where the pipeline keeps its size.
    path = tmp_path / 'val.json'
    path.write_text(json.dumps(dict(images=[dict(height=h, width=w) for h, w in ((100, 300), (250, 190), (240, 180))])))
    as_it_is = dict(type='Resize', scale=None, scale_factor=1.0, keep_ratio=True)
    assert size(as_it_is, divisor=32, ann_file=str(path)) == (256, 192)
    assert size(ann_file=str(path)) == (250, 190)
    assert size(dict(type='Resize', scale_factor=0.5), ann_file=str(path)) == (125, 95)
    assert size(dict(type='Resize', scale_factor=(2.0, 0.5)), ann_file=str(path)) == (125, 380)  # of width, of height
    assert size(dict(type='Resize', scale=(64, 32)), dict(type='Resize', scale_factor=2)) == (64, 128)
    with pytest.raises(ValueError, match='size of the images is not known'):
        size(as_it_is)
    path.write_text('{"images": [{"file_name": "1.jpg"}]}')
    with pytest.raises(ValueError, match=r'val\.json does not have the size of its images: KeyError'):
        size(as_it_is, ann_file=str(path))


def test_page_has_the_size_of_unscaled_images(made_up, toy_coco, tmp_path):
    cfg = made_up.detection_config(toy_coco)
    cfg.test_dataloader.dataset.pipeline = [
        dict(t, scale=None, scale_factor=1.0) if t['type'] == 'Resize' else t
        for t in cfg.test_dataloader.dataset.pipeline
    ]
    run = str(made_up.detection_run(tmp_path / 'run', cfg))
    html = Report(read_runs([run]), CPU, NOTHING).html()
    counted = made_up.tables(html)['One image of the largest size of the test pipeline']
    assert counted[1] == ['size in pixels (height × width)', '32 × 64']  # noqa: RUF001  30 x 40, padded
    (toy_coco / 'val.json').unlink()
    html = Report(read_runs([run]), CPU, NOTHING).html()
    assert 'One image of the largest size' not in html
    assert '<p class="problem">run: the size of the images is not known: ' in html


def test_speed_takes_turns(monkeypatch):
    order = []
    monkeypatch.setattr(measure, 'run_once', lambda model, x: order.append((model, tuple(x.shape))))
    a, b = nn.Identity(), nn.ReLU()
    times = measure.speed(dict(a=(a, (4, 6)), b=(b, (2, 2))), CPU, seconds=0)
    assert order == [(a, (1, 3, 4, 6)), (b, (1, 3, 2, 2))] * 7  # two to warm up, five that count
    assert all(0 < low <= middle <= high for low, middle, high in times.values())


def test_busy_machine_is_named(made_up, toy_coco, tmp_path, monkeypatch):
    run = str(made_up.detection_run(tmp_path / 'run', made_up.detection_config(toy_coco)))
    for high, warnings in ((1.4, 0), (1.6, 1)):
        monkeypatch.setattr(cost, 'speed', lambda *args, high=high: dict(run=(1.0, 1.1, high)))
        html = Report(read_runs([run]), CPU, Options(images=0, gates=0)).html()
        assert html.count('times vary too much') == warnings
        [times] = [t for c, t in made_up.tables(html).items() if c.startswith('Forward of one image')]
        assert [row[1] for row in times] == ['run', '1.10', '1.00', f'{high:.2f}']


# -------------------------------------------------------------------------------------------------- the page


@pytest.fixture
def two_runs(made_up, toy_coco, tmp_path):
    """The plain one finds nothing but a dog."""
    plain = made_up.detection_run(
        tmp_path / 'plain', made_up.detection_config(toy_coco, PLAIN), made_up.DETECTIONS[3:4], 0.3
    )
    ccd = made_up.detection_run(tmp_path / 'ccd', made_up.detection_config(toy_coco, CCD))
    return [str(plain), str(ccd)]


def test_page_of_detectors(made_up, two_runs, toy_coco, capsys):
    page = Report(read_runs(two_runs), CPU, Options(images=1, gates=1, seconds=0)).html('report.py')
    assert capsys.readouterr().err == ''
    found = made_up.tables(page)
    metrics = found[f'COCO average precision (0 to 1) on 3 images of {toy_coco}/val.json']
    # The one dog: recall 1/3 at 4 of 10 thresholds.
    plain, ccd = round(0.4 * 34 / 101 / 2, 3), round((made_up.AP_CAT + made_up.AP_DOG) / 2, 3)
    dog = round(0.4 * 34 / 101, 3)
    assert metrics[:2] == [['metric', 'plain', 'ccd'], ['AP', f'{plain:.3f}', f'+{ccd - plain:.3f} ★ {ccd:.3f}']]
    assert [row[0] for row in metrics] == ['metric', 'AP', 'AP50', 'AP75', 'AP small', 'AR', 'AR small']
    assert found['AP of each class'] == [
        ['class', 'objects', 'plain', 'ccd'],
        ['cat', '3', '0.000', '+0.663 ★ 0.663'],
        ['dog', '3', f'{dog:.3f}', f'+{0.4 - dog:.3f} ★ 0.400'],
    ]
    assert found['Validation during training: the last one'] == [
        ['metric', 'plain', 'ccd'],
        ['coco/bbox_mAP', '0.200 best 0.300 at epoch 1', '+0.200 ★ 0.400 best 0.500 at epoch 1'],
    ]
    assert ['seconds (iterations, no validation)', '20', '20'] in found['Training, from the logs']
    # The digits' 11,715,902, with 2 classes instead of 10: 8 * 9 anchors * (64 * 9 weights + 1 bias) less.
    assert ['parameters', '11,674,358', '+1,024 11,675,382'] in found[
        'One image of the largest size of the test pipeline'
    ]
    assert found['Differences between the configs'] == [
        ['key', 'plain', 'ccd'],
        ['model.backbone.attention', 'not set', "dict(type='mmccd.CCD')"],
        ['model.backbone.init_cfg.checkpoint', "'checkpoints/r18_digits.pth'", "'checkpoints/ccd_r18_digits.pth'"],
    ]
    # ccd misses a cat of three and has two dogs too many, after all right ones. plain has one dog of three and no cat:
    # without what it misses, its only class is right.
    miss = 34 / 101 / 2
    errors = found['Types of errors: gain in AP50']
    assert errors[0] == ['type', 'plain', 'ccd']
    assert errors[1] == ['Cls: right place, wrong class', '0.000 0 errors', '0.000 0 errors']
    assert errors[5] == ['Bkg: no object there', '0.000 0 errors', '0.000 2 errors']
    changed = f'\N{MINUS SIGN}{round(1 - miss, 3) - round(miss, 3):.3f} ★ {miss:.3f} 1 error'
    assert errors[6] == ['Miss: not found, nor by one of the above', f'{1 - miss:.3f} 5 errors', changed]
    assert found['Confusion matrix of ccd: objects in rows, what they are detected as in columns'] == [
        ['object', 'cat', 'dog', 'not detected'],
        ['cat', '2', '0', '1'],
        ['dog', '0', '3', '0'],
        ['no object', '0', '1', ''],
    ]
    assert 'Most frequent confusions' not in page
    assert page.count('<figcaption>precision at an IoU of 0.') == 5
    # F1 of plain and ccd: 0 and 0.8, 0.67 and 1, 0 and 0.67. Each image is in the page once.
    assert re.findall(r'<p class="name">(.*?)</p>', page) == ['3.jpg', '1.jpg', '2.jpg']
    assert page.count('data:image/webp;base64,') == 3
    assert 'aria-label="ccd: F1 0.67: 1 found, 1 missed"' in page
    assert (
        '<p>plain has no attention layers with gates. ccd has attention layers, but its folder has no weights.</p>'
    ) in page


def test_page_loads_nothing(two_runs):
    page = Report(read_runs(two_runs), CPU, NOTHING).html()
    assert not re.search(r'(?:src|href|action|data|poster)="(?!data:|#)', page.split('<main')[0].split('<body')[0])
    assert not re.search(r'https?:|url\(|@import|<link(?! rel="icon" href="data:,")', page.replace('http-equiv', ''))


def test_everything_is_escaped(made_up, toy_coco, tmp_path):
    evil = '<script>alert("x")</script>'
    content = json.loads((toy_coco / 'val.json').read_text())
    content['categories'][0]['name'] = evil
    (toy_coco / 'val.json').write_text(json.dumps(content))
    cfg = made_up.detection_config(toy_coco)
    for split in ('val', 'test'):
        cfg[f'{split}_dataloader'].dataset.metainfo.classes = (evil, 'dog')
    other = made_up.detection_config(toy_coco)
    other.model.backbone.attention.type = evil
    runs = read_runs(
        [
            str(made_up.detection_run(tmp_path / name, c))
            for name, c in (('<script>alert(1)', cfg), ('"><img src=x onerror=alert(1)>', other))
        ]
    )
    runs[0].recorded = dict(date=evil, command=evil, machine='\'"><b>')
    runs[0].notes.append(evil)
    for line in runs[0].validation:
        line[evil] = 1.0
    page = Report(runs, CPU, Options(images=1, gates=0, seconds=0)).html(evil)
    assert page.count('<script>') == page.count('</script>') == 1  # its own
    assert page.count('alert(') >= 8
    assert '<img' not in page and '<b>' not in page.split('<script>')[0]
    assert 'onerror=alert(1)&gt;' in page


def test_what_cannot_be_made_says_why(made_up, toy_coco, tmp_path, capsys):
    cfg = made_up.detection_config(toy_coco)
    none = made_up.detection_config(toy_coco)
    none.test_evaluator.ann_file = none.val_evaluator.ann_file = 'elsewhere/val.json'
    broken = made_up.detection_config(toy_coco)
    broken.model.backbone.type = 'NoSuchBackbone'
    logs = tmp_path / 'logs'
    made_up.write_lines(
        logs / '20260101_000000', [*made_up.training(range(10, 21, 10), 20), {'coco/bbox_mAP': 0.25, 'step': 1}]
    )
    runs = read_runs(
        [
            *(
                str(made_up.detection_run(tmp_path / name, c, d))
                for name, c, d in (
                    ('good', cfg, made_up.DETECTIONS),
                    ('unannotated', none, made_up.DETECTIONS),
                    ('broken', broken, None),
                    ('other', cfg, [dict(made_up.DETECTIONS[0], image_id=99)]),
                )
            ),
            str(logs),
        ]
    )
    (toy_coco / 'val' / '2.jpg').unlink()
    page = Report(runs, CPU, Options(images=3, gates=0, seconds=0)).html()
    problems = re.findall(r'<p class="problem">(.*?)</p>', page)
    for message in (
        'unannotated: annotation file elsewhere/val.json does not exist',
        'broken: there are no stored',
        'other: ' + str(tmp_path),
        'broken: ',
        '2.jpg: [Errno 2]',
        'logs: there is no config',
    ):
        assert any(message in p for p in problems), (message, problems)
    assert 'warning: Metrics: unannotated: annotation file elsewhere/val.json' in capsys.readouterr().err
    found = made_up.tables(page)
    ap = f'★ {(made_up.AP_CAT + made_up.AP_DOG) / 2:.3f}'.removeprefix('★ ')
    metrics = found[f'COCO average precision (0 to 1) on 3 images of {toy_coco}/val.json']
    assert metrics[1] == ['AP', ap, '–', '–', '–', '–']  # noqa: RUF001
    assert found['Validation during training: the last one'][1][-1] == '\N{MINUS SIGN}0.150 0.250'
    assert re.findall(r'<p class="name">(.*?)</p>', page) == ['3.jpg', '1.jpg']


def test_runs_on_other_images_are_not_compared(made_up, two_runs, toy_coco, tmp_path):
    cfg = made_up.detection_config(toy_coco)
    cfg.test_evaluator.ann_file = str(tmp_path / 'fewer.json')
    content = json.loads((toy_coco / 'val.json').read_text())
    content['categories'].append(dict(id=30, name='cow'))
    (tmp_path / 'fewer.json').write_text(json.dumps(content))
    other = str(made_up.detection_run(tmp_path / 'other', cfg))
    html = Report(read_runs([*two_runs, other]), CPU, Options(images=1, gates=0, seconds=0)).html()
    assert 'other is tested on other images or classes than plain, and is left out here' in html
    metrics = made_up.tables(html)[f'COCO average precision (0 to 1) on 3 images of {toy_coco}/val.json']
    assert metrics[1][-1] == '–'  # noqa: RUF001
    assert html.count('<figcaption>ground truth') == 3 and 'aria-label="other: F1' not in html


def test_record(made_up, two_runs, toy_coco, tmp_path):
    (run,) = read_runs(two_runs[1:])
    out = tmp_path / 'docs' / 'ccd'
    files = record(run, str(out), 'python train.py', CPU)
    assert sorted(os.path.basename(f) for f in files) == [
        'README.md',
        'ccd.py',
        'predictions.json',
        'recorded.json',
        'scalars.json',
    ]
    content = json.loads((out / 'recorded.json').read_text())
    assert (content['command'], content['date'], content['iterations'], content['seconds']) == (
        'python train.py',
        '2026-01-02',
        40,
        20,
    )
    (again,) = read_runs([str(out)])
    assert (again.training, again.validation, again.cfg.to_dict()) == (run.training, run.validation, run.cfg.to_dict())
    assert again.notes == []
    page = Report([again, run], CPU, Options(images=1, gates=0, seconds=0)).html()
    assert re.search(r'<p class="badge"><strong>recorded</strong> 2026-01-02, .*<code>python train.py</code>', page)
    metrics = made_up.tables(page)[f'COCO average precision (0 to 1) on 3 images of {toy_coco}/val.json']
    assert metrics[1] == ['AP', '0.532', '0.532']
    run.training = []
    with pytest.raises(UserError, match='cannot be recorded: it needs a config and the log of a training'):
        record(run, str(tmp_path / 'none'), 'x', CPU)
    assert not (tmp_path / 'none').exists()


@pytest.fixture
def classifiers(made_up, tmp_path):
    """Three runs on four images, the first two of class zero: ``a`` is right, ``b`` every other time, ``c`` never."""
    runs = []
    for i in range(4):
        Image.new('RGB', (8, 8), (60 * i,) * 3).save(tmp_path / f'{i}.png')
    predictions = dict(
        a=((0, 1), (0, 1), (1, 0), (1, 0)), b=((0, 1), (1, 0), (1, 0), (0, 1)), c=((1, 0), (1, 0), (0, 1), (0, 1))
    )
    for name, classes in predictions.items():
        made_up.write_lines(
            tmp_path / name / '20260101_000000',
            [*made_up.training(range(10, 21, 10), 20), {'accuracy/top1': 75.0, 'step': 1}],
        )
        (run,) = read_runs([str(tmp_path / name)])
        run.results = str(tmp_path / f'{name}.json')
        with open(run.results, 'wb') as f:
            f.write(
                cls.pack_predictions(
                    [cls.Prediction(str(tmp_path / f'{k}.png'), k // 2, c, (0.8, 0.2)) for k, c in enumerate(classes)]
                )
            )
        run.cfg = Config(
            dict(
                default_scope='mmpretrain',
                model=dict(),
                test_dataloader=dict(dataset=dict(type='CustomDataset', metainfo=dict(classes=('zero', 'one')))),
            )
        )
        runs.append(run)
    return runs


def galleries(page: str) -> dict[str, list[str]]:
    """Names of the images by the titles above them."""
    found = re.split(r'<h4[^>]*>(.*?)</h4>', page)
    return {title: re.findall(r'<p class="name">(.*?)</p>', part) for title, part in zip(found[1::2], found[2::2])}


def test_page_of_classifiers(made_up, classifiers):
    page = Report(classifiers[:2], CPU, Options(images=1, gates=0, seconds=0)).html()
    found = made_up.tables(page)
    assert found['Accuracy in percent on 4 images'] == [
        ['metric', 'a', 'b'],
        ['top-1', '★ 100.00', '\N{MINUS SIGN}50.00 50.00'],
    ]
    assert found['Accuracy of each class in percent'][1:] == [
        ['zero', '2', '★ 100.0', '\N{MINUS SIGN}50.0 50.0'],
        ['one', '2', '★ 100.0', '\N{MINUS SIGN}50.0 50.0'],
    ]
    assert found['Most frequent confusions (2 of 2 pairs)'][1:] == [
        ['zero', 'one', '★ 0', '+1 1'],
        ['one', 'zero', '★ 0', '+1 1'],
    ]
    assert page.count('<img src="data:image/webp;base64,') == 3
    assert 'wrong: one, 0.80' in page


def test_right_images_are_not_the_worst(classifiers, tmp_path):
    """Nor are wrong ones the best."""

    def shown(*runs, images=4):
        page = Report(runs, CPU, Options(images=images, gates=0, seconds=0)).html().replace('<wbr>', '')
        return galleries(page), 'All images are right' in page

    a, b, c = classifiers
    names = [f'{tmp_path.name}/{i}.png' for i in range(4)]
    assert shown(a) == ({'Best': names[::-1]}, True)
    assert shown(c) == ({'Worst': names}, False)
    assert shown(a, b) == ({'Worst': [names[1], names[3]], 'Best': [names[2], names[0]]}, False)


def test_all_detected(made_up, toy_coco, tmp_path):
    truth = json.loads((toy_coco / 'val.json').read_text())['annotations']
    found = [dict({k: a[k] for k in ('image_id', 'category_id', 'bbox')}, score=0.9) for a in truth]
    run = str(made_up.detection_run(tmp_path / 'run', made_up.detection_config(toy_coco), found))
    page = Report(read_runs([run]), CPU, Options(images=3, gates=0, seconds=0)).html()
    assert galleries(page) == {'Best': ['1.jpg', '2.jpg', '3.jpg']}
    assert 'All images are right: there is no worst one.' in page


def test_attention_maps_are_named_as_the_images(monkeypatch):
    titles = []
    monkeypatch.setattr(attention, 'prepare_image', lambda cfg, path: None)
    monkeypatch.setattr(attention, 'record_gates', lambda *args: None)
    buffer = io.BytesIO()
    Image.new('RGB', (8, 8)).save(buffer, 'PNG')
    monkeypatch.setattr(attention, 'draw_attention_maps', lambda seen, title: titles.append(title) or buffer.getvalue())
    for task, name in (('classification', 'disc/1.png'), ('detection', '1.png')):
        item = attention._figure(Run('run', 'run', task=task), None, {}, 'data/val/disc/1.png')
        assert item.title == titles.pop() == name == image_name(task, 'data/val/disc/1.png')
