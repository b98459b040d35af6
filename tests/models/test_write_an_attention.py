"""What docs/write_an_attention.md tells a newcomer to do, done: its files and rows in a copy, and the tests it names.

An attention and a backend are added without an edit of a test, and the tests cover them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

PAGE = Path('docs', 'write_an_attention.md')
FILE = re.compile(r'^`([\w/.]+\.py)`:\n\n```python\n(.*?)^```', re.MULTILINE | re.DOTALL)
CONFIG = re.compile(r'^```python\n(custom_imports.*?)^```', re.MULTILINE | re.DOTALL)
COPIED = ('mmccd', 'configs', 'tests', 'tools', 'docs')


def one(pattern: str, text: str) -> str:
    """The line of the page that matches."""
    (found,) = re.findall(pattern, text, re.MULTILINE)
    return found


@pytest.fixture(scope='module')
def page(root) -> str:
    return (root / PAGE).read_text()


@pytest.fixture(scope='module')
def copy(root, page, tmp_path_factory) -> Path:
    """A copy of the project in which a newcomer has done what the page says."""
    folder = tmp_path_factory.mktemp('newcomer')
    for name in COPIED:
        shutil.copytree(
            root / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__', 'images', 'runs')
        )
    for path in root.glob('*.*'):
        if path.suffix in ('.toml', '.yml', '.md'):
            shutil.copy(path, folder)
    files = dict(FILE.findall(page))
    assert list(files) == [
        'mmccd/models/layers/lct.py',
        'tests/models/layers/test_lct.py',
        'mmccd/ops/dense_backend.py',
    ]
    for name, content in files.items():
        assert not (folder / name).exists()
        (folder / name).write_text(content)
    for name, table, row in (
        ('mmccd/ops/backends.py', 'BACKENDS = {\n', one(r"^    'dense': Row\(.*$", page)),
        ('mmccd/cli/config_rows.py', 'ATTENTIONS = (\n', one(r"^    Attention\('lct'.*$", page)),
    ):
        text = (folder / name).read_text()
        assert text.count(table) == 1
        (folder / name).write_text(text.replace(table, f'{table}{row}\n'))
    return folder


def passed(copy: Path, *arguments: str) -> tuple[int, str]:
    """(number of tests that passed, output) of pytest in the copy."""
    environment = {**os.environ, 'PYTHONPATH': str(copy), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-m', 'pytest', '-v', '-p', 'no:cacheprovider', '--rootdir', str(copy), *arguments]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return int(re.search(r'(\d+) passed', done.stdout).group(1)), done.stdout


@pytest.mark.long
@pytest.mark.slow
def test_the_attention_is_covered(copy, page):
    arguments = one(r'^python -m pytest -q (tests/models .*lct.*)$', page).replace('"', '').split(' -k ')
    count, listed = passed(copy, *arguments[0].split(), '-k', arguments[1])  # with two processes
    assert count > 45
    for walk in (
        'test_hand_worked',
        'test_any_size_and_finite_gradients',
        'test_constructors_are_alike',
        'test_identity_init',
        'test_gates_are_what_the_layer_multiplies_by',
        'test_large_features',
        'test_every_class_resolves_from_every_scope',
        'test_all_that_is_trained_gets_a_gradient',
        'test_gradients[classifier LCT]',
    ):
        assert walk in listed, walk


@pytest.mark.long
@pytest.mark.slow
def test_the_backend_is_covered(copy, page):
    arguments = one(r'^python -m pytest -q (tests/ops/.*dense)$', page).split()
    count, listed = passed(copy, *arguments)
    assert count > 120
    assert 'test_against_the_definition[dense-' in listed
    assert 'test_opcheck[dense-affine-residual]' in listed


@pytest.mark.long
@pytest.mark.slow
def test_make_configs_writes_those_of_the_row(copy):
    environment = {**os.environ, 'PYTHONPATH': str(copy)}
    command = [sys.executable, '-m', 'mmccd.cli.config_table']
    subprocess.run(command, cwd=copy, env=environment, check=True, timeout=300)
    cfg = Config.fromfile(copy / 'configs' / 'lct_r50_8xb32_in1k.py')
    assert cfg.model.backbone.attention == dict(type='mmccd.LCT')
    count, _ = passed(copy, 'tests/test_configs.py', 'tests/cli/test_config_table.py', '-k', 'lct or table')
    assert count >= 3


def snippet(page: str, number: int, tmp_path: Path) -> Config:
    """A config of the page on top of MMDetection's own RetinaNet."""
    text = CONFIG.findall(page)[number]
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py']\n{text}")
    return Config.fromfile(path)


def test_stock_snippet_and_what_stays_frozen(page, tmp_path):
    cfg = snippet(page, 0, tmp_path)
    assert cfg.model.backbone.type == 'ResNet'
    with torch.device('meta'):
        net = MODELS.build(dict(cfg.model.backbone, type='mmdet.ResNet', init_cfg=None))
    gates = {n: p.requires_grad for n, p in net.named_parameters() if '.ccd.' in n}
    assert len(gates) == 32
    assert {n for n, trained in gates.items() if not trained} == {n for n in gates if n.startswith('layer1.')}


def test_snippet_that_trains_frozen_stages(page, tmp_path):
    cfg = snippet(page, 1, tmp_path)
    assert cfg.model.backbone.frozen_stages == 1
    with torch.device('meta'):
        net = MODELS.build(cfg.model.backbone)
    gates = {n: p.requires_grad for n, p in net.named_parameters() if '.ccd.' in n}
    assert len(gates) == 32
    assert all(gates.values())
    assert not net.layer1[0].conv1.weight.requires_grad
    assert net.init_cfg.checkpoint == 'torchvision://resnet50'
