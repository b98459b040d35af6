"""train.py with weights of another training: what is loaded, what keeps its initial values, what cannot be resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mmccd
from mmccd.checkpoints.read import read_checkpoint
from mmccd.models.build import build_model

CONFIG = 'ccd_r18_digits.py'
SHORT = [
    'train_dataloader.num_workers=0',
    'train_dataloader.batch_size=8',
    'train_dataloader.dataset.indices=16',
    'val_dataloader.num_workers=0',
    'train_cfg.max_epochs=1',
]


@pytest.mark.long
def test_fine_tuning_and_resuming(call_tool, workplace, root):
    """Weights of a model with other classes, in Lightning's form and in safetensors: all but the head are loaded."""
    save_file = pytest.importorskip('safetensors.torch').save_file
    cfg = mmccd.get_config('ccd_r18_digits')
    cfg.model.head.num_classes = 7
    state = {k: v.contiguous() for k, v in build_model(cfg, 'cpu').state_dict().items()}
    torch.save({'state_dict': {f'model.{k}': v for k, v in state.items()}}, 'lightning.ckpt')
    save_file(state, 'seven.safetensors')
    config = root / 'configs' / CONFIG
    for source in ('lightning.ckpt', 'seven.safetensors'):
        options = ['--cfg-options', *SHORT, f'load_from={source}', 'optim_wrapper.optimizer.lr=0.0']
        code, err = call_tool('train.py', config, '--work-dir', 'refused', *options)
        assert code == 2
        assert f'error: load_from {source} does not fit the model, nothing was loaded:\n' in err
        assert err.endswith('initialise these 2 tensors: load_from_allow=classes\n')
        code, err = call_tool('train.py', config, '--work-dir', source[:-5], *options, 'load_from_allow=classes')
        assert code == 0, err
        trained = read_checkpoint(Path(source[:-5], 'epoch_1.pth'))['state_dict']
        same = [k for k in state if k.endswith('weight') and torch.equal(trained[k], state[k])]
        assert same == [k for k in state if k.endswith('weight') and not k.startswith('head')]  # at a rate of 0
        assert trained['head.fc.weight'].shape == (10, 512)
        log = next(Path(source[:-5]).rglob('*.log')).read_text()
        assert f'load_from {source}: {len(state) - 2} tensors are loaded, 2 keep their initial values (head: 2)' in log
    assert not Path('refused').exists()

    folder = 'seven.safetensors'[:-5]
    saved = f'{folder}/epoch_1.pth'
    code, err = call_tool(
        'train.py',
        config,
        '--work-dir',
        folder,
        '--resume',
        '--cfg-options',
        *SHORT,
        'optim_wrapper.optimizer.type=SGD',
    )
    assert code == 2
    assert f'error: checkpoint {saved} has the state of AdamW, and the config has ' in err
    # Resumed by the config instead of the option, with another rate: it is said that this has no effect.
    options = [*SHORT[:-1], 'train_cfg.max_epochs=2', 'optim_wrapper.optimizer.lr=0.5', 'resume=True']
    code, err = call_tool('train.py', config, '--work-dir', folder, '--cfg-options', *options)
    assert code == 0, err
    log = max(Path(folder).rglob('*.log'), key=lambda p: p.stat().st_mtime).read_text()
    assert 'These changes of the config have no effect' in log
    assert 'optim_wrapper.optimizer.lr: 0.0 -> 0.5' in log.split('These changes of the config have no effect')[1]
    assert torch.equal(
        read_checkpoint(Path(folder, 'epoch_2.pth'))['state_dict']['head.fc.weight'], trained['head.fc.weight']
    )


@pytest.mark.parametrize(
    ('options', 'rule'),
    [
        (['--work-dir', 'file'], '--work-dir file: file is no folder'),
        (['--work-dir', 'file/below'], '--work-dir file/below: file is no folder'),
        (
            ['--cfg-options', 'default_hooks.checkpoint.save_best=top1'],
            "default_hooks.checkpoint.save_best='top1': the validation has no such metric; did you mean 'accuracy/top1",
        ),
        (['--cfg-options', 'load_from=gone.pth'], "load_from 'gone.pth' does not exist (looked for "),
        (['--cfg-options', 'train_cfg=None'], '.py has no train_cfg'),
        (
            ['--cfg-options', 'train_dataloader.dataset.pipeline.0.scale=12x12'],
            "train_dataloader.dataset.pipeline.0.scale: must be a number, or numbers as 128,128; got '12x12'",
        ),
    ],
)
def test_one_line_before_anything_is_done(refused, workplace, root, options, rule):
    Path('file').touch()
    message = refused('train.py', root / 'configs' / CONFIG, *options)
    assert rule in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_a_file_that_is_no_config(refused, workplace, tool):
    Path('annotations.json').write_text('{"images": [], "annotations": []}')
    message = refused(tool, 'annotations.json', *['x.pth'] * (tool == 'test.py'))
    assert message.startswith('annotations.json is no config for this: it has no model, ')
    assert message.endswith('(it has annotations, images)')


def test_metrics_where_they_cannot_be_written(refused, workplace, root):
    Path('file').touch()
    options = ['--out-item', 'metrics', '--out']
    assert (
        refused('test.py', root / 'configs' / CONFIG, 'x.pth', *options, 'file/m.json')
        == '--out file/m.json: file is no folder'
    )
