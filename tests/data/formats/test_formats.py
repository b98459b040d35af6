"""All formats alike: exact boxes, the dataset check, the oracle; and what COCO files are made of."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmccd.analysis.report import detection
from mmccd.data import formats
from mmccd.data.checks import check_config
from mmccd.data.formats import images
from mmccd.data.formats.labelled import EXAMPLES, Findings, check_class_names, split_of
from mmccd.data.formats.shapes import ellipse, rotated, tidy
from mmccd.errors import UserError

KINDS = ('yolo', 'voc', 'labelme', 'cvat', 'label_studio', 'label_studio_min')


@pytest.mark.parametrize('name', KINDS)
def test_every_format_gives_the_same_boxes_and_they_are_the_truth(name, label_folders, tmp_path):
    root = label_folders.BUILDERS[name](tmp_path / 'my data')
    labelled = formats.read_labels(str(root))
    assert labelled.kind == name.removesuffix('_min').replace('_', '-')
    assert labelled.findings.errors() == 0
    assert set(labelled.findings.counts) <= {'taken'}
    classes = formats.same_classes({'it': labelled})
    assert classes == ('cat', 'dog')
    expected = dict(all=[n for _, n in label_folders.ALL]) if name.startswith('label_s') else label_folders.IMAGES
    assert set(labelled.splits) == set(expected)
    for split, names in expected.items():
        coco = formats.to_coco(labelled.splits[split], classes, labelled.findings)
        content = coco.content
        assert {i['file_name'].rsplit('-')[-1] for i in content['images']} == set(names)
        assert {(i['width'], i['height']) for i in content['images']} == {(40, 30)}
        assert [a['id'] for a in content['annotations']] == list(range(1, 2 * len(names) + 1))
        boxes = [(classes[a['category_id'] - 1], *a['bbox'], a['area'], a['iscrowd']) for a in content['annotations']]
        assert Counter(boxes) == {('cat', 4, 3, 20, 10, 200, 0): len(names), ('dog', 10, 6, 5, 8, 40, 0): len(names)}

        path = tmp_path / f'{split}.json'
        path.write_text(json.dumps(content))
        dataset = dict(type='CocoDataset', ann_file=str(path), data_prefix=dict(img=coco.folder))
        dataset['metainfo'] = dict(classes=classes)
        cfg = Config(dict(default_scope='mmdet', val_dataloader=dict(dataset=dict(dataset, test_mode=True))))
        assert check_config(cfg, ('val',)).findings == {}
        truth = detection.Truth(str(path), coco.folder)
        oracle = [
            dict(image_id=a['image_id'], category_id=a['category_id'], bbox=a['bbox'], score=1.0)
            for a in content['annotations']
        ]
        assert detection.evaluate(truth, oracle).metrics['AP'] == 1


@pytest.mark.parametrize('name', ['voc', 'cvat'])
@pytest.mark.parametrize(
    ('named', 'used'),
    [('GBK', 'gbk'), ('gb18030', 'gb18030'), ('utf-16', 'utf-8'), ('x', 'utf-8')],
)
def test_encodings_of_xml(name, named, used, label_folders, tmp_path):
    """Of several bytes, which Python's parser does not know, or named wrongly."""
    root = label_folders.BUILDERS[name](tmp_path / 'my data')
    for path in root.rglob('*.xml'):
        text = path.read_text().split('?>')[-1].replace('cat', '\u732b')
        path.write_bytes(f'<?xml version="1.0" encoding="{named}"?>{text}'.encode(used))
    labelled = formats.read_labels(str(root))
    assert (labelled.kind, labelled.findings.errors()) == (name, 0)
    assert set(formats.same_classes({'it': labelled})) == {'\u732b', 'dog'}
    assert sum(len(i.labels) for images in labelled.splits.values() for i in images) == 2 * len(label_folders.ALL)
    for path in root.rglob('*.xml'):
        path.write_bytes(path.read_bytes()[:-20])  # cut short
    if name == 'voc':
        labelled = formats.read_labels(str(root), 'voc')
        assert labelled.findings.counts['label-file'] == len(label_folders.ALL)
    else:
        with pytest.raises(UserError, match='no XML file'):
            formats.read_labels(str(root), 'cvat')


def leave_behind(root: Path) -> None:
    """What macOS, Synology, Windows, Jupyter and editors put beside every file and into every folder."""
    for path in [*root.rglob('*')]:
        if path.is_dir():
            (path / 'Thumbs.db').write_bytes(b'\xd0\xcf\x11\xe0')
            (path / '.DS_Store').write_bytes(b'\0\0\0\1Bud1')
            continue
        content = path.read_bytes()
        (path.parent / f'._{path.name}').write_bytes(b'\0\5\x16\7\0\2\0\0Mac OS X        \xff\xfe')
        (path.parent / f'.{path.name}').write_bytes(content)
        for folder in ('.ipynb_checkpoints', '__MACOSX', '@eaDir'):
            (path.parent / folder).mkdir(exist_ok=True)
            (path.parent / folder / f'{path.stem}-checkpoint{path.suffix}').write_bytes(content)
            (path.parent / folder / path.name).write_bytes(content)


def plain_yolo(root: Path, label_folders) -> Path:
    """Images, labels and classes.txt in one folder."""
    for _, name in label_folders.ALL:
        label_folders.save_image(root / name)
        lines = map(label_folders.yolo_line, label_folders.BOXES)
        label_folders.write(root / f'{Path(name).stem}.txt', '\n'.join(lines))
    label_folders.write(root / 'classes.txt', 'cat\ndog\n')
    return root


def darknet(root: Path, label_folders) -> Path:
    """obj.data, obj.names, and lists of images: made by a glob, they name what macOS left behind, too."""
    plain_yolo(root / 'obj_train_data', label_folders)
    (root / 'obj_train_data' / 'classes.txt').rename(root / 'obj.names')
    names = [f'data/obj_train_data/{p}{n}' for _, n in label_folders.ALL for p in ('', '._')]
    label_folders.write(root / 'train.txt', '\n'.join(names))
    label_folders.write(root / 'obj.data', 'classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n')
    return root


@pytest.mark.parametrize('name', [*KINDS, 'plain_yolo', 'darknet'])
def test_what_systems_leave_behind_changes_nothing(name, label_folders, tmp_path):
    """In no format: it is neither image nor label, no orphan, and no second file that describes the dataset."""
    root = tmp_path / 'my data'
    if name in KINDS:
        label_folders.BUILDERS[name](root)
    else:
        {'plain_yolo': plain_yolo, 'darknet': darknet}[name](root, label_folders)
    before = formats.read_labels(str(root))
    leave_behind(root)
    after = formats.read_labels(str(root))
    assert (after.kind, after.splits, after.classes) == (before.kind, before.splits, before.classes)
    assert after.findings.counts == before.findings.counts
    assert sum(map(len, after.splits.values())) == len(label_folders.ALL)
    assert not after.findings.errors()


def test_what_a_path_may_be(label_folders, tmp_path):
    with pytest.raises(UserError, match='nowhere does not exist'):
        formats.read_labels(str(tmp_path / 'nowhere'))
    (tmp_path / 'void').mkdir()
    with pytest.raises(UserError, match=r'void has no labels of a known format: none of YOLO .* is in it'):
        formats.read_labels(str(tmp_path / 'void'))
    label_folders.write(tmp_path / 'coco' / 'train.json', '{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(UserError, match='COCO annotations: tools take those as they are, DIR JSON'):
        formats.read_labels(str(tmp_path / 'coco'))
    yolo = label_folders.yolo(tmp_path / 'yolo')
    with pytest.raises(UserError, match=r'the classes have no names: give the folder with .*yolo/data\.yaml'):
        (yolo / 'part' / 'labels').mkdir(parents=True)
        formats.read_labels(str(yolo / 'part'))
    # Files and folders of class folders are no labels.
    label_folders.save_image(tmp_path / 'classes' / 'cat' / '1.jpg')
    label_folders.write(tmp_path / 'classes' / 'classes.txt', 'cat\n')
    assert formats.recognise(str(tmp_path / 'classes')) is None
    # A file that describes a dataset stands for it.
    files = dict(yolo='data.yaml', cvat='annotations.xml', label_studio='project-1.json')
    for name, file in files.items():
        root = label_folders.BUILDERS[name](tmp_path / f'{name}_')
        one = formats.read_labels(str(root / file))
        assert (one.kind.replace('-', '_'), sum(map(len, one.splits.values()))) == (name, 5)
    # Two formats in one folder are a question.
    label_folders.cvat(yolo)
    with pytest.raises(UserError, match='may be yolo or cvat: say which with --format'):
        formats.read_labels(str(yolo))
    assert formats.read_labels(str(yolo), 'yolo').kind == 'yolo'


def test_boxes_that_are_left_out_are_counted(label_folders, tmp_path):
    label_folders.save_image(tmp_path / 'a.jpg')
    boxes = [(4, 3, 20, 10), (4, 3, 20, 10), (4, 3, 0.5, 10), (50, 3, 5, 5), (30, 3, 20, 10), (0, 0, 40.5, 30)]
    labels = [formats.Label('cat', box, f'line {i}') for i, box in enumerate(boxes, 1)]
    labels += [formats.Label('dog', boxes[0], 'line 7'), formats.Label('dog', (0, 0, 5, 5), 'line 8', True)]
    findings = Findings()
    image = formats.LabelledImage(str(tmp_path / 'a.jpg'), (40, 30), labels)
    content = formats.to_coco([image], ('cat', 'dog'), findings).content
    assert [(a['category_id'], a['bbox'], a['iscrowd']) for a in content['annotations']] == [
        (1, [4, 3, 20, 10], 0),
        (1, [30, 3, 20, 10], 0),
        (1, [0, 0, 40.5, 30], 0),
        (2, [4, 3, 20, 10], 0),
        (2, [0, 0, 5, 5], 1),
    ]
    assert findings.counts == {'box-double': 1, 'box-empty': 1, 'box-outside': 1, 'box-partly-outside': 1}
    assert findings.examples['box-outside'] == ['line 4: bbox [50, 3, 5, 5] in an image of 40 x 30']
    assert findings.examples['box-double'] == ['line 2: cat [4, 3, 20, 10]']


def test_size_of_a_large_jpeg_is_that_of_its_beginning(tmp_path):
    """More than is read of it, with EXIF, also where what stands before the size is longer than that."""
    pixels = np.random.default_rng(0).integers(0, 255, (600, 900, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / 'it.jpg'
    Image.fromarray(pixels).save(path, quality=95, exif=exif)
    content = path.read_bytes()
    assert len(content) > 2 * images._BEGINNING
    assert images._header(str(path)).size == (600, 900)
    comment = b'\xff\xfe\xff\xff' + bytes(0xFFFD)
    path.write_bytes(content[:2] + 5 * comment + content[2:])
    assert images._header(str(path)).size == (600, 900)
    path.write_bytes(content[:100])
    assert images._header(str(path)).problem


def test_division(label_folders):
    images = [formats.LabelledImage(f'{i}.jpg', (40, 30), []) for i in range(10)]
    divided = formats.divide(images, 0.3, 0)
    assert [len(divided[s]) for s in ('train', 'val')] == [7, 3]
    assert sorted(i.path for part in divided.values() for i in part) == [f'{i}.jpg' for i in range(10)]
    assert formats.divide(images, 0.3, 0) == divided != formats.divide(images, 0.3, 1)
    assert [len(p) for p in formats.divide(images[:2], 0.01, 0).values()] == [1, 1]
    assert [len(p) for p in formats.divide(images, 0.99, 0).values()] == [1, 9]


def test_splits_and_classes():
    assert [split_of(p) for p in ('valid/a.xml', 'x/Training/a.xml', 'test/y/a.xml', 'a.xml', 'latest/val.xml')] == [
        'val',
        'train',
        'test',
        'all',
        'all',
    ]
    assert check_class_names(['cat ', 1], 'x') == ('cat', '1')
    for names, message in (
        ([True], r'names\[0\] is true: YAML reads yes'),
        (['cat', ''], r"names\[1\] must be the name of a class, is ''"),
        (['cat', 'dog', 'cat'], "the classes 0 and 2 are both named 'cat'"),
    ):
        with pytest.raises(UserError, match=f'file: {message}'):
            check_class_names(names, 'file')
    image = formats.LabelledImage('a', (9, 9), [formats.Label('owl', (0, 0, 1, 1), '')])
    one, two = (formats.Labelled(n, 'cvat', {'all': [image]}, ('cat', n)) for n in ('dog', 'cow'))
    with pytest.raises(UserError, match='a and b declare different classes: cat, dog and cat, cow'):
        formats.same_classes(dict(a=one, b=two))
    assert formats.same_classes(dict(a=one)) == ('cat', 'dog', 'owl')
    assert formats.pick_split(one, 'val') == [image]
    one.splits = {'train': [image]}
    with pytest.raises(UserError, match='dog has no split val; it has train'):
        formats.pick_split(one, 'val')


def test_findings():
    findings = Findings()
    for i in range(20):
        findings.add('label', f'a.txt:{i}: bad')
    findings.add('box-empty', 'b')
    assert (findings.errors(), len(findings.examples['label'])) == (20, EXAMPLES)
    text = findings.text()
    assert '      20  label: labels that are malformed' in text
    assert 'a.txt:2: bad' in text and 'a.txt:3: bad' not in text and 'and 17 more' in text
    assert 'box-empty' not in findings.text('error')
    with pytest.raises(UserError, match=r'(?s)^set has 20 errors:\nerror .*a\.txt:0: bad.*\nCorrect them$'):
        findings.refuse('set', 'Correct them')


def test_shapes_of_turned_boxes():
    # A quarter turn clockwise about the upper left corner: to its left, as high as it was wide.
    assert tidy(rotated((10, 10, 8, 4), 90, (10, 10))) == (6, 10, 4, 8)
    assert tidy(rotated((10, 10, 8, 4), 90, (14, 12))) == (12, 8, 4, 8)
    assert tidy(rotated((0, 0, 2, 2), 45, (1, 1))) == (-0.4142, -0.4142, 2.8284, 2.8284)
    assert tidy(ellipse(10, 10, 4, 2)) == (6, 8, 8, 4)
    assert tidy(ellipse(10, 10, 4, 2, 90)) == (8, 6, 4, 8)
    assert tidy(ellipse(10, 10, 3, 3, 30)) == (7, 7, 6, 6)


def test_lines_of_a_list(tmp_path):
    """Ended by line feeds alone: file names may have whatever else Unicode calls a line's end."""
    path = tmp_path / 'train.txt'
    path.write_bytes('\ufeffa\u2028b.jpg\r\nc\x0cd.jpg'.encode())
    findings = Findings()
    assert images.lines_of(str(path), findings) == ['a\u2028b.jpg\n', 'c\x0cd.jpg']
    assert images.lines_of(str(tmp_path / 'none.txt'), findings) == []
    assert findings.counts == {'split': 1} and 'No such file' in findings.text()
