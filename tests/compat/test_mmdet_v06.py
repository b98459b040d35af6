"""MMDetection 0.6's boxes: worked by hand, and against RoIAlign written out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import METRICS, MODELS, TASK_UTILS
from torch import Tensor

from mmccd.compat.mmdet_v06 import InclusiveBBoxCoder, InclusiveRoIExtractor
from mmccd.data.coco_metric import InclusiveCocoMetric


def test_names_resolve():
    assert TASK_UTILS.get('mmccd.InclusiveBBoxCoder') is InclusiveBBoxCoder
    assert MODELS.get('mmccd.InclusiveRoIExtractor') is InclusiveRoIExtractor
    assert METRICS.get('mmccd.InclusiveCocoMetric') is InclusiveCocoMetric


def test_decode_by_hand():
    # Pixels 2 to 5 in x (width 4, centre 3.5), 1 to 8 in y (height 8, centre 4.5).
    box = torch.tensor([[2.0, 1.0, 5.0, 8.0]])
    coder = InclusiveBBoxCoder()
    assert coder.decode(box, torch.zeros(1, 4)).tolist() == box.tolist()
    # dx 0.5 moves the centre by 2 to 5.5, dw = log 2 gives 8 pixels: 2 to 9. y stays.
    deltas = torch.tensor([[0.5, 0.0, np.log(2), 0.0]], dtype=torch.float32)
    torch.testing.assert_close(coder.decode(box, deltas), torch.tensor([[2.0, 1.0, 9.0, 8.0]]))
    # The last pixels of an image 6 high and 7 wide are 5 and 6.
    torch.testing.assert_close(coder.decode(box, deltas, max_shape=(6, 7)), torch.tensor([[2.0, 1.0, 6.0, 5.0]]))
    torch.testing.assert_close(coder.decode(box, deltas, max_shape=(6, 7, 3)), torch.tensor([[2.0, 1.0, 6.0, 5.0]]))


def test_decode_undoes_encode():
    corners = torch.rand(50, 2, 2).mul(100).sort(1).values
    boxes, targets = corners[:25].flatten(1), corners[25:].flatten(1)
    coder = InclusiveBBoxCoder(target_means=(0.1, 0, 0, 0), target_stds=(0.1, 0.1, 0.2, 0.2))
    deltas = coder.encode(boxes, targets)
    wide = (targets[:, 2:] - targets[:, :2] + 1) / (boxes[:, 2:] - boxes[:, :2] + 1)
    kept = ((wide > 16 / 1000) & (wide < 1000 / 16)).all(1)
    assert kept.sum() > 10
    torch.testing.assert_close(coder.decode(boxes, deltas)[kept], targets[kept], rtol=1e-4, atol=1e-3)


def test_decode_of_several_classes():
    """Deltas (N, 4 * k) are k boxes."""
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [5.0, 5.0, 30.0, 20.0], [7.0, 0.0, 7.0, 3.0]])
    deltas = torch.randn(3, 8) * 0.3
    coder = InclusiveBBoxCoder()
    both = coder.decode(boxes, deltas, max_shape=(25, 28))
    assert both.shape == (3, 8)
    for i in range(2):
        own = slice(4 * i, 4 * i + 4)
        torch.testing.assert_close(both[:, own], coder.decode(boxes, deltas[:, own], max_shape=(25, 28)))
    assert coder.decode(boxes[:0], deltas[:0], max_shape=(25, 28)).shape == (0, 8)


def bilinear(x: Tensor, row: float, column: float) -> Tensor:
    """Value (C,) between the cells' centres, which lie at whole numbers; the border extends by one cell."""
    height, width = x.shape[1:]
    if not (-1 <= row <= height and -1 <= column <= width):
        return x.new_zeros(len(x))
    row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
    i, j = int(row), int(column)
    k, m = min(i + 1, height - 1), min(j + 1, width - 1)
    a, b = row - i, column - j
    return (1 - a) * ((1 - b) * x[:, i, j] + b * x[:, i, m]) + a * ((1 - b) * x[:, k, j] + b * x[:, k, m])


def roi_align_v06(x: Tensor, box: list[float], scale: float, size: int) -> Tensor:
    """One box's features (C, size, size) as 0.6 had them: it ends at x2 + 1; 2 x 2 samples a cell; no shift."""
    x1, y1, x2, y2 = box[0] * scale, box[1] * scale, (box[2] + 1) * scale, (box[3] + 1) * scale
    out = x.new_zeros(len(x), size, size)
    for i in range(size):
        for j in range(size):
            for a in (0.25, 0.75):
                for b in (0.25, 0.75):
                    out[:, i, j] += bilinear(x, y1 + (i + a) * (y2 - y1) / size, x1 + (j + b) * (x2 - x1) / size) / 4
    return out


def test_roi_features():
    """Each box on its level: below 112 pixels of width and height's geometric mean on the first, from there on the
    second; 111 x 111 exclusive is 112 x 112 inclusive, and goes to the second."""
    extractor = MODELS.build(
        dict(
            type='mmccd.InclusiveRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=2, aligned=False),
            out_channels=2,
            featmap_strides=[4, 8],
        )
    )
    features = torch.randn(1, 2, 40, 48), torch.randn(1, 2, 20, 24)
    boxes = [
        [3.0, 5.0, 60.0, 41.0],
        [10.5, 0.0, 30.25, 99.0],
        [0.0, 0.0, 111.0, 111.0],
        [20.0, 3.0, 190.0, 150.0],
        [150.0, 120.0, 191.0, 159.0],
    ]
    rois = torch.tensor([[0.0, *box] for box in boxes])
    out = extractor(features, rois)
    for i, (box, level) in enumerate(zip(boxes, (0, 0, 1, 1, 0))):
        torch.testing.assert_close(
            out[i], roi_align_v06(features[level][0], box, 1 / (4, 8)[level], 3), rtol=1e-4, atol=1e-5
        )
    assert extractor(features, rois[:0]).shape == (0, 2, 3, 3)
    assert rois.tolist() == [[0.0, *box] for box in boxes]  # the caller's own


def test_metric_counts_the_last_pixel(coco_file):
    metric = METRICS.build(dict(type='mmccd.InclusiveCocoMetric', ann_file=str(coco_file), metric='bbox'))
    assert metric.xyxy2xywh(np.array([2.0, 1.0, 5.0, 8.0])) == [2.0, 1.0, 4.0, 8.0]


@pytest.fixture
def coco_file(tmp_path):
    path = tmp_path / 'instances.json'
    path.write_text('{"images": [], "annotations": [], "categories": []}')
    return path


def differences(a: object, b: object, key: str = '') -> Iterator[str]:
    """Where two configs are not the same, list items all as one."""
    if isinstance(a, dict) and isinstance(b, dict):
        for k in {**a, **b}:
            yield from differences(a.get(k), b.get(k), f'{key}.{k}' if key else k)
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for x, y in zip(a, b):
            yield from differences(x, y, key)
    elif a != b:
        yield key


@pytest.mark.parametrize(
    'name, parts',
    [
        (
            'retinanet_{}r50_fpn_2x{}_coco.py',
            {
                'model.bbox_head.anchor_generator.type',
                'model.bbox_head.anchor_generator.center_offset',
                'model.bbox_head.bbox_coder.type',
                'model.bbox_head.loss_bbox.type',
                'model.bbox_head.loss_bbox.beta',
                'model.test_cfg.min_bbox_size',
            },
        ),
        (
            'cascade_rcnn_{}r50_fpn_2x{}_coco.py',
            {
                'model.rpn_head.anchor_generator.type',
                'model.rpn_head.anchor_generator.center_offset',
                'model.rpn_head.bbox_coder.type',
                'model.roi_head.bbox_head.bbox_coder.type',
                'model.roi_head.bbox_roi_extractor.type',
                'model.roi_head.bbox_roi_extractor.roi_layer.aligned',
                'model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio',
                'model.train_cfg.rpn_proposal.min_bbox_size',
                'model.test_cfg.rpn.min_bbox_size',
            },
        ),
    ],
    ids=['retinanet', 'cascade_rcnn'],
)
def test_legacy_configs_differ_in_these(name, parts):
    """From their modern siblings, in the boxes alone, and each attention in the same way."""
    configs = Path(__file__).parents[2] / 'configs'
    for attention in ('', 'se_' if name.startswith('retinanet') else 'gc_', 'ccd_'):
        modern, legacy = (Config.fromfile(configs / name.format(attention, kind)) for kind in ('', '_legacy'))
        assert set(differences(modern.to_dict(), legacy.to_dict())) == parts | {
            'val_evaluator.type',
            'test_evaluator.type',
        }
