"""Tests of tools/dataset_converters/make_solar.py on a made-up wheel; the real one where MMCCD_ELPV_WHEEL names it."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[3] / 'tools' / 'dataset_converters' / 'make_solar.py'
PROBABILITIES = ('0.0', '0.3333333333333333', '0.6666666666666666', '1.0')


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location('make_solar', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def content(tool, monkeypatch) -> dict[str, bytes]:
    """Files of a wheel of 120 cells, mono and poly in turns, and their hashes in the tool."""
    rows, files = [], {}
    for i in range(120):
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(buffer, 'png')
        name = f'images/cell{i + 1:04d}.png'
        files[name] = buffer.getvalue()
        rows.append(f'{name}  {PROBABILITIES[i // 2 % 4]}  {("mono", "poly")[i % 2]}\n')
    labels = ''.join(rows).encode()
    total = ''.join(f'{hashlib.sha256(files[n]).hexdigest()}  {Path(n).name}\n' for n in sorted(files))
    monkeypatch.setattr(tool, 'LABELS_SHA256', hashlib.sha256(labels).hexdigest())
    monkeypatch.setattr(tool, 'IMAGES_SHA256', hashlib.sha256(total.encode()).hexdigest())
    return {
        'elpv_dataset/data/labels.csv': labels,
        'elpv_dataset-1.0.0.post1.dist-info/licenses/LICENSE.md': b'CC BY-NC-SA',
        **{f'elpv_dataset/data/{n}': c for n, c in files.items()},
    }


def pack(content: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, 'w') as wheel:
        for name, data in content.items():
            wheel.writestr(name, data)
    return path


def test_what_is_made(tool, content, tmp_path):
    wheel = pack(content, tmp_path / 'wheel.whl')
    out = tmp_path / 'solar'
    assert tool.main(['--out', str(out), '--wheel', str(wheel)]) == 0
    found = {}
    for path in (out / 'cls').rglob('*.png'):
        split, label, name = path.relative_to(out / 'cls').parts
        kind, number = name.removesuffix('.png').split('-')
        i = int(number) - 1
        assert path.read_bytes() == content[f'elpv_dataset/data/images/cell{i + 1:04d}.png']
        assert kind == ('mono', 'poly')[i % 2]
        assert label == ('functional', 'functional', 'defective', 'defective')[i // 2 % 4]
        found[i] = split
    # 60 cells of each type: the runs 0 to 23, 24 to 47 and 48 to 59 are to train on; a fourth run is not reached.
    assert len(found) == 120 and set(found.values()) == {'train'}
    manifest = json.loads((out / 'solar.json').read_text())
    assert manifest['counts'] == {
        'train': {'functional': 60, 'defective': 60},
        'val': {'functional': 0, 'defective': 0},
    }
    assert (out / 'LICENSE.md').read_text() == 'CC BY-NC-SA'
    assert 'Deitsch' in (out / 'ATTRIBUTION.txt').read_text()
    assert tool.main(['--out', str(out), '--wheel', str(tmp_path / 'not read')]) == 0


def test_split_by_type_in_runs(tool):
    cells = [tool.Cell(f'{i}', 0.0, ('mono', 'poly', 'poly')[i % 3]) for i in range(600)]
    splits = tool.split_cells(cells)
    for kind in ('mono', 'poly'):
        own = [cell for cell in cells if cell.type == kind]
        val = {own.index(cell) for cell in splits['val'] if cell.type == kind}
        assert val == {i for i in range(len(own)) if 72 <= i % 96 < 96}
    assert sorted(splits['train'] + splits['val']) == sorted(cells)


def test_bad_wheels(tool, content, tmp_path, capsys):
    def refused(files: dict[str, bytes] | None) -> str:
        path = tmp_path / 'wheel.whl'
        if files is not None:
            pack(files, path)
        assert tool.main(['--out', str(tmp_path / 'solar'), '--wheel', str(path)]) == 2
        assert not (tmp_path / 'solar').exists()
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert str(path) in line
        return line

    assert '--wheel' in refused(None)
    labels = 'elpv_dataset/data/labels.csv'
    image = 'elpv_dataset/data/images/cell0007.png'
    assert 'labels.csv' in refused({**content, labels: content[labels] + b'\n'})
    assert 'images' in refused({**content, image: b''})
    assert 'cell0007.png' in refused({k: v for k, v in content.items() if k != image})
    assert 'LICENSE.md' in refused({k: v for k, v in content.items() if 'LICENSE' not in k})
    (tmp_path / 'wheel.whl').write_bytes(b'no zip')
    assert 'cannot be read as a wheel' in refused(None)


@pytest.mark.long
def test_the_real_wheel(tool, tmp_path):
    wheel = os.environ.get('MMCCD_ELPV_WHEEL')
    if not wheel:
        pytest.skip('MMCCD_ELPV_WHEEL names no wheel, and tests download nothing')
    assert tool.main(['--out', str(tmp_path / 'solar'), '--wheel', wheel]) == 0
    counts = json.loads((tmp_path / 'solar' / 'solar.json').read_text())['counts']
    assert counts == {
        'train': {'functional': 1349, 'defective': 627},
        'val': {'functional': 454, 'defective': 194},
    }
