"""Each fault that the checks know, its message, and whatever else a JSON file may hold."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

from mmccd.cli.checks import check_data
from mmccd.cli.own_data import read_folders
from mmccd.data.checks import Report, check_config, write_clean
from mmccd.data.checks.coco import UNREADABLE, CocoFile, box_problem, read_json
from mmccd.data.checks.report import KINDS
from mmccd.errors import UserError

SET = dict(metainfo=dict(classes=('cat', 'dog')), type='mmccd.CocoDataset', pipeline=[])


def config(root, scope='mmdet', **options) -> Config:
    """A config of the toy splits; ``options`` go into every dataset."""
    cfg = {
        f'{split}_dataloader': dict(
            dataset=dict(SET, data_root=str(root), ann_file=f'{name}.json', data_prefix=dict(img=f'{name}/'), **options)
        )
        for split, name in (('train', 'train'), ('val', 'val'), ('test', 'val'))
    }
    return Config(dict(cfg, default_scope=scope, val_evaluator=dict(type='CocoMetric', ann_file=f'{root}/val.json')))


def edit(root, split, change) -> None:
    """Let ``change`` work on the annotations of a split."""
    path = root / f'{split}.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def found(report) -> dict[str, list[str]]:
    return {kind: [what for _, what in items] for kind, items in report.findings.items() if items}


def check(root, **options) -> dict[str, list[str]]:
    return found(check_config(config(root, **options)))


@pytest.mark.parametrize('workers', [0, 2])
def test_clean(toy_coco, workers):
    report = check_config(config(toy_coco), workers=workers)
    assert found(report) == {}
    assert report.images == {'train': 6, 'val, test': 3}
    assert report.text() == 'train: 6 images\nval, test: 3 images\n0 errors, 0 warnings, 0 notes'


@pytest.mark.parametrize('workers', [0, 2])
def test_images(toy_coco, workers):
    folder = toy_coco / 'train'
    (folder / '1.jpg').unlink()
    (folder / '2.jpg').write_bytes((folder / '2.jpg').read_bytes()[:-200])
    (folder / '3.jpg').write_bytes(b'')
    Image.new('RGB', (30, 40)).save(folder / '4.jpg')
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (40, 30)).save(folder / '5.jpg', exif=exif)
    report = check_config(config(toy_coco), workers=workers)
    assert {k: [re.sub(r'^.*/train| \(.* not processed\)', '', w) for w in v] for k, v in found(report).items()} == {
        'image-missing': ['/1.jpg'],
        'image-broken': ['/2.jpg: image file is truncated', '/3.jpg: the file is empty'],
        'image-size': [
            '/4.jpg has 30 x 40, the annotations say 40 x 30',
            '/5.jpg has 30 x 40, turned by its EXIF orientation, the annotations say 40 x 30',
        ],
    }
    assert report.count('error') == 5
    assert f'error          1  image-missing: {KINDS["image-missing"][1]}\n' in report.text()


def test_huge(toy_coco):
    report = check_config(config(toy_coco), max_pixels=1199)
    assert report.findings['image-huge'][0] == ('train', f'{toy_coco}/train/1.jpg has 40 x 30')
    assert (report.count('error'), report.count('warning')) == (0, 9)


def first(content, what='annotations'):
    return content[what][0]


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (
            lambda c: first(c).update(bbox=[0, 0, 0, 10]),
            {
                'box-empty': ['annotations[0] (id 2): bbox [0, 0, 0, 10] in an image of 40 x 30, area 200'],
                'repaired': [
                    '{}: 1 entry without width or height, which no detection can match: ignored in evaluation '
                    '(iscrowd 1), as in training'
                ],
            },
        ),
        (
            lambda c: first(c).update(area=0),
            {'repaired': ['{}: area of 1 entry missing, null or 0: taken from the box']},
        ),
        (
            lambda c: first(c).update(bbox=[41, 0, 5, 5]),
            {
                'box-outside': 1,
                'repaired': [
                    '{}: 1 entry outside of their image, which no detection can match: ignored in evaluation '
                    '(iscrowd 1), as in training'
                ],
            },
        ),
        (lambda c: first(c).update(ignore=''), {'annotation-entry': 1}),
        (
            lambda c: c['annotations'].append(dict(first(c), id=99)),
            {'box-double': ['annotations[12] (id 99): bbox [0, 3, 20, 10]']},
        ),
        (
            lambda c: [a.update(bbox=[12, 9, 38, 29]) for a in c['annotations']],
            {
                'box-partly-outside': 12,
                'box-corners': [
                    '{}: 12 annotations that leave their image; as x1, y1, x2, y2 all would lie inside, and COCO has '
                    'x, y, width, height'
                ],
            },
        ),
        (lambda c: first(c).update(bbox=[30, 0, 20, 5]), {'box-partly-outside': 1}),
        (lambda c: first(c).update(bbox=[20, 0, 21, 5]), {}),  # by one pixel
        (
            lambda c: first(c).update(bbox=[0, 0, float('nan'), 5]),
            {'not-finite': ['annotations[0] (id 2): bbox [0, 0, nan, 5], area 200']},
        ),
        (lambda c: first(c).update(area=float('inf')), {'not-finite': 1}),
        (lambda c: first(c).update(area=10**300), {'not-finite': 1}),
        (
            lambda c: first(c).update(bbox=[1, 2, 3]),
            {'annotation-entry': ['annotations[0] (id 2): bbox must be four numbers, is [1, 2, 3]']},
        ),
        (lambda c: first(c).update(bbox='x'), {'annotation-entry': 1}),
        (
            lambda c: first(c).pop('area'),
            {'repaired': ['{}: area of 1 entry missing, null or 0: taken from the box']},
        ),
        (
            lambda c: first(c).update(area='much'),
            {'annotation-entry': ["annotations[0] (id 2): area must be a number, is 'much'"]},
        ),
        (
            lambda c: first(c).update(iscrowd=2),
            {'annotation-entry': ['annotations[0] (id 2): iscrowd must be 0 or 1, is 2']},
        ),
        (lambda c: first(c).update(ignore='maybe'), {'annotation-entry': 1}),
        (lambda c: first(c).pop('id'), {'repaired': 1}),
        (lambda c: first(c).update(image_id=[1]), {'annotation-entry': 1}),
        (
            lambda c: first(c).update(image_id=99),
            {'annotation-without-image': ['annotations[0] (id 2): image_id is 99']},
        ),
        (
            lambda c: first(c).update(category_id=3),
            {'annotation-without-category': ['annotations[0] (id 2): category_id is 3']},
        ),
        (
            lambda c: first(c).update(id=3),
            {'annotation-id-double': ['annotations[1] (id 3): an earlier one has the same id']},
        ),
        (lambda c: c['annotations'].__setitem__(0, None), {'annotation-entry': 1}),
        (lambda c: first(c).pop('iscrowd'), {'repaired': ['{}: iscrowd of 1 entry missing or null: taken as 0']}),
        (
            lambda c: first(c, 'images').update(id=2),
            {
                'image-id-double': ['images[1] (id 2) 2.jpg has the id of 1.jpg'],
                'annotation-without-image': 2,
                'image-size': 0,
            },
        ),
        (
            lambda c: first(c, 'images').pop('height'),
            {
                'image-entry': ['images[0] (id 1) must have a width and height above 0, has (40, None)'],
                'annotation-without-image': 2,
            },
        ),
        (lambda c: first(c, 'images').update(file_name=7), {'image-entry': 1, 'annotation-without-image': 2}),
        (
            lambda c: first(c, 'images').update(file_name='../../x.jpg'),
            {'path-outside': ['images[0] (id 1) ../../x.jpg'], 'annotation-without-image': 2},
        ),
        (
            lambda c: first(c, 'images').update(file_name='/etc/passwd'),
            {'path-outside': 1, 'annotation-without-image': 2},
        ),
        (lambda c: first(c, 'images').update(file_name='2.jpg'), {'image-file-double': 1}),
        (lambda c: first(c, 'images').update(file_name='\ud800\0'), {'image-broken': 1}),
        (lambda c: first(c, 'images').update(file_name='../val/1.jpg'), {'image-shared': 1}),
        (
            lambda c: c.update(images=[]),
            {'empty-split': 1, 'annotation-without-image': 12, 'class-without-examples': 2},
        ),
        (lambda c: c.update(annotations=[]), {'empty-split': 1, 'image-without-boxes': 6, 'class-without-examples': 2}),
        (lambda c: c.update(annotations=c['annotations'][2:]), {'image-without-boxes': ['1.jpg (id 1)']}),
        (lambda c: c.update(annotations=c['annotations'][::2]), {'class-without-examples': ["'dog'"]}),
        (lambda c: c.pop('images'), {'annotation-file': 1}),
        (lambda c: c['categories'].append(dict(id=5, name='cow')), {'category-unused': ["'cow'"]}),
        (lambda c: c['categories'].append(dict(id=5)), {'category-entry': 1}),
        (
            lambda c: c['categories'].append(dict(id=10, name='cow')),
            {'category-entry': ["categories[2] has the id 10 of 'cat'"]},
        ),
    ],
)
def test_annotations(toy_coco, change, expected):
    edit(toy_coco, 'train', change)
    got = check(toy_coco)
    if 'category-entry' in expected and isinstance(expected['category-entry'], int):
        got.pop('classes', None)  # the quick look at the names stumbles too
    expected = {k: v for k, v in expected.items() if v}
    assert set(got) == set(expected)
    for kind, what in expected.items():
        if not isinstance(what, int):
            what = [w.replace('{}', f'{toy_coco}/train.json') for w in what]
        assert (len(got[kind]) if isinstance(what, int) else got[kind]) == what


@pytest.mark.parametrize(
    ('min_size', 'test_mode', 'images', 'boxes'),
    [(15, False, 6, 11), (30, False, 6, 11), (31, False, 0, 0), (31, True, 6, 11)],
)
def test_what_mmdet_leaves_out(toy_coco, min_size, test_mode, images, boxes):
    """min_size is the images', 40 x 30, and of training alone; boxes, 20 x 10, need one pixel."""
    edit(toy_coco, 'train', lambda c: first(c).update(bbox=[4, 4, 20, 0.9], area=18))
    options = dict(filter_cfg=dict(min_size=min_size), test_mode=test_mode)
    got = check(toy_coco, **options)
    assert got.pop('box-empty') == ['annotations[0] (id 2): bbox [4, 4, 20, 0.9] in an image of 40 x 30, area 18']
    assert len(got.pop('image-small', ())) == (9 if not images else 0)
    if not images:  # val too, without test_mode
        assert got.pop('empty-split') == [
            f'none of the {n} images of {toy_coco}/{split}.json is left: {n} have a side below 31 '
            "(filter_cfg={'min_size': 31})"
            for n, split in ((6, 'train'), (3, 'val'))
        ]
    assert not got
    train = config(toy_coco, **options).train_dataloader.dataset
    if not images:
        with pytest.raises(UserError, match=r"none of the 6 images of .*: filter_cfg=\{'min_size': 31\} .* cat, dog;"):
            DATASETS.build(dict(train, _scope_='mmdet', serialize_data=False))
        return
    built = DATASETS.build(dict(train, _scope_='mmdet', serialize_data=False))
    assert len(built) == images
    assert sum(len(built.get_data_info(i)['instances']) for i in range(images)) == boxes


@pytest.mark.parametrize(
    ('names', 'what'),
    [
        (
            ('cat', 'dgo'),
            "1 of 2 classes are no categories of {}: 'dgo' (did you mean 'dog'?). Its categories are: cat, dog",
        ),
        (
            ('dog', 'cat'),
            'the classes are in another order than the categories of {}, which is the order of the labels. '
            'Write them as: cat, dog',
        ),
    ],
)
def test_class_names(toy_coco, names, what):
    got = check_config(config(toy_coco, metainfo=dict(classes=names))).findings['classes']
    assert got == [
        (split, what.format(toy_coco / name)) for split, name in (('train', 'train.json'), ('val, test', 'val.json'))
    ]


def test_classes_that_are_a_text(toy_coco):
    assert check(toy_coco, metainfo=dict(classes='cat'))['classes'][0].endswith(
        "classes must be a list of names, got 'cat': a comma is missing, ('cat', )"
    )


def test_head_and_classes(toy_coco):
    cfg = config(toy_coco)
    cfg.model = dict(bbox_head=dict(num_classes=80))
    got = [what for _, what in check_config(cfg).findings['classes']]
    assert got[0] == 'model.bbox_head.num_classes is 80, train_dataloader.dataset has 2 classes'


def test_evaluator(toy_coco):
    shutil.copy(toy_coco / 'val.json', toy_coco / 'other.json')
    cfg = config(toy_coco)
    cfg.val_evaluator.ann_file = f'{toy_coco}/../{toy_coco.name}/val.json'  # the same file
    assert found(check_config(cfg)) == {}
    cfg.val_evaluator.ann_file = f'{toy_coco}/other.json'
    text = f'{toy_coco}/other.json, the loader has {toy_coco}/val.json'
    assert found(check_config(cfg)) == {'evaluator-file': [text]}
    edit(toy_coco, 'other', lambda c: c['images'].pop())
    assert found(check_config(cfg)) == {
        'evaluator-file': [text],
        'evaluator': [f'{toy_coco}/other.json and {toy_coco}/val.json differ in 1 image ids, e.g. 3'],
    }


def test_shared_content(toy_coco):
    shutil.copy(toy_coco / 'train' / '4.jpg', toy_coco / 'val' / '2.jpg')
    assert check(toy_coco) == {'content-shared': [f'{toy_coco}/val/2.jpg and {toy_coco}/train/4.jpg']}


def test_wrappers(toy_coco):
    """Datasets inside of datasets, the second of them faulty."""
    cfg = config(toy_coco)
    other = dict(cfg.train_dataloader.dataset, ann_file='other.json')
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(type='ConcatDataset', datasets=[cfg.train_dataloader.dataset, other]),
    )
    shutil.copy(toy_coco / 'train.json', toy_coco / 'other.json')
    edit(toy_coco, 'other', lambda c: first(c).update(image_id=99))
    assert check_config(cfg).images['train'] == 12
    assert list(found(check_config(cfg))) == ['annotation-without-image']


@pytest.mark.parametrize(
    'content',
    [
        '',
        '{',
        'null',
        '3',
        '"x"',
        '[]',
        '{}',
        '\udcff',
        '[' * 100_000,
        '{"images": 3}',
        '{"images": [], "annotations": {}, "categories": []}',
        '1' * 5000,
    ],
)
def test_files_that_are_no_annotations(toy_coco, content):
    (toy_coco / 'train.json').write_text(content, encoding='utf-8', errors='surrogateescape')
    report = check_config(config(toy_coco))
    assert [(n, w.split(':')[0].split(' is ')[0]) for n, w in report.findings['annotation-file']] == [
        ('train', str(toy_coco / 'train.json'))
    ]
    assert report.text()


def test_missing_file(toy_coco):
    (toy_coco / 'train.json').unlink()
    assert 'No such file' in check(toy_coco)['annotation-file'][0]


def folders(root, **options) -> Config:
    pytest.importorskip('mmpretrain')
    return Config(
        dict(
            default_scope='mmpretrain',
            train_dataloader=dict(
                # In memory as they are: mmengine collects garbage after packing them, a third of a second each time.
                dataset=dict(type='CustomDataset', data_root=str(root), serialize_data=False, **options)
            ),
        )
    )


@pytest.fixture
def toy_folders(tmp_path):
    """Two classes of 2 images, in folders and in a list."""
    for name in ('a', 'b'):
        (tmp_path / 'train' / name).mkdir(parents=True)
        for i in range(2):
            Image.new('RGB', (8, 8), (i, 0, 0)).save(tmp_path / 'train' / name / f'{i}.png')
    (tmp_path / 'list.txt').write_text('a/0.png 0\na/1.png 0\nb/0.png 1\nb/1.png 1\n')
    return tmp_path


def test_folders(toy_folders):
    cfg = folders(toy_folders, data_prefix='train', metainfo=dict(classes=('a', 'b')))
    assert found(check_config(cfg)) == {}
    (toy_folders / 'train' / 'b' / '1.png').write_bytes(b'x')
    (toy_folders / 'train' / 'c').mkdir()
    assert list(found(check_config(cfg))) == ['annotation-file', 'classes']  # a folder more: MMPretrain refuses
    cfg.train_dataloader.dataset.metainfo.classes = ('a', 'b', 'c')
    assert found(check_config(cfg)) == {
        'class-without-examples': ["'c'"],
        'image-broken': [f'{toy_folders}/train/b/1.png: it is no image'],
    }


def test_files_of_other_formats(toy_folders):
    """What is no image by its suffix, and what is in no class folder: counted, with an example."""
    train = toy_folders / 'train'
    for path in ('a/2.heic', 'a/3.heic', 'b/2.HEIC', 'b/notes.txt', 'a/Thumbs.db'):
        (train / path).write_bytes(b'x')
    for path in ('a/2.webp', 'b/2.tiff', '9.png'):
        Image.new('RGB', (8, 8), (len(path), 0, 0)).save(train / path)
    cfg = folders(toy_folders, data_prefix='train', metainfo=dict(classes=('a', 'b')))
    for kind in ('CustomDataset', 'mmccd.CustomDataset'):
        cfg.train_dataloader.dataset.type = kind
        report = check_config(cfg)
        assert found(report) == {
            'image-left-out': ['3 .heic files (e.g. a/2.heic)'],
            'image-without-class': ['9.png'],
            'file-left-out': ['1 .txt file (e.g. b/notes.txt)'],
        }
        assert report.images == {'train': 6}
    split = read_folders('--train', str(train))
    assert (dict(split.counts), split.sizes.tolist()) == ({'a': 3, 'b': 3}, [[8, 8]] * 6)
    for path in train.glob('*/*.*'):
        if path.suffix.lower() != '.heic':
            path.unlink()
    with pytest.raises(
        UserError, match=r'have no images \(.*\.webp.*\); they have 3 \.heic files \(e\.g\. a/2\.heic\)'
    ):
        read_folders('--train', str(train))


@pytest.mark.parametrize(
    ('loader', 'what'),
    [
        (dict(batch_size=7, drop_last=True), 'its 6 images are less than a batch of 7, which drop_last leaves out'),
        (dict(batch_sampler=dict(batch_size=8, drop_last=True)), 'its 6 images are less than a batch of 8'),
        (dict(batch_size=6, drop_last=True), None),
        (dict(batch_size=7), None),
        (dict(batch_size=7, drop_last=True, sampler=dict(type='InfiniteSampler')), None),
    ],
)
def test_less_than_a_batch(toy_coco, loader, what):
    cfg = config(toy_coco)
    cfg.train_dataloader.update(loader)
    got = found(check_config(cfg)).get('empty-split')
    assert got is None if what is None else len(got) == 1 and got[0].startswith(what)


def test_nothing_left(toy_coco):
    """Images without a box of the classes, where filter_cfg leaves these out."""
    edit(toy_coco, 'train', lambda c: c.update(categories=[dict(id=10, name='cat'), dict(id=30, name='dog')]))
    edit(toy_coco, 'train', lambda c: [a.update(category_id=30) for a in c['annotations']])
    cfg = config(toy_coco)
    cfg.train_dataloader.dataset.update(metainfo=dict(classes=('cat',)), filter_cfg=dict(filter_empty_gt=True))
    got = found(check_config(cfg, ('train',)))['empty-split']
    assert got == [
        f'{toy_coco}/train.json has no usable annotation of the classes',
        f'none of the 6 images of {toy_coco}/train.json is left: 6 have no box of the classes (filter_cfg='
        "{'filter_empty_gt': True})",
    ]


def test_depth(toy_coco):
    """16 bits are a note, and a warning if they are almost black; numbers without a range are an error."""
    values = np.arange(1200, dtype=np.uint16).reshape(30, 40) * 54
    for i, array in enumerate((values, values >> 4, values.astype(np.float32)), 1):
        content = json.loads((toy_coco / 'train.json').read_text())
        content['images'][i - 1]['file_name'] = f'{i}.tiff'
        (toy_coco / 'train.json').write_text(json.dumps(content))
        Image.fromarray(array).save(toy_coco / 'train' / f'{i}.tiff')
    report = check_config(config(toy_coco))
    folder = f'{toy_coco}/train'
    assert found(report) == {
        'image-deep': [f'{folder}/1.tiff'],
        'image-dark': [f'{folder}/2.tiff'],
        'image-broken': [f'{folder}/3.tiff: its pixels are floats, which have no range: convert it to 8 bits'],
    }
    assert (report.count('error'), report.count('warning'), report.count('note')) == (1, 1, 1)
    assert 'the upper 8 are used, and are almost empty' in report.text()


LEFT_BEHIND = ('.ipynb_checkpoints', '@eaDir', '__MACOSX', '$RECYCLE.BIN', '.git')


@pytest.mark.parametrize('name', LEFT_BEHIND)
@pytest.mark.parametrize('classes', [('a', 'b'), None])
def test_folders_that_systems_leave_behind(toy_folders, name, classes):
    """Beside the class folders and in them: neither classes nor images, for dataset, check and make_config alike."""
    train = toy_folders / 'train'
    for folder in (train / name, train / 'a' / name):
        folder.mkdir()
        Image.new('RGB', (8, 8), (7, 7, 7)).save(folder / '0.png')
    (train / 'Thumbs.db').write_bytes(b'x')
    cfg = folders(toy_folders, data_prefix='train', metainfo=dict(classes=classes) if classes else {})
    dataset = cfg.train_dataloader.dataset
    dataset.type = 'mmccd.CustomDataset'
    built = DATASETS.build(dict(dataset, pipeline=[]))
    assert built.metainfo['classes'] == ('a', 'b')
    assert [built.get_data_info(i)['img_path'].removeprefix(f'{train}/') for i in range(len(built))] == [
        'a/0.png',
        'a/1.png',
        'b/0.png',
        'b/1.png',
    ]
    assert [built.get_data_info(i)['gt_label'] for i in range(len(built))] == [0, 0, 1, 1]
    assert found(check_config(cfg)) == {}
    split = read_folders('--train', str(train))
    assert (split.classes, dict(split.counts)) == (('a', 'b'), {'a': 2, 'b': 2})
    dataset.type = 'CustomDataset'  # MMPretrain's own
    assert found(check_config(cfg))['classes'][0].startswith(
        f'train_dataloader.dataset: CustomDataset of MMPretrain takes {name} in {toy_folders} for classes'
    )


def test_list(toy_folders):
    cfg = folders(toy_folders, data_prefix='train', ann_file='list.txt', metainfo=dict(classes=('a', 'b')))
    assert found(check_config(cfg)) == {}
    with open(toy_folders / 'list.txt', 'a') as f:
        f.write('a/0.png 7\n')
    assert found(check_config(cfg)) == {
        'image-file-double': [f'{toy_folders}/train/a/0.png'],
        'label': [f'{toy_folders}/train/a/0.png has label 7 of 2 classes'],
        'classes': [
            f'train_dataloader.dataset: {toy_folders}/list.txt:5 has the label 7, and the labels of 2 classes are 0 '
            'to 1'
        ],
    }
    with open(toy_folders / 'list.txt', 'a') as f:
        f.write('a/0.png\na/0.png x\n\n../../x.png 0\n')
    path = toy_folders / 'list.txt'
    assert found(check_config(cfg)) == {
        'annotation-entry': [
            f'{path}:{i} must be a path, a space and a label, is {line!r}'
            for i, line in ((6, 'a/0.png'), (7, 'a/0.png x'), (8, ''))
        ],
        'path-outside': [f'{path}:9 ../../x.png'],
        'classes': [f'train_dataloader.dataset: {path}:5 has the label 7, and the labels of 2 classes are 0 to 1'],
    }


@pytest.mark.parametrize('kind', ['mmccd.CustomDataset', 'CustomDataset'])
@pytest.mark.parametrize('classes', [('a', 'b'), None])
@pytest.mark.parametrize('label', [2, -1])
def test_labels_of_a_list_that_count_from_1(toy_folders, kind, classes, label):
    """train.py and test.py refuse them at the start, with the classes of the config or those of the head."""
    cfg = folders(
        toy_folders, data_prefix='train', ann_file='list.txt', metainfo=dict(classes=classes) if classes else {}
    )
    cfg.train_dataloader.dataset.type = kind
    cfg.model = dict(head=dict(num_classes=2))
    check_data(cfg, ('train',))
    with open(toy_folders / 'list.txt', 'a') as f:
        f.write(f'a/0.png {label}\r\n')
    with pytest.raises(UserError, match=f'list.txt:5 has the label {label}, and the labels of 2 classes are 0 to 1'):
        check_data(cfg, ('train',))


def test_configs_without_data(toy_coco):
    with pytest.raises(UserError, match='the config has no dataset for train, val, test'):
        check_config(Config(dict()))
    cfg = config(toy_coco)
    cfg.train_dataloader.dataset.type = 'CooDataset'
    with pytest.raises(UserError, match=r"train_dataloader\.dataset\.type: there is no dataset 'CooDataset'"):
        check_config(cfg)


def test_data_elsewhere(toy_coco):
    got = check_config(config(toy_coco, backend_args=dict(backend='petrel')), ('train',))
    assert found(got) == {'not-checked': [f'{toy_coco} is not on a disk of this machine']}


def test_write_clean(toy_coco):
    """What is broken goes, with the boxes of an image that goes; what is only odd, and what is not known, stays."""

    def damage(content):
        content['info'] = dict(year=2020)
        content['annotations'][0]['bbox'] = [0, 0, 0, 0]
        content['annotations'][3]['bbox'] = [30, 0, 20, 5]  # partly outside
        content['annotations'][4]['category_id'] = 3
        content['images'].append(dict(content['images'][1]))
        content['annotations'].append(None)

    edit(toy_coco, 'train', damage)
    before = (toy_coco / 'train.json').read_bytes()
    (toy_coco / 'train' / '5.jpg').write_bytes(b'')
    report = check_config(config(toy_coco), ('train',))
    out = toy_coco / 'new' / 'clean.json'
    write_clean(report, str(out))
    content = json.loads(out.read_text())
    assert [i['id'] for i in content['images']] == [1, 2, 3, 4, 6]
    assert [a['id'] for a in content['annotations']] == [3, 4, 5, 7, 8, 9, 12, 13]
    assert content['info'] == dict(year=2020)
    assert (toy_coco / 'train.json').read_bytes() == before
    (toy_coco / 'train.json').write_text(out.read_text())
    assert check_config(config(toy_coco), ('train',)).count('error') == 0
    with pytest.raises(UserError, match=r'clean\.json is there, and nothing is overwritten'):
        write_clean(report, str(out))
    with pytest.raises(UserError, match=r'needs one readable COCO annotation file, found 2: .* with --splits'):
        write_clean(check_config(config(toy_coco)), str(out) + '2')


@pytest.mark.parametrize(
    ('box', 'kind'),
    [
        ((0, 0, 40, 30), ''),
        ((0, 0, 1, 1), ''),
        ((0, 0, 0.9, 5), 'box-empty'),
        ((0, 0, -5, 5), 'box-empty'),
        ((40, 0, 5, 5), 'box-outside'),
        ((-5, 0, 5, 5), 'box-outside'),
        ((0, 30, 5, 5), 'box-outside'),
        ((-1, -1, 42, 32), ''),
        ((-1.1, 0, 5, 5), 'box-partly-outside'),
        ((36, 0, 5.1, 5), 'box-partly-outside'),
    ],
)
def test_box_problem(box, kind):
    assert box_problem(list(box), 1, 40, 30)[0] == kind


# Anything that JSON can hold, odd numbers and texts among it.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from([1, 2, 10, 'cat']),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(['id', 'image_id', 'category_id', 'bbox', 'area', 'file_name', 'width', 'height', 'name'])
            | st.text(max_size=3),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)
VALID = dict(
    images=[dict(id=i, file_name=f'{i}.jpg', width=40, height=30) for i in (1, 2)],
    annotations=[dict(id=i, image_id=i, category_id=10, bbox=[0, 3, 20, 10], area=200, iscrowd=0) for i in (1, 2)],
    categories=[dict(id=10, name='cat'), dict(id=20, name='dog')],
)


def places(value, path=()):
    """The paths of everything inside a JSON value, itself first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def doctor(content) -> dict[str, list[str]]:
    """The findings; what is left after cleaning has to be clean."""
    report = Report()
    file = CocoFile(content, lambda kind, what: report.add('x', kind, what), classes=['cat', 'dog'], min_size=1)
    assert report.text().isprintable() or '\n' in report.text()
    report.text().encode()
    json.dumps(report.as_dict())
    if file.usable:
        again = Report()
        CocoFile(file.cleaned(), lambda kind, what: again.add('x', kind, what), classes=['cat', 'dog'])
        left = set(found(again)) - {'classes', 'category-entry', 'empty-split', 'image-file-double'}
        assert all(KINDS[kind][0] != 'error' for kind in left)
        assert not left & {'box-empty', 'box-outside'}
    return found(report)


@given(VALUES)
@settings(max_examples=150, deadline=None)
@example({'images': [[]], 'annotations': [None], 'categories': [0]})
def test_fuzz_any_json(content):
    doctor(content)


@given(st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_fuzz_changed_annotations(data):
    """A valid file with one to three of its values replaced, doubled or removed."""
    content = copy.deepcopy(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        paths = [path for path in places(content) if path]
        if not paths:
            break
        path = data.draw(st.sampled_from(paths))
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        action = data.draw(st.sampled_from(['replace', 'remove', 'double']))
        if action == 'remove':
            del inner[path[-1]]
        elif action == 'double' and isinstance(inner, list):
            inner.append(copy.deepcopy(inner[path[-1]]))
        else:
            inner[path[-1]] = data.draw(VALUES)
    doctor(content)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda s: s.encode('utf-8', 'surrogatepass')))
@settings(max_examples=50, deadline=None)
def test_fuzz_bytes(tmp_path_factory, content):
    path = tmp_path_factory.mktemp('bytes') / 'x.json'
    path.write_bytes(content)
    findings = defaultdict(list)
    value = read_json(str(path), lambda kind, what: findings[kind].append(what))
    assert (value is UNREADABLE) == bool(findings)
