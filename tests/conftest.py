"""Seeds and paths that every test shares. mmccd comes first: it has to be there before mmdet.models."""

import importlib.util
import json
import os
import signal
from collections import Counter
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.visualization import Visualizer
from PIL import Image

import mmccd  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Ctrl-C reaches what the tests start, also where the tests run in the background of a script."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests first: started last, one would keep a worker busy while the others are idle."""
    slow = Counter(item.path for item in items if item.get_closest_marker('slow') or item.get_closest_marker('long'))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def environment():
    """What a test's tools set in the environment goes with it."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def visualizers():
    """mmengine keeps them by name for a whole process, with the folder of the run that made them."""
    yield
    kinds = [Visualizer]
    while kinds:
        kind = kinds.pop()
        kind._instance_dict.clear()
        kinds += kind.__subclasses__()


@pytest.fixture(scope='session')
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope='session')
def golden() -> Path:
    """Folder of the original implementation's numbers."""
    return ROOT / 'tests' / 'data' / 'golden'


def _module_of_tests(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tests' / 'data' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def made_up() -> ModuleType:
    """tests/data/made_up_runs.py: work folders for reports."""
    return _module_of_tests('made_up_runs')


@pytest.fixture(scope='session')
def label_folders() -> ModuleType:
    """tests/data/label_folders.py: datasets as labelling tools write them."""
    return _module_of_tests('label_folders')


@pytest.fixture
def toy_coco(tmp_path) -> Path:
    """A COCO set of 6 + 3 images of noise (JPEG), 40 x 30 pixels, a cat and a dog in each."""
    rng = np.random.default_rng(0)
    for split, n in (('train', 6), ('val', 3)):
        (tmp_path / split).mkdir()
        content = dict(
            images=[dict(id=i, file_name=f'{i}.jpg', width=40, height=30) for i in range(1, n + 1)],
            annotations=[
                dict(id=2 * i + k, image_id=i, category_id=10 * (k + 1), bbox=[4 * k, 3, 20, 10], area=200, iscrowd=0)
                for i in range(1, n + 1)
                for k in (0, 1)
            ],
            categories=[dict(id=10, name='cat'), dict(id=20, name='dog')],
        )
        for image in content['images']:
            Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(tmp_path / split / image['file_name'])
        (tmp_path / f'{split}.json').write_text(json.dumps(content))
    return tmp_path
