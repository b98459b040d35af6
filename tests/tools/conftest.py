"""What the tests of the tools share: two small datasets, and calls of a tool as a user makes them."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from PIL import Image

ROOT = Path(__file__).parents[2]

# Images of scikit-image's wheel at 160 px on the longer side, with boxes (x, y, w, h) drawn by hand.
# The coins have no class in COCO: an image without boxes. The chairs behind the motorcycle are a crowd.
IMAGES = {
    'train2017': {
        'chelsea': [('cat', (0, 0, 140, 106), 0)],
        'astronaut': [('person', (5, 5, 142, 155), 0)],
        'coffee': [('cup', (45, 4, 65, 63), 0), ('spoon', (83, 63, 25, 25), 0), ('dining table', (0, 0, 160, 107), 0)],
        'motorcycle_left': [('motorcycle', (20, 25, 128, 74), 0), ('chair', (5, 20, 33, 47), 1)],
        'coins': [],
    },
    'val2017': {
        'camera': [('person', (0, 20, 100, 140), 0)],
        'horse': [('horse', (7, 4, 148, 121), 0)],
        'motorcycle_right': [('motorcycle', (12, 25, 128, 74), 0), ('chair', (0, 20, 30, 47), 1)],
    },
}
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # 80 of 90 are in use


@pytest.fixture(scope='session')
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope='session')
def load_tool() -> Callable[[str], ModuleType]:
    """Import a tool by its path below tools/."""

    def load(name: str) -> ModuleType:
        path = ROOT / 'tools' / name
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope='session')
def digits(load_tool, tmp_path_factory) -> Path:
    """data/digits in small: 80 + 20 digits, 8 + 4 scenes."""
    tool = load_tool('dataset_converters/make_digits.py')
    images, labels = tool.load_digits()
    tool.load_digits = lambda: (images[::50], labels[::50])
    out = tmp_path_factory.mktemp('data') / 'digits'
    assert tool.main(['--out', str(out), '--train-scenes', '8', '--val-scenes', '4']) == 0
    return out


@pytest.fixture(scope='session')
def coco(tmp_path_factory) -> Path:
    """data/coco in small: real images, COCO's layout, category ids and names."""
    from mmdet.datasets import CocoDataset

    names = dict(zip(CocoDataset.METAINFO['classes'], COCO_IDS))
    source = Path(importlib.util.find_spec('skimage').origin).parent / 'data'
    out = tmp_path_factory.mktemp('data') / 'coco'
    (out / 'annotations').mkdir(parents=True)
    for split, images in IMAGES.items():
        (out / split).mkdir()
        content = dict(categories=[dict(id=i, name=name) for name, i in names.items()], images=[], annotations=[])
        for image_id, (name, objects) in enumerate(images.items(), 1):
            image = Image.open(source / f'{name}.png')
            if image.mode == 'RGBA':
                image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
            image = image.convert('RGB')
            image.thumbnail((160, 160))
            file_name = f'{image_id:012d}.jpg'
            image.save(out / split / file_name)
            content['images'].append(dict(id=image_id, file_name=file_name, width=image.width, height=image.height))
            for category, box, crowd in objects:
                content['annotations'].append(
                    dict(
                        id=len(content['annotations']) + 1,
                        image_id=image_id,
                        category_id=names[category],
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=crowd,
                    )
                )
        (out / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))
    return out


@pytest.fixture
def workplace(tmp_path, monkeypatch, digits) -> Path:
    """A user's folder, not the repository's, with data/digits in it; the current folder."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'digits').symlink_to(digits)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def class_folders(workplace) -> dict[str, str]:
    """``val``, class folders with images of the same name; by their paths, how the drawings of them are called."""
    drawings = {
        'val/blue/0.png': 'blue/0',
        'val/blue/deep/1.bmp': 'blue/deep/1.bmp',
        'val/blue/deep/1.png': 'blue/deep/1.png',
        'val/red box/0.png': 'red box/0',
    }
    for path in map(Path, drawings):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (28, 28), 'red').save(path)
    return drawings


@pytest.fixture(scope='session')
def cpu_env() -> dict[str, str]:
    """Environment of the subprocesses: the CPU on every machine, one thread a process."""
    return {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable}


@pytest.fixture(scope='session')
def free_port() -> Callable[[], str]:
    """A port of this machine on which nothing listens."""

    def port() -> str:
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            return str(s.getsockname()[1])

    return port


@pytest.fixture(scope='session')
def run_tool(cpu_env) -> Callable[..., subprocess.CompletedProcess]:
    """Run tools/<name> from the folder ``cwd``; ``expect`` is the exit code that it has to end with."""

    def run(name: str, *args: object, cwd: Path, expect: int | None = 0, **env: str) -> subprocess.CompletedProcess:
        command = ['bash'] if name.endswith('.sh') else [sys.executable]
        done = subprocess.run(
            [*command, ROOT / 'tools' / name, *map(str, args)],
            cwd=cwd,
            env={**cpu_env, **env},
            capture_output=True,
            text=True,
            timeout=600,
        )
        if expect is not None:
            assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-5000:]
        return done

    return run


@pytest.fixture
def call_tool(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Run tools/<name> in this process, sparing the imports; returns the exit code and what stands on stderr."""

    def call(name: str, *args: object) -> tuple[int, str]:
        path = str(ROOT / 'tools' / name)
        monkeypatch.setattr(sys, 'argv', [path, *map(str, args)])
        monkeypatch.delenv('LOCAL_RANK', raising=False)
        capsys.readouterr()
        for cls in (MMLogger, DefaultScope):  # as in a process of its own; loggers would write to an earlier stderr
            cls._instance_dict.clear()
        code = 0
        try:
            with mock.patch.dict(os.environ):  # what the tool sets there goes with it
                runpy.run_path(path, run_name='__main__')
        except SystemExit as e:
            code = e.code
        captured = capsys.readouterr()
        print(captured.out, end='')  # back to where a test can read it
        return code, captured.err

    return call


def _tree() -> list[str]:
    """All below the current folder, but for hidden folders: the checkout's environment has a hundred thousand files."""
    found = []
    for folder, folders, files in os.walk('.'):
        folders[:] = [name for name in folders if not name.startswith('.')]
        found += [os.path.join(folder, name) for name in (*folders, *files)]
    return sorted(found)


@pytest.fixture
def refused(call_tool) -> Callable[..., str]:
    """Call a tool; it has to refuse with one message, which is returned, and to leave the current folder as it is."""

    def check(name: str, *args: object) -> str:
        before = _tree()
        code, stderr = call_tool(name, *args)
        assert code == 2, stderr
        assert stderr.startswith('error: ')
        assert stderr.count('error:') == 1
        assert 'Traceback' not in stderr
        assert _tree() == before
        return stderr[len('error: ') :].rstrip()

    return check


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Iterator[Path]:
    """A folder for all of a file's tests; its checkpoints are removed at the end, they are large."""
    path = tmp_path_factory.mktemp('folder')
    yield path
    for checkpoint in path.rglob('*.pth'):
        checkpoint.unlink()
