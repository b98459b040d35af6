"""A detector whose backbone ignores padding: what it finds in an image does not depend on the batch."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack
from mmdet.structures import DetDataSample
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmccd
from mmccd.engine.hooks import IgnorePaddingHook
from mmccd.models import AttentionResNet, ignore_padding_in, padding_in_detector
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


class Small(nn.Module):
    """A backbone of one stage, with an 1x1 convolution whose results are mostly negative, and what is behind them."""

    def __init__(self, neck, **others):
        super().__init__()
        self.backbone = AttentionResNet(
            18, ignore_padding=True, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,), base_channels=8
        )
        conv = nn.Conv2d(8, 4, 1)
        nn.init.constant_(conv.bias, -3)
        self.neck = nn.Sequential(conv, neck)
        for name, module in others.items():
            setattr(self, name, module)

    def forward(self, inputs, data_samples=None):
        return self.neck(self.backbone(inputs)[0])


def small_batch(sizes=SIZES):
    """Normalised images, each alone and all in one batch."""
    alone = [torch.randn(1, 3, h, w) for h, w in sizes]
    batch = torch.zeros(len(sizes), 3, *(max(s) for s in zip(*sizes)))
    for x, image in zip(batch, alone):
        x[:, : image.shape[2], : image.shape[3]] = image[0]
    return alone, batch


def a_deformable_convolution():
    conv = ModulatedDeformConv2dPack(4, 3, 3, padding=1)
    nn.init.normal_(conv.conv_offset.weight, 0, 0.2)
    return conv


@pytest.mark.parametrize(
    ('neck', 'stride'),
    [
        (nn.MaxPool2d(3, 2, 1), 2),  # at a map's border, it knows no zeros
        (nn.MaxPool2d(5, 1, 2), 1),
        (nn.AvgPool2d(3, 1, 1), 1),
        (nn.AdaptiveAvgPool2d(1), None),
        (nn.AdaptiveMaxPool2d((1, 2)), None),
        (nn.InstanceNorm2d(4), 1),
        (a_deformable_convolution(), 1),
    ],
)
def test_layers_of_a_neck(neck, stride):
    model = Small(neck).eval()
    alone, batch = small_batch()
    with torch.no_grad():
        expected = [model(image)[0] for image in alone]
        before = model(batch)
        assert ignore_padding_in(model)
        together = model(batch)
    for i, own in enumerate(expected):
        h, w = own.shape[-2:]
        assert stride is None or (h, w) == tuple((n - 1) // (4 * stride) + 1 for n in SIZES[i])
        torch.testing.assert_close(together[i, :, :h, :w], own, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(together).all()
    assert together.abs().max() < 100
    assert (
        max((before[i, :, : own.shape[1], : own.shape[2]] - own).abs().max() for i, own in enumerate(expected)) > 0.01
    )


class Head(nn.Module):
    """A dense head: its results show which part of each argument they were made of."""

    def __init__(self, knows_positions=True):
        super().__init__()
        if knows_positions:
            self.prior_generator = None

    def predict_by_feat(self, scores, masks, metas, rescale=False, other=None):
        """As in RTMDet-Ins, ``masks`` is one tensor, not a list of them."""
        return [(scores[0][i].shape, masks[i].shape, masks[i].sum(), meta, other) for i, meta in enumerate(metas)]


class HeadWithAnchors(Head):
    """Its anchors come as an argument, as in Cascade RPN."""

    def predict_by_feat(self, anchor_list, scores, masks, metas):
        return super().predict_by_feat(scores, masks, metas)


def test_a_head_gets_its_part_of_every_argument():
    model = Small(nn.Identity(), bbox_head=Head()).eval()
    ignore_padding_in(model)
    sizes = [SIZES[i] for i in (0, 1, 0, 2)]
    with torch.no_grad():
        maps = model(small_batch(sizes)[1])
    found = model.bbox_head.predict_by_feat([maps], maps, list('abcd'), other=(maps[:, 0, 0, 0], 'no map'))
    for i, (scores, masks, total, meta, other) in enumerate(found):
        h, w = ((n - 1) // 4 + 1 for n in sizes[i])
        assert scores == masks == (4, h, w)
        torch.testing.assert_close(total, maps[i, :, :h, :w].sum())
        assert meta == 'abcd'[i]
        assert other[1] == 'no map'


@pytest.mark.parametrize('head', [Head(knows_positions=False), HeadWithAnchors()])
def test_a_head_that_cannot_decode_a_part_gets_all_and_says_so(head, monkeypatch):
    """CenterNet's, for one, derives the stride from the size of a batch's maps."""
    said = []
    monkeypatch.setattr(padding_in_detector, 'print_log', lambda text, **_: said.append(text))
    model = Small(nn.Identity(), bbox_head=head).eval()
    ignore_padding_in(model)
    with torch.no_grad():
        maps = model(small_batch()[1])
    first = [[]] if isinstance(head, HeadWithAnchors) else []
    for _ in range(2):
        found = model.bbox_head.predict_by_feat(*first, [maps], maps, list('abcd'))
        assert [result[:2] for result in found] == [((4, 16, 24), (4, 16, 24))] * 4
    assert len(said) == 1
    assert type(head).__name__ in said[0]


def test_another_network_in_it_is_left_alone():
    """LAD's teacher is part of the student, runs first, and would get the sizes of the last batch."""
    teacher = Small(nn.Conv2d(4, 4, 3))
    model = Small(nn.Conv2d(4, 4, 3), teacher=teacher)
    ignore_padding_in(model)
    assert model.neck[1]._forward_pre_hooks
    assert not teacher.neck[1]._forward_pre_hooks
    ignore_padding_in(teacher)
    [hook] = teacher.neck[1]._forward_pre_hooks.values()
    assert hook.__self__.backbone is teacher.backbone


def test_switched_off_again():
    model = Small(nn.Conv2d(4, 4, 3)).eval()
    _, batch = small_batch()
    samples = [DetDataSample(metainfo=dict(img_shape=size)) for size in SIZES]
    with torch.no_grad():
        model.backbone.ignore_padding = False
        off = model(batch)
        model.backbone.ignore_padding = True
        ignore_padding_in(model)
        assert not torch.equal(model(batch, samples), off)
        model.backbone.ignore_padding = False
        assert torch.equal(model(batch, samples), off)


def test_pickled():
    model = Small(nn.Conv2d(4, 4, 3)).eval()
    ignore_padding_in(model)
    twin = pickle.loads(pickle.dumps(model))
    _, batch = small_batch()
    with torch.no_grad():
        assert torch.equal(twin(batch), model(batch))
    assert next(iter(twin.neck[1]._forward_pre_hooks.values())).__self__.backbone is twin.backbone


@pytest.mark.long
def test_compiled():
    model = Small(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(3, 1, 1))).eval()
    ignore_padding_in(model)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend='aot_eager')
    for sizes in (SIZES, SIZES[::-1]):
        _, batch = small_batch(sizes)
        expected, got = model(batch), compiled(batch)
        torch.testing.assert_close(got, expected)
        expected.square().sum().backward()
        got.square().sum().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, atol=1e-4 * p.grad.abs().max().item(), rtol=0)


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
    warnings = []
    runner.logger = SimpleNamespace(warning=warnings.append)
    IgnorePaddingHook().before_run(runner)
    assert 'predict_by_feat' in other.bbox_head.__dict__
    assert warnings == []
    runner.model = nn.ModuleDict(dict(encoder=other.backbone))
    IgnorePaddingHook().before_run(runner)
    assert [w.partition(',')[0] for w in warnings] == ['encoder ignores padding']
