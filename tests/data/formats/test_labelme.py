"""LabelMe: shapes, groups, images, and what is wrong with others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmccd.data.formats import Findings, labelme
from mmccd.data.formats.shapes import tidy


@pytest.fixture
def one(label_folders, tmp_path):
    """Reads one image with these shapes; returns labels and findings."""

    def check(*shapes: object, path: str = 'a.jpg', **size):
        label_folders.save_image(tmp_path / 'one' / 'a.jpg')
        label_folders.write(tmp_path / 'one' / 'a.json', label_folders.labelme_json(path, list(shapes), **size))
        findings = Findings()
        labelled = labelme.read(str(tmp_path / 'one'), findings)
        return [label for images in labelled.splits.values() for i in images for label in i.labels], findings

    return check


def shape(kind: str | None, *points: object, label: object = 'cat', group: object = None) -> dict:
    return dict(label=label, points=[list(p) for p in points], group_id=group, shape_type=kind, flags={})


def test_shapes(one):
    labels, findings = one(
        shape('rectangle', (24, 3), (4, 13)),
        shape('rectangle', (4, 3), (24, 3), (24, 13), (4, 13)),
        shape('rectangle', (4, 3), (24, 4), (23, 13), (4, 12)),
        shape('polygon', (4, 3), (24, 5), (10, 13)),
        shape(None, (4, 3), (24, 5), (10, 13)),
        shape('circle', (10, 10), (13, 14)),
        shape('mask', (4, 3), (23, 12)),
        shape('rotation', (4, 8), (14, 3), (24, 8), (14, 13)),
        shape('point', (1, 1)),
        shape('line', (1, 1), (5, 5)),
        shape('linestrip', (1, 1), (5, 5), (6, 6)),
        shape('points', (1, 1)),
    )
    box = (4, 3, 20, 10)
    assert [tidy(label.box) for label in labels] == [box, box, box, box, box, (5, 5, 10, 10), box, box]
    assert findings.counts == {'no-box': 4, 'enclosed': 5}
    assert 'one/a.json, shapes[9]: line' in findings.text()


def test_groups_are_one_object(one):
    labels, findings = one(
        shape('polygon', (4, 3), (8, 3), (8, 5), group=1),
        shape('polygon', (20, 10), (24, 10), (24, 13), group=1),
        shape('rectangle', (1, 1), (2, 2), group=1, label='dog'),
        shape('rectangle', (1, 1), (3, 3), group=2),
    )
    assert [(label.name, label.box) for label in labels] == [
        ('cat', (4, 3, 20, 10)),
        ('dog', (1, 1, 1, 1)),
        ('cat', (1, 1, 2, 2)),
    ]
    assert findings.counts == {'enclosed': 2, 'joined': 1}


@pytest.mark.parametrize(
    'bad, kind, message',
    [
        (shape('rectangle', (4, 3)), 'label', 'rectangle of 1 points'),
        (shape('polygon', (4, 3), (5, 5)), 'label', 'polygon of 2 points'),
        (shape('circle', (4, 3)), 'label', 'circle of 1 points'),
        (shape('star', (4, 3), (5, 5)), 'label', "shape_type 'star' is not known"),
        (shape([3], (4, 3), (5, 5)), 'label', 'shape_type must be a text, is [3]'),
        (shape('rectangle', (4, 'x'), (5, 5)), 'label', 'points must be pairs of numbers'),
        (dict(label='cat', shape_type='rectangle', points=None), 'label', 'points must be pairs'),
        (shape('rectangle', (4, 3), (5, 5), label=''), 'label-class', "label must be the name of a class, is ''"),
        (shape('rectangle', (4, 3), (5, 5), label=None), 'label-class', 'label must be the name of a class, is None'),
        ('text', 'label-class', 'label must be the name of a class, is None'),
    ],
)
def test_bad_shapes_are_named(one, bad, kind, message):
    labels, findings = one(shape('rectangle', (4, 3), (24, 13), label=7), bad)
    assert [label.name for label in labels] == ['7']
    assert findings.counts == {kind: 1}
    assert f'one/a.json, shapes[1]: {message}' in findings.text()


def test_images(one, label_folders, tmp_path):
    box = shape('rectangle', (4, 3), (24, 13))
    # Written on Windows, in another folder; renamed, the image beside it counts.
    assert one(box, path='..\\one\\a.jpg')[1].counts == {}
    assert one(box, path='C:\\x\\stale.jpg')[1].counts == {}
    assert one(box, width=None, height=None)[1].counts == {}
    labels, findings = one(box, width=80, height=60)
    assert (labels, findings.counts) == ([], {'image-size': 1})
    for name, content in (
        ('list', '[]'),
        ('cut', '{"shapes": ['),
        ('gone', label_folders.labelme_json('gone.jpg', [])),
        ('inside', json.dumps(dict(json.loads(label_folders.labelme_json('gone.jpg', [])), imageData='aGk='))),
        ('none', '{"shapes": []}'),
        ('twice', label_folders.labelme_json('a.jpg', [])),
    ):
        label_folders.write(tmp_path / 'one' / f'{name}.json', content)
    label_folders.save_image(tmp_path / 'one' / 'new.png')
    label_folders.write(tmp_path / 'one' / 'val' / 'b.json', label_folders.labelme_json('b.png', [box]))
    label_folders.save_image(tmp_path / 'one' / 'val' / 'b.png')
    findings = Findings()
    one(box)
    labelled = labelme.read(str(tmp_path / 'one'), findings)
    assert {s: [Path(i.path).name for i in images] for s, images in labelled.splits.items()} == {
        'all': ['a.jpg'],
        'val': ['b.png'],
    }
    assert findings.counts == {
        'label-file': 2,
        'label-without-image': 3,
        'image-double': 1,
        'not-labelled': 1,
        'taken': 1,
    }
    assert 'inside.json holds the image itself' in findings.text()
    assert 'none.json: it has no imagePath' in findings.text()
