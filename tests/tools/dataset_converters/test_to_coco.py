"""tools/dataset_converters/to_coco.py, and tools/make_config.py on folders of other formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine.config import Config

TOOL = 'dataset_converters/to_coco.py'
MAKE = 'make_config.py'
KINDS = ('yolo', 'voc', 'labelme', 'cvat', 'label_studio', 'label_studio_min')


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(call_tool):
    """Call a tool; it has to refuse with one message, which is returned, and to leave the current folder as it is."""

    def check(name: str, *args: object) -> str:
        before = {p: p.stat().st_mtime_ns for p in Path.cwd().rglob('*') if p.is_file()}
        code, stderr = call_tool(name, *args)
        assert (code, stderr.count('error: '), 'Traceback' in stderr) == (2, 1, False), stderr
        assert {p: p.stat().st_mtime_ns for p in Path.cwd().rglob('*') if p.is_file()} == before
        return stderr[len('error: ') :].rstrip()

    return check


def boxes_of(path: Path) -> set[tuple]:
    content = json.loads(path.read_text())
    names = {c['id']: c['name'] for c in content['categories']}
    return {(names[a['category_id']], *a['bbox']) for a in content['annotations']}


@pytest.mark.parametrize('name', KINDS)
def test_every_format(name, call_tool, label_folders, here, capsys):
    label_folders.BUILDERS[name](here / 'my' / name)
    share = ('--val-share', 0.4) if name.startswith('label_s') else ()
    code, stderr = call_tool(TOOL, f'my/{name}', '--out', 'my/coco', *share)
    assert (code, stderr) == (0, '')
    output = capsys.readouterr().out
    for split, n in (('train', 3), ('val', 2)):
        path = Path(f'my/coco/{split}.json')
        content = json.loads(path.read_text())
        assert len(content['images']) == n
        assert boxes_of(path) == {('cat', 4, 3, 20, 10), ('dog', 10, 6, 5, 8)}
        [line] = [line for line in output.splitlines() if line.startswith(f'{path}: ')]
        folder = line.rpartition('images in ')[2]
        assert not Path(folder).is_absolute()
        assert all((Path(folder) / i['file_name']).is_file() for i in content['images'])
        assert f'{n} images, {2 * n} boxes' in line
    assert 'tools/make_config.py --train my/' in output.splitlines()[-1]


def test_options(call_tool, refused, label_folders, here, capsys):
    label_folders.yolo(here / 'yolo')
    label_folders.voc(here / 'voc')
    label_folders.label_studio(here / 'studio')
    for args, message in (
        (('none', '--out', 'o'), 'none does not exist'),
        (('studio', '--out', 'o', '--val-share', 1), '--val-share must be between 0 and 1, got 1.0'),
        (('yolo', '--out', 'o', '--val-share', 0.5), 'a dataset of images without splits, and yolo has train, val'),
        (('yolo', '--out', 'yolo/data.yaml'), '--out must be a folder, and yolo/data.yaml is a file'),
        (('yolo', '--out', 'o', '--seed', -1), '--seed must be at least 0, got -1'),
        (('yolo', '--out', 'o', '--format', 'cvat'), 'yolo has no XML file of CVAT'),
    ):
        assert message in refused(TOOL, *args)
    assert call_tool(TOOL, 'voc', '--out', 'o', '--voc-coordinates', 'corners')[0] == 0
    assert boxes_of(here / 'o' / 'val.json') == {('cat', 5, 4, 19, 9), ('dog', 11, 7, 4, 7)}
    assert 'o/train.json, o/val.json: there already' in refused(TOOL, 'voc', '--out', 'o')
    assert call_tool(TOOL, 'voc', '--out', 'o', '--overwrite', '--format', 'voc')[0] == 0
    assert boxes_of(here / 'o' / 'val.json') == {('cat', 4, 3, 20, 10), ('dog', 10, 6, 5, 8)}
    capsys.readouterr()
    assert call_tool(TOOL, 'studio', '--out', 'all')[0] == 0
    assert len(json.loads((here / 'all' / 'all.json').read_text())['images']) == 5
    assert 'make_config' not in capsys.readouterr().out


def test_errors_are_refused_or_left_out_and_counted(call_tool, refused, label_folders, here, capsys):
    label_folders.yolo(here / 'yolo')
    with (here / 'yolo' / 'labels' / 'val' / 'c.txt').open('a') as f:
        f.write('7 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1\n')
    (here / 'yolo' / 'images' / 'val' / 'd.png').unlink()
    message = refused(TOOL, 'yolo', '--out', 'coco')
    assert message.startswith('yolo has 3 errors:\n')
    for part in (
        'c.txt:3: class 7, and the classes are 0 to 1',
        'c.txt:4: 4 numbers',
        'd.txt: no image in ',
        '--force',
    ):
        assert part in message
    assert call_tool(TOOL, 'yolo', '--out', 'coco', '--force')[0] == 0
    output = capsys.readouterr().out
    assert '       1  label-class: labels of no known class' in output
    assert json.loads((here / 'coco' / 'val.json').read_text())['images'][0]['file_name'] == 'c.jpg'
    for path in here.glob('yolo/labels/*/*.txt'):
        path.write_text('')
    assert 'yolo has no usable box' in refused(TOOL, 'yolo', '--out', 'empty', '--force')


def make(call_tool, *args: object) -> tuple[int, str]:
    return call_tool(MAKE, *args, '--workers', 0, '--base', 'retinanet_ccd_r18_fpn_digits', '--out', 'own.py')


def test_make_config(call_tool, label_folders, here, capsys):
    """Two formats, one with splits: the same classes, and a config that the data checks pass."""
    label_folders.yolo(here / 'yolo')
    code, stderr = make(call_tool, '--train', 'yolo', '--val', 'yolo')
    assert code == 0, stderr
    cfg = Config.fromfile('own.py')
    for loader, n in ((cfg.train_dataloader, 3), (cfg.val_dataloader, 2)):
        split = 'train' if n == 3 else 'val'
        assert loader.dataset.ann_file == f'own_{split}.json'
        assert loader.dataset.data_prefix.img == f'yolo/images/{split}'
        assert len(json.loads(Path(f'own_{split}.json').read_text())['images']) == n
    assert cfg.val_evaluator.ann_file == 'own_val.json'
    assert cfg.train_dataloader.dataset.metainfo.classes == ('cat', 'dog')
    output = capsys.readouterr().out
    assert 'own_train.json: 3 images, 6 boxes, images in yolo/images/train' in output
    # What is there is not replaced unasked, and what fails leaves all as it was.
    assert 'own.py is there' in make(call_tool, '--train', 'yolo', '--val', 'yolo')[1]
    Path('own.py').unlink()
    before = Path('own_val.json').read_text()
    assert 'own_train.json, own_val.json: there already' in make(call_tool, '--train', 'yolo', '--val', 'yolo')[1]
    (here / 'yolo' / 'images' / 'val' / 'd.png').write_bytes((here / 'yolo/images/train/b.png').read_bytes()[:-99])
    code, stderr = make(call_tool, '--train', 'yolo', '--val', 'yolo', '--overwrite')
    assert code == 2 and '1 error' in stderr, stderr
    assert Path('own_val.json').read_text() == before
    assert sorted(p.name for p in here.iterdir()) == ['own_train.json', 'own_val.json', 'yolo']


def test_make_config_of_two_folders_without_splits(call_tool, label_folders, here):
    for split, names in label_folders.IMAGES.items():
        for name in names:
            label_folders.save_image(here / 'my' / f'{split}_set' / name)
            shapes = [label_folders.rectangle('cat', (4, 3, 20, 10))]
            if name != 'd.png':
                shapes.append(label_folders.rectangle('dog' if split == 'train' else 'cow', (10, 6, 5, 8)))
            label_folders.write(
                here / 'my' / f'{split}_set' / f'{Path(name).stem}.json', label_folders.labelme_json(name, shapes)
            )
    code, stderr = make(call_tool, '--train', 'my/train_set', '--val', 'my/val_set')
    assert code == 0, stderr
    cfg = Config.fromfile('own.py')
    assert cfg.train_dataloader.dataset.metainfo.classes == ('cat', 'cow', 'dog')  # of both together
    assert cfg.train_dataloader.dataset.data_prefix.img == 'my/train_set'


def test_make_config_refuses(refused, label_folders, here):
    def message(*args: object) -> str:
        return refused(MAKE, *args, '--workers', 0, '--base', 'retinanet_ccd_r18_fpn_digits', '--out', 'own.py')

    label_folders.label_studio(here / 'studio')
    text = message('--train', 'studio', '--val', 'studio')
    assert '--train and --val: studio has no splits, and the same images would be in both' in text
    assert 'to_coco.py studio --out DIR --val-share 0.2 divides it' in text
    label_folders.yolo(here / 'yolo')
    (here / 'yolo' / 'data.yaml').write_text('train: images/train\nnames: [cat, dog]\n')
    assert 'yolo has no split val; it has train' in message('--train', 'yolo', '--val', 'yolo')
    (here / 'yolo' / 'labels' / 'train' / 'a.txt').write_text('0 0.5\n')
    (here / 'yolo' / 'data.yaml').write_text('train: images/train\nval: images/val\nnames: [cat, dog]\n')
    assert 'labels/train/a.txt:1: 2 numbers, and a label has 5' in message('--train', 'yolo', '--val', 'yolo')
    label_folders.save_image(here / 'folders' / 'cat' / 'a.jpg')
    text = message('--train', 'yolo', '--val', 'folders')
    assert '--train and --val must be of one kind' in text
