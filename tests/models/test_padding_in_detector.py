"""A detector whose backbone ignores padding: what it finds in an image does not depend on the batch."""

import copy

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmccd
from mmccd.engine.hooks import IgnorePaddingHook
from mmccd.models import AttentionResNet, ignore_padding_in
from mmccd.models.build import build_model

SIZES = [(64, 96), (32, 96), (50, 75), (64, 40)]
DETECTORS = ['retinanet_ccd_r18_fpn_digits', 'cascade_rcnn_ccd_r18_fpn_digits']


def detector(config, on=True, **backbone):
    """With random weights that find something everywhere, in evaluation mode."""
    cfg = mmccd.get_config(config)
    cfg.model.backbone.update(dict(ignore_padding=on, **backbone))
    if 'rpn_head' in cfg.model:
        for proposals in (cfg.model.train_cfg.rpn_proposal, cfg.model.test_cfg.rpn):
            proposals.max_per_img = 20
    model = build_model(cfg, 'cpu')
    for name, p in model.named_parameters():
        if p.dim() == 1:
            nn.init.normal_(p, 1.0 if name.endswith('weight') else 0.0, 0.2)
        elif 'cls' in name and 'convs' not in name:
            nn.init.normal_(p, 0.0, 0.02)
    for m in model.modules():
        if isinstance(m, _BatchNorm):
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.5, 1.5)
    return model.eval()


def batch_of(indices, seed=0):
    """What a loader gives: images of several sizes, one box in each."""
    rng = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=rng) for h, w in SIZES]
    samples = []
    for i in indices:
        meta = dict(img_shape=SIZES[i], ori_shape=SIZES[i], scale_factor=(1.0, 1.0), img_id=i)
        sample = DetDataSample(metainfo=meta)
        boxes = torch.tensor([[4.0, 3.0, 36.0, 31.0]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([i]))
        samples.append(sample)
    return dict(inputs=[images[i] for i in indices], data_samples=samples)


def found(model, indices):
    with torch.no_grad():
        return [sample.pred_instances for sample in model.test_step(batch_of(indices))]


def same(a, b):
    """Whether two results are: boxes within a thousandth of a pixel."""
    return (
        len(a) == len(b)
        and torch.equal(a.labels, b.labels)
        and torch.allclose(a.scores, b.scores, atol=1e-4)
        and torch.allclose(a.bboxes, b.bboxes, atol=1e-3)
    )


@pytest.mark.long
@pytest.mark.parametrize('config', DETECTORS)
def test_detections_at_batch_1_2_and_16(config):
    model = detector(config)
    assert ignore_padding_in(model)
    alone = [found(model, [i])[0] for i in range(4)]
    assert all(len(result) > 3 for result in alone)
    for indices in ([0, 1], [2, 1], [3, 2], [1, 1], [0, 1, 2, 3] * 4):
        assert all(same(result, alone[i]) for i, result in zip(indices, found(model, indices)))
    off = detector(config, on=False)
    off.load_state_dict(model.state_dict())
    assert same(found(off, [0])[0], alone[0])  # without padding
    assert not same(found(off, [0, 1])[1], alone[1])


@pytest.mark.long
@pytest.mark.parametrize('config', DETECTORS)
def test_proposals_and_features_in_training(config):
    """With frozen norms, maps of neck and heads, and in two stages the proposals, are those of the image alone."""
    model = detector(config, norm_eval=True)
    ignore_padding_in(model)
    for m in model.train().modules():
        if isinstance(m, _BatchNorm):
            m.eval()
    head = getattr(model, 'rpn_head', None) or model.bbox_head

    def outputs(indices):
        data = model.data_preprocessor(batch_of(indices), training=True)
        for sample in data['data_samples']:
            sample.gt_instances.labels.zero_()
        seen = []
        handle = head.register_forward_hook(lambda _, args, out: seen.append((args[0], out[0], out[1])))
        losses = model(**data, mode='loss')
        handle.remove()
        assert all(torch.isfinite(sum(v) if isinstance(v, list) else v).all() for v in losses.values())
        [maps] = seen
        with torch.no_grad():
            metas = [sample.metainfo for sample in data['data_samples']]
            boxes = head.predict_by_feat(*maps[1:], batch_img_metas=metas, cfg=model.train_cfg.get('rpn_proposal'))
        return maps, boxes, [area.sizes for area in model.backbone.areas]

    together, boxes, sizes = outputs([1, 0, 2])
    assert sizes[0] == ((8, 24), (16, 24), (13, 19))
    for place, i in enumerate([1, 0, 2]):
        maps, [own], _ = outputs([i])
        for kind, (whole, single) in enumerate(zip(together, maps)):
            for a, b in zip(whole, single):
                stride = 64 // a.shape[2]
                h, w = (-(-n // stride) for n in SIZES[i])
                # What a neck gives outside of the image is nobody's concern.
                torch.testing.assert_close(a[place, :, :h, :w], b[0, :, :h, :w], atol=1e-4, rtol=1e-4, msg=str(kind))
        assert same(boxes[place], own)


def test_others_are_left_alone():
    assert not ignore_padding_in(nn.Conv2d(3, 3, 3))
    model = detector(DETECTORS[0], on=False)
    assert not ignore_padding_in(model)
    assert not model._forward_pre_hooks
    assert 'predict_by_feat' not in model.bbox_head.__dict__


def test_twice_is_once_and_a_copy_has_its_own():
    model = detector(DETECTORS[0])
    assert ignore_padding_in(model)
    assert ignore_padding_in(model)
    assert len(model._forward_pre_hooks) == len(model.backbone._forward_pre_hooks) == 1
    twin = copy.deepcopy(model)
    predict = twin.bbox_head.predict_by_feat
    assert predict.head is twin.bbox_head
    assert predict.within.backbone is twin.backbone
    assert next(iter(twin.backbone._forward_pre_hooks.values())).__self__ is predict.within


def test_the_backbone_gets_the_sizes_of_the_samples():
    model = detector(DETECTORS[0])
    ignore_padding_in(model)
    data = batch_of([0, 1])
    data['inputs'][1][:, 20:] = 0  # the normalised image is not 0 there, and its size is given anyway
    with torch.no_grad():
        model.test_step(data)
    assert model.backbone.areas[0].sizes == ((16, 24), (8, 24))
    with torch.no_grad():
        model.backbone(torch.randn(2, 3, 64, 64))  # the sizes are of one call
    assert model.backbone.areas == []


def test_init_model_and_the_hook_do_it():
    cfg = mmccd.get_config(DETECTORS[0])
    assert cfg.default_hooks.padding == dict(type='mmccd.IgnorePaddingHook')
    cfg.model.backbone.ignore_padding = True
    model = mmccd.init_model(cfg, device='cpu')
    assert isinstance(model.backbone, AttentionResNet)
    assert 'predict_by_feat' in model.bbox_head.__dict__
    other = detector(DETECTORS[0])
    runner = Runner.__new__(Runner)
    runner.model = nn.Sequential(other)  # whatever wraps it
    IgnorePaddingHook().before_run(runner)
    assert 'predict_by_feat' in other.bbox_head.__dict__
