"""Checkpoints and configs as mmccd 0.1 wrote them: loaded, tested and resumed, with the numbers that it had.

``tests/data/v0.1/ccd_tiny`` is a classifier of two stages after one epoch on 80 digits: checkpoint, checksum, dumped
config, and what version 0.1 made of them. Beside it are dumps of two of its configs.
"""

from __future__ import annotations

import builtins
import gc
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.registry import HOOKS, DefaultScope
from mmengine.utils import get_object_from_string

import mmccd
from mmccd.configs import load_config
from mmccd.engine import SkippedImagesHook
from mmccd.engine.strategies import wrap_residual_blocks
from mmccd.models.build import build_model

TWO_EPOCHS = ['--cfg-options', 'train_cfg.max_epochs=2', 'default_hooks.logger.interval=1']


@pytest.fixture(autouse=True)
def scope():
    """The current default scope goes with the test."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture
def earlier(root) -> Path:
    return root / 'tests' / 'data' / 'v0.1'


@pytest.fixture
def expected(earlier) -> dict:
    return json.loads((earlier / 'ccd_tiny' / 'expected.json').read_text())


@pytest.fixture
def trained(earlier, workplace) -> Path:
    """Work folder of the training, below the current folder, where data/digits are."""
    for name in ('epoch_1.pth', 'epoch_1.pth.sha256', 'last_validation.json', 'ccd_tiny.py'):
        (workplace / 'work').mkdir(exist_ok=True)
        shutil.copy(earlier / 'ccd_tiny' / name, workplace / 'work')
    return workplace / 'work'


def test_outputs(trained, expected):
    model = mmccd.init_model(trained / 'ccd_tiny.py', trained / 'epoch_1.pth', 'cpu')
    x = torch.arange(3 * 32 * 32, dtype=torch.float32).reshape(1, 3, 32, 32).sin()
    with torch.no_grad():
        logits = model(x, mode='tensor')
    torch.testing.assert_close(logits, torch.tensor([expected['logits']]), rtol=1e-5, atol=1e-6)


def test_metrics(call_tool, trained, expected):
    args = [trained / 'ccd_tiny.py', trained / 'epoch_1.pth', '--work-dir', 'tested']
    assert call_tool('test.py', *args, '--out', 'metrics.json', '--out-item', 'metrics')[0] == 0
    assert json.loads(Path('metrics.json').read_text())['accuracy/top1'] == expected['epoch_1']['top1']


def test_its_checksum_is_compared(refused, trained):
    content = bytearray((trained / 'epoch_1.pth').read_bytes())
    content[len(content) // 2] ^= 1
    (trained / 'epoch_1.pth').write_bytes(content)
    message = refused('test.py', trained / 'ccd_tiny.py', trained / 'epoch_1.pth', '--work-dir', 'tested')
    assert 'it differs from epoch_1.pth.sha256' in message


class Opened:
    """Counts how often each file is opened and given to ``torch.load``, by their paths."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: Counter = Counter()
        self.loaded: Counter = Counter()
        monkeypatch.setattr(builtins, 'open', self._counting(builtins.open, self.opened, follow=False))
        monkeypatch.setattr(os, 'open', self._counting(os.open, self.opened, follow=False))
        monkeypatch.setattr(torch, 'load', self._counting(torch.load, self.loaded, follow=True))

    @staticmethod
    def _counting(function, counts, follow):
        def call(file, *args, **kwargs):
            if isinstance(file, (str, os.PathLike)):
                # An open file that is mapped has a name of its own, which leads to the path.
                counts[os.path.realpath(file) if follow else os.path.abspath(file)] += 1
            elif hasattr(file, 'name'):
                counts[os.path.abspath(file.name)] += 1
            return function(file, *args, **kwargs)

        return call


@pytest.mark.parametrize('which', ['auto', 'path'])
def test_resuming_reads_the_file_once(call_tool, trained, expected, monkeypatch, which, capsys):
    """Losses and weights are those of version 0.1; an older checkpoint beside it is not touched, nor a second read."""
    if which == 'auto':  # an older one, and one of another name: it says how old it is, and no more is read of it
        shutil.copy(trained / 'epoch_1.pth', trained / 'epoch_0.pth')
        content = torch.load(trained / 'epoch_1.pth', weights_only=False)
        content['meta']['iter'] = 3
        torch.save(content, trained / 'interrupted.pth')
    resume = ['--resume'] if which == 'auto' else ['--resume', 'work/epoch_1.pth']
    with monkeypatch.context() as m:
        counts = Opened(m)
        code, _ = call_tool('train.py', trained / 'ccd_tiny.py', '--work-dir', 'work', *resume, *TWO_EPOCHS)
    assert code == 0
    newest = os.path.realpath(trained / 'epoch_1.pth')
    assert counts.opened[newest] == 1
    assert counts.loaded[newest] == 1
    others = {os.path.basename(p): n for p, n in (counts.opened + counts.loaded).items() if p.endswith('.pth')}
    assert 'epoch_0.pth' not in others
    if which == 'auto':
        assert counts.opened[os.path.realpath(trained / 'interrupted.pth')] <= 1

    gc.collect()
    if os.path.exists('/proc/self/maps'):  # where it would keep its place on the disk after it is removed
        assert 'epoch_1.pth' not in Path('/proc/self/maps').read_text()
    [run] = [p for p in trained.iterdir() if (p / 'vis_data').is_dir()]
    rows = [json.loads(line) for line in (run / 'vis_data' / 'scalars.json').read_text().splitlines()]
    losses = [row['loss'] for row in rows if 'loss' in row]
    assert losses == pytest.approx(expected['epoch_2']['losses'], rel=1e-5)
    assert [row['accuracy/top1'] for row in rows if 'accuracy/top1' in row] == [expected['epoch_2']['top1']]
    bias = torch.load(trained / 'epoch_2.pth', weights_only=False)['state_dict']['head.fc.bias']
    torch.testing.assert_close(bias, torch.tensor(expected['epoch_2']['bias']), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize('name', ['retinanet_ccd_r18_fpn_digits', 'retinanet_ccd_r50_fpn_fsdp-1x_coco'])
def test_dumped_configs(earlier, name):
    cfg = load_config(str(earlier / f'{name}.py'))
    build_model(cfg)
    hooks = [HOOKS.build(dict(h)) for h in cfg.default_hooks.values() if h['type'].startswith('mmccd.')]
    assert any(isinstance(hook, SkippedImagesHook) for hook in hooks)


def test_code_that_has_moved(earlier):
    """A dump names the function that divides a sharded model by where it was."""
    path = earlier / 'retinanet_ccd_r50_fpn_fsdp-1x_coco.py'
    assert "auto_wrap_policy='mmccd.utils.fsdp.wrap_residual_blocks'" in path.read_text()
    policy = load_config(str(path)).strategy.model_wrapper.auto_wrap_policy
    assert get_object_from_string(policy) is wrap_residual_blocks
