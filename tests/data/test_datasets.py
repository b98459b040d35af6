"""Datasets with broken images, through loaders with and without worker processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmcv import transforms as of_mmcv
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from torch.utils.data import DataLoader

from mmccd.data import BrokenImageError, GuardedDataset
from mmccd.data.stock import use_own_dataset, use_own_loader
from mmccd.errors import UserError

LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackDetInputs', meta_keys=('img_path', 'img_id'))


def coco(root, split='train', **options) -> GuardedDataset:
    options.setdefault('serialize_data', False)  # packing them, mmengine collects garbage: a third of a second
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(
            dict(
                type='mmccd.CocoDataset',
                data_root=str(root),
                ann_file=f'{split}.json',
                data_prefix=dict(img=f'{split}/'),
                metainfo=dict(classes=('cat', 'dog')),
                pipeline=[LOAD, PACK],
                **options,
            )
        )


def folders(root, **options) -> GuardedDataset:
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return DATASETS.build(
            dict(type='mmccd.CustomDataset', data_root=str(root), pipeline=[LOAD, dict(type='PackInputs')], **options)
        )


@pytest.fixture
def toy_folders(tmp_path):
    """Two classes of 4 images."""
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new('RGB', (8, 8), (i, 0, 0)).save(tmp_path / name / f'{i}.png')
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def paths(dataset, workers=0) -> list[str]:
    loader = iter(DataLoader(dataset, batch_size=1, num_workers=workers, collate_fn=lambda x: x))
    try:
        return [sample['data_samples'].metainfo['img_path'] for [sample] in loader]
    finally:
        if workers:
            loader._shutdown_workers()  # not only when pytest lets go of the error


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(
    'damage',
    [cut, lambda p: p.unlink(), lambda p: p.write_bytes(b''), lambda p: p.write_text('no image')],
    ids=['cut', 'gone', 'empty', 'text'],
)
def test_skipped_in_training(toy_coco, damage, workers):
    """Another image takes its place, and the count arrives in this process."""
    np.random.seed(0)
    broken = toy_coco / 'train' / '3.jpg'
    damage(broken)
    dataset = coco(toy_coco, max_broken=0.2)
    found = paths(dataset, workers)
    assert len(found) == 6
    assert str(broken) not in found
    assert {str(toy_coco / 'train' / f'{i}.jpg') for i in (1, 2, 4, 5, 6)} == set(found)
    assert list(dataset.broken()) == [str(broken)]
    assert dataset.broken()[str(broken)] >= 1


def test_whole_images_are_untouched(toy_coco):
    dataset = coco(toy_coco, max_broken=0.2)
    assert dataset.broken() == {}
    stock = DATASETS.get('mmdet.CocoDataset')(
        data_root=str(toy_coco),
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=('cat', 'dog')),
        pipeline=[],
    )
    for i in range(6):
        assert dataset.get_data_info(i) == stock.get_data_info(i)


@pytest.mark.parametrize('workers', [0, 2])
def test_too_many(toy_coco, workers):
    """3 of 6 where 2 are allowed: no endless drawing, and one message, out of a worker as well."""
    dataset = coco(toy_coco, max_broken=0.4)
    for i in (1, 2, 3):
        (toy_coco / 'train' / f'{i}.jpg').unlink()
    with pytest.raises(BrokenImageError) as error:
        paths(dataset, workers)
        paths(dataset, workers)  # should another one have taken the place of all three
    assert re.fullmatch(
        r'3 of 6 training images cannot be used, more than max_broken=0\.4 of the dataset allows, '
        r'\S+/train/[123]\.jpg among them; tools/checks/check_dataset\.py CONFIG says what else is wrong with the data',
        str(error.value),
    )


def test_all_are_broken(toy_coco):
    for path in (toy_coco / 'train').iterdir():
        path.write_bytes(b'')
    with pytest.raises(BrokenImageError, match=r'1 of 6 training images cannot be used, more than max_broken=0\.1'):
        coco(toy_coco, max_broken=0.1)[0]
    with pytest.raises(Exception, match='Cannot find valid image after 20'):  # all may be: mmengine's own limit
        coco(toy_coco, max_broken=1, max_refetch=20)[0]


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('options', [dict(test_mode=True, max_broken=0.5), dict()])
def test_evaluation_skips_nothing(toy_coco, workers, options):
    cut(toy_coco / 'val' / '2.jpg')
    dataset = coco(toy_coco, 'val', **options)
    with pytest.raises(BrokenImageError) as error:
        paths(dataset, workers)
    message = str(error.value)
    assert message.startswith(f'image {toy_coco / "val" / "2.jpg"} cannot be used: image file is truncated')
    assert '\n' not in message
    assert dataset.broken() == {}


def test_other_errors_stay(toy_coco):
    """A fault of the pipeline is none of an image."""
    dataset = coco(toy_coco, max_broken=0.5)
    dataset.pipeline.transforms[1] = lambda results: 1 / 0
    with pytest.raises(ZeroDivisionError):
        dataset[0]
    assert dataset.broken() == {}


@pytest.mark.parametrize('workers', [0, 2])
def test_classification(toy_folders, workers):
    np.random.seed(0)
    cut(toy_folders / 'b' / '2.png')
    (toy_folders / 'b' / '2.png').write_bytes(b'\x89PNG')
    dataset = folders(toy_folders, max_broken=0.2)
    loader = DataLoader(dataset, num_workers=workers, collate_fn=lambda x: x)
    assert len([sample for [sample] in loader]) == 8
    assert list(dataset.broken()) == [str(toy_folders / 'b' / '2.png')]
    with pytest.raises(BrokenImageError, match=r'2\.png cannot be used'):
        folders(toy_folders)[6]


def test_imagenet(tmp_path):
    pytest.importorskip('mmpretrain')
    (tmp_path / 'meta').mkdir()
    (tmp_path / 'meta' / 'val.txt').write_text('x.JPEG 5\n')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(dict(type='mmccd.ImageNet', data_root=str(tmp_path), split='val', pipeline=[]))
    assert dataset.get_data_info(0)['gt_label'] == 5
    assert len(dataset.metainfo['classes']) == 1000


@pytest.mark.parametrize('name', ['/etc/hostname', '../../secret.jpg', 'x/../../../secret.jpg'])
def test_paths_outside(toy_coco, toy_folders, name):
    content = json.loads((toy_coco / 'train.json').read_text())
    content['images'][2]['file_name'] = name
    (toy_coco / 'train.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match=r'train\.json names an image outside of the data root '):
        coco(toy_coco)
    (toy_folders / 'x.txt').write_text(f'{name} 0\n')
    with pytest.raises(UserError, match=r'x\.txt names an image outside of the data root'):
        folders(toy_folders, ann_file='x.txt', data_prefix='a')


def test_paths_inside(toy_coco):
    """Another folder of the same root, and a root that is written with dots."""
    content = json.loads((toy_coco / 'train.json').read_text())
    content['images'][2]['file_name'] = '../val/1.jpg'
    (toy_coco / 'train.json').write_text(json.dumps(content))
    assert coco(toy_coco)[2]['data_samples'].img_id == 3
    assert coco(toy_coco / '..' / toy_coco.name)[2]['data_samples'].img_id == 3


@pytest.mark.parametrize(
    'content',
    [
        '{}',
        '[]',
        '{"images": 3}',
        'no JSON',
        '{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}',
    ],
)
def test_annotations_that_are_none(toy_coco, content):
    (toy_coco / 'train.json').write_text(content)
    with pytest.raises(UserError, match=r'the annotations .*train\.json cannot be used: .*check_dataset\.py'):
        coco(toy_coco)


@pytest.mark.parametrize(
    ('sample', 'has'), [(dict(img='x.jpg', img_id=3), 'img, img_id'), (dict(img_path=7), 'img_path=7'), ({}, 'nothing')]
)
def test_a_sample_without_a_path(toy_coco, monkeypatch, sample, has):
    """Of a dataset of somebody else: what is missing, where, and what is there instead."""
    from mmengine.dataset import BaseDataset

    class Mine(GuardedDataset, BaseDataset):
        pass

    monkeypatch.setattr(BaseDataset, 'load_data_list', lambda self: [dict(img_path='a.jpg'), dict(sample)])
    with pytest.raises(UserError, match=rf'Mine needs .*img_path.*; sample 1 has {has}$'):
        Mine(serialize_data=False)
    monkeypatch.setattr(BaseDataset, 'load_data_list', lambda self: [dict(img_path='a.jpg'), dict(img_path='b.jpg')])
    dataset = Mine(serialize_data=False)
    dataset.data_list[1] = dict(sample)  # lost on the way
    with pytest.raises(UserError, match=rf'Mine needs .*img_path.*; sample 1 has {has if sample else "sample_idx"}'):
        dataset[1]


@pytest.mark.parametrize('value', [-0.1, 1.1, '1', None, True, float('nan')])
def test_max_broken_is_a_share(toy_coco, value):
    with pytest.raises(ValueError, match='max_broken must be a share from 0 to 1, got '):
        coco(toy_coco, max_broken=value)


@pytest.mark.long
def test_counts_survive_spawned_workers(toy_coco):
    """Spawned processes get the dataset pickled; the counts are shared none the less."""
    (toy_coco / 'train' / '1.jpg').unlink()
    dataset = coco(toy_coco, max_broken=0.5)
    context = torch.multiprocessing.get_context('spawn')
    process = context.Process(target=dataset.prepare_data, args=(0,))  # dataset[0] may draw it again
    process.start()
    process.join(120)
    assert dataset.broken() == {str(toy_coco / 'train' / '1.jpg'): 1}


WITHOUT_MMPRETRAIN = """
import sys
{how}
import mmccd
from mmengine.registry import DATASETS, TRANSFORMS
dataset = DATASETS.build(dict(
    type='mmccd.CocoDataset', data_root={root!r}, ann_file='train.json', data_prefix=dict(img='train/'),
    metainfo=dict(classes=('cat', 'dog')), pipeline=[dict(type='mmccd.LoadImageFromFile')]))
print('detection has', len(dataset), dataset[0]['img'].shape)
for name in ('CustomDataset', 'ImageNet', 'RandomResizedCrop', 'PackInputs'):
    try:
        registry = DATASETS if name in ('CustomDataset', 'ImageNet') else TRANSFORMS
        registry.build(dict(type=f'mmccd.{{name}}'))
    except mmccd.UserError as e:
        print(e)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (None, r'not installed: pip install "onedl-mmpretrain>='),
        (
            'import numpy.of_long_ago',
            r"cannot be imported \(ModuleNotFoundError: No module named 'numpy.of_long_ago'\)",
        ),
        (
            'raise ImportError("MMCV==9 is incompatible")',
            r'cannot be imported \(ImportError: MMCV==9 is incompatible\)',
        ),
        ('1 / 0', r'cannot be imported \(ZeroDivisionError: division by zero\)'),
    ],
    ids=['none', 'lacks', 'import_error', 'other_error'],
)
def test_without_mmpretrain(toy_coco, tmp_path, content, reason):
    """Detection works; what extends MMPretrain says why it does not, in a broken installation above all."""
    how = "sys.modules['mmpretrain'] = None"
    if content is not None:
        (tmp_path / 'broken' / 'mmpretrain').mkdir(parents=True)
        (tmp_path / 'broken' / 'mmpretrain' / '__init__.py').write_text('__version__ = "1.2.0"')
        (tmp_path / 'broken' / 'mmpretrain' / 'datasets.py').write_text(content)
        how = f'sys.path.insert(0, {str(tmp_path / "broken")!r})'
    code = WITHOUT_MMPRETRAIN.format(how=how, root=str(toy_coco))
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    detection, *others = done.stdout.splitlines()[-5:]
    assert detection == 'detection has 6 (30, 40, 3)'
    for name, line in zip(('CustomDataset', 'ImageNet', 'RandomResizedCrop', 'PackInputs'), others):
        assert re.search(rf'{name} needs MMPretrain, and it (is )?{reason}', line), line


def test_names_of_classes_need_no_datasets():
    """Reading a config or a class name takes no seconds."""
    code = "import sys, mmccd.data.classes; print({'mmdet', 'mmpretrain'} & set(sys.modules))"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ['set()'], done.stderr


FORMATS = {'0.webp': 'WEBP', '1.tiff': 'TIFF', '2.jfif': 'JPEG', '3.gif': 'GIF', '4.JPEG': 'JPEG', '5.png': 'PNG'}


@pytest.fixture
def formats(tmp_path):
    """Two classes with an image of each format, what is none, and images of no class."""
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        for file, kind in FORMATS.items():
            Image.new('RGB', (8, 8), (9, 9, 9)).save(tmp_path / name / file, kind)
        (tmp_path / name / '6.heic').write_bytes(b'x')
        (tmp_path / name / '._5.png').write_bytes(b'x')
    (tmp_path / 'a' / 'notes.txt').write_bytes(b'x')
    Image.new('RGB', (8, 8)).save(tmp_path / '7.png')
    return tmp_path


@pytest.mark.parametrize(
    'kind', ['mmccd.CustomDataset', 'mmccd.ImageNet', 'CustomDataset', 'mmpretrain.CustomDataset', 'ImageNet']
)
def test_images_of_all_formats(formats, kind, monkeypatch):
    """MMPretrain's datasets, which the tools replace by ours, take seven suffixes, and say nothing."""
    pytest.importorskip('mmpretrain')
    said: list[str] = []
    monkeypatch.setattr('mmccd.data.datasets.print_log', lambda text, *_: said.append(text))
    dataset = dict(type=kind, data_root=str(formats), data_prefix='', metainfo=dict(classes=('a', 'b')))
    dataset.update(pipeline=[LOAD, dict(type='PackInputs')], serialize_data=False)  # which collects garbage
    use_own_dataset(dataset, 'mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = DATASETS.build(dataset)
    found = [built.get_data_info(i) for i in range(len(built))]
    assert [(i['img_path'].removeprefix(f'{formats}/'), i['gt_label']) for i in found] == [
        (f'{name}/{file}', label) for label, name in enumerate('ab') for file in sorted(FORMATS)
    ]
    assert all(built[i]['inputs'].shape == (3, 8, 8) for i in range(len(built)))
    assert said == [
        f'{formats}: left out, in no class folder: 1 image (e.g. 7.png)',
        f'{formats}: left out by their suffixes: 2 .heic files (e.g. a/6.heic), 1 .txt file (e.g. a/notes.txt)',
    ]


def test_suffixes_of_ones_own(formats):
    """``extensions`` are what they are."""
    dataset = folders(formats, extensions=('.png', '.heic'), serialize_data=False)
    assert sorted(dataset.get_data_info(i)['img_path'][-6:] for i in range(len(dataset))) == [
        '/5.png',
        '/5.png',
        '6.heic',
        '6.heic',
    ]
    assert [(f.suffix, f.count) for f in dataset.left_out] == [
        ('.gif', 2),
        ('.jfif', 2),
        ('.jpeg', 2),
        ('.tiff', 2),
        ('.webp', 2),
        ('.txt', 1),
    ]


def test_without_labels(formats):
    dataset = folders(formats, with_label=False, serialize_data=False)
    assert len(dataset) == 13
    assert [(f.suffix, f.count, f.example) for f in dataset.left_out] == [
        ('.heic', 2, 'a/6.heic'),
        ('.txt', 1, 'a/notes.txt'),
    ]


@pytest.mark.parametrize('kind', ['mmccd.CustomDataset', 'mmccd.UnguardedCustomDataset'])
def test_folders_without_images(tmp_path, kind):
    pytest.importorskip('mmpretrain')
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        (tmp_path / name / '1.heic').write_bytes(b'x')
    with pytest.raises(
        UserError, match=r'have no image in them \(.*\.png.*\), but 2 \.heic files \(e\.g\. a/1\.heic\)'
    ):
        DATASETS.build(dict(type=kind, data_root=str(tmp_path), pipeline=[]))
    with pytest.raises(UserError, match=r'there are 1 classes, and 2 folders in'):
        DATASETS.build(dict(type=kind, data_root=str(tmp_path), metainfo=dict(classes=('a',)), pipeline=[]))


def test_own_loaders(toy_coco):
    """In the place of exactly MMCV's, inside augmentations too."""
    pipeline = [
        dict(type='LoadImageFromFile', to_float32=True),
        dict(type='mmcv.LoadImageFromFile'),
        dict(type=of_mmcv.LoadImageFromFile),
        dict(type='LoadImageFromNDArray'),
        dict(type='mmccd.LoadImageFromFile'),
        dict(type='TestTimeAug', transforms=[[dict(type='LoadImageFromFile')], [dict(type='LoadAnnotations')]]),
        dict(type='SomethingElse'),
    ]
    use_own_loader(pipeline, 'mmdet')
    own = 'mmccd.LoadImageFromFile'
    assert [step['type'] for step in pipeline] == [
        own,
        own,
        own,
        'LoadImageFromNDArray',
        own,
        'TestTimeAug',
        'SomethingElse',
    ]
    assert pipeline[0] == dict(type=own, to_float32=True)
    assert [step['type'] for [step] in pipeline[5]['transforms']] == [own, 'LoadAnnotations']


def test_nothing_left_has_numbers(toy_coco):
    content = json.loads((toy_coco / 'train.json').read_text())
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] > 2]
    content['images'][5].update(width=20, height=20)
    (toy_coco / 'train.json').write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r'none of the 6 images .* 6 with a side below 31, and those without a box, 2, of'
    ):
        coco(toy_coco, filter_cfg=dict(min_size=31, filter_empty_gt=True))
    assert len(coco(toy_coco, filter_cfg=dict(min_size=25, filter_empty_gt=True))) == 3
