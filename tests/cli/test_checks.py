"""What tools say and refuse before they start, where a whole tool would be too slow to ask."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from mmengine.config import Config

import mmccd.configs
from mmccd.cli import checks, initial_weights, runner
from mmccd.configs import load_config
from mmccd.errors import UserError

ROOT = Path(__file__).parents[2]


class Log(list):
    """A logger that keeps (level, message)."""

    def info(self, message: str) -> None:
        self.append(('info', message))

    def warning(self, message: str) -> None:
        self.append(('warning', message))


def scaling(processes, batch=2, base=16, enable=False, lr=0.02, loader=(), wrapper=()):
    logger = Log()
    cfg = Config(
        dict(
            train_dataloader=dict(batch_size=batch, **dict(loader)),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr), **dict(wrapper)),
            auto_scale_lr=dict(enable=enable, base_batch_size=base),
        )
    )
    runner.log_scaling(SimpleNamespace(cfg=cfg, world_size=processes, logger=logger))
    return list(logger)


def test_batch_that_the_rate_was_made_for():
    assert scaling(8) == [
        (
            'info',
            '8 processes x 2 images = global batch 16; learning rate 0.02, by linear scaling '
            'from 0.02 at batch 16: 0.02',
        )
    ]


def test_another_batch():
    [info, warning] = scaling(1, batch=4)
    assert info == (
        'info',
        '1 process x 4 images = global batch 4; learning rate 0.02, by linear scaling from 0.02 at batch 16: 0.005',
    )
    assert warning == (
        'warning',
        'the learning rate 0.02 does not follow the global batch of 4: add --auto-scale-lr '
        'for 0.005, or leave it if this is intended',
    )


def test_scaled():
    assert scaling(4, enable=True) == [
        (
            'info',
            '4 processes x 2 images = global batch 8; learning rate 0.01, by '
            'linear scaling from 0.02 at batch 16: 0.01',
        )
    ]


def test_accumulated_gradients():
    assert len(scaling(4, wrapper=dict(accumulative_counts=2))) == 1
    [info, warning] = scaling(8, enable=True, wrapper=dict(accumulative_counts=2))
    assert info[1].startswith('8 processes x 2 images x 2 accumulated = global batch 32; learning rate 0.02, ')
    assert info[1].endswith('0.04')
    assert 'set optim_wrapper.optimizer.lr=0.04 without --auto-scale-lr, which ignores accumulation' in warning[1]


def test_batch_sampler_with_a_size_of_its_own():
    assert scaling(2, loader=dict(batch_sampler=dict(type='X', batch_size=8)))[0][1].startswith(
        '2 processes x 8 images = global batch 16;'
    )
    assert scaling(8, loader=dict(batch_sampler=dict(type='AspectRatioBatchSampler')))[0][1].startswith(
        '8 processes x 2 images = global batch 16;'
    )


@pytest.mark.parametrize('base', [None, 0])
def test_nothing_to_scale_from(base):
    assert scaling(2, base=base) == [
        (
            'info',
            '2 processes x 2 images = global batch 4; learning rate 0.02 (no '
            'auto_scale_lr.base_batch_size to scale it from)',
        )
    ]


def test_no_single_rate():
    """Several optimizers, or one without a rate in the config."""
    logger = Log()
    cfg = Config(
        dict(
            train_dataloader=dict(batch_size=2),
            auto_scale_lr=None,
            optim_wrapper=dict(constructor='X', g=dict(optimizer=dict(lr=1.0))),
        )
    )
    runner.log_scaling(SimpleNamespace(cfg=cfg, world_size=1, logger=logger))
    assert logger == [('info', '1 process x 2 images = global batch 2; the config has no single learning rate')]


def test_what_is_logged_is_what_mmengine_does(monkeypatch):
    """The rate that the line states against mmengine's scaling of two parameter groups."""
    from mmengine.optim import OptimWrapper
    from mmengine.runner import Runner

    groups = [dict(params=[torch.nn.Parameter(torch.ones(1))], lr=lr) for lr in (0.02, 0.2)]
    wrapper = OptimWrapper(torch.optim.SGD(groups, lr=0.02))
    runner = SimpleNamespace(_train_dataloader=dict(batch_size=2), world_size=4, logger=Log(), param_schedulers=None)
    Runner.scale_lr(runner, wrapper, dict(enable=True, base_batch_size=16))
    assert [g['lr'] for g in wrapper.optimizer.param_groups] == pytest.approx([0.01, 0.1])
    assert 'learning rate 0.01,' in scaling(4, enable=True)[0][1]


@pytest.mark.parametrize(
    ('cfg', 'norm', 'rule'),
    [
        (dict(sync_bn='yes'), 'BatchNorm2d', "sync_bn must be 'torch', 'mmcv' or None, got 'yes'"),
        (dict(sync_bn='torch', launcher='pytorch'), 'BatchNorm2d', 'needs GPUs, and PyTorch sees none'),
        (dict(launcher='slurm'), 'SyncBatchNorm', 'needs GPUs, and PyTorch sees none'),
        (
            dict(sync_bn='torch', launcher='pytorch', runner_type='FlexibleRunner'),
            'BatchNorm2d',
            'FSDPStrategy has none',
        ),
    ],
)
def test_sync_bn_that_cannot_work(monkeypatch, cfg, norm, rule):
    monkeypatch.setattr(checks, 'get_device', lambda: 'cpu')
    with pytest.raises(UserError) as e:
        checks.check_sync_bn(Config(dict(dict(launcher='none'), **cfg)), getattr(torch.nn, norm)(4))
    assert rule in str(e.value)


@pytest.mark.parametrize(
    ('cfg', 'norm'),
    [(dict(sync_bn='torch'), 'BatchNorm2d'), (dict(), 'SyncBatchNorm'), (dict(launcher='pytorch'), 'BatchNorm2d')],
)
def test_sync_bn_that_does_no_harm(monkeypatch, cfg, norm):
    """One process: mmengine turns the norms into ordinary ones."""
    monkeypatch.setattr(checks, 'get_device', lambda: 'cpu')
    checks.check_sync_bn(Config(dict(dict(launcher='none'), **cfg)), getattr(torch.nn, norm)(4))


def test_sync_bn_on_gpus(monkeypatch):
    monkeypatch.setattr(checks, 'get_device', lambda: 'cuda')
    checks.check_sync_bn(Config(dict(launcher='pytorch', sync_bn='torch')), torch.nn.BatchNorm2d(4))
    for state in ('compiled', 'replacement'):
        monkeypatch.setattr(checks.mmcv_ops, 'in_use', lambda state=state: state)
        checks.check_sync_bn(Config(dict(launcher='pytorch', sync_bn='mmcv')), torch.nn.BatchNorm2d(4))
    monkeypatch.setattr(checks.mmcv_ops, 'in_use', lambda: 'none')
    with pytest.raises(UserError, match=r"sync_bn='mmcv' needs mmcv's operators, .*use sync_bn='torch'"):
        checks.check_sync_bn(Config(dict(launcher='pytorch', sync_bn='mmcv')), torch.nn.BatchNorm2d(4))


def test_sharding_needs_processes():
    cfg = Config(dict(runner_type='FlexibleRunner', strategy=dict(type='mmccd.FSDPStrategy'), launcher='none'))
    with pytest.raises(UserError, match=r'train with tools/dist_train\.sh, and test'):
        runner.build_runner(cfg)


def test_sharding_with_save_best():
    cfg = Config(
        dict(
            runner_type='FlexibleRunner',
            strategy=dict(type='FSDPStrategy'),
            launcher='pytorch',
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best='auto')),
        )
    )
    with pytest.raises(UserError, match=r'set default_hooks\.checkpoint\.save_best=None'):
        runner.build_runner(cfg)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("data_root = 'a/'\ntrain_dataloader = dict(dataset=dict(data_root=data_root))\n")
    return str(path)


@pytest.mark.parametrize(
    ('option', 'near'),
    [
        ('train_dataloder.batch_size', "'train_dataloader'"),
        ('optim_wraper.optimizer.lr', "'optim_wrapper'"),
        ('resum', "'resume'"),
        ('default_hook.logger.interval', "'default_hooks'"),
        ('auto_scale.enable', None),
    ],
)
def test_option_that_nothing_reads(config, option, near):
    with pytest.raises(UserError) as e:
        load_config(config, {option: 1})
    hint = str(e.value)
    assert hint.startswith(
        f'--cfg-options {option}: the config has no key {option.split(".")[0]!r}, and nothing would read it'
    )
    assert near is None or hint.endswith(f'did you mean {near}?')


def test_options_that_are_new(config):
    """New keys below an existing one, and keys that the runner reads though the config does not have them."""
    cfg = load_config(
        config,
        {
            'train_dataloader.dataset.indices': 4,
            'sync_bn': 'torch',
            'work_dir': 'x',
            'custom_hooks': [],
            'find_unused_parameters': True,
            'load_from': 'x.pth',
        },
    )
    assert (cfg.train_dataloader.dataset.indices, cfg.sync_bn, cfg.work_dir) == (4, 'torch', 'x')


def test_variable_that_was_used_already(config, capsys, monkeypatch):
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    cfg = load_config(config, {'data_root': 'b/'})
    assert cfg.train_dataloader.dataset.data_root == 'a/'
    assert capsys.readouterr().err.startswith("warning: --cfg-options data_root: 'data_root' is a variable")
    monkeypatch.setenv('LOCAL_RANK', '1')
    load_config(config, {'data_root': 'b/'})
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
    ('error', 'checkpoint', 'message'),
    [
        (
            URLError('Name or service not known'),
            'torchvision://resnet50',
            r'resnet50-.*.pth\nelsewhere, and put it there as .*/hub/checkpoints/resnet50-\w+\.pth$',
        ),
        (RuntimeError('invalid hash value'), 'https://a.org/b.pth', r'invalid hash.*\n.* fetch https://a.org/b.pth\n'),
        (
            KeyError('resnet51'),
            'torchvision://resnet51',
            r"torchvision://resnet51 cannot be loaded as a checkpoint: 'resnet51'$",
        ),
    ],
)
@pytest.mark.parametrize('kind', ['Pretrained', 'mmccd.PretrainedBackbone'])
def test_initial_weights_that_cannot_be_downloaded(monkeypatch, tmp_path, error, checkpoint, message, kind):
    """One message before any work, by the first process of a machine; the others leave the download to it."""

    def load(*args, **kwargs):
        raise error

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr('torch.hub.download_url_to_file', load)
    model = torch.nn.Module()
    model.backbone = torch.nn.Linear(1, 1)
    model.backbone.init_cfg = dict(type=kind, checkpoint=checkpoint)
    monkeypatch.setenv('LOCAL_RANK', '0')
    with pytest.raises(UserError, match=message):
        initial_weights.check_init_download(Config(), model)
    monkeypatch.setenv('LOCAL_RANK', '1')
    initial_weights.check_init_download(Config(), model)


# A process of a group, with something for Python's end and something for atexit.
GROUP_OF_ONE = """
import atexit, sys, torch
from mmccd.cli.arguments import run_tool

class Last:
    def __del__(self):
        print('finalized')

last = Last()
atexit.register(print, 'atexit')

def main():
    if sys.argv[2:]:
        torch.distributed.init_process_group('gloo', init_method='file://' + sys.argv[1], rank=0, world_size=1)
    print('main')

run_tool(main)
print('after')
"""


@pytest.mark.slow
@pytest.mark.parametrize(('group', 'expected'), [(['group'], 'main atexit'), ([], 'main after atexit finalized')])
def test_end_of_a_process(tmp_path, group, expected):
    """In a group of processes Python is not finalized, where gloo's threads could abort it; all else is done."""
    done = subprocess.run(
        [sys.executable, '-c', GROUP_OF_ONE, tmp_path / 'store', *group],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout.split()) == (0, expected.split()), done.stderr


def test_no_workers(tmp_path, capsys):
    """What PyTorch refuses in a loader without workers goes, and it is said; the other loaders stay as they are."""
    path = tmp_path / 'mine.py'
    loader = 'dict(num_workers=2, persistent_workers=True, prefetch_factor=4, batch_size=2)'
    path.write_text(f'train_dataloader = {loader}\nval_dataloader = {loader}')
    cfg = load_config(str(path), {'train_dataloader.num_workers': 0})
    assert cfg.train_dataloader == dict(num_workers=0, batch_size=2)
    assert cfg.val_dataloader == dict(num_workers=2, persistent_workers=True, prefetch_factor=4, batch_size=2)
    assert capsys.readouterr().err == (
        'note: train_dataloader.num_workers is 0: left out persistent_workers, prefetch_factor, which PyTorch refuses '
        'without workers\n'
    )


@pytest.mark.parametrize(
    ('loader', 'options', 'expected', 'note'),
    [
        ('dict(timeout=9, prefetch_factor=2)', {}, {}, 'left out prefetch_factor, timeout, which PyTorch refuses'),
        (
            "dict(batch_sampler=dict(type='A', drop_last=False))",
            {'drop_last': True},
            dict(batch_sampler=dict(type='A', drop_last=True)),
            'test_dataloader.drop_last is test_dataloader.batch_sampler.drop_last, since PyTorch refuses it beside',
        ),
        (
            "dict(sampler=dict(type='D'))",
            {'shuffle': True},
            dict(sampler=dict(type='D', shuffle=True)),
            'test_dataloader.shuffle is test_dataloader.sampler.shuffle',
        ),
        ('dict(drop_last=True)', {}, dict(drop_last=True), ''),
        ('dict(shuffle=True)', {}, dict(shuffle=True), ''),
        ('dict(num_workers=1, timeout=9)', {}, dict(num_workers=1, timeout=9), ''),
    ],
)
def test_options_of_loaders_that_exclude_each_other(tmp_path, capsys, monkeypatch, loader, options, expected, note):
    """In any of them: PyTorch raises, after the model is built."""
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    (tmp_path / 'mine.py').write_text(f'test_dataloader = {loader}')
    cfg = load_config(str(tmp_path / 'mine.py'), {f'test_dataloader.{k}': v for k, v in options.items()})
    assert cfg.test_dataloader == expected
    assert note in (err := capsys.readouterr().err)
    assert bool(note) == bool(err)


@pytest.mark.parametrize(
    ('changes', 'rule'),
    [
        (dict(num_workers=-1), 'num_workers must be a whole number, at least 0, got -1'),
        (dict(num_workers='auto'), "num_workers must be a whole number, at least 0, got 'auto'"),
        (dict(batch_size=0), 'batch_size must be a whole number, at least 1, got 0'),
        (dict(batch_size=2.0), 'batch_size must be a whole number, at least 1, got 2.0'),
        (dict(batch_size=[2, 4]), r'batch_size must be a whole number, at least 1, got \[2, 4\]'),
        (dict(sampler=...), r"has no sampler: set it to dict\(type='DefaultSampler', shuffle=True\)$"),
        (dict(dataset=...), 'has no dataset$'),
        (dict(batch_size=..., batch_sampler=dict(type='A')), 'has no batch_size$'),
    ],
)
def test_loaders_that_cannot_be_built(changes, rule):
    loader = dict(dataset=dict(type='A'), sampler=None, batch_size=2, num_workers=0)
    checks.check_loaders(Config(dict(train_dataloader=loader, val_dataloader=None)), ('train', 'val'))
    loader = {k: v for k, v in {**loader, **changes}.items() if v is not ...}
    with pytest.raises(UserError, match=rf'^train_dataloader[ .]{rule}'):
        checks.check_loaders(Config(dict(train_dataloader=loader)), ('train',))


@pytest.mark.parametrize(
    ('name', 'value', 'least'),
    [
        ('max_epochs', 0, 1),
        ('max_epochs', 2.5, 1),
        ('max_epochs', 'ten', 1),
        ('max_iters', -1, 1),
        ('val_interval', 0, 1),  # mmengine divides by it, after the first epoch
        ('val_begin', True, 0),
    ],
)
def test_numbers_of_a_training(name, value, least):
    for given in (dict(max_epochs=2, val_interval=1), dict(max_iters=9e4), {}):
        checks.check_numbers(Config(dict(train_cfg=given, randomness=dict(seed=None))))
    with pytest.raises(
        UserError, match=rf'^train_cfg\.{name} must be a whole number, at least {least}, got {value!r}$'
    ):
        checks.check_numbers(Config(dict(train_cfg={name: value})))
    with pytest.raises(UserError, match=r"^randomness\.seed must be a whole number, at least 0, got 'abc'$"):
        checks.check_numbers(Config(dict(randomness=dict(seed='abc'))))
    with pytest.raises(UserError, match=r'^train_cfg must be a dict, got 3$'):
        checks.check_numbers(Config(dict(train_cfg=3)))


@pytest.mark.parametrize(
    ('step', 'rule'),
    [
        (
            dict(type='RandomResizedCrop', scale=0),
            r'\(RandomResizedCrop\) cannot be built: AssertionError: assert scale > 0$',
        ),
        (
            dict(type='RandomFlip', prb=0.5),
            r"\(RandomFlip\) cannot be built: TypeError: .*unexpected keyword argument 'prb'",
        ),
        (
            dict(type='Reszie', scale=32),
            r'\(Reszie\) cannot be built: KeyError: Reszie is not in the mmpretrain::transform',
        ),
    ],
)
def test_transforms_that_cannot_be_built(step, rule):
    """The runner builds them after the model, with a traceback that names no entry of the config."""
    loader = dict(dataset=dict(type='A', pipeline=[dict(type='LoadImageFromFile'), step]), sampler=None)
    cfg = Config(dict(default_scope='mmpretrain', val_dataloader=loader))
    checks.check_loaders(cfg, ('train',))
    with pytest.raises(UserError, match=rf'^val_dataloader\.dataset\.pipeline\.1 {rule}'):
        checks.check_loaders(cfg, ('val',))
    cfg.val_dataloader.dataset.pipeline.pop()
    checks.check_loaders(cfg, ('val',))


@pytest.mark.parametrize(
    ('optimizer', 'more', 'rule'),
    [
        (
            dict(type='AdamW', lr=0.1, momentum=0.9),
            {},
            r"unexpected keyword argument 'momentum'\. In a config, optimizer=dict\(_delete_=True, type=\.\.\., lr=",
        ),
        (dict(type='SGD', lr=-1), {}, 'Invalid learning rate: -1$'),
        (dict(type='Adamm', lr=1), {}, r"there is no optimizer 'Adamm'; did you mean 'Adam"),
        (dict(type='SGD', lr=1), dict(accumulative_counts=0), 'accumulative_counts'),
    ],
)
def test_optimizers_that_cannot_be_built(optimizer, more, rule):
    """Such as SGD's options for AdamW, by ``--cfg-options``: before the first log."""
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=optimizer, **more)))
    with pytest.raises(UserError, match=rf'^the optimizer of the config \(optim_wrapper\) cannot be built: .*{rule}'):
        checks.optimizer_of(cfg, torch.nn.Linear(1, 1, device='meta'))


@pytest.mark.parametrize('name', ['retinanet_ccd_r18_fpn_digits', '_base_/datasets/digits_det'])
@pytest.mark.parametrize('end', ['', '.py'])
def test_own_configs_as_bases(tmp_path, name, end):
    """As mmdet::... of MMDetection; what is read is the same as by the path."""
    paths = [tmp_path / 'by_name.py', tmp_path / 'by_path.py']
    paths[0].write_text(f"_base_ = ['mmccd::{name}{end}']\nextra = 1")
    paths[1].write_text(f"_base_ = ['{mmccd.configs.CONFIGS / name}.py']\nextra = 1")
    by_name, by_path = (load_config(str(p)) for p in paths)
    assert by_name.to_dict() == by_path.to_dict()
    before = Config._get_cfg_path
    paths[0].write_text(f"_base_ = 'mmccd::{name.replace('di', 'id')}{end}'")
    with pytest.raises(UserError, match=r"_base_ 'mmccd::\S+' is none of the configs that come with mmccd"):
        load_config(str(paths[0]))
    assert Config._get_cfg_path is before


@pytest.mark.parametrize('loader', ['val', 'test'])
@pytest.mark.parametrize('options', [dict(drop_last=True), dict(batch_sampler=dict(type='X', drop_last=True))])
def test_evaluation_drops_nothing(loader, options):
    cfg = Config({f'{loader}_dataloader': dict(dataset=dict(type='X'), **options)})
    with pytest.raises(UserError, match=rf'^{loader}_dataloader: drop_last=True would leave the last images out'):
        checks.check_data(cfg, (loader,))


@pytest.mark.parametrize(('batch', 'drop', 'iterations'), [(4, True, 1), (5, True, 0), (5, False, 1)])
def test_training_without_an_iteration(batch, drop, iterations):
    data = torch.utils.data.TensorDataset(torch.zeros(4, 1))
    loader = torch.utils.data.DataLoader(data, batch, drop_last=drop)
    loop = object.__new__(runner.EpochBasedTrainLoop)
    loop.dataloader = loader
    trained = SimpleNamespace(train_loop=loop)
    if iterations:
        runner.check_iterations(trained)
        return
    with pytest.raises(UserError, match='the 4 images of a process are less than a batch, which drop_last leaves out'):
        runner.check_iterations(trained)


@pytest.mark.parametrize('name', ['digits', 'fashion', 'solar', 'trees'])
def test_how_data_is_made(name, tmp_path, monkeypatch):
    """What has a converter here is not to be downloaded."""
    monkeypatch.chdir(tmp_path)
    config = 'retinanet_r18_fpn_trees' if name == 'trees' else f'r18_{name}'
    with pytest.raises(UserError) as e:
        checks.check_data(load_config(str(ROOT / 'configs' / f'{config}.py')), ('train', 'val'))
    assert str(e.value).endswith(f'Make data/{name} with: python tools/dataset_converters/make_{name}.py')
    assert (ROOT / 'tools/dataset_converters' / f'make_{name}.py').is_file()
