"""Tests of tools/dataset_converters/make_fashion.py on made-up photographs; the real package where it is at hand."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

SCRIPT = Path(__file__).parents[3] / 'tools' / 'dataset_converters' / 'make_fashion.py'


def garments(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey rectangles with a hole: every label as often as any other."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, 28, 28), np.uint8)
    for image in images:
        height, width = rng.integers(14, 27, 2)
        image[1 : 1 + height, 1 : 1 + width] = rng.integers(60, 256)
        image[5:8, 5:8] = 0
    return images, np.arange(count) % 10


def idx(array: np.ndarray) -> bytes:
    head = struct.pack('>HBB', 0, 8, array.ndim) + struct.pack(f'>{array.ndim}I', *array.shape)
    return head + array.astype(np.uint8).tobytes()


def deb(files: dict[str, bytes]) -> bytes:
    """A Debian package: an ar archive whose members start at even offsets."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:xz') as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f'./usr/share/datasets/fashion-mnist/{name}')
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    out = b'!<arch>\n'
    for name, content in (('debian-binary', b'2.0\n'), ('control.tar.xz', b'odd'), ('data.tar.xz', buffer.getvalue())):
        header = f'{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n'
        out += header.encode() + content + b'\n' * (len(content) % 2)
    return out


@pytest.fixture(scope='module')
def files() -> dict[str, bytes]:
    """The four files, of 400 photographs to train on and 100 to validate on."""
    result = {}
    for prefix, count in (('train', 400), ('t10k', 100)):
        images, labels = garments(count, count)
        result[f'{prefix}-images-idx3-ubyte'] = idx(images)
        result[f'{prefix}-labels-idx1-ubyte'] = idx(labels)
    return result


@pytest.fixture
def tool(files, monkeypatch):
    spec = importlib.util.spec_from_file_location('make_fashion', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'FILES', {k: hashlib.sha256(v).hexdigest() for k, v in files.items()})
    monkeypatch.setattr(module, 'RANGES', dict(train=(0, 400), val=(400, 500)))
    return module


@pytest.fixture
def package(files, tmp_path):
    path = tmp_path / 'dataset-fashion-mnist_1_all.deb'
    path.write_bytes(deb({f'{k}.gz': gzip.compress(v) for k, v in files.items()}))
    return path


def make(tool, out: Path, source: Path | None, *options: str) -> int:
    few = ['--train-scenes', '5', '--val-scenes', '3', '--train-images', '100', '--val-images', '50']
    return tool.main(['--out', str(out), *few, *([] if source is None else ['--source', str(source)]), *options])


def test_what_is_made(tool, files, package, tmp_path):
    out = tmp_path / 'fashion'
    assert make(tool, out, package) == 0
    images = np.concatenate([garments(400, 400)[0], garments(100, 100)[0]])
    manifest = json.loads((out / 'fashion.json').read_text())
    assert manifest['counts']['cls'] == {'train': 100, 'val': 50}
    for split, first, last, each in (('train', 0, 400, 10), ('val', 400, 500, 5)):
        folders = sorted(p.name for p in (out / 'cls' / split).iterdir())
        assert folders == sorted(tool.CLASSES)
        for path in (out / 'cls' / split).rglob('*.png'):
            index = int(path.stem)
            assert first <= index < last
            assert path.parent.name == tool.CLASSES[index % 10]
            np.testing.assert_array_equal(np.asarray(Image.open(path)), images[index])
        assert {len(list((out / 'cls' / split / name).iterdir())) for name in folders} == {each}
        coco = COCO(str(out / 'det' / 'annotations' / f'instances_{split}.json'))
        assert [coco.cats[n]['name'] for n in range(1, 11)] == list(tool.CLASSES)
        own = {int(path.stem) for path in (out / 'cls' / split).rglob('*.png')}
        assert coco.anns
        for ann in coco.anns.values():
            assert ann['photograph'] in own
            assert ann['category_id'] == ann['photograph'] % 10 + 1
    assert 'Zalando' in (out / 'LICENSE').read_text()
    assert '1708.07747' in (out / 'ATTRIBUTION.txt').read_text()


def test_folder_and_package_give_the_same(tool, files, package, tmp_path):
    for compress in (False, True):
        folder = tmp_path / f'files-{compress}'
        folder.mkdir()
        for name, content in files.items():
            path = folder / (f'{name}.gz' if compress else name)
            path.write_bytes(gzip.compress(content) if compress else content)
        assert make(tool, tmp_path / f'from-{compress}', folder) == 0
    assert make(tool, tmp_path / 'from-package', package) == 0
    hashes = {
        json.loads((tmp_path / name / 'fashion.json').read_text())['sha256']
        for name in ('from-False', 'from-True', 'from-package')
    }
    assert len(hashes) == 1


def test_cut_out(tool):
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 8:18] = 200
    image[10:14, 10:14] = 0  # a dark print is part of the garment
    image[0, 0] = image[26, 25] = 90  # specks are not
    image[2, 2:9] = 12  # nor is what is nearly black
    alpha, shading = tool.cut_out(image, 40)
    assert alpha.shape == shading.shape == (40, 20)
    assert alpha.min() > 0.3 and alpha[20, 10] == 1
    assert shading[30, 10] == pytest.approx(0.35 + 0.65 * 200 / 255, abs=0.01)
    assert shading[16, 8] == pytest.approx(0.35, abs=0.03)


def test_a_photograph_that_is_all_dark(tool):
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 8:18] = 3
    assert tool.cut_out(image, 40)[0].shape == (40, 20)


def test_boxes(tool):
    composer = tool.composer(garments(100, 1)[0])
    counts = set()
    for seed in range(40):
        scene, found = composer.scene(np.random.default_rng(seed), 'train', np.arange(100), 128)
        assert (scene.shape, scene.dtype) == ((128, 128, 3), np.uint8)
        counts.add(len(found))
        for _, (x, y, width, height) in found:
            assert min(x, y) >= 0 < min(width, height)
            assert max(x + width, y + height) <= 128
            assert max(width, height) <= 72
        for (_, a), (_, b) in combinations(found, 2):
            sides = [min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
            shared = max(sides[0], 0) * max(sides[1], 0)
            assert shared <= 0.25 * (a[2] * a[3] + b[2] * b[3] - shared)
    assert {2, 3, 4} <= counts <= {1, 2, 3, 4, 5}


def test_bad_sources(tool, files, package, tmp_path, capsys):
    def refused(source: Path) -> str:
        assert make(tool, tmp_path / 'fashion', source) == 2
        assert not (tmp_path / 'fashion').exists()
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert f'--source: {tmp_path / "none"} does not exist' in refused(tmp_path / 'none')
    folder = tmp_path / 'files'
    folder.mkdir()
    assert 'has no train-images-idx3-ubyte' in refused(folder)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    changed = files['t10k-labels-idx1-ubyte'][:-1] + b'\7'
    (folder / 't10k-labels-idx1-ubyte').write_bytes(changed)
    line = refused(folder)
    assert 't10k-labels-idx1-ubyte' in line and hashlib.sha256(changed).hexdigest() in line
    (folder / 't10k-labels-idx1-ubyte').write_bytes(gzip.compress(files['t10k-labels-idx1-ubyte'])[:-9])
    assert 't10k-labels-idx1-ubyte' in refused(folder)
    other = tmp_path / 'other.deb'
    other.write_bytes(b'PK\3\4')
    assert f'{other} is no Debian package' in refused(other)
    for size in (100, 200, 1000, len(package.read_bytes()) // 2):
        other.write_bytes(package.read_bytes()[:size])
        assert f'{other} cannot be read' in refused(other)


def test_download_is_asked_of_apt(tool, package, tmp_path, monkeypatch, capsys):
    """Once, beside --out; where there is no apt-get, one line says what to do."""
    calls, beside = [], tmp_path / 'data'
    content = package.read_bytes()

    def apt(command: list[str], cwd: Path) -> None:
        calls.append((command, cwd))
        (cwd / package.name).write_bytes(content)

    monkeypatch.setattr(tool.shutil, 'which', lambda name: f'/usr/bin/{name}')
    monkeypatch.setattr(tool.subprocess, 'run', apt)
    assert make(tool, beside / 'fashion', None) == 0
    assert make(tool, beside / 'fashion2', None) == 0
    assert calls == [(['apt-get', 'download', 'dataset-fashion-mnist'], beside)]
    monkeypatch.setattr(tool.shutil, 'which', lambda name: None)
    capsys.readouterr()
    assert make(tool, tmp_path / 'elsewhere' / 'fashion', None) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert '--source' in line and tool.UPSTREAM in line
    monkeypatch.setattr(tool.shutil, 'which', lambda name: name)
    monkeypatch.setattr(tool.subprocess, 'run', lambda command, cwd: subprocess.CompletedProcess(command, 100))
    assert make(tool, tmp_path / 'elsewhere' / 'fashion', None) == 2


def test_second_call_makes_nothing(tool, package, tmp_path, capsys):
    assert make(tool, tmp_path / 'fashion', package) == 0
    assert make(tool, tmp_path / 'fashion', tmp_path / 'not read') == 0
    assert 'exists already' in capsys.readouterr().out
    assert make(tool, tmp_path / 'fashion', package, '--size', '96') == 2
    assert '--overwrite' in capsys.readouterr().err


@pytest.mark.long
def test_the_real_package(tmp_path):
    source = os.environ.get('MMCCD_FASHION_PACKAGE')
    if not source:
        pytest.skip('MMCCD_FASHION_PACKAGE names no package, and tests download nothing')
    out = tmp_path / 'fashion'
    few = ['--train-images', '100', '--val-images', '100', '--train-scenes', '2', '--val-scenes', '2']
    subprocess.run([sys.executable, str(SCRIPT), '--out', str(out), '--source', source, *few], check=True)
    assert json.loads((out / 'fashion.json').read_text())['counts']['cls'] == {'train': 100, 'val': 100}
