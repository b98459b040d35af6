"""YOLO folders in their usual shapes, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmccd.data.formats import Findings, Label, to_coco, yolo
from mmccd.errors import UserError


@pytest.fixture
def folder(label_folders, tmp_path, monkeypatch) -> Path:
    """A dataset in the current folder's ``yolo``."""
    monkeypatch.chdir(tmp_path)
    return label_folders.yolo(tmp_path / 'yolo')


def read(path='yolo'):
    findings = Findings()
    return yolo.read(str(path), findings), findings


def names_of(labelled) -> dict[str, list[str]]:
    return {split: sorted(Path(i.path).name for i in images) for split, images in labelled.splits.items()}


EXPECTED = dict(train=['a.jpg', 'b.png', 'turned.jpg'], val=['c.jpg', 'd.png'])


@pytest.mark.parametrize(
    'text',
    [
        'path: yolo\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n',
        'path: .\ntrain: [images/train]\nvalid: images/val\ntest:\nnames:\n  0: cat\n  1: dog\n',
        'path: ../gone/elsewhere\ntrain: ./images/train/\nval: [images/val]\nnames: [cat, dog]\nnc: 2\n',
        'train: ../images/train\nval: ../images/val\nnc: 2\nnames: ["cat", "dog"]\nroboflow:\n  version: 1\n',
        'train: train.txt\nvalidation: val.txt\nnames: [cat, dog]\n',
        'train: images/train\nval: images/val\nnames: names.txt\n',
        '\ufeffpath: {root}\ntrain: {root}/images/train\nval: images/val\nnames: [cat, dog]\ndownload: x.zip\n',
    ],
)
def test_data_yaml(text, folder, label_folders):
    (folder / 'data.yaml').write_text(text.replace('{root}', str(folder)), encoding='utf-8')
    (folder / 'names.txt').write_text('cat\ndog\n')
    (folder / 'train.txt').write_text(''.join(f'./images/train/{n}\n\n' for n in EXPECTED['train']))
    (folder / 'val.txt').write_text(''.join(f'{folder}/images/val/{n}\n' for n in EXPECTED['val']))
    labelled, findings = read()
    assert names_of(labelled) == EXPECTED
    assert labelled.classes == ('cat', 'dog')
    assert set(findings.counts) <= {'taken'}
    assert bool(findings.counts) == ('gone' in text)


def test_other_layouts(folder, label_folders, tmp_path):
    # Names in a text file, as labelImg and Label Studio write them.
    (folder / 'data.yaml').unlink()
    (folder / 'classes.txt').write_text('cat\ndog\n')
    labelled, findings = read()
    assert (names_of(labelled), labelled.classes, findings.counts) == (EXPECTED, ('cat', 'dog'), {})
    # Roboflow: folders of splits with images and labels in each.
    for split, names in EXPECTED.items():
        for name in names:
            label_folders.save_image(tmp_path / 'rf' / split / 'images' / name)
            label_folders.write(
                tmp_path / 'rf' / split / 'labels' / f'{Path(name).stem}.txt', label_folders.yolo_line('dog')
            )
    label_folders.write(tmp_path / 'rf' / 'README.roboflow.txt', 'Exported')
    label_folders.write(tmp_path / 'rf' / 'data.yaml', 'train: ../train/images\nval: ../val/images\nnames: [cat, dog]')
    labelled, findings = read(tmp_path / 'rf')
    assert (names_of(labelled), findings.counts) == (EXPECTED, {})
    assert {label.name for i in labelled.splits['train'] for label in i.labels} == {'dog'}
    # Darknet, as CVAT writes it: labels beside the images, paths that begin with data/.
    for name in EXPECTED['train']:
        label_folders.save_image(tmp_path / 'dark' / 'obj_train_data' / name)
        label_folders.write(
            tmp_path / 'dark' / 'obj_train_data' / f'{Path(name).stem}.txt', label_folders.yolo_line('cat')
        )
    listed = ''.join(f'data/obj_train_data/{n}\n' for n in EXPECTED['train'])
    label_folders.write(tmp_path / 'dark' / 'train.txt', listed)
    label_folders.write(tmp_path / 'dark' / 'obj.names', 'cat\ndog\n')
    text = 'classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n'
    label_folders.write(tmp_path / 'dark' / 'obj.data', text)
    labelled, findings = read(tmp_path / 'dark')
    assert (names_of(labelled), findings.counts) == (dict(train=EXPECTED['train']), {})
    # Everything in one folder.
    for name in EXPECTED['train']:
        label_folders.save_image(tmp_path / 'flat' / name)
        label_folders.write(tmp_path / 'flat' / f'{Path(name).stem}.txt', label_folders.yolo_line('cat'))
    label_folders.write(tmp_path / 'flat' / 'classes.txt', 'cat\ndog\n')
    labelled, findings = read(tmp_path / 'flat')
    assert (names_of(labelled), findings.counts) == (dict(all=EXPECTED['train']), {})


def labels_of(folder, text: str, name: str = 'a') -> tuple[list[Label], Findings]:
    (folder / 'labels' / 'train' / f'{name}.txt').write_text(text)
    labelled, findings = read(folder)
    [image] = [i for i in labelled.splits['train'] if Path(i.path).stem == name]
    return image.labels, findings


def test_labels(folder):
    labels, findings = labels_of(
        folder,
        '0 0.5 0.5 0.25 0.2\n\n1 0.1 0.1 0.6 0.1 0.3 0.9\n1.0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\r\n',
    )
    assert [label.name for label in labels] == ['cat', 'dog', 'dog']
    assert [label.box for label in labels] == [
        pytest.approx((15, 12, 10, 6)),
        pytest.approx((4, 3, 20, 24)),  # around a polygon
        pytest.approx((10, 7.5, 20, 15)),  # and around a turned box
    ]
    assert [label.where[-len('a.txt:1') :] for label in labels] == ['a.txt:1', 'a.txt:3', 'a.txt:4']
    assert findings.counts == {'enclosed': 2}
    # By the size that the EXIF orientation gives: 40 x 30, stored as 30 x 40.
    labels, _ = labels_of(folder, '0 0.5 0.5 0.25 0.2\n', 'turned')
    assert labels[0].box == pytest.approx((15, 12, 10, 6))
    # No labels: no objects, which an empty file says and a missing one leaves open.
    assert labels_of(folder, '\n')[0] == []
    (folder / 'labels' / 'train' / 'a.txt').unlink()
    labelled, findings = read()
    assert findings.counts == {'no-label-file': 1}
    coco = to_coco(labelled.splits['train'], labelled.classes, findings)
    assert (coco.images, coco.boxes) == (3, 3)  # of b; turned has one by now


def test_keypoints(folder):
    with (folder / 'data.yaml').open('a') as f:
        f.write('kpt_shape: [2, 3]\n')
    for path in folder.glob('labels/*/*.txt'):
        path.write_text('0 0.5 0.5 0.25 0.2 0.5 0.5 2 0.4 0.4 1\n')
    labels, findings = labels_of(folder, '0 0.5 0.5 0.25 0.2 0.5 0.5 2 0.4 0.4 1\n')
    assert labels[0].box == pytest.approx((15, 12, 10, 6))
    assert findings.counts == {'keypoints': 5}
    assert labels_of(folder, '0 0.5 0.5 0.25 0.2\n')[1].counts['label'] == 1


@pytest.mark.parametrize(
    'line, kind, message',
    [
        ('2 0.5 0.5 0.1 0.1', 'label-class', 'class 2, and the classes are 0 to 1'),
        ('-1 0.5 0.5 0.1 0.1', 'label-class', 'class -1, and'),
        ('0.5 0.5 0.5 0.1 0.1', 'label-class', 'class 0.5, and'),
        ('0 0.5 0.5 0.1', 'label', '4 numbers, and a label has 5'),
        ('0 0.5 0.5 0.1 0.1 0.9', 'label', '6 numbers, .* the last may be a score'),
        ('0 0.5 0.5 0.1 0.1 0.9 0.9 0.9', 'label', '8 numbers'),
        ('0,0.5,0.5,0.1,0.1', 'label', "must be numbers, is '0,0.5"),
        ('cat 0.5 0.5 0.1 0.1', 'label', "must be numbers, is 'cat"),
        ('0 nan 0.5 0.1 0.1', 'label', 'must be shares of the width and height, 0 to 1, has nan'),
        ('0 15 12 10 6', 'label', 'must be shares of the width and height, 0 to 1, has 15 12 10 6'),
        ('0 0.5 0.5 -0.1 0.1', 'label', 'must be shares'),
    ],
)
def test_bad_lines_are_named(line, kind, message, folder):
    labels, findings = labels_of(folder, f'0 0.5 0.5 0.25 0.2\n{line}\n')
    assert len(labels) == 1
    assert findings.counts == {kind: 1}
    with pytest.raises(UserError, match=rf'labels/train/a\.txt:2: {message}'):
        findings.refuse('yolo', '')


def test_files_that_do_not_fit(folder, label_folders):
    label_folders.write(folder / 'labels' / 'val' / 'gone.txt', label_folders.yolo_line('cat'))
    label_folders.save_image(folder / 'images' / 'train' / 'a.png')  # and a.jpg
    (folder / 'images' / 'val' / 'c.jpg').write_bytes(b'no image')
    (folder / 'labels' / 'val' / 'd.txt').write_bytes(b'\xff\xfe\x00')
    (folder / 'data.yaml').write_text('train: images/train\nval: images/val\ntest: images/test\nnames: [cat, dog]\n')
    _, findings = read()
    assert findings.counts == {
        'label-without-image': 1,
        'image-double': 1,
        'image-broken': 1,
        'label-file': 1,
        'split': 1,
    }
    text = findings.text('error')
    for part in (
        'labels/val/gone.txt: no image in ',
        'share ',
        'c.jpg: it is no image',
        'd.txt: ',
        'images/test is not',
    ):
        assert part in text
    # Lists name what is not there, or the same image twice.
    (folder / 'list.txt').write_text('images/val/d.png\nimages/val/none.png\nimages/val/d.png\n')
    (folder / 'labels' / 'val' / 'd.txt').write_text('')
    (folder / 'data.yaml').write_text('val: list.txt\nnames: [cat, dog]\n')
    labelled, findings = read()
    assert names_of(labelled) == dict(val=['d.png'])
    assert findings.counts == {'image-missing': 1, 'image-double': 1, 'label-without-image': 1, 'not-listed': 1}
    assert "list.txt:2: 'images/val/none.png'" in findings.text()


@pytest.mark.parametrize(
    'text, message',
    [
        ('names: [cat, dog]\n', 'has no train, val or test'),
        ('train: images/train\nnames: [cat, cat]\n', "the classes 0 and 1 are both named 'cat'"),
        ('train: images/train\nnames: [yes, no]\n', r'names\[0\] is true: YAML reads'),
        ('train: images/train\nnames: {0: cat, 2: dog}\n', 'names must be numbered from 0 without a gap, has 0, 2'),
        ('train: images/train\nnc: 3\nnames: [cat, dog]\n', 'nc is 3, and there are 2 names'),
        ('train: images/train\nnames: []\n', r'names must be a list of classes or a dict of them by number, is \[\]'),
        ('train: images/train\n', 'names must be a list'),
        ('train: {a: 1}\nnames: [cat]\n', 'train must be a path or a list of paths'),
        ('train: a\ntraining: b\nnames: [cat]\n', 'training is a second split train'),
        ('train: images/train\nnames: none.txt\n', 'the file of class names none.txt does not exist'),
        ('- a\n- b\n', 'must have keys: names, train, val; it has list'),
        ('names: [cat\ntrain: x', 'is no YAML file: .*line 2'),
    ],
)
def test_bad_data_yaml_is_refused(text, message, folder):
    (folder / 'data.yaml').write_text(text)
    with pytest.raises(UserError, match=message):
        read()


def test_number_of_classes_alone(folder):
    (folder / 'data.yaml').write_text('train: images/train\nval: images/val\nnc: 2\n')
    labelled, findings = read()
    assert labelled.classes == ('class_0', 'class_1')
    assert findings.examples['taken'][0].endswith('has no names: class_0 to class_1')


def test_a_list_that_is_no_text(folder):
    (folder / 'data.yaml').write_text('train: train.txt\nval: images/val\nnames: [cat, dog]\n')
    (folder / 'train.txt').write_bytes(b'images/train/\xe9.jpg\n')
    findings = Findings()
    yolo.read(str(folder), findings)
    assert findings.counts['split'] == 1
    assert findings.examples['split'][0].startswith(f"{folder}/train.txt: 'utf-8' codec can't decode")
