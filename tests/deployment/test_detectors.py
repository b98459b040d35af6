"""Two-stage detectors: the choice of boxes against MMDetection's in PyTorch, and their files against PyTorch."""

from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmengine.config import Config

import mmccd
from mmccd.compat.mmdet_v06 import InclusiveBBoxCoder
from mmccd.deployment import SHAPES, build_network, compare, export_onnx, parity_images
from mmccd.deployment.boxes import decode
from mmccd.deployment.parity import noise_image

MMDET = Path(mmdet.__file__).parent / '.mim' / 'configs' / '_base_' / 'models'
THIN = dict(depth=18, base_channels=8, init_cfg=None, frozen_stages=-1)


def thin_model(kind):
    """A detector with eight channels, of a kind named below."""
    cfg = mmccd.get_config('cascade_rcnn_ccd_r18_fpn_digits')
    if kind.startswith('cascade'):
        if kind == 'cascade-legacy':
            cfg = mmccd.get_config('cascade_rcnn_r50_fpn_2x_legacy_coco')
            cfg.model.backbone.update(THIN)
        cfg.model.backbone.update(depth=18, base_channels=8)
        if kind == 'cascade':
            cfg.model.backbone.attention.update(groups=8)
    else:
        name = dict(mask='mask-rcnn_r50_fpn', c4='faster-rcnn_r50-caffe-c4').get(kind, 'faster-rcnn_r50_fpn')
        cfg.model = Config.fromfile(MMDET / f'{name}.py').model
        if kind != 'c4':
            cfg.model.backbone.update(THIN)
    model = cfg.model
    if kind == 'c4':
        model.backbone.update(init_cfg=None)
        model.test_cfg.rpn.max_per_img = 20
    else:
        model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
        model.rpn_head.update(in_channels=16, feat_channels=16)
        model.roi_head.bbox_roi_extractor.out_channels = 16
        heads = model.roi_head.bbox_head
        for head in heads if isinstance(heads, list) else [heads]:
            head.update(in_channels=16, fc_out_channels=32, num_classes=7)
    if kind == 'mask':
        model.roi_head.mask_roi_extractor.out_channels = 16
        model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=7)
    if kind == 'softmax-rpn':
        model.rpn_head.loss_cls.use_sigmoid = False
    if kind == 'agnostic-nms':
        model.test_cfg.rcnn.nms.class_agnostic = True
        model.test_cfg.rcnn.max_per_img = -1
        model.test_cfg.rpn.nms_pre = -1
    return lively(mmccd.init_model(cfg, device='cpu'))


def lively(model):
    """Scores and deltas as spread as a trained network's, so that rounding decides on no box."""
    torch.manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 1.0
            norm.train()
    images = torch.from_numpy(np.stack([noise_image((97, 130), seed) for seed in (0, 1)])).permute(0, 3, 1, 2)
    network = build_network(model, 'raw')
    heads = model.roi_head.bbox_head
    heads = list(heads) if isinstance(heads, torch.nn.ModuleList) else [heads]
    for key, p in model.named_parameters():
        if p.dim() > 1 and key.startswith(('neck.', 'rpn_head.', 'roi_head.bbox_head')):
            torch.nn.init.kaiming_normal_(p)
    with torch.no_grad():
        network(images.float())
        model.eval()
        outputs = dict(zip(network.outputs, network(images.float())))
        model.rpn_head.rpn_cls.weight.mul_(2 / outputs['rpn_cls_0'].std())
        model.rpn_head.rpn_reg.weight.mul_(0.3 / outputs['rpn_box_0'].std())
        spreads = []
        hooks = [
            head.register_forward_hook(lambda m, _, out: spreads.append((m, out[0].std(), out[1].std())))
            for head in heads
        ]
        build_network(model, 'end2end')(images[:1].float())
        for hook in hooks:
            hook.remove()
        for head, logits, deltas in spreads:
            head.fc_cls.weight.mul_(2 / logits)
            head.fc_reg.weight.mul_(1 / deltas)
    return model


KINDS = ['cascade', 'cascade-legacy', 'faster', 'mask', 'softmax-rpn', 'agnostic-nms']


@pytest.mark.parametrize('kind', [*KINDS, pytest.param('c4', marks=pytest.mark.long)])
def test_the_choice_of_boxes_is_mmdets(kind):
    """Without ONNX: the same boxes, scores and labels in the same order, to rounding."""
    network = build_network(thin_model(kind), 'end2end').eval()
    for image in parity_images([(61, 93), (130, 99)]):
        expected = network.expected(image)
        with torch.no_grad():
            got = network(torch.from_numpy(image).permute(2, 0, 1)[None].float())
        assert len(expected['scores']) >= 10
        assert np.array_equal(expected['labels'], got[2].numpy())
        assert np.abs(expected['boxes'] - got[0].numpy()).max() < 1e-3
        assert np.abs(expected['scores'] - got[1].numpy()).max() < 1e-5


@pytest.mark.long
@pytest.mark.parametrize('kind', [*KINDS, 'c4'])
def test_files_give_pytorchs_boxes(kind):
    """To 0.01 pixels at three sizes, with ONNX's own NMS and RoIAlign."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    network, content = export_onnx(thin_model(kind))
    rows = compare(network, content, parity_images(SHAPES))
    assert {(r.shape, r.output) for r in rows} == {(s, o) for s in SHAPES for o in ('boxes', 'scores')}
    assert all(r.ok and (r.limit == 0.01 if r.output == 'boxes' else r.limit == 1e-4) for r in rows), rows
    assert all(r.boxes >= 10 for r in rows if r.output == 'boxes'), rows
    graph = onnx.load_from_string(content)
    operators = {n.op_type for n in graph.graph.node}
    assert {'NonMaxSuppression', 'RoiAlign'} <= operators
    assert {n.domain for n in graph.graph.node} <= {''}
    (given,) = graph.graph.input
    assert [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim] == [1, 3, 'height', 'width']
    # The comparison tells: other thresholds give other boxes.
    network.roi.test_cfg.nms.iou_threshold = 0.9
    assert not all(r.ok for r in compare(network, content, parity_images(SHAPES[:1])))


@pytest.mark.parametrize(
    ('coder', 'options'),
    [
        (DeltaXYWHBBoxCoder, dict(target_stds=(0.1, 0.1, 0.2, 0.2), target_means=(0.1, 0.0, -0.2, 0.0))),
        (DeltaXYWHBBoxCoder, dict(add_ctr_clamp=True, ctr_clamp=4)),
        (DeltaXYWHBBoxCoder, dict(clip_border=False)),
        (InclusiveBBoxCoder, dict(target_stds=(0.1, 0.1, 0.2, 0.2))),
    ],
)
def test_boxes_of_deltas_in_a_graph_traced_without_any(coder, options):
    """To the last bit those of MMDetection's coders, also of deltas that are cut off."""
    coder = coder(**options)
    priors = torch.rand(9, 4) * 30 + torch.tensor([0.0, 0.0, 30.0, 30.0])
    deltas = torch.randn(9, 4) * torch.tensor([1.0, 1.0, 5.0, 9.0])
    expected = coder.decode(priors, deltas, max_shape=(50, 60))
    assert torch.equal(decode(coder, priors, deltas, 50, 60), expected)
    traced = torch.jit.trace(lambda p, d: decode(coder, p, d, 50, 60), (priors[:0], deltas[:0]), check_trace=False)
    assert torch.equal(traced(priors, deltas), expected)


@pytest.mark.long
def test_no_box_and_no_proposal():
    """A file of any size gives no box where none is good enough, and none where the RPN proposes nothing."""
    onnxruntime = pytest.importorskip('onnxruntime')
    model = thin_model('cascade')
    model.roi_head.test_cfg.score_thr = 1.0
    _, nothing_good = export_onnx(model)
    model.roi_head.test_cfg.score_thr = 0.05
    model.rpn_head.test_cfg.min_bbox_size = 80
    _, no_proposal = export_onnx(model, shape=None)
    image = np.zeros((1, 3, 50, 41), np.float32)
    for content in (nothing_good, no_proposal):
        session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
        boxes, scores, labels = session.run(['boxes', 'scores', 'labels'], dict(image=image))
        assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))


def test_other_detectors_are_refused_by_name():
    cfg = mmccd.get_config('cascade_rcnn_ccd_r18_fpn_digits')
    cfg.model.backbone.update(base_channels=8, attention=None)
    cfg.model.neck.update(in_channels=[8, 16, 32, 64])
    model = mmccd.init_model(cfg, device='cpu')
    from mmdet.models.roi_heads import HybridTaskCascadeRoIHead
    from mmdet.models.task_modules.coders import TBLRBBoxCoder

    def refused(change, message):
        undo = change()
        with pytest.raises(ValueError, match=r'--kind end2end cannot export .*; --kind raw can') as e:
            build_network(model, 'end2end')
        undo()
        assert message in str(e.value)

    def put(owner, name, value):
        def change():
            before = getattr(owner, name)
            setattr(owner, name, value)
            return lambda: setattr(owner, name, before)

        return change

    roi, rpn = model.roi_head, model.rpn_head
    refused(put(roi, '__class__', HybridTaskCascadeRoIHead), 'HybridTaskCascadeRoIHead')
    refused(put(rpn, '__class__', type('GuidedHead', (type(rpn),), dict(predict=None))), 'GuidedHead')
    refused(put(model, '__class__', type('Panoptic', (type(model),), dict(predict=None))), 'Panoptic')
    refused(put(roi.bbox_head[1], 'bbox_coder', TBLRBBoxCoder()), 'bbox_coder=TBLRBBoxCoder')
    roi.bbox_head[2].loss_cls.custom_cls_channels = False
    refused(put(roi.bbox_head[2].loss_cls, 'custom_cls_channels', True), 'loss_cls=CrossEntropyLoss')
    layer = roi.bbox_roi_extractor[0].roi_layers[0]
    refused(put(layer, 'pool_mode', 'max'), "roi_layer.pool_mode='max'")
    refused(put(rpn.test_cfg, 'nms', dict(type='soft_nms', iou_threshold=0.7)), 'test_cfg.rpn.nms=')
    refused(put(roi.test_cfg, 'nms', dict(type='nms')), 'test_cfg.rcnn.nms without iou_threshold')
    assert build_network(model, 'end2end').max_per_img == 100
