"""Tests of tools/dataset_converters/make_trees.py and of the image of tools/demo/demo_trees.py.

A small wheel of the same layout stands in for deepforest's; the real one is tried if MMCCD_DEEPFOREST_WHEEL names it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmccd.cli import made_data

# Width, height and trees (left, top, right, bottom, label) of each scene. The large one: 600 x 1300, of which the rows
# 788 to 1300 are val and 0 to 660 train.
SCENES = {
    'YELL_528': (
        600,
        1300,
        [
            (10, 10, 50, 40, 'Tree'),  # in train
            (20, 640, 60, 680, 'Tree'),  # half of it in train: kept
            (200, 645, 240, 685, 'Tree'),  # 15 of 40 rows in train: a crowd
            (100, 700, 140, 740, 'Tree'),  # between them
            (300, 680, 340, 788, 'Tree'),  # the tallest, 108, reaches neither
            (100, 770, 140, 810, 'Tree'),  # 22 of 40 rows in val: kept
            (160, 1000, 200, 1040, 'Tree'),  # in two tiles of val: x from 0, 172, 344 and 256 wide
        ],
    ),
    'YELL_541': (256, 256, [(0, 0, 30, 30, 'Tree')]),
    'OSBS': (300, 256, [(250, 100, 320, 140, 'Tree')]),  # reaches 20 pixels out of its image
    'SOAP': (256, 256, [(5, 6, 25, 36, 'Dead'), (100, 100, 120, 120, 'Alive')]),
}


@pytest.fixture(scope='module')
def content() -> dict[str, tuple[bytes, bytes]]:
    """PNG and XML of each scene."""
    rng = np.random.default_rng(0)
    found = {}
    for name, (width, height, trees) in SCENES.items():
        png = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(png, 'PNG')
        objects = ''.join(
            f'<object><name>{label}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>'
            '</bndbox></object>'
            for x1, y1, x2, y2, label in trees
        )
        found[name] = png.getvalue(), f'<annotation>{objects}</annotation>'.encode()
    return found


@pytest.fixture
def tool(load_tool, content, monkeypatch):
    module = load_tool('dataset_converters/make_trees.py')
    monkeypatch.setattr(
        module,
        'SCENES',
        {name: (module.SCENES[name][0], *(hashlib.sha256(c).hexdigest() for c in content[name])) for name in SCENES},
    )
    return module


@pytest.fixture
def wheel(tool, content, tmp_path) -> Path:
    return pack(tool, content, tmp_path / 'deepforest-9-py3-none-any.whl')


def pack(tool, content, path: Path, licence: bool = True, **changed: bytes) -> Path:
    with zipfile.ZipFile(path, 'w') as z:
        for scene, (png, xml) in content.items():
            z.writestr(f'deepforest/data/{tool.SCENES[scene][0]}.png', changed.get(scene, png))
            z.writestr(f'deepforest/data/{tool.SCENES[scene][0]}.xml', xml)
        if licence:
            z.writestr('deepforest-9.dist-info/licenses/LICENSE', 'MIT License of somebody')
    return path


def read(out: Path, split: str) -> dict:
    return json.loads((out / 'annotations' / f'instances_{split}.json').read_text())


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob('*') if p.is_file()}


def test_everything(tool, wheel, content, tmp_path):
    out = tmp_path / 'data' / 'trees'
    assert tool.main(['--out', str(out), '--wheel', str(wheel)]) == 0
    assert (out / 'LICENSE').read_text() == 'MIT License of somebody'
    assert 'National Ecological Observatory Network' in (out / 'ATTRIBUTION.txt').read_text()
    manifest = json.loads((out / 'trees.json').read_text())
    # 660 rows: tiles of 512 from 0 and 148; 600 columns: from 0 and 88
    assert [i['file_name'] for i in read(out, 'train')['images']] == [
        f'YELL_528_{x:04d}_{y:04d}.png' for y in (0, 148) for x in (0, 88)
    ]
    assert [i['file_name'] for i in read(out, 'val')['images']] == [
        f'YELL_528_{x:04d}_{y:04d}.png' for y in (788, 1044) for x in (0, 172, 344)
    ]
    assert [i['file_name'] for i in read(out, 'transfer')['images']] == [
        'YELL_541_0000_0000.png',
        'OSBS_0000_0000.png',
        'OSBS_0044_0000.png',
        'SOAP_0000_0000.png',
    ]
    scene = np.array(Image.open(io.BytesIO(content['YELL_528'][0])))
    for split, side in (('train', 512), ('val', 256)):
        for image in read(out, split)['images']:
            assert (image['width'], image['height']) == (side, side)
            x, y = (int(v) for v in image['file_name'][:-4].split('_')[2:])
            tile = np.array(Image.open(out / split / image['file_name']))
            assert np.array_equal(tile, scene[y : y + side, x : x + side])

    def boxes(split: str) -> set:
        coco = read(out, split)
        places = {i['id']: i['file_name'][-len('0000_0000.png') : -len('.png')] for i in coco['images']}
        return {(a['tree'], places[a['image_id']], tuple(a['bbox']), a['iscrowd']) for a in coco['annotations']}

    assert boxes('train') == {
        (1, '0000_0000', (10, 10, 40, 30), 0),
        (2, '0000_0148', (20, 492, 40, 20), 0),
        (3, '0000_0148', (200, 497, 40, 15), 1),
        (3, '0088_0148', (112, 497, 40, 15), 1),
    }
    assert boxes('val') == {
        (6, '0000_0788', (100, 0, 40, 22), 0),
        (7, '0000_0788', (160, 212, 40, 40), 0),
        (7, '0172_0788', (0, 212, 28, 40), 0),  # 28 of 40 columns
    }
    assert {a['label'] for a in read(out, 'transfer')['annotations']} == {'Tree', 'Dead', 'Alive'}
    assert (9, '0000_0000', (250, 100, 6, 40), 1) in boxes('transfer')  # 6 of the 50 columns that are in the image
    assert (9, '0044_0000', (206, 100, 50, 40), 0) in boxes('transfer')
    assert manifest['counts'] == dict(
        train=dict(tiles=4, trees=2, boxes=2, crowd=2),
        val=dict(tiles=6, trees=2, boxes=3, crowd=0),
        transfer=dict(tiles=4, trees=4, boxes=4, crowd=1),
    )

    before = files(out)
    assert tool.main(['--out', str(out), '--wheel', str(wheel)]) == 0  # exists already
    other = tmp_path / 'again'
    assert tool.main(['--out', str(other), '--wheel', str(wheel)]) == 0
    assert files(other) == files(out) == before
    assert not out.with_name('trees.partial').exists()


@pytest.mark.parametrize(
    ('length', 'tile', 'stride', 'expected'),
    [
        (256, 256, 256, [0]),
        (300, 256, 256, [0, 44]),
        (2299, 256, 256, [0, 255, 511, 766, 1022, 1277, 1532, 1788, 2043]),
        (1024, 512, 256, [0, 256, 512]),
    ],
)
def test_starts(tool, length, tile, stride, expected):
    assert tool.starts(length, tile, stride) == expected


def test_bad_input(tool, content, tmp_path, capsys):
    def refused(*options: object) -> str:
        assert tool.main(['--out', str(tmp_path / 'trees'), *map(str, options)]) == 2
        assert not (tmp_path / 'trees').exists() or (tmp_path / 'trees' / 'mine.txt').exists()
        return capsys.readouterr().err

    assert refused('--wheel', tmp_path / 'no.whl') == f'make_trees: --wheel: {tmp_path / "no.whl"} does not exist\n'
    (tmp_path / 'text.whl').write_text('nothing')
    assert 'text.whl cannot be read as a wheel: File is not a zip file' in refused('--wheel', tmp_path / 'text.whl')
    other = pack(tool, content, tmp_path / 'other.whl', OSBS=content['SOAP'][0])
    assert 'deepforest/data/OSBS_029.png in' in (message := refused('--wheel', other))
    assert 'is another file: SHA-256' in message
    no_licence = pack(tool, content, tmp_path / 'bare.whl', licence=False)
    assert 'bare.whl has no LICENSE: is it the wheel of deepforest==2.1.0?' in refused('--wheel', no_licence)
    less = {k: v for k, v in content.items() if k != 'SOAP'}
    assert "There is no item named 'deepforest/data/SOAP_061.png' in the archive" in refused(
        '--wheel', pack(tool, less, tmp_path / 'less.whl')
    )
    (tmp_path / 'trees').mkdir()
    (tmp_path / 'trees' / 'mine.txt').touch()
    assert 'was not made by this tool: move it or choose another --out' in refused('--wheel', other)


def test_download_is_asked_of_pip(tool, content, tmp_path, monkeypatch, capsys):
    """Without --wheel, pip fetches it beside --out, once; a failure is one message."""
    calls = []

    def pip(command: list[str]) -> object:
        calls.append(command[1:])
        pack(tool, content, tmp_path / 'deepforest-2.1.0-py3-none-any.whl')
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(made_data.subprocess, 'run', pip)
    assert tool.main(['--out', str(tmp_path / 'trees')]) == 0
    assert tool.main(['--out', str(tmp_path / 'trees2')]) == 0
    assert calls == [
        ['-m', 'pip', 'download', 'deepforest==2.1.0', '--no-deps', '--only-binary', ':all:', '-d', str(tmp_path)]
    ]
    monkeypatch.setattr(made_data.subprocess, 'run', lambda command: subprocess.CompletedProcess(command, 1))
    (tmp_path / 'elsewhere').mkdir()
    assert tool.main(['--out', str(tmp_path / 'elsewhere' / 'trees')]) == 2
    assert 'deepforest==2.1.0 could not be downloaded: fetch the wheel elsewhere and name it with --wheel' in (
        capsys.readouterr().err
    )


def test_the_real_wheel(load_tool, tmp_path):
    """Its 951 trees; no row of the image, and no tree, in training and validation both."""
    wheel = os.environ.get('MMCCD_DEEPFOREST_WHEEL')
    if not wheel:
        pytest.skip('MMCCD_DEEPFOREST_WHEEL names no wheel, and tests download nothing')
    tool = load_tool('dataset_converters/make_trees.py')
    scenes, _ = tool.read_wheel(Path(wheel))
    assert {name: len(trees) for name, (_, trees) in scenes.items()} == dict(
        YELL_528=574, YELL_541=279, OSBS=61, SOAP=37
    )
    assert max(t.box[3] - t.box[1] for t in scenes['YELL_528'][1]) < tool.GUARD
    assert tool.main(['--out', str(tmp_path / 'trees'), '--wheel', wheel]) == 0
    train, val = ({a['tree'] for a in read(tmp_path / 'trees', split)['annotations']} for split in ('train', 'val'))
    assert train & val == set()
    counts = json.loads((tmp_path / 'trees' / 'trees.json').read_text())['counts']
    assert {split: c['trees'] for split, c in counts.items()} == dict(train=411, val=132, transfer=377)


def test_drawing_of_the_demo(tool, wheel, load_tool, tmp_path, monkeypatch):
    """Tiles back in their places: the drawn boxes white, detections above 0.3 yellow."""
    monkeypatch.chdir(tmp_path)
    assert tool.main(['--out', 'data/trees', '--wheel', str(wheel)]) == 0
    found = [dict(image_id=6, bbox=[100, 100, 30, 30], score=0.9), dict(image_id=6, bbox=[10, 10, 30, 30], score=0.2)]
    Path('found.json').write_text(json.dumps(found))
    load_tool('demo/demo_trees.py').draw_detections('found.json', 'out.png')
    image = np.array(Image.open('out.png')).astype(int)
    assert image.shape == (512, 600, 3)
    assert (abs(image[215:250, 160] - [255, 255, 255]) < 60).all()  # tree 7, left border
    assert (abs(image[375:384, 444] - [255, 224, 0]) < 60).all()  # tile 6 begins at 344, 256; below the text
    scene = np.array(Image.open('data/trees/val/YELL_528_0344_1044.png'))
    assert np.array_equal(image[266:296, 354], scene[10:40, 10])
