"""The matrix of MMDetection's detectors: a few tried here, the committed one read, and what runs it."""

from __future__ import annotations

import json

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmccd.analysis import detector_matrix
from mmccd.analysis.detector_matrix import CONFIGS, LEFT_OUT, SEGMENTORS, Result, Trial, run, trial
from mmccd.analysis.detector_matrix.batch import made_batch
from mmccd.analysis.detector_matrix.trial import FOLDER, Failure, try_config
from mmccd.errors import UserError
from mmccd.models import CCD, SE


def long(*case):
    return pytest.param(*case, marks=pytest.mark.long)


# config: class of the backbone, what holds the attention, groups, gates, of which are trained
TRIED = [
    ('retinanet/retinanet_r18_fpn_1x_coco', 'ResNet-18', 'AttentionResNet', 64, 8),
    ('rtmdet/rtmdet_tiny_8xb32-300e_coco', 'CSPNeXt', 'WithAttention', 24, 3),
    long('faster_rcnn/faster-rcnn_r50_fpn_1x_coco', 'ResNet-50', 'AttentionResNet', 64, 16),
    long('mask_rcnn/mask-rcnn_r50_fpn_1x_coco', 'ResNet-50', 'AttentionResNet', 64, 16),
    long('atss/atss_r50_fpn_1x_coco', 'ResNet-50', 'AttentionResNet', 64, 16),
    long('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', 'ResNet-50', 'AttentionResNet', 64, 16),
    long('gfl/gfl_r50_fpn_1x_coco', 'ResNet-50', 'AttentionResNet', 64, 16),
    long('dino/dino-4scale_r50_8xb2-12e_coco', 'ResNet-50', 'AttentionResNet', 64, 16),
    long('detr/detr_r50_8xb2-150e_coco', 'ResNet-50', 'AttentionResNet', 64, 16),
    long('yolo/yolov3_d53_8xb8-320-273e_coco', 'Darknet-53', 'WithAttention', 64, 23),
    long('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco', 'ResNet-50', 'AttentionResNet', 64, 16),
]


@pytest.mark.parametrize(('name', 'backbone', 'by', 'groups', 'gates'), TRIED)
def test_a_family(name, backbone, by, groups, gates):
    tried = try_config(name)
    assert (tried.step, tried.reason) == ('done', '')
    assert (tried.backbone, tried.by, tried.groups, tried.places) == (backbone, by, groups, gates)
    assert tried.added == gates * 2 * groups
    assert tried.trained == gates
    assert tried.loss > 0


@pytest.fixture(scope='module')
def committed(root):
    return detector_matrix.read_results(root / 'docs' / 'detector_matrix.json')


def test_the_committed_matrix(committed, root):
    """All configs; none fails for a reason of ours, and at least 92 in 100 pass."""
    assert [r.config for r in committed] == sorted([*CONFIGS, *SEGMENTORS])
    outcomes = {r.config: r.outcome for r in committed}
    assert {outcomes.pop(name) for name in SEGMENTORS} == {'passes'}
    assert [name for name, outcome in outcomes.items() if outcome == 'fails'] == []
    assert list(outcomes.values()).count('passes') >= 0.92 * len(CONFIGS)
    for result in committed:
        if result.outcome == 'passes':
            t = result.trial
            assert 0 < t.trained <= t.places, result.config
            assert t.added == 2 * t.groups * t.places, result.config
    content = json.loads((root / 'docs' / 'detector_matrix.json').read_text())
    page = detector_matrix.markdown(committed, content['versions'])
    assert (root / 'docs' / 'detector_matrix.md').read_text() == page


def test_every_family_is_in_it():
    folders = {p.name for p in FOLDER.iterdir() if p.is_dir() and any(p.glob('*.py'))}
    tried = {name.partition('/')[0] for name in CONFIGS}
    assert folders - tried == set(LEFT_OUT) & folders
    assert not tried & set(LEFT_OUT)
    assert [name for name in CONFIGS if not (FOLDER / f'{name}.py').is_file()] == []
    assert len(set(CONFIGS)) == len(CONFIGS) >= 100


def test_names():
    assert detector_matrix.matching([]) == CONFIGS
    assert detector_matrix.matching(['atss/*', 'atss/atss_r50_fpn_1x_coco.py']) == ('atss/atss_r50_fpn_1x_coco',)
    with pytest.raises(UserError, match=r"'atss/atss_r50_fpn_2x_coco'.*atss/atss_r50_fpn_1x_coco"):
        detector_matrix.matching(['atss/atss_r50_fpn_2x_coco'])


def test_a_batch_has_what_the_pipelines_load():
    def batch(name):
        return made_batch(Config.fromfile(FOLDER / f'{name}.py'), 64)['data_samples']

    boxes = batch('retinanet/retinanet_r18_fpn_1x_coco')
    assert boxes[0].gt_instances.bboxes[0].tolist() == [3, 6, 25, 32]
    assert not hasattr(boxes[0].gt_instances, 'masks')
    assert not hasattr(boxes[0], 'gt_sem_seg')
    masks = batch('mask_rcnn/mask-rcnn_r50_fpn_1x_coco')[1].gt_instances.masks
    assert [int(m.sum()) for m in masks.masks] == [51 * 45, 10 * 8, 19 * 21]
    stuff = batch('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco')[0]
    assert stuff.gt_sem_seg.sem_seg.unique().tolist() == [*stuff.gt_instances.labels.tolist(), 80]
    one = batch('wider_face/retinanet_r50_fpn_1x_widerface')
    assert {int(label) for sample in one for label in sample.gt_instances.labels} == {0}


def test_a_gate_without_a_gradient_is_found():
    net = nn.ModuleDict(dict(a=CCD(64), b=CCD(64), c=SE(64)))
    layers = list(net.values())
    x = torch.randn(1, 64, 8, 8)
    (net['a'](x) + net['c'](x)).sum().backward()
    with pytest.raises(Failure, match=r'b\.scale has no gradient'):
        trial._check_gradients(net, layers)
    for p in net['b'].parameters():
        p.requires_grad = False
    assert trial._check_gradients(net, layers) == 2
    net['a'].bias.grad[3] = torch.nan
    with pytest.raises(Failure, match=r'a\.bias is NaN'):
        trial._check_gradients(net, layers)


def test_what_cannot_run_has_its_reason():
    tried = try_config('atss/atss_r50_fpn_1x_coco', 'mmccd.CDC')
    assert tried.step == 'build'
    assert 'mmccd.CDC' in tried.reason


def test_outcomes():
    done, torn = Trial(step='done'), Trial(step='loss', reason='E: x')
    assert Result('a', done).outcome == 'passes'
    assert Result('a', torn, Trial(step='loss', reason='E: x')).outcome == 'fails alike'
    assert Result('a', torn, Trial(step='predict', reason='E: x')).outcome == 'fails'
    assert Result('a', torn, done).outcome == 'fails'
    results = [Result('f/a', done), Result('f/b', torn, torn), Result('g/c', torn, done)]
    assert detector_matrix.counts(results) == (
        '1 pass, 1 fail alike without the attention, 1 fail for a reason of mmccd'
    )
    versions = dict.fromkeys(('mmccd', 'torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet'), '1.0')
    page = detector_matrix.markdown(results, versions)
    assert '3 configs of MMDetection 1.0, of 2 families' in page
    assert '| `f/b` | fails alike | loss | E: x |' in page


def test_results_are_kept(tmp_path, monkeypatch):
    """Each is written at once; the next call tries what is not there, or what it is told to."""
    calls = []

    def tried(name, attention, limit):
        calls.append((name, attention))
        ours = attention is not None and name != CONFIGS[0]
        return Trial(reason='E: x', step='loss') if ours or name == CONFIGS[2] else Trial(step='done')

    monkeypatch.setattr(run, 'in_process', tried)
    path, lines = tmp_path / 'm.json', []
    detector_matrix.run_matrix(CONFIGS[:2], path, say=lines.append)
    assert calls == [(CONFIGS[0], 'mmccd.CCD'), (CONFIGS[1], 'mmccd.CCD'), (CONFIGS[1], None)]
    assert [line.split(': ')[1].split(' (')[0] for line in lines] == ['passes', 'fails']
    found = detector_matrix.run_matrix(CONFIGS[:3], path, say=lines.append)
    assert {r.config: r.outcome for r in found} == dict(zip(CONFIGS[:3], ('passes', 'fails', 'fails alike')))
    assert calls[3:] == [(CONFIGS[2], 'mmccd.CCD'), (CONFIGS[2], None)]
    assert detector_matrix.read_results(path) == found
    detector_matrix.run_matrix(CONFIGS[:3], path, again=['fails'], say=lines.append)
    assert calls[5:] == [(CONFIGS[1], 'mmccd.CCD'), (CONFIGS[1], None)]
    path.write_text('{}')
    with pytest.raises(UserError, match=r'm\.json has no results'):
        detector_matrix.read_results(path)


@pytest.mark.long
def test_a_process_for_each(tmp_path):
    """Its result comes back, a limit ends it, and one that dies is a row, too."""
    name = 'retinanet/retinanet_r18_fpn_1x_coco'
    assert run.in_process(name, 'mmccd.CCD', 120).step == 'done'
    slow = run.in_process(name, 'mmccd.CCD', 0.01)
    assert (slow.step, slow.reason) == ('build', 'took longer than 0.01 s')
