"""Tiled detection: where tiles are, what is merged, and that one tile is the model alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector
from mmengine.config import Config
from mmengine.structures import InstanceData
from PIL import Image
from torchvision.ops import box_iou

import mmccd
from mmccd.analysis import tiles
from mmccd.analysis.tiles import Tile, cut, detect_tiled, merge, starts

WIDTH, HEIGHT = 100, 70


def test_tiles_cover_the_image():
    assert starts(1000, 400, 0.25) == [0, 300, 600]
    assert starts(300, 400, 0.25) == starts(400, 400, 0.25) == [0]
    assert starts(401, 400, 0) == [0, 1]
    assert starts(10, 4, 0.99) == [0, 1, 2, 3, 4, 5, 6]
    for length, side, overlap in ((1000, 333, 0.2), (77, 16, 0.5), (5000, 512, 0.1)):
        found = starts(length, side, overlap)
        assert (found[0], found[-1]) == (0, length - side)
        assert max(b - a for a, b in zip(found, found[1:])) <= side * (1 - overlap) + 1
    assert cut(100, 30, 40, 0.5) == [Tile(x, 0, 40, 30) for x in (0, 20, 40, 60)]
    for arguments, message in (
        ((9, 9, 0, 0.5), 'side of a tile must be at least 1 pixel, got 0'),
        ((9, 9, 4, 1.0), 'overlap must be from 0 to below 1, got 1.0'),
        ((9, 9, 4, -0.1), 'overlap must be from 0 to below 1, got -0.1'),
    ):
        with pytest.raises(ValueError, match=message):
            cut(*arguments)


class Boxes(torch.nn.Module):
    """Finds the rectangles of an image: each has a grey value of its own, which gives its score and its class."""

    def __init__(self):
        super().__init__()
        pipeline = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape'))]
        self.cfg = Config(
            dict(
                default_scope='mmdet',
                test_dataloader=dict(dataset=dict(type='CocoDataset', pipeline=pipeline)),
                model=dict(test_cfg=dict(nms=dict(type='nms', iou_threshold=0.6))),
            )
        )
        self.sizes = []

    def test_step(self, batch):
        self.sizes.append([tuple(image.shape[1:]) for image in batch['inputs']])
        for image, sample in zip(batch['inputs'], batch['data_samples']):
            boxes, values = [], [v for v in image[0].unique().tolist() if v]
            for v in values:
                ys, xs = torch.nonzero(image[0] == v, as_tuple=True)
                boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                scores=torch.tensor([v / 255 for v in values]),
                labels=torch.tensor([int(v) % 2 for v in values], dtype=torch.long),
            )
        return batch['data_samples']


# x1, y1, x2, y2 by grey value; the last is larger than the overlap of tiles of 40.
RECTANGLES = {250: (0, 0, 15, 10), 241: (30, 15, 48, 30), 230: (55, 35, 72, 45), 220: (90, 60, 100, 70)}
LARGE = {210: (5, 48, 85, 56)}


@pytest.fixture
def scene(tmp_path):
    """Draws rectangles and returns the path of the image."""

    def draw(rectangles: dict) -> str:
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for value, (x1, y1, x2, y2) in rectangles.items():
            pixels[y1:y2, x1:x2] = value
        Image.fromarray(pixels).save(tmp_path / 'scene.png')
        return str(tmp_path / 'scene.png')

    return draw


def as_dict(found: tiles.Found) -> dict:
    return {round(255 * s): tuple(b) for s, b in zip(found.scores.tolist(), found.boxes.tolist())}


def test_each_object_is_found_once_and_whole(scene):
    model = Boxes()
    found = detect_tiled(model, scene(RECTANGLES), 40, 0.5)
    assert (found.tiles, len(found.boxes)) == (12, 4)
    assert as_dict(found) == RECTANGLES
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.labels.tolist() == [0, 1, 0, 0]
    assert model.sizes == [[(40, 40)]] * 12
    # What is larger than the overlap is found in parts; with the whole image as a view once.
    both = {**RECTANGLES, **LARGE}
    path = scene(both)
    parts = detect_tiled(model, path, 40, 0.5)
    assert len(parts.boxes) > 5
    model.sizes.clear()
    found = detect_tiled(model, path, 40, 0.5, whole=True, batch=4)
    assert (as_dict(found), len(found.boxes)) == (both, 5)
    assert [len(sizes) for sizes in model.sizes] == [4, 4, 4, 1]
    assert model.sizes[-1] == [(HEIGHT, WIDTH)]
    with pytest.raises(ValueError, match='batch must be at least 1, got 0'):
        detect_tiled(model, path, 40, batch=0)


def test_tiles_of_a_large_image_find_what_images_of_their_size_give(tmp_path):
    """Nine images of a tile's size side by side: each object as in its own image, wherever borders of tiles cut it."""
    rng, side, model = np.random.default_rng(0), 64, Boxes()
    values = rng.permutation(np.arange(100, 244)).reshape(9, 16)
    whole = np.zeros((3 * side, 3 * side, 3), np.uint8)
    expected = []
    for i, (y0, x0) in enumerate((y, x) for y in range(0, 3 * side, side) for x in range(0, 3 * side, side)):
        pixels = np.zeros((side, side, 3), np.uint8)
        for value, (y, x) in zip(values[i], np.ndindex(4, 4)):
            w, h = rng.integers(3, 17, 2)  # a cell of 16 pixels holds one, up to its borders
            x1, y1 = 16 * x + rng.integers(0, 17 - w), 16 * y + rng.integers(0, 17 - h)
            pixels[y1 : y1 + h, x1 : x1 + w] = value
        Image.fromarray(pixels).save(tmp_path / f'{i}.png')
        whole[y0 : y0 + side, x0 : x0 + side] = pixels
        alone = detect_tiled(model, str(tmp_path / f'{i}.png'), side)
        assert alone.tiles == 1
        boxes = (alone.boxes + torch.tensor([x0, y0, x0, y0])).tolist()
        expected += zip(map(tuple, boxes), alone.scores.tolist(), alone.labels.tolist())
    assert len({box for box, _, _ in expected}) == 144
    Image.fromarray(whole).save(tmp_path / 'whole.png')
    for overlap, batch in ((0.5, 1), (0.3, 4)):  # 19 pixels in common are enough for 16
        found = detect_tiled(model, str(tmp_path / 'whole.png'), side, overlap, batch=batch)
        assert found.tiles > 9
        rows = zip(map(tuple, found.boxes.tolist()), found.scores.tolist(), found.labels.tolist())
        assert sorted(rows) == sorted(expected)


def instances(*rows: tuple) -> InstanceData:
    """(x1, y1, x2, y2, score, label)"""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return InstanceData(bboxes=values[:, :4], scores=values[:, 4], labels=values[:, 5].long())


def test_merging():
    left, right = Tile(0, 0, 60, 50), Tile(40, 0, 60, 50)

    def merged(first: InstanceData, second: InstanceData) -> list[tuple]:
        boxes, scores, labels = merge([left, right], [first, second], (100, 50), 0.6)
        return [(*b, round(s, 2), c) for b, s, c in zip(boxes.tolist(), scores.tolist(), labels.tolist())]

    # The same object in both: the better score. IoU 10 * 9 / (10 * 11) is above 0.6.
    same = merged(instances((44, 10, 54, 20, 0.9, 0)), instances((4, 11, 14, 20, 0.8, 0)))
    assert same == [(44, 10, 54, 20, 0.9, 0)]
    # Of two classes both stay, and so do two boxes of one tile, on which the detector has decided.
    assert len(merged(instances((44, 10, 54, 20, 0.9, 0)), instances((4, 10, 14, 20, 0.8, 1)))) == 2
    assert len(merged(instances((44, 10, 54, 20, 0.9, 0), (44, 10, 54, 21, 0.8, 0)), instances())) == 2
    # Cut at the border of the left tile, whole in the right one: the whole one, though its score is lower.
    assert merged(instances((50, 10, 60, 20, 0.9, 0)), instances((10, 10, 30, 20, 0.5, 0))) == [
        (50, 10, 70, 20, 0.5, 0)
    ]
    # A small one inside does not stand for a large one that is cut.
    assert len(merged(instances((20, 10, 60, 40, 0.9, 0)), instances((10, 10, 14, 14, 0.5, 0)))) == 2
    # At the border of the image itself nothing is cut.
    assert len(merged(instances((0, 0, 10, 20, 0.9, 0)), instances((50, 0, 60, 20, 0.8, 0)))) == 2
    assert merged(instances(), instances()) == []


def test_a_forest():
    """Crowns of 12 to 56 pixels that overlap, in tiles of 256 with 64 in common, as the trees' photographs have them.

    The detector sees what a tile has of each crown, from a third on, with a score by chance: all are found once, whole.
    """
    rng = np.random.default_rng(0)
    width, height = 1000, 700
    crowns: list[tuple] = []
    while len(crowns) < 250:
        w, h = rng.integers(12, 57, 2)
        x, y = rng.integers(0, width - w), rng.integers(0, height - h)
        box = torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32)
        if not crowns or float(box_iou(box, torch.tensor(crowns)).max()) < 0.45:
            crowns.append(tuple(box[0].tolist()))
    assert (box_iou(torch.tensor(crowns), torch.tensor(crowns)) > 0.2).sum() > len(crowns) + 10
    views, found = cut(width, height, 256, 0.25), []
    for tile in views:
        boxes = torch.tensor(crowns) - torch.tensor([tile.x, tile.y, tile.x, tile.y])
        seen = torch.stack([boxes[:, i].clamp(0, side) for i, side in enumerate((tile.width, tile.height) * 2)], 1)
        area = (seen[:, 2:] - seen[:, :2]).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
        seen = seen[area > 1 / 3]
        scores = torch.from_numpy(rng.random(len(seen)))
        found.append(InstanceData(bboxes=seen, scores=scores, labels=torch.zeros(len(seen), dtype=torch.long)))
    assert sum(map(len, found)) > 1.5 * len(crowns)
    boxes, _, _ = merge(views, found, (width, height), 0.5)
    assert sorted(map(tuple, boxes.tolist())) == sorted(crowns)


def test_one_tile_is_the_model_alone(tmp_path):
    rng = np.random.default_rng(0)
    path = str(tmp_path / 'image.jpg')
    Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(path, exif=b'')
    cfg = mmccd.get_config('retinanet_ccd_r18_fpn_digits')
    cfg.model.test_cfg.update(score_thr=0.0, max_per_img=30)
    torch.manual_seed(0)
    model = mmccd.init_model(cfg, device='cpu')
    expected = inference_detector(model, path).pred_instances
    assert len(expected) == 30
    for side, whole in ((64, False), (500, True)):
        found = detect_tiled(model, path, side, whole=whole)
        assert found.tiles == 1
        assert torch.equal(found.boxes, expected.bboxes)
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.labels, expected.labels)
    found = detect_tiled(model, path, 40, 0.5, batch=2)
    one = detect_tiled(model, path, 40, 0.5)
    assert found.tiles == 6
    torch.testing.assert_close(found.boxes, one.boxes, rtol=1e-4, atol=1e-3)


def test_what_cannot_be_used(tmp_path):
    model = Boxes()
    assert tiles.nms_threshold(model.cfg) == 0.6
    cascade = Config(dict(model=dict(test_cfg=dict(rcnn=dict(nms=dict(iou_threshold=0.3)), rpn=dict()))))
    assert tiles.nms_threshold(cascade) == 0.3
    assert tiles.nms_threshold(Config(dict(model=dict()))) == 0.5
    model.cfg.test_dataloader.dataset.pipeline.pop(0)
    with pytest.raises(ValueError, match='must begin with a loader of images, begins with PackDetInputs'):
        detect_tiled(model, 'x.png', 40)
    with pytest.raises(ValueError, match='the config has no test_dataloader'):
        tiles.split_pipeline(Config(dict(model=dict())))
