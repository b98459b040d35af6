"""tools/checks/check_dataset.py as a user calls it, and broken data in training and testing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

TOOL = 'checks/check_dataset.py'
DETECTOR, CLASSIFIER = 'retinanet_ccd_r18_fpn_digits', 'ccd_r18_digits'


@pytest.fixture
def place(tmp_path, monkeypatch, digits, root) -> Path:
    """A user's folder with a copy of the digits that may be broken; the current folder."""
    shutil.copytree(digits, tmp_path / 'data' / 'digits')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def config(root):
    return lambda name: root / 'configs' / f'{name}.py'


@pytest.mark.parametrize('name', [DETECTOR, CLASSIFIER])
def test_clean(call_tool, config, place, capsys, name):
    code, err = call_tool(TOOL, config(name), '--workers', 0, '--splits', 'train', 'val')
    assert code == 0, err
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith('0 errors, ')


def test_errors(call_tool, config, place, capsys):
    (place / 'data/digits/det/train/000003.png').write_bytes(b'')
    options = ['--workers', 2, '--out', 'report.json', '--sets', 'train']  # the former name of --splits
    code, _ = call_tool(TOOL, config(DETECTOR), *options, '--write-clean', 'clean.json')
    assert code == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        '1 error, 0 warnings, 0 notes',
        f'clean.json: 7 images, {len(read("clean.json")["annotations"]):,} boxes',
    ]
    report = read('report.json')
    assert report['counts']['error'] == 1
    assert report['findings'][0]['items'] == [
        dict(split='train', what='data/digits/det/train/000003.png: the file is empty')
    ]
    assert 3 not in [i['id'] for i in read('clean.json')['images']]
    code, err = call_tool(TOOL, config(DETECTOR), '--splits', 'train', '--write-clean', 'clean.json')
    assert (code, err) == (2, 'error: --write-clean: clean.json is there, and nothing is overwritten\n')


def read(path: str) -> dict:
    return json.loads(Path(path).read_text())


@pytest.mark.parametrize(
    ('args', 'rule'),
    [
        (['--workers', -1], '--workers must be at least 0, got -1'),
        (['--max-pixels', 0], '--max-pixels must be at least 1, got 0'),
        (['--out', 'x.txt'], "--out must end with .json, got 'x.txt'"),
    ],
)
def test_bad_usage(call_tool, config, place, args, rule):
    assert call_tool(TOOL, config(DETECTOR), *args) == (2, f'error: {rule}\n')


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_wrong_class_names(call_tool, config, place, tool):
    """Said at the start, for what would else be a training without a box."""

    def rename(content):
        for category in content['categories']:
            category['name'] = f'digit_{category["name"]}'

    edit(place / 'data/digits/det/annotations/instances_val.json', rename)
    torch.save(dict(state_dict={}), 'x.pth')
    extra = ['x.pth'] if tool == 'test.py' else ['--cfg-options', 'model.backbone.init_cfg=None']
    code, err = call_tool(tool, config(DETECTOR), *extra)
    loader = 'val' if tool == 'train.py' else 'test'
    assert code == 2
    assert err.startswith(
        'error: the classes do not fit, and no later step would report it:\n'
        f'  {loader}_dataloader.dataset.metainfo.classes: 10 of 10 classes are no categories of '
        "data/digits/det/annotations/instances_val.json: '0'"
    )
    assert 'Its categories are: digit_0, digit_1' in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(
    ('name', 'key'), [(DETECTOR, 'model.bbox_head.num_classes'), (CLASSIFIER, 'model.head.num_classes')]
)
def test_wrong_number_of_classes(call_tool, config, place, name, key):
    code, err = call_tool(
        'train.py',
        config(name),
        '--cfg-options',
        f'{key}=80',
        *(['model.backbone.init_cfg=None'] if name == DETECTOR else []),
    )
    assert code == 2
    assert f'{key} is 80, train_dataloader.dataset has 10 classes\n' in err


def test_class_folders(call_tool, config, place):
    (place / 'data/digits/cls/val/7').rename(place / 'data/digits/cls/val/seven')
    code, err = call_tool('train.py', config(CLASSIFIER))
    assert code == 2
    assert "1 of 10 folders in data/digits/cls have no class of their name: 'seven'" in err
    assert 'val_dataloader.dataset has other class folders than train_dataloader.dataset: 7, seven' in err


@pytest.mark.parametrize('content', ['', '{"categories": 3}', '[' * 100_000])
def test_annotation_file_that_is_none(call_tool, config, place, content):
    (place / 'data/digits/det/annotations/instances_train.json').write_text(content)
    code, err = call_tool('train.py', config(DETECTOR), '--cfg-options', 'model.backbone.init_cfg=None')
    assert code == 2
    assert err.startswith(
        'error: annotation file data/digits/det/annotations/instances_train.json '
        '(train_dataloader.dataset.ann_file) cannot be used: it '
    )


@pytest.mark.long
@pytest.mark.slow
def test_training_and_testing_with_skipped_images(run_tool, config, place):
    """Two processes: training skips the image and lists it; the evaluation behind it stops at its own, by name."""
    (place / 'data/digits/cls/train/3').joinpath(
        sorted(p.name for p in (place / 'data/digits/cls/train/3').iterdir())[0]
    ).write_bytes(b'\x89PNG')
    done = run_tool(
        'train.py',
        config(CLASSIFIER),
        '--cfg-options',
        'train_dataloader.dataset.max_broken=0.1',
        'train_cfg.max_epochs=1',
        'train_dataloader.batch_size=16',
        cwd=place,
    )
    assert '1 broken images were skipped so far, listed in' in done.stdout + done.stderr
    [line] = (place / f'work_dirs/{CLASSIFIER}/skipped_images.txt').read_text().splitlines()
    path, times, reason = line.split('\t')
    assert path.startswith('data/digits/cls/train/3/')
    assert int(times) >= 1
    assert reason
    broken = sorted((place / 'data/digits/cls/val/3').iterdir())[0]
    broken.write_bytes(b'')
    done = run_tool('test.py', config(CLASSIFIER), f'work_dirs/{CLASSIFIER}/epoch_1.pth', cwd=place, expect=2)
    [message] = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert message == (
        f'error: image {broken.relative_to(place)} cannot be used: the file is empty; '
        'tools/checks/check_dataset.py CONFIG says what else is wrong with the data'
    )
    assert 'Traceback' not in done.stderr
