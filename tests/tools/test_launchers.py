"""The shell scripts, from other folders and through paths with a space, and slurm's start without a cluster."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmccd.checkpoints.resume import newest_checkpoint

SCRIPTS = {
    'dist_train.sh': 'CONFIG GPUS [options of tools/train.py]',
    'dist_test.sh': 'CONFIG CHECKPOINT GPUS [options of tools/test.py]',
    'slurm_train.sh': 'PARTITION JOB_NAME CONFIG [options of tools/train.py]',
    'slurm_test.sh': 'PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]',
}
# A program that says what it was called with: one line of PYTHONPATH, then an argument a line.
ECHO = '#!/usr/bin/env bash\necho "PYTHONPATH=$PYTHONPATH"\nprintf "%s\\n" "$@"\n'


@pytest.fixture
def tools(root, tmp_path, monkeypatch) -> Path:
    """The scripts under a path with a space, and a fake ``srun`` and ``python`` in front of the real ones."""
    folder = tmp_path / 'my work' / 'tools'
    folder.mkdir(parents=True)
    for name in (*SCRIPTS, 'launch.sh'):
        shutil.copy(root / 'tools' / name, folder)
    programs = tmp_path / 'bin'
    programs.mkdir()
    for name in ('srun', 'python'):
        (programs / name).write_text(ECHO)
        (programs / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{programs}{os.pathsep}{os.environ["PATH"]}')
    for name in (
        'PYTHON',
        'PYTHONPATH',
        'PORT',
        'GPUS',
        'GPUS_PER_NODE',
        'CPUS_PER_TASK',
        'SRUN_ARGS',
        'NNODES',
        'NODE_RANK',
        'MASTER_ADDR',
    ):
        monkeypatch.delenv(name, raising=False)
    return folder


def run(script: Path, *args: str, cwd: Path, **env: str) -> list[str]:
    done = subprocess.run([script, *args], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    return done.stdout.splitlines()


@pytest.mark.parametrize('name', SCRIPTS)
def test_scripts_can_be_run_and_parsed(root, name):
    script = root / 'tools' / name
    assert os.access(script, os.X_OK)
    subprocess.run(['bash', '-n', script], check=True)


@pytest.mark.parametrize(
    ('name', 'count'), [(n, c) for n, usage in SCRIPTS.items() for c in range(usage.split(' [')[0].count(' ') + 1)]
)
def test_too_few_arguments(tools, tmp_path, name, count):
    done = subprocess.run([tools / name, *['x'] * count], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == f'usage: {tools / name} {SCRIPTS[name]}\n'


def test_dist_train(tools, tmp_path):
    lines = run(
        tools / 'dist_train.sh',
        'my config.py',
        '2',
        '--work-dir',
        'a b',
        '--cfg-options',
        'x=[1, 2]',
        cwd=tmp_path,
        PORT='1234',
    )
    assert lines == [
        f'PYTHONPATH={tools}/..',
        f'{tools}/dist_run.py',
        '--nnodes=1',
        '--node_rank=0',
        '--master_addr=127.0.0.1',
        '--master_port=1234',
        '--nproc_per_node=2',
        f'{tools}/train.py',
        'my config.py',
        '--launcher',
        'pytorch',
        '--work-dir',
        'a b',
        '--cfg-options',
        'x=[1, 2]',
    ]


def test_dist_test_on_one_of_two_nodes(tools, tmp_path):
    """Called by a relative path, with a PYTHONPATH of the user's."""
    lines = run(
        Path('my work/tools/dist_test.sh'),
        'c.py',
        'k.pth',
        '8',
        '--tta',
        cwd=tmp_path,
        NNODES='2',
        NODE_RANK='1',
        MASTER_ADDR='10.0.0.1',
        PYTHONPATH='/mine',
    )
    assert lines == [
        f'PYTHONPATH={tools}/..:/mine',
        f'{tools}/dist_run.py',
        '--nnodes=2',
        '--node_rank=1',
        '--master_addr=10.0.0.1',
        '--master_port=29500',
        '--nproc_per_node=8',
        f'{tools}/test.py',
        'c.py',
        'k.pth',
        '--launcher',
        'pytorch',
        '--tta',
    ]


@pytest.mark.parametrize(('name', 'files'), [('slurm_train.sh', ['c d.py']), ('slurm_test.sh', ['c d.py', 'k.pth'])])
def test_slurm(tools, tmp_path, name, files):
    lines = run(tools / name, 'gpu', 'my job', *files, '--work-dir', 'a b', cwd=tmp_path)
    tool = name.replace('slurm_', '').replace('.sh', '.py')
    assert lines == [
        f'PYTHONPATH={tools}/..',
        '-p',
        'gpu',
        '--job-name=my job',
        '--gres=gpu:8',
        '--ntasks-per-node=8',
        '--ntasks=8',
        '--cpus-per-task=5',
        '--kill-on-bad-exit=1',
        *['--signal=USR1@120'] * (tool == 'train.py'),
        'python',
        '-u',
        f'{tools}/{tool}',
        *files,
        '--work-dir',
        'a b',
        '--launcher',
        'slurm',
    ]


def test_slurm_settings(tools, tmp_path):
    lines = run(
        tools / 'slurm_train.sh',
        'gpu',
        'j',
        'c.py',
        cwd=tmp_path,
        GPUS='16',
        GPUS_PER_NODE='4',
        CPUS_PER_TASK='7',
        SRUN_ARGS='--time=1:00 --exclusive',
        PYTHON='python3',
    )
    assert lines[1:11] == [
        '-p',
        'gpu',
        '--job-name=j',
        '--gres=gpu:4',
        '--ntasks-per-node=4',
        '--ntasks=16',
        '--cpus-per-task=7',
        '--kill-on-bad-exit=1',
        '--signal=USR1@120',
        '--time=1:00',
    ]
    assert lines[11:14] == ['--exclusive', 'python3', '-u']


@pytest.mark.parametrize('name', ['slurm_train.sh', 'slurm_test.sh'])
def test_slurm_without_gpus(tools, tmp_path, name):
    lines = run(tools / name, 'cpu', 'j', 'c.py', 'k.pth', cwd=tmp_path, GPUS='2', GPUS_PER_NODE='0')
    assert lines[1:5] == ['-p', 'cpu', '--job-name=j', '--ntasks=2']


@pytest.mark.parametrize('name', ['slurm_train.sh', 'slurm_test.sh'])
def test_few_tasks_do_not_ask_for_a_whole_node(tools, tmp_path, name):
    """GPUS=2 alone is 2 tasks on 2 GPUs of one node, not 2 tasks that hold 8."""
    lines = run(tools / name, 'gpu', 'j', 'c.py', 'k.pth', cwd=tmp_path, GPUS='2')
    assert lines[4:7] == ['--gres=gpu:2', '--ntasks-per-node=2', '--ntasks=2']


# Ends with 85, then with the code in $THEN; says how it was called.
SRUN = """#!/usr/bin/env bash
echo "srun ${*: -4}"
if [ -e called ]; then exit "$THEN"; fi
touch called
exit 85
"""


@pytest.fixture
def interrupted(tools, tmp_path):
    """Runs slurm_train.sh where the training is interrupted once; returns exit code and lines."""
    (tmp_path / 'bin' / 'srun').write_text(SRUN)

    def call(scontrol: str = 'exit 0', **env: str) -> tuple[int, list[str]]:
        (tmp_path / 'bin' / 'scontrol').write_text(f'#!/bin/sh\necho "scontrol $*"\n{scontrol}\n')
        (tmp_path / 'bin' / 'scontrol').chmod(0o755)
        clean = {k: v for k, v in os.environ.items() if not k.startswith('SLURM')}
        done = subprocess.run(
            [tools / 'slurm_train.sh', 'p', 'j', 'c.py', '--amp'],
            cwd=tmp_path,
            env={**clean, **env},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout.splitlines()

    return call


@pytest.mark.parametrize('then', ['0', '3'])
def test_slurm_starts_again_after_an_interruption(interrupted, then):
    """Another srun with --resume, whose code is the script's."""
    code, lines = interrupted(THEN=then)
    assert code == int(then)
    assert lines == ['srun c.py --amp --launcher slurm', 'srun --amp --resume --launcher slurm']


def test_slurm_requeues_a_batch_job(interrupted):
    """The job goes back into the queue; started again, slurm counts it, and the training resumes at once."""
    code, lines = interrupted(SLURM_JOB_ID='7', THEN='0')
    assert (code, lines) == (0, ['srun c.py --amp --launcher slurm', 'scontrol requeue 7'])
    code, lines = interrupted(SLURM_JOB_ID='7', SLURM_RESTART_COUNT='1', THEN='0')
    assert (code, lines) == (0, ['srun --amp --resume --launcher slurm'])


def test_slurm_job_that_cannot_be_requeued(interrupted):
    code, lines = interrupted('exit 1', SLURM_JOB_ID='7')
    assert (code, lines[1:]) == (85, ['scontrol requeue 7'])


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(('signum', 'code'), [(signal.SIGTERM, 85), (signal.SIGUSR1, 85), (signal.SIGINT, 130)])
def test_two_processes_end_on_a_signal(root, run_tool, cpu_env, free_port, workplace, signum, code):
    """dist_train.sh gets it, or all get a Ctrl-C: both processes save, and --resume continues after that iteration."""
    options = [
        '--cfg-options',
        'train_cfg.max_epochs=50',
        'train_dataloader.batch_size=8',
        'default_hooks.logger.interval=1',
        'model.backbone.base_channels=16',
        'model.head.in_channels=128',
        'model.backbone.attention.groups=8',
        *(
            f'{part}_dataloader.{key}'
            for part in ('train', 'val')
            for key in ('num_workers=1', 'persistent_workers=True')
        ),
    ]
    command = [root / 'tools' / 'dist_train.sh', root / 'configs' / 'ccd_r18_digits.py', '2', '--work-dir', 'work']
    with open('output.txt', 'w') as output:
        training = subprocess.Popen(
            [*command, *options],
            env={**cpu_env, 'PORT': free_port()},
            cwd=workplace,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while 'Epoch(train)' not in Path('output.txt').read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        if signum == signal.SIGINT:  # from a terminal
            os.killpg(training.pid, signum)
        else:
            training.send_signal(signum)
        assert training.wait(60) == code, Path('output.txt').read_text()[-3000:]
    assert 'Traceback' not in Path('output.txt').read_text()
    path, skipped = newest_checkpoint('work')
    assert skipped == {}
    content = torch.load(path, weights_only=False)
    assert content['resume']['processes'] == 2
    assert len(content['resume']['random_states']) == 2
    epoch, iteration = content['meta']['epoch'], content['meta']['iter']
    done = run_tool(
        'dist_train.sh',
        root / 'configs' / 'ccd_r18_digits.py',
        2,
        '--work-dir',
        'work',
        '--resume',
        *options[:1],
        f'train_cfg.max_epochs={epoch + 1}',
        *options[2:],
        cwd=workplace,
        PORT=free_port(),
    )
    assert f'--resume: continuing from {path}' in done.stdout
    assert f'resumed epoch: {epoch}, iter: {iteration}' in done.stdout
    assert (workplace / 'work' / f'epoch_{epoch + 1}.pth').is_file()
    last = torch.load(workplace / 'work' / f'epoch_{epoch + 1}.pth', weights_only=False)
    assert last['meta']['iter'] == 5 * (epoch + 1)


# A tool that waits for a signal, and says when it does.
WAITING = """
import pathlib, signal, sys
from mmccd.cli.arguments import run_tool

def main():
    pathlib.Path('ready').touch()
    while True:
        signal.pause()

run_tool(main)
"""


@pytest.mark.slow
def test_control_c(root, cpu_env, free_port, tmp_path):
    """The terminal sends it to torchrun and to its process: no traceback of either, and a shell's exit code."""
    (tmp_path / 'tool.py').write_text(WAITING)
    running = subprocess.Popen(
        [sys.executable, root / 'tools/dist_run.py', '--nproc_per_node=1', f'--master_port={free_port()}', 'tool.py'],
        env={**cpu_env, 'PYTHONPATH': str(root)},
        cwd=tmp_path,
        text=True,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / 'ready').exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert '\ninterrupted\n' in err
    assert 'Traceback' not in err


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ('hook', 'end'),
    [
        ('mmccd.InterruptHook', 'Ctrl-C: training ends after iteration {}. Continue with --resume from {}.'),
        ('mmccd.SkippedImagesHook', 'interrupted; with --resume, the same command continues from the newest'),
    ],
)
def test_control_c_in_a_training(root, cpu_env, workplace, hook, end):
    """One process with workers, to all of which the terminal sends it: no traceback, and how to continue."""
    training = subprocess.Popen(
        [
            *(sys.executable, root / 'tools' / 'train.py', root / 'configs' / 'ccd_r18_digits.py'),
            *('--work-dir', 'work', '--cfg-options', 'train_cfg.max_epochs=20', 'default_hooks.logger.interval=1'),
            *(
                'train_dataloader.batch_size=8',
                'train_dataloader.num_workers=2',
                f'default_hooks.interrupt.type={hook}',
            ),
            *('model.backbone.base_channels=16', 'model.head.in_channels=128', 'model.backbone.attention.groups=8'),
        ],
        env=cpu_env,
        cwd=workplace,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    lines = []
    for line in training.stdout:
        lines.append(line)
        if re.search(r'Epoch\(train\) +\[2\]\[ *3/', line):
            os.killpg(training.pid, signal.SIGINT)
    out = ''.join(lines)
    assert training.wait(60) == 130, out[-3000:]
    assert 'Traceback' not in out
    path, skipped = newest_checkpoint(str(workplace / 'work'))
    assert skipped == {}
    iteration = torch.load(path, weights_only=False)['meta']['iter']
    assert end.format(iteration, path) in out
    assert path.endswith('interrupted.pth') == (hook == 'mmccd.InterruptHook')


# What a tool does up to its runner, then a sum over the processes.
START = """
import sys, torch
import mmccd
from mmengine.config import Config
from mmccd.cli.runner import end_process, init_cpu_distributed
cfg = Config(dict(launcher='slurm', env_cfg=dict(dist_cfg=dict(backend='nccl'))))
init_cpu_distributed(cfg)
total = torch.tensor(float(torch.distributed.get_rank() + 1))
torch.distributed.all_reduce(total)
assert cfg.env_cfg.dist_cfg == dict(backend='gloo'), cfg
assert cfg.model_wrapper_cfg.device_ids is None
print(torch.distributed.get_rank(), torch.distributed.get_world_size(), total.item())
torch.distributed.barrier()
end_process(0)
"""


def slurm_env(cpu_env: dict[str, str], task: int, **more: str) -> dict[str, str]:
    with_slurm = dict(SLURM_PROCID=str(task), SLURM_NTASKS='2', SLURM_LOCALID=str(task), SLURM_NODELIST='n1')
    env = {k: v for k, v in cpu_env.items() if k not in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR')}
    return {**env, **with_slurm, **more}


@pytest.mark.slow
@pytest.mark.parametrize('address', ['given', pytest.param('scontrol', marks=pytest.mark.long)])
def test_slurm_start_on_the_cpu(cpu_env, free_port, tmp_path, address):
    """Two tasks over loopback; the address given, or asked of ``scontrol`` (a fake one here)."""
    more = dict(MASTER_PORT=free_port())
    if address == 'given':
        more['MASTER_ADDR'] = '127.0.0.1'
    else:
        (tmp_path / 'scontrol').write_text('#!/bin/sh\n[ "$*" = "show hostname n1" ] && echo 127.0.0.1 && echo n2\n')
        (tmp_path / 'scontrol').chmod(0o755)
        more['PATH'] = f'{tmp_path}{os.pathsep}{cpu_env["PATH"]}'
    tasks = [
        subprocess.Popen(
            [sys.executable, '-c', START],
            env=slurm_env(cpu_env, task, **more),
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for task in range(2)
    ]
    ends = [(*task.communicate(timeout=120), task.returncode) for task in tasks]
    assert [code for _, _, code in ends] == [0, 0], ends
    assert [out for out, _, _ in ends] == ['0 2 3.0\n', '1 2 3.0\n']


@pytest.mark.long
@pytest.mark.slow
def test_training_under_slurm(root, cpu_env, free_port, workplace):
    """tools/train.py as srun starts it: two tasks train an epoch together."""
    command = [
        sys.executable,
        root / 'tools' / 'train.py',
        root / 'configs' / 'ccd_r18_digits.py',
        '--launcher',
        'slurm',
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'train_dataloader.batch_size=8',
        *(
            f'{part}_dataloader.{key}'
            for part in ('train', 'val')
            for key in ('num_workers=0', 'persistent_workers=False')
        ),
    ]
    more = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    tasks = [
        subprocess.Popen(
            command,
            env=slurm_env(cpu_env, task, **more),
            cwd=workplace,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for task in range(2)
    ]
    outputs = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs[0][-3000:]
    assert 'Epoch(val) [1][1/1]' in outputs[0]  # 20 digits for two
    assert 'accuracy/top1' in outputs[0]
    assert 'accuracy/top1' not in outputs[1]
    (workplace / 'work_dirs' / 'ccd_r18_digits' / 'epoch_1.pth').unlink()  # it is there, and large
