"""Pascal VOC: coordinates, lists, flat folders, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmccd.data.formats import Findings, to_coco, voc
from mmccd.errors import UserError


def read(path, **options):
    findings = Findings()
    return voc.read(str(path), findings, **options), findings


@pytest.fixture
def one(label_folders, tmp_path):
    """Reads one image with these objects; returns labels and findings."""

    def check(objects: str, size=(40, 30), **options):
        label_folders.save_image(tmp_path / 'one' / 'a.jpg')
        label_folders.write(tmp_path / 'one' / 'a.xml', label_folders.voc_xml('a.jpg', objects, *size))
        labelled, findings = read(tmp_path / 'one', **options)
        images = labelled.splits.get('all', [])
        return [label for image in images for label in image.labels], findings

    return check


def box(*corners: object, name: str = 'cat', more: str = '') -> str:
    texts = ''.join(f'<{k}>{v}</{k}>' for k, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), corners))
    return f'<object><name>{name}</name>{more}<bndbox>{texts}</bndbox></object>'


def test_coordinates(one):
    # The whole image, and the first pixel, as VOC counts.
    labels, findings = one(box(1, 1, 40, 30) + box(1, 1, 1, 1) + box(5.5, 4, 24, 13))
    assert [label.box for label in labels] == [(0, 0, 40, 30), (0, 0, 1, 1), (4.5, 3, 19.5, 10)]
    assert findings.counts == {}
    # What begins at 0 is of a tool that counts corners from 0: the whole image again.
    labels, findings = one(box(0, 0, 40, 30) + box(4, 3, 24, 13))
    assert [label.box for label in labels] == [(0, 0, 40, 30), (4, 3, 20, 10)]
    assert findings.counts == {'taken': 1}
    assert 'a.xml, object 1 begins at 0: not as VOC counts, from 1.' in findings.examples['taken'][0]
    labels, findings = one(box(0, 0, 40, 30), coordinates='inclusive')
    assert ([label.box for label in labels], findings.counts) == ([(-1, -1, 41, 31)], {})
    labels, findings = one(box(4, 3, 24, 13), coordinates='corners')
    assert ([label.box for label in labels], findings.counts) == ([(4, 3, 20, 10)], {})


def test_difficult_objects(one, label_folders):
    objects = box(5, 4, 24, 13, more='<difficult>1</difficult>') + box(5, 4, 24, 13, more='<difficult>0</difficult>')
    labels, findings = one(objects)
    assert [label.ignored for label in labels] == [True, False]
    assert findings.counts == {'difficult': 1}
    labels, findings = one(objects, difficult='keep')
    assert [label.ignored for label in labels] == [False, False]
    assert findings.counts == {'difficult-kept': 1}


def test_parts_and_polygons(one):
    part = '<part><name>head</name><bndbox><xmin>6</xmin><ymin>6</ymin><xmax>7</xmax><ymax>7</ymax></bndbox></part>'
    polygon = ''.join(f'<{k}>{v}</{k}>' for k, v in zip(('x1', 'y1', 'x2', 'y2', 'x3', 'y3'), (5, 4, 24, 4, 10, 13)))
    labels, findings = one(
        box(5, 4, 24, 13, more=part) + f'<object><name>dog</name><polygon>{polygon}</polygon></object>'
    )
    assert [(label.name, label.box) for label in labels] == [('cat', (4, 3, 20, 10)), ('dog', (4, 3, 20, 10))]
    assert findings.counts == {'enclosed': 1}


@pytest.mark.parametrize(
    'objects, kind, message',
    [
        (box(5, 4, 24), 'label', 'object 1: bndbox must have xmin, ymin, xmax and ymax'),
        (box(5, 4, 24, 'x'), 'label', 'bndbox must have'),
        (box(5, 4, 'nan', 13), 'label', 'bndbox must have'),
        (box(24, 4, 5, 13), 'label', r'xmin, ymin, xmax, ymax \[24, 4, 5, 13\]: the minimum is above the maximum'),
        (box(5, 4, 24, 13, name=' '), 'label-class', 'object 1: it has no name'),
        ('<object><name>cat</name></object>', 'label', 'bndbox must have'),
        ('<object><name>cat</name><polygon><x1>1</x1></polygon></object>', 'label', 'polygon must be x1, y1'),
    ],
)
def test_bad_objects_are_named(one, objects, kind, message):
    labels, findings = one(objects + box(5, 4, 24, 13))
    assert len(labels) == 1
    assert findings.counts == {kind: 1}
    with pytest.raises(UserError, match=f'one/a.xml, {message}|one/a.xml, object 1: {message}'):
        findings.refuse('voc', '')


def test_sizes(one, label_folders, tmp_path):
    assert one(box(5, 4, 24, 13), size=(0, 0))[1].counts == {}  # it says none
    labels, findings = one(box(5, 4, 24, 13), size=(80, 60))
    assert (labels, findings.counts) == ([], {'image-size': 1})
    label_folders.save_image(tmp_path / 'two' / 'turned.jpg')
    label_folders.write(tmp_path / 'two' / 'a.xml', label_folders.voc_xml('turned.jpg', '', 30, 40))
    _, findings = read(tmp_path / 'two')
    assert 'a.xml: 30 x 40, and ' in findings.text()
    assert 'has 40 x 30 when turned by its EXIF orientation' in findings.text()


def test_lists(label_folders, tmp_path):
    root = label_folders.voc(tmp_path / 'VOCdevkit' / 'VOC2007')
    labelled, findings = read(tmp_path / 'VOCdevkit')
    assert {s: [Path(i.path).name for i in images] for s, images in labelled.splits.items()} == {
        'train': ['a.jpg', 'b.png', 'turned.jpg'],
        'val': ['c.jpg', 'd.png'],
    }
    assert findings.counts == {'taken': 1}  # trainval
    (root / 'ImageSets' / 'Main' / 'val.txt').write_text('c\nnone\nc 1\n')
    label_folders.save_image(root / 'JPEGImages' / 'new.jpg')
    labelled, findings = read(root)
    assert [Path(i.path).name for i in labelled.splits['val']] == ['c.jpg']
    assert findings.counts == {
        'taken': 1,
        'image-without-label-file': 1,
        'image-double': 1,
        'not-listed': 1,
        'not-labelled': 2,
    }
    assert 'val.txt:2: ' in findings.text() and 'val.txt:3: c is in the list twice' in findings.text()
    for name in ('train', 'val'):
        (root / 'ImageSets' / 'Main' / f'{name}.txt').unlink()
    assert {s: len(images) for s, images in read(root)[0].splits.items()} == {'train': 5}
    label_folders.voc(tmp_path / 'VOCdevkit' / 'VOC2012')
    with pytest.raises(UserError, match=r'has several datasets, .*VOC2007, .*VOC2012: give one'):
        read(tmp_path / 'VOCdevkit')


def test_flat_folders_of_splits(label_folders, tmp_path):
    for split in ('train', 'valid'):
        label_folders.save_image(tmp_path / split / f'{split}.jpg')
        text = label_folders.voc_xml('stale.jpg', box(5, 4, 24, 13))  # renamed: the file's own name counts
        label_folders.write(tmp_path / split / f'{split}.xml', text)
    labelled, findings = read(tmp_path)
    assert {s: [Path(i.path).name for i in images] for s, images in labelled.splits.items()} == {
        'train': ['train.jpg'],
        'val': ['valid.jpg'],
    }
    assert findings.counts == {}
    # Images and labels in folders of their own, and labels for no image.
    label_folders.save_image(tmp_path / 'kaggle' / 'images' / 'x' / 'a.jpg')
    label_folders.write(tmp_path / 'kaggle' / 'annotations' / 'a.xml', label_folders.voc_xml('a.jpg', ''))
    label_folders.write(tmp_path / 'kaggle' / 'annotations' / 'b.xml', label_folders.voc_xml('b.jpg', ''))
    label_folders.write(tmp_path / 'kaggle' / 'annotations' / 'c.xml', '<annotation>')
    label_folders.write(tmp_path / 'kaggle' / 'annotations' / 'd.xml', '<other/>')
    labelled, findings = read(tmp_path / 'kaggle')
    assert [Path(i.path).name for i in labelled.splits['all']] == ['a.jpg']
    assert findings.counts == {'label-without-image': 1, 'label-file': 2}
    assert "b.xml: 'b.jpg' is not below " in findings.text()
    assert 'c.xml: no element found: line 1' in findings.text() or 'c.xml: ' in findings.text()


def test_two_names_of_one_image(label_folders, tmp_path):
    for name in ('a.jpg', 'b.jpg'):
        label_folders.save_image(tmp_path / name)
    label_folders.write(tmp_path / 'a.xml', label_folders.voc_xml('b.jpg', ''))
    _, findings = read(tmp_path)
    assert findings.counts == {'image-double': 1, 'not-labelled': 2}
    assert 'b.jpg, which it names, or of ' in findings.text()
    label_folders.write(tmp_path / 'a.xml', label_folders.voc_xml('b.jpg', ''))
    (tmp_path / 'a.jpg').unlink()
    label_folders.write(tmp_path / 'b.xml', label_folders.voc_xml('b.jpg', ''))
    labelled, findings = read(tmp_path)
    assert findings.counts == {'image-double': 1}
    assert to_coco(labelled.splits['all'], ('cat',), findings).images == 1


def test_a_list_that_is_no_text(label_folders, tmp_path):
    root = label_folders.voc(tmp_path)
    (root / 'ImageSets' / 'Main' / 'train.txt').write_bytes(b'\xe9\xff\n')
    findings = Findings()
    voc.read(str(root), findings)
    assert findings.counts['split'] == 1
    assert findings.examples['split'][0].startswith(f"{root}/ImageSets/Main/train.txt: 'utf-8' codec can't decode")
