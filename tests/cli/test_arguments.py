"""How tools end, and what their common options put into the config and the environment."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
from mmengine.config import Config

from mmccd import env
from mmccd.cli import initial_weights
from mmccd.cli.arguments import (
    add_common_arguments,
    apply_common_arguments,
    parse_common_arguments,
    run_tool,
    use_amp,
)
from mmccd.cli.parser import RenamedOption, tool_parser
from mmccd.env import is_first_of_all, is_first_on_machine
from mmccd.errors import UserError

LAUNCHERS = (
    'LOCAL_RANK',
    'SLURM_LOCALID',
    'OMPI_COMM_WORLD_LOCAL_RANK',
    'RANK',
    'SLURM_PROCID',
    'OMPI_COMM_WORLD_RANK',
)


@pytest.fixture(autouse=True)
def outside_of_launchers(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.setenv(name, '')  # so that what a test sets here is undone
        monkeypatch.delenv(name)


def apply(*options: str) -> Config:
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    add_common_arguments(parser)
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='https://a.org/b.pth')))))
    with mock.patch('sys.argv', ['train.py', 'c.py', *options]):
        apply_common_arguments(cfg, parse_common_arguments(parser))
    return cfg


@pytest.mark.parametrize(
    ('options', 'variables', 'local_rank'),
    [
        ([], {}, '0'),
        (['--launcher', 'pytorch'], dict(LOCAL_RANK='3'), '3'),
        (['--launcher', 'pytorch', '--local-rank', '2'], {}, '2'),
        (['--launcher', 'pytorch', '--local-rank', '2'], dict(LOCAL_RANK='3'), '3'),
        (['--launcher', 'slurm'], dict(SLURM_LOCALID='5', SLURM_PROCID='13'), '5'),
        # What the shell that calls srun was started with does not count.
        (['--launcher', 'slurm'], dict(SLURM_LOCALID='5', LOCAL_RANK='0'), '5'),
        (['--launcher', 'mpi'], dict(OMPI_COMM_WORLD_LOCAL_RANK='1', OMPI_COMM_WORLD_RANK='9'), '1'),
        # torchrun in an allocation of slurm.
        (['--launcher', 'pytorch'], dict(SLURM_LOCALID='0', SLURM_PROCID='0', LOCAL_RANK='3', RANK='3'), '3'),
        # srun without a launcher: each process is on its own.
        ([], dict(SLURM_LOCALID='5', SLURM_PROCID='13'), '0'),
        ([], dict(OMPI_COMM_WORLD_LOCAL_RANK='1', OMPI_COMM_WORLD_RANK='9'), '0'),
    ],
)
def test_local_rank(monkeypatch, capsys, options, variables, local_rank):
    """Each launcher's own number; of a machine's processes the first alone speaks, and downloads initial weights."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    downloads = []

    def read(source, **options):
        downloads.append(source)
        return dict(weight=torch.zeros(1, 1))

    monkeypatch.setattr(initial_weights, 'read_checkpoint', read)
    model = torch.nn.Module()
    model.backbone = torch.nn.Linear(1, 1)

    def main():
        cfg = apply(*options)
        model.backbone.init_cfg = cfg.model.backbone.init_cfg
        initial_weights.check_init_download(cfg, model)
        raise UserError('no')

    with pytest.raises(SystemExit, match='2'):
        run_tool(main)
    assert os.environ['LOCAL_RANK'] == local_rank
    assert is_first_on_machine() == (local_rank == '0')
    alone = not options and 'RANK' not in variables
    assert is_first_of_all() == (
        alone or all(variables.get(name, '0') == '0' for name in LAUNCHERS if 'LOCAL' not in name)
    )
    assert capsys.readouterr().err == ('error: no\n' if local_rank == '0' else '')
    assert downloads == (['https://a.org/b.pth'] if local_rank == '0' else [])


@pytest.mark.parametrize(('options', 'printed'), [([], True), (['--launcher', 'slurm'], False)])
def test_an_early_error_under_srun(monkeypatch, capsys, options, printed):
    """One that comes before anything is put into the config: the others print nothing where there are others."""
    monkeypatch.setenv('SLURM_LOCALID', '1')
    monkeypatch.setattr('sys.argv', ['train.py', *options])

    def main():
        parser = argparse.ArgumentParser()
        add_common_arguments(parser)
        parse_common_arguments(parser)
        raise UserError('no')

    with pytest.raises(SystemExit, match='2'):
        run_tool(main)
    assert capsys.readouterr().err == ('error: no\n' if printed else '')


def test_own_errors_of_a_process_are_printed_by_it(monkeypatch, capsys):
    monkeypatch.setenv('LOCAL_RANK', '1')

    def main():
        error = UserError('mine')
        error.everywhere = False
        raise error

    with pytest.raises(SystemExit, match='2'):
        run_tool(main)
    assert capsys.readouterr().err == 'error: mine\n'


@pytest.mark.parametrize(
    ('rank', 'hint', 'text'),
    [('0', '', '\ninterrupted\n'), ('0', '--resume continues', '\ninterrupted; --resume continues\n'), ('1', 'a', '')],
)
def test_control_c(monkeypatch, capsys, rank, hint, text):
    monkeypatch.setenv('LOCAL_RANK', rank)

    def main():
        raise KeyboardInterrupt(*[hint] if hint else [])

    with pytest.raises(SystemExit, match='130'):
        run_tool(main)
    assert capsys.readouterr().err == text


GROUP_OF_ONE = """
import os, signal, sys, torch
from mmccd.cli.arguments import run_tool

def main():
    torch.distributed.init_process_group('gloo', init_method='file://' + sys.argv[1], rank=0, world_size=1)
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        pass

run_tool(main)
"""


@pytest.mark.slow
def test_control_c_in_a_group(tmp_path, root):
    """A real signal, in a group of processes: the same line and code."""
    done = subprocess.run(
        [sys.executable, '-c', GROUP_OF_ONE, tmp_path / 'store'], cwd=root, text=True, capture_output=True, timeout=300
    )
    assert (done.returncode, done.stderr[-13:]) == (130, '\ninterrupted\n'), done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    'wrapper',
    [
        dict(),
        dict(type='OptimWrapper'),
        dict(type='AmpOptimWrapper', loss_scale=8.0),
        dict(type='mmengine.OptimWrapper'),
    ],
)
def test_amp(wrapper):
    cfg = Config(dict(optim_wrapper=dict(wrapper, optimizer=dict(type='SGD', lr=0.1))))
    use_amp(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == wrapper.get('loss_scale', 'dynamic')
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.1)


class MyWrapper:
    """Stands for one of the user's."""


@pytest.mark.parametrize(
    ('kind', 'name'),
    [('ApexOptimWrapper', 'ApexOptimWrapper'), ('mine.Wrapper', r'mine\.Wrapper'), (MyWrapper, 'MyWrapper')],
)
def test_amp_replaces_no_other_wrapper(kind, name):
    cfg = Config(dict(optim_wrapper=dict(type=kind)))
    with pytest.raises(UserError, match=rf"--amp .*optim_wrapper\.type='OptimWrapper'.*the config has '{name}'"):
        use_amp(cfg)
    assert cfg.optim_wrapper.type == kind


def test_former_names_of_options(monkeypatch, capsys):
    """They work, and one line says so once in a process."""
    monkeypatch.setattr(env, '_WARNED', set())
    parser = tool_parser('A tool.')
    parser.add_argument('--splits', '--sets', action=RenamedOption, nargs='+', choices=['train', 'val'])
    assert parser.parse_args(['--splits', 'train']).splits == ['train']
    assert capsys.readouterr().err == ''
    for former in ('--sets', '--sets', '--set'):  # the latter: abbreviated
        assert parser.parse_args([former, 'val', 'train']).splits == ['val', 'train']
    [line] = capsys.readouterr().err.splitlines()
    assert '--sets' in line
    assert '--splits' in line
