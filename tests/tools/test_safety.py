"""A checkpoint that holds code, given to everything that reads one: refused, and the code not run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader

from mmccd.checkpoints.read import forbid_unpickling, read_checkpoint

DETECTOR, CLASSIFIER = 'configs/retinanet_ccd_r18_fpn_digits.py', 'configs/ccd_r18_digits.py'


class Trap:
    """Unpickled, it makes a file called ``sprung``."""

    def __reduce__(self):
        return os.system, ('touch sprung',)


@pytest.fixture
def trap(workplace) -> str:
    torch.save(dict(state_dict={'conv1.weight': torch.zeros(1)}, meta=Trap()), 'trap.pth')
    return 'trap.pth'


def test_the_trap_is_one(trap):
    torch.load(trap, weights_only=False)
    assert Path('sprung').exists()


@pytest.mark.parametrize(
    ('tool', 'args'),
    [
        ('train.py', [CLASSIFIER, '--resume', 'trap.pth']),
        ('train.py', [DETECTOR, '--cfg-options', 'model.backbone.init_cfg.checkpoint=trap.pth']),
        ('test.py', [CLASSIFIER, 'trap.pth']),
        ('checks/check_pretrained.py', [DETECTOR, 'trap.pth']),
        ('model_converters/publish_model.py', ['trap.pth', 'out.pth']),
        ('model_converters/original_to_mmccd.py', ['trap.pth', 'out.pth']),
    ],
)
def test_tools(call_tool, root, trap, tool, args):
    code, err = call_tool(tool, *[root / a if a.startswith('configs/') else a for a in args])
    assert code == 2
    assert 'is not a checkpoint of tensors and plain data, and is not loaded' in err
    assert 'Traceback' not in err
    assert not Path('sprung').exists()
    assert not Path('out.pth').exists()


@pytest.mark.parametrize(
    'read',
    [
        lambda path: CheckpointLoader.load_checkpoint(path, map_location='cpu'),  # resuming by itself, URLs
        lambda path: torch.load(path, weights_only=False),
        lambda path: torch.hub.load_state_dict_from_url(
            f'file://{Path(path).absolute()}', model_dir='.', file_name='x'
        ),
        read_checkpoint,
    ],
)
def test_everything_else_that_a_tool_loads(trap, monkeypatch, read):
    """mmengine's maintained line tries again without ``weights_only``: not in our tools."""
    monkeypatch.setattr(os, 'environ', dict(os.environ, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1'))
    monkeypatch.setattr(os, 'getenv', lambda key, default=None: os.environ.get(key, default))
    forbid_unpickling()
    with pytest.raises(Exception, match=r'(?i)weights.only|plain data'):
        read(trap)
    assert not Path('sprung').exists()


def test_published_files_load_safely(call_tool, trap):
    torch.save(dict(state_dict={'w': torch.ones(2)}, meta=dict(epoch=1), optimizer=dict(lr=1), message_hub={}), 'x.pth')
    assert call_tool('model_converters/publish_model.py', 'x.pth', 'y.pth', '--add-hash')[0] == 0
    [path] = Path().glob('y-*.pth')
    assert set(torch.load(path, weights_only=True)) == {'state_dict', 'meta'}
