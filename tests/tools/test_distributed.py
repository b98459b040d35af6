"""Processes, nodes and shards: however a training is divided, its result is the same."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.long

CLASSIFIER = 'ccd_r18_digits'
# 16 digits, 8 a process: two steps an epoch with a batch of 4. Nothing random but their order, which depends on seed
# and epoch alone. Momentum SGD: AdamW amplifies rounding errors of small gradients to whole steps.
OPTIONS = [
    *(
        f'{part}_dataloader.{key}'
        for part in ('train', 'val', 'test')
        for key in ('num_workers=0', 'persistent_workers=False')
    ),
    'train_dataloader.batch_size=4',
    'train_dataloader.dataset.indices=16',
    'default_hooks.logger.interval=1',
    'optim_wrapper.optimizer.type=SGD',
    'optim_wrapper.optimizer.lr=0.01',
    'optim_wrapper.optimizer.momentum=0.9',
    'train_dataloader.dataset.pipeline.1.crop_ratio_range=(1.,1.)',
    'train_dataloader.dataset.pipeline.1.aspect_ratio_range=(1.,1.)',
    'train_dataloader.dataset.pipeline.2.prob=0.',
    'train_dataloader.dataset.pipeline.3.prob=0.',
]


def load(path: Path) -> dict:
    return torch.load(path, weights_only=False)


def last_run(work_dir: Path) -> Path:
    return max(p for p in work_dir.iterdir() if (p / 'vis_data').is_dir())


def log(work_dir: Path) -> str:
    run = last_run(work_dir)
    return (run / f'{run.name}.log').read_text()


def losses(work_dir: Path) -> list[float]:
    run = last_run(work_dir)
    rows = map(json.loads, (run / 'vis_data' / 'scalars.json').read_text().splitlines())
    return [row['loss'] for row in rows if 'loss' in row]


@pytest.fixture(scope='module')
def place(folder, digits) -> Path:
    (folder / 'data').mkdir()
    (folder / 'data' / 'digits').symlink_to(digits)
    return folder


@pytest.fixture(scope='module')
def one_node(run_tool, free_port, root, place) -> Path:
    """Work folder of two epochs by two processes of one node."""
    run_tool(
        'dist_train.sh',
        root / f'configs/{CLASSIFIER}.py',
        2,
        '--work-dir',
        'one_node',
        '--cfg-options',
        *OPTIONS,
        'train_cfg.max_epochs=2',
        cwd=place,
        PORT=free_port(),
    )
    return place / 'one_node'


@pytest.mark.slow
def test_batch_and_learning_rate_in_the_log(one_node):
    text = log(one_node)
    assert (
        '2 processes x 4 images = global batch 8; learning rate 0.01, by linear scaling from 0.01 at batch 64: '
        '0.00125\n' in text
    )
    assert text.count('the learning rate 0.01 does not follow the global batch of 8: add --auto-scale-lr') == 1


@pytest.mark.slow
def test_two_nodes_train_as_one(one_node, root, place, cpu_env, free_port):
    """Two torchrun agents with a process each, on this machine: bit for bit what one agent with two processes gives."""
    env = {**cpu_env, 'NNODES': '2', 'MASTER_ADDR': '127.0.0.1', 'PORT': free_port()}
    command = [
        'bash',
        root / 'tools/dist_train.sh',
        root / f'configs/{CLASSIFIER}.py',
        '1',
        '--work-dir',
        'two_nodes',
        '--cfg-options',
        *OPTIONS,
        'train_cfg.max_epochs=2',
    ]
    nodes = [
        subprocess.Popen(
            command,
            env={**env, 'NODE_RANK': str(rank)},
            cwd=place,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    outputs = [node.communicate(timeout=600)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    assert '2 processes x 4 images = global batch 8' in outputs[0]
    assert 'global batch' not in outputs[1]
    expected, found = (load(path / 'epoch_2.pth')['state_dict'] for path in (one_node, place / 'two_nodes'))
    assert list(found) == list(expected)
    assert [k for k in expected if not torch.equal(found[k], expected[k])] == []
    assert losses(place / 'two_nodes') == losses(one_node)
    start = load(one_node / 'epoch_1.pth')['state_dict']
    assert [k for k, v in expected.items() if torch.equal(v, start[k])] == []


# In every Python that finds it: what a process of a group opens, by their paths, is written when it ends.
SITECUSTOMIZE = """
import atexit, collections, json, os, sys

if 'RANK' in os.environ:
    opened = collections.Counter()

    def count(event, arguments):
        if event == 'open' and isinstance(arguments[0], (str, os.PathLike)):
            name = os.fspath(arguments[0])
            # An open file that is mapped has a name of its own, which leads to the path.
            mapped = name.startswith('/proc/self/fd/')
            path = os.path.realpath(name)
            if path.endswith('.pth'):
                opened[('mapped ' if mapped else 'opened ') + os.path.basename(path)] += 1

    sys.addaudithook(count)

    @atexit.register
    def write():
        with open(os.path.join(os.environ['OPENED'], os.environ['RANK'] + '.json'), 'w') as f:
            json.dump(opened, f)
"""


@pytest.mark.slow
def test_each_process_opens_the_checkpoint_once(run_tool, free_port, root, place, one_node, tmp_path):
    """To check it, and to resume from it; then training continues as if there had been no interruption."""
    (tmp_path / 'sitecustomize.py').write_text(SITECUSTOMIZE)
    (place / 'resumed').mkdir()
    shutil.copy(one_node / 'epoch_1.pth', place / 'resumed')
    run_tool(
        'dist_train.sh',
        root / f'configs/{CLASSIFIER}.py',
        2,
        '--resume',
        '--work-dir',
        'resumed',
        '--cfg-options',
        *OPTIONS,
        'train_cfg.max_epochs=2',
        'default_hooks.checkpoint.max_keep_ckpts=-1',
        cwd=place,
        PORT=free_port(),
        PYTHONPATH=str(tmp_path),
        OPENED=str(tmp_path),
    )
    for rank in range(2):
        opened = json.loads((tmp_path / f'{rank}.json').read_text())
        assert opened['opened epoch_1.pth'] == 1, opened
        assert opened.get('mapped epoch_1.pth', 0) <= 1, opened
    expected, found = (load(path / 'epoch_2.pth')['state_dict'] for path in (one_node, place / 'resumed'))
    assert [k for k in expected if not torch.equal(found[k], expected[k])] == []


@pytest.fixture(scope='module')
def sharded(run_tool, free_port, root, place) -> Path:
    """Work folder of an epoch of the same, sharded, and a second one after resuming."""
    (place / 'sharded.py').write_text(f"_base_ = ['{root}/configs/{CLASSIFIER}.py', '{root}/configs/_base_/fsdp.py']\n")
    for epochs, resume in ((1, []), (2, ['--resume'])):
        run_tool(
            'dist_train.sh',
            'sharded.py',
            2,
            *resume,
            '--work-dir',
            'sharded',
            '--cfg-options',
            *OPTIONS,
            f'train_cfg.max_epochs={epochs}',
            'default_hooks.checkpoint.save_best=None',
            cwd=place,
            PORT=free_port(),
        )
    return place / 'sharded'


@pytest.mark.slow
def test_sharded_training(one_node, sharded, root):
    """Whole checkpoints, of the names and shapes that tools/test.py wants, and what unsharded training gives without
    an interruption: weights, momentum and schedule were restored.
    """
    from mmccd.checkpoints.fit import load_whole_checkpoint
    from mmccd.configs import load_config
    from mmccd.models.build import build_model

    model = build_model(load_config(str(root / f'configs/{CLASSIFIER}.py')))
    load_whole_checkpoint(sharded / 'epoch_2.pth', model)
    expected, found = (load(path / 'epoch_2.pth') for path in (one_node, sharded))
    for key, value in expected['state_dict'].items():
        torch.testing.assert_close(found['state_dict'][key], value, rtol=1e-4, atol=1e-5, msg=key)
    # Unsharded, the optimizer numbers its parameters; sharded, it names them.
    state = found['optimizer']['state']
    for number, name in enumerate(n for n, p in model.named_parameters() if p.requires_grad):
        torch.testing.assert_close(
            state[name]['momentum_buffer'],
            expected['optimizer']['state'][number]['momentum_buffer'],
            rtol=1e-3,
            atol=1e-4,
            msg=name,
        )
    assert found['optimizer']['param_groups'][0]['lr'] == pytest.approx(expected['optimizer']['param_groups'][0]['lr'])
    assert (found['meta']['epoch'], found['meta']['iter']) == (2, 4)
    assert losses(sharded) == pytest.approx(losses(one_node)[2:], rel=1e-4)
