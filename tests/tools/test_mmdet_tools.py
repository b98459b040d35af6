"""MMDetection's own tools on a config of mmccd, by `python -m mmccd.tools`: what each of them writes."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
import time
from unittest import mock

import pytest
import torch
from mmengine.fileio import load
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

import mmccd
from mmccd.models.build import build_model

pytestmark = pytest.mark.long
ANNOTATIONS = 'data/digits/det/annotations/instances_val.json'
OPTIONS = [
    *(
        f'{part}_dataloader.{key}'
        for part in ('train', 'test')
        for key in ('num_workers=0', 'persistent_workers=False')
    ),
    'model.test_cfg.score_thr=0.',
    'test_evaluator.outfile_prefix=results',
]


@pytest.fixture(scope='module')
def config(root):
    return str(root / 'configs' / 'retinanet_ccd_r18_fpn_digits.py')


@pytest.fixture(scope='module')
def place(folder, digits):
    (folder / 'data').mkdir()
    (folder / 'data' / 'digits').symlink_to(digits)
    return folder


@pytest.fixture
def mmdet_tool(monkeypatch, capsys, place):
    """Run one of them in this process from ``place``, as `python -m mmccd.tools`; returns what it printed."""

    def run(*args: object) -> str:
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, 'argv', ['mmccd.tools', *map(str, args)])
        monkeypatch.setattr(sys, 'path', list(sys.path))
        for cls in (MMLogger, DefaultScope):
            cls._instance_dict.clear()
        capsys.readouterr()
        with mock.patch.dict(os.environ):
            runpy.run_module('mmccd.tools', run_name='__main__')
        return capsys.readouterr().out

    return run


@pytest.fixture(scope='module')
def checkpoint(place, config):
    torch.manual_seed(0)
    cfg = mmccd.get_config('retinanet_ccd_r18_fpn_digits')
    cfg.model.backbone.init_cfg = None
    torch.save(dict(state_dict=build_model(cfg).state_dict(), meta={}), place / 'model.pth')
    return 'model.pth'


@pytest.fixture
def predictions(mmdet_tool, place, config, checkpoint):
    if not (place / 'predictions.pkl').exists():
        mmdet_tool('test', config, checkpoint, '--out', 'predictions.pkl', '--cfg-options', *OPTIONS)
    return 'predictions.pkl'


def test_print_config(mmdet_tool, config):
    assert "type='mmccd.AttentionResNet'" in mmdet_tool(
        'print_config', config, '--cfg-options', 'model.neck.num_outs=4'
    )


def test_browse_dataset(mmdet_tool, place, config):
    mmdet_tool('browse_dataset', config, '--not-show', '--output-dir', 'browsed', '--cfg-options', *OPTIONS)
    images = sorted(path.name for path in (place / 'data/digits/det/train').iterdir())
    assert sorted(path.name for path in (place / 'browsed').iterdir()) == images


def test_test_and_eval_metric(mmdet_tool, place, config, predictions):
    boxes = load(place / predictions)
    assert len(boxes) == 4 and all(len(each['pred_instances']['bboxes']) == 100 for each in boxes)
    shown = mmdet_tool('eval_metric', config, predictions)
    assert "'coco/bbox_mAP': 0.0" in shown


def test_confusion_matrix(mmdet_tool, place, config, predictions):
    mmdet_tool('confusion_matrix', config, predictions, 'matrix', '--score-thr', '0')
    assert (place / 'matrix' / 'confusion_matrix.png').stat().st_size > 10_000


def test_analyze_results(mmdet_tool, place, config, predictions):
    mmdet_tool('analyze_results', config, predictions, 'analysis', '--topk', '1')
    assert [len(list((place / 'analysis' / kind).iterdir())) for kind in ('good', 'bad')] == [1, 1]


def test_coco_error_analysis(mmdet_tool, place, predictions):
    annotations = json.loads((place / ANNOTATIONS).read_text())
    for category in annotations['categories']:
        category['supercategory'] = 'digit'  # COCO's files have one, and the tool asks for it
    (place / 'annotations.json').write_text(json.dumps(annotations))
    mmdet_tool('coco_error_analysis', 'results.bbox.json', 'errors', '--ann', 'annotations.json')
    assert len(list((place / 'errors' / 'bbox').glob('*.png'))) > 4


def test_analyze_logs(mmdet_tool, place):
    rows = [dict(epoch=1, iter=i, loss=1 / i, lr=0.1, time=0.5, data_time=0.1, memory=1) for i in range(1, 5)]
    rows.insert(2, {'coco/bbox_mAP': 0.5, 'step': 1})
    (place / 'scalars.json').write_text('\n'.join(map(json.dumps, rows)))
    assert 'slowest epoch 1, average time is 0.5' in mmdet_tool('analyze_logs', 'cal_train_time', 'scalars.json')
    mmdet_tool(
        'analyze_logs', 'plot_curve', 'scalars.json', '--keys', 'loss', '--out', 'loss.pdf', '--style', 'classic'
    )
    assert (place / 'loss.pdf').stat().st_size > 1000


def test_get_flops(mmdet_tool, config):
    assert 'Params: 11.7' in mmdet_tool('get_flops', config)


@pytest.mark.parametrize('task', ['dataset', 'dataloader'])
def test_benchmark(mmdet_tool, config, task):
    """Of a model, it needs a GPU."""
    few = ['--max-iter', 2, '--log-interval', 1, '--num-warmup', 0, '--repeat-num', 1, '--dataset-type', 'train']
    shown = mmdet_tool('benchmark', config, '--task', task, *few, '--cfg-options', *OPTIONS)
    assert 'Overall fps' in shown


def test_robustness(mmdet_tool, place, config, checkpoint):
    pytest.importorskip('imagecorruptions')
    some = ['--corruptions', 'brightness', '--severities', 0, 2, '--out', 'robust.pkl']
    shown = mmdet_tool('test_robustness', config, checkpoint, *some, '--cfg-options', *OPTIONS)
    assert 'Testing brightness at severity 2' in shown and 'Aggregated results' in shown
    results = load(place / 'robust_results.pkl')
    assert results['brightness'].keys() == {0, 2}
    assert 'Mean Performance under Corruption' in mmdet_tool('robustness_eval', 'robust_results.pkl')


def test_publish_model(mmdet_tool, place, checkpoint):
    mmdet_tool('publish_model', checkpoint, 'published.pth')
    for _ in range(100):  # its `mv` runs on its own
        if list(place.glob('published-*.pth')) and not (place / 'published.pth').exists():
            break
        time.sleep(0.1)
    [published] = place.glob('published-*.pth')
    assert (
        torch.load(published, weights_only=True)['state_dict'].keys()
        == torch.load(place / checkpoint)['state_dict'].keys()
    )


def test_dataset_converters(mmdet_tool, place):
    shutil.copytree(place / 'data' / 'digits' / 'det' / 'val', place / 'own' / 'val')
    (place / 'classes.txt').write_text('digit\n')
    mmdet_tool('images2coco', 'own/val', 'classes.txt', 'images.json')
    [written] = (place / 'own').rglob('images.json')
    assert len(json.loads(written.read_text())['images']) == 4
