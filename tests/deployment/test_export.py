"""Exported models against PyTorch's, by onnxruntime, at sizes that do not divide by 4 and in stage maps of any size."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config

import mmccd
from mmccd.deployment import SHAPES, build_network, compare, export_onnx, parity_images, resize_steps
from mmccd.deployment.parity import noise_image

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

LATE = (False, False, False, True)  # which takes less time
ATTENTIONS = {
    'plain': None,
    'ccd': dict(type='mmccd.CCD', groups=8),
    'ccd-minmax-cosine': dict(
        type='mmccd.CCD', groups=8, normalize='minmax', similarity='cosine', identity_init=True, stages=LATE
    ),
    'ccd-none-148': dict(type='mmccd.CCD', groups=8, normalize=None, scales=(1, 4, 8), stages=LATE),
    'se': dict(type='mmccd.SE', ratio=4),
    'ge': dict(type='mmccd.GE'),
    'ge-2': dict(type='mmccd.GE', extent=2),
    'ge-8-mlp': dict(type='mmccd.GE', extent=8, extra_params=True, mlp=True, ratio=4),
    'cbam': dict(type='mmccd.CBAM', ratio=4),
    'sk': dict(type='mmccd.SK', groups=8, ratio=4),
    'gc': dict(type='mmccd.GC', ratio=4),
}


def lively(model):
    """Gates that are not flat, and outputs of every layer as large as a trained network's.

    Branches are weaker than the shortcuts: deep networks amplify the rounding of float32 otherwise, and PyTorch's own
    logits are 1e-4 off those of float64.
    """
    torch.manual_seed(0)
    for key, p in model.named_parameters():
        if key.endswith('ccd.scale') or 'channel_add_conv' in key:
            torch.nn.init.normal_(p, std=0.5)
        elif key.startswith(('neck.', 'bbox_head.')) and p.dim() == 4:
            torch.nn.init.kaiming_normal_(p)
        elif key.startswith(('neck.', 'bbox_head.')) and key.endswith('conv.bias'):
            torch.nn.init.zeros_(p)
    for block in model.backbone.modules():
        if hasattr(block, 'downsample'):
            (block.norm3 if hasattr(block, 'norm3_name') else block.norm2).weight.data.fill_(0.3)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    image = torch.from_numpy(np.stack([noise_image((97, 130), seed) for seed in (0, 1)])).permute(0, 3, 1, 2)
    network = build_network(model, 'raw')
    with torch.no_grad():
        network(image.float())
        model.eval()
        outputs = dict(zip(network.outputs, network(image.float())))
    for output, module in (('logits', 'head.fc'), ('cls_0', 'bbox_head.retina_cls'), ('box_0', 'bbox_head.retina_reg')):
        if output in outputs:
            model.get_submodule(module).weight.data.mul_(1.5 / outputs[output].std())
    return model


def thin_detector(name):
    cfg = mmccd.get_config(name)
    cfg.model.backbone.update(depth=18, base_channels=8)
    if 'ccd' in name:
        cfg.model.backbone.attention.update(groups=8, stages=LATE)
    cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    for head in ('bbox_head', 'rpn_head'):
        if head in cfg.model:
            cfg.model[head].update(in_channels=16, feat_channels=16)
    return cfg


def check(model, kind='end2end', shape=None, shapes=SHAPES):
    """Export, compare, and return (rows, network, file)."""
    network, content = export_onnx(model, kind, shape)
    rows = compare(network, content, parity_images(shapes))
    assert {r.output for r in rows} >= set(network.outputs) - {'labels'}
    assert {r.shape for r in rows} == set(shapes)
    assert all(r.ok for r in rows), rows
    return rows, network, content


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_attentions_at_any_size(attention):
    cfg = mmccd.get_config('r18_digits')
    cfg.model.backbone.update(attention=ATTENTIONS[attention], base_channels=8)
    cfg.model.head.in_channels = 64
    model = lively(mmccd.init_model(cfg, device='cpu'))
    # Stage 4 of 1 x 1, 1 x 2, 2 x 3 and 3 x 5.
    shapes = ((5, 9), (31, 61), (33, 65), (90, 141))
    _, network, content = check(model, shapes=shapes)

    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    images = np.random.default_rng(0).uniform(0, 255, (3, 3, 45, 70)).astype(np.float32)
    together = session.run(['logits'], dict(image=images))[0]
    alone = np.concatenate([session.run(['logits'], dict(image=p[None]))[0] for p in images])
    assert np.allclose(together, alone, atol=1e-5)
    assert np.abs(np.diff(together, axis=0)).max() > 1e-4  # images that differ
    if attention.startswith('ccd'):  # the gates are in the graph
        for block in model.backbone.modules():
            if hasattr(block, 'ccd'):
                block.ccd.scale.data.zero_()
        rows = compare(network, content, parity_images([(90, 141)]))
        assert not all(r.ok for r in rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'kind'),
    [
        ('ccd_r18_8xb32_in1k', 'raw'),
        pytest.param('ccd_r50_8xb32_in1k', 'end2end', marks=pytest.mark.long),
        ('retinanet_ccd_r18_fpn_digits', 'raw'),
        pytest.param('retinanet_ccd_r50_fpn_1x_coco', 'raw', marks=pytest.mark.long),
    ],
)
def test_networks_at_sizes_that_do_not_divide_by_4(name, kind):
    assert all(n % 4 for shape in SHAPES for n in shape)
    _, _, content = check(lively(mmccd.init_model(name, device='cpu')), kind)
    graph = onnx.load_from_string(content)
    (given,) = graph.graph.input
    assert [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim] == ['n', 3, 'height', 'width']
    info = json.loads({p.key: p.value for p in graph.metadata_props}['mmccd'])
    assert (info['config'], info['kind'], info['version']) == (name, kind, mmccd.__version__)
    assert (info['task'] == 'classification') == name.endswith('in1k')
    assert graph.opset_import[0].version == 17
    assert {n.domain for n in graph.graph.node} <= {''}  # ONNX's own operators alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('retinanet_ccd_r18_fpn_digits', None),
        ('retinanet_r18_fpn_digits', (97, 65)),
        ('retinanet_r50_fpn_2x_legacy_coco', None),  # boxes that include their last pixel
    ],
)
def test_boxes_behind_nms(name, shape):
    cfg = thin_detector(name)
    cfg.model.test_cfg.nms_pre = 300  # less than the first level has
    model = lively(mmccd.init_model(cfg, device='cpu'))
    rows, network, content = check(model, shape=shape, shapes=[shape] if shape else SHAPES)
    assert all(r.boxes >= 10 for r in rows if r.output == 'boxes'), rows

    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    height, width = shape or (70, 41)
    image = parity_images([(height, width)])[0]
    boxes, scores, labels = session.run(None, dict(image=image.transpose(2, 0, 1)[None].astype(np.float32)))
    assert (np.diff(scores) <= 0).all()
    assert (boxes >= 0).all()
    assert (boxes <= [width, height, width, height]).all()
    assert labels.dtype == np.int64
    # The choice is that of mmdet: another threshold gives other boxes, and the comparison tells.
    network.model.bbox_head.test_cfg.nms.iou_threshold = 0.2
    assert not all(r.ok for r in compare(network, content, [image]))


@pytest.mark.slow
def test_features_and_rpn_of_two_stages():
    cfg = thin_detector('cascade_rcnn_ccd_r18_fpn_digits')
    rows, _, _ = check(lively(mmccd.init_model(cfg, device='cpu')), 'raw', shapes=SHAPES[:2])
    assert {r.output for r in rows} == {f'{k}_{i}' for k in ('feature', 'rpn_cls', 'rpn_box') for i in range(5)}


@pytest.mark.slow
def test_no_box_at_all():
    cfg = thin_detector('retinanet_r18_fpn_digits')
    cfg.model.test_cfg.score_thr = 1.0
    rows, _, _ = check(mmccd.init_model(cfg, device='cpu'), shape=(64, 64), shapes=[(64, 64)])
    assert [r.boxes for r in rows if r.output == 'boxes'] == [0]


def test_models_that_cannot_be_exported():
    cfg = mmccd.get_config('retinanet_ccd_r18_fpn_digits')
    for change, message in (
        (dict(nms=dict(type='soft_nms')), 'test_cfg.nms='),
        (dict(nms=dict(max_num=10)), 'test_cfg.nms.max_num=10'),
        (dict(with_nms=False), 'test_cfg.with_nms=False'),
    ):
        changed = mmccd.get_config('retinanet_ccd_r18_fpn_digits')
        changed.model.test_cfg.update(change)
        model = mmccd.init_model(changed, device='cpu')
        with pytest.raises(ValueError, match='--kind end2end cannot export') as e:
            build_network(model, 'end2end')
        assert message in str(e.value)
        build_network(model, 'raw')
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'all'"):
        build_network(mmccd.init_model(cfg, device='cpu'), 'all')
    with pytest.raises(ValueError, match='shape must be at least 1 1, got 0 64'):
        export_onnx(mmccd.init_model(cfg, device='cpu'), shape=(0, 64))
    with pytest.raises(ValueError, match='Linear cannot be exported; supported are ImageClassifier with'):
        build_network(torch.nn.Linear(1, 1), 'raw')


def test_resize_steps_of_the_configs():
    assert resize_steps(mmccd.get_config('ccd_r50_8xb32_in1k')) == [
        dict(step='edge', size=256, edge='short'),
        dict(step='crop', size=[224, 224]),
    ]
    assert resize_steps(mmccd.get_config('ccd_r18_digits')) == [dict(step='resize', size=[64, 64], keep_ratio=False)]
    assert resize_steps(mmccd.get_config('retinanet_ccd_r50_fpn_1x_coco')) == [
        dict(step='resize', size=[1333, 800], keep_ratio=True)
    ]
    cfg = mmccd.get_config('ccd_r18_digits')
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='Invert', prob=1.0))
    cfg.test_dataloader.dataset.pipeline[2].interpolation = 'nearest'
    assert resize_steps(cfg) == [
        dict(step='unknown', transform=dict(type='Invert', prob=1.0)),
        dict(step='unknown', transform=dict(type='Resize', scale=64, interpolation='nearest')),
    ]


@pytest.mark.parametrize(
    ('options', 'step'),
    [
        (dict(scale=None, scale_factor=1.0, keep_ratio=True), dict(step='scale', factor=[1.0, 1.0], keep_ratio=True)),
        (dict(scale_factor=(0.5, 2.0)), dict(step='scale', factor=[0.5, 2.0], keep_ratio=False)),
        (dict(scale=(9, 8), scale_factor=0.5), dict(step='resize', size=[9, 8], keep_ratio=False)),
    ],
)
def test_steps_are_json(options, step):
    steps = resize_steps(Config(dict(test_dataloader=dict(dataset=dict(pipeline=[dict(type='Resize', **options)])))))
    assert json.loads(json.dumps(steps)) == steps == [step]
