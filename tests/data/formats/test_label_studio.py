"""Label Studio's JSON and JSON-MIN: regions, tasks, images, and what is wrong with others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmccd.data.formats import Findings, label_studio
from mmccd.data.formats.shapes import tidy
from mmccd.errors import UserError

BOX = (4, 3, 20, 10)


@pytest.fixture
def read(label_folders, tmp_path):
    """Reads these tasks; returns images and findings."""

    def check(tasks: list):
        for name in ('a.jpg', 'b.png'):
            label_folders.save_image(tmp_path / 'one' / 'images' / name)
        label_folders.write(tmp_path / 'one' / 'it.json', json.dumps(tasks))
        findings = Findings()
        return label_studio.read(str(tmp_path / 'one' / 'it.json'), findings).splits['all'], findings

    return check


@pytest.fixture(params=['json', 'min'])
def one(request, read, label_folders):
    """Reads one task with these regions, in both exports; returns labels and findings."""

    def check(*regions: dict):
        task = label_folders.studio_task(5, 'a.jpg', list(regions))
        images, findings = read([label_folders.studio_min(task) if request.param == 'min' else task])
        return [label for i in images for label in i.labels], findings

    return check


def region(kind: str, label: object = 'cat', **value: object) -> dict:
    return dict(type=kind, original_width=40, original_height=30, image_rotation=0, value={**value, kind: label})


def test_regions(one, label_folders):
    labels, findings = one(
        label_folders.studio_region('dog', BOX),
        # Turned by a quarter about its upper left corner, (24, 3): in pixels, not in percent.
        region('rectanglelabels', ['cat'], x=60, y=10, width=25, height=200 / 3, rotation=90),
        region('polygonlabels', ['cat'], points=[[10, 10], [60, 20], [20, 130 / 3]], closed=True),
        region('ellipselabels', ['cat'], x=35, y=80 / 3, radiusX=12.5, radiusY=100 / 3, rotation=90),
        region('keypointlabels', ['cat'], x=1, y=1, width=1),
        region('brushlabels', ['cat'], format='rle', rle=[1, 2]),
        region('rectanglelabels', ['cat', 'dog'], x=10, y=10, width=50, height=100 / 3, rotation=0),
    )
    assert [(label.name, tidy(label.box)) for label in labels] == [
        ('dog', BOX),
        *[('cat', BOX)] * 4,
        ('dog', BOX),
    ]
    assert findings.counts == {'enclosed': 3, 'no-box': 2, 'several-classes': 1}
    assert 'it.json, task 5, result 1: turned by 90 degrees' in findings.text()


@pytest.mark.parametrize(
    'bad, kind, message',
    [
        (region('rectanglelabels', []), 'label-class', 'rectanglelabels without a label'),
        (region('rectanglelabels', ['cat'], x=1, y=1, width=5), 'label', 'x, y, width, height must be numbers, are 1'),
        (region('rectanglelabels', ['cat'], x=1, y=1, width=5, height=5, rotation='x'), 'label', "is 'x'"),
        (region('polygonlabels', ['cat'], points=[[1, 1], [2, 2]]), 'label', 'a polygon must have three points'),
        (region('polygonlabels', ['cat'], points=[[1, 1], [2, 2], [3]]), 'label', 'points must be pairs of numbers'),
        (region('heartlabels', ['cat'], x=1), 'label', 'a heart is not known'),
    ],
)
def test_bad_regions_are_named(one, label_folders, bad, kind, message):
    labels, findings = one(label_folders.studio_region('cat', BOX), bad)
    assert len(labels) == 1
    assert findings.counts[kind] == findings.errors() == 1
    assert 'it.json, task 5, result 1: ' in findings.text() and message in findings.text()


@pytest.mark.parametrize('labels', [5, 'cat', {'cat': 1}, None])
def test_labels_apart_that_are_no_list(read, label_folders, labels):
    shape = dict(label_folders.studio_region('cat', BOX), id='x')
    del shape['value']['rectanglelabels']
    apart = dict(id='x', type='labels', value=dict(labels=labels))
    images, findings = read([label_folders.studio_task(5, 'a.jpg', [shape, apart])])
    assert (images[0].labels, findings.counts) == ([], {'label-class': 1})


def test_labels_apart_from_their_shapes(read, label_folders):
    value = label_folders.studio_region('cat', BOX)['value']
    shape = dict(id='x', type='rectangle', original_width=40, original_height=30, value=value)
    del value['rectanglelabels']
    regions = [shape, dict(id='x', type='labels', value=dict(value, labels=['dog'])), dict(type='choices', value={})]
    turned = dict(label_folders.studio_region('cat', BOX), image_rotation=90)
    images, findings = read([label_folders.studio_task(5, 'a.jpg', [*regions, turned])])
    assert [(label.name, tidy(label.box)) for label in images[0].labels] == [('dog', BOX)]
    assert findings.counts == {'no-box': 1, 'label': 1}
    assert 'drawn on a turned image' in findings.text()


def test_tasks(read, label_folders):
    regions = [label_folders.studio_region('cat', BOX)]
    good = label_folders.studio_task(0, 'a.jpg', regions)
    skipped = label_folders.studio_task(1, 'b.png', regions, was_cancelled=True)
    new = dict(label_folders.studio_task(2, 'b.png', []), annotations=[], predictions=[{}])
    images, findings = read([good, skipped, new])
    assert [Path(i.path).name for i in images] == ['a.jpg']
    assert findings.counts == {'not-labelled': 2}
    assert 'task 1: skipped' in findings.text() and 'task 2: predictions alone' in findings.text()
    # Of two annotators nobody knows who is right, unless it is said.
    two = label_folders.studio_task(0, 'a.jpg', regions)
    two['annotations'].append(dict(id=99, result=[]))
    images, findings = read([two])
    assert (images, findings.counts) == ([], {'image-double': 1})
    assert 'annotations 10, 99 of one image; mark one as ground truth' in findings.text()
    two['annotations'][0]['ground_truth'] = True
    images, findings = read([two])
    assert (len(images[0].labels), findings.counts) == (1, {})
    # JSON-MIN has an entry for each annotation.
    images, findings = read([label_folders.studio_min(good), label_folders.studio_min(dict(good, id=7))])
    assert (len(images), findings.counts) == (1, {'image-double': 1})
    empty = label_folders.studio_min(label_folders.studio_task(0, 'a.jpg', []))
    images, findings = read([empty, dict(id=3, image='b.png')])
    assert ([i.labels for i in images], findings.counts) == ([[]], {'not-labelled': 1})


def test_images(read, label_folders, tmp_path):
    def source(name: str) -> tuple[list[str], dict]:
        task = label_folders.studio_task(0, '', [label_folders.studio_region('cat', BOX)])
        task['data'] = dict(text='x', image=name)
        images, findings = read([task])
        return [Path(i.path).name for i in images], dict(findings.counts)

    label_folders.save_image(tmp_path / 'one' / 'images' / 'deep' / 'it is.png')
    for name, found in (
        ('/data/upload/3/0123abcd-a.jpg', 'a.jpg'),
        ('/data/local-files/?d=my/images/b.png', 'b.png'),
        ('s3://bucket/deep/it%20is.png', 'it is.png'),
        ('https://host/images/a.jpg?token=1.2', 'a.jpg'),
        ('C:\\images\\b.png', 'b.png'),
        ('http://[::1/a.jpg', 'a.jpg'),  # no URL
    ):
        assert source(name) == ([found], {}), name
    assert source('/data/upload/3/none.jpg') == ([], {'label-without-image': 1})
    task = label_folders.studio_task(0, 'a.jpg', [])
    other = dict(task, data=dict(photo='a.jpg'))
    assert len(read([other])[0]) == 1
    for data in (dict(one='a.jpg', two='b.png'), dict(text='x')):
        assert read([dict(task, data=data)])[1].counts == {'label-without-image': 1}
    wrong = label_folders.studio_region('cat', BOX)
    wrong['original_width'] = 80
    assert read([label_folders.studio_task(0, 'a.jpg', [wrong])])[1].counts == {'image-size': 1}
    for height in ('30', [30], None):  # not stated
        wrong['original_height'] = height
        assert not read([label_folders.studio_task(0, 'a.jpg', [wrong])])[1].counts


def test_bad_files(read, label_folders, tmp_path):
    (tmp_path / 'void').mkdir()
    with pytest.raises(UserError, match='has no JSON file of Label Studio: a list of tasks'):
        label_studio.read(str(tmp_path / 'void'), Findings())
    label_folders.write(tmp_path / 'cut.json', '[{"id": 1, "annotations": [')
    with pytest.raises(UserError, match=r'cut\.json is no JSON file: '):
        label_studio.read(str(tmp_path / 'cut.json'), Findings())
    task = label_folders.studio_task(0, 'a.jpg', [])
    _, findings = read([task, 3, dict(task, annotations=None), dict(task, annotations=[dict(result='x')])])
    assert findings.counts == {'label-file': 3}
    label_folders.write(tmp_path / 'one' / 'two.json', json.dumps([task]))
    with pytest.raises(UserError, match=r'has several exports of Label Studio, it\.json, two\.json: give one'):
        label_studio.find_file(str(tmp_path / 'one'))


def test_regions_whose_id_is_a_list(read, label_folders):
    apart = [
        dict(r, id=[7])
        for r in (label_folders.studio_region('cat', BOX), dict(type='labels', value=dict(labels=['dog'])))
    ]
    apart[0]['type'] = 'rectangle'
    apart[0]['value'].pop('rectanglelabels')
    images, findings = read([label_folders.studio_task(0, 'a.jpg', apart)])
    assert [(label.name, label.box) for label in images[0].labels] == [('dog', BOX)]
    assert not findings.counts
