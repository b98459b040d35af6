"""A piece of the attention bench: one training with one seed, its test, and the same test on corrupted images."""

from __future__ import annotations

import copy
import datetime
import glob
import hashlib
import json
import os.path as osp
import platform
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import TestLoop

import mmccd
from mmccd.analysis.bench import controls, corruptions  # noqa: F401  registers what plans name
from mmccd.analysis.bench.plan import Arm, Data, Plan
from mmccd.analysis.bench.rows import Row, attention_text
from mmccd.checkpoints.files import remove_with_checksum, valid_json, write_atomically
from mmccd.checkpoints.resume import newest_checkpoint, set_resume
from mmccd.configs import load_config
from mmccd.errors import UserError, suggest

from .checks import check_data
from .logs import prepare_logs
from .runner import build_runner

RESULT, WEIGHTS = 'result.json', 'weights.pth'


def piece_folder(work_dir: str, data: Data, arm: Arm, seed: int) -> str:
    return osp.join(work_dir, data.name, arm.name, f'seed_{seed}')


def config_path(data: Data, arm: Arm) -> str:
    """The config file of an arm.

    Raises:
        UserError: If it is not there; the message has the nearest name.
    """
    path = data.config.format(arm=arm.prefix)
    if not osp.isfile(path):
        known = [osp.basename(p) for p in glob.glob(osp.join(osp.dirname(path) or '.', '*.py'))]
        raise UserError(f'data {data.name}, arm {arm.name}: no config {path}{suggest(osp.basename(path), known)}')
    return path


def piece_config(data: Data, arm: Arm) -> Config:
    """The config of a piece, without what depends on its seed.

    Trained without validation, tested once after the last epoch, on the CPU and on GPUs alike; one worker process
    would save nothing on a CPU, so there is none.

    Raises:
        UserError: If the config or an option is not right.
    """
    cfg = load_config(config_path(data, arm), dict(data.options))
    if arm.attention is not None:
        cfg.model.backbone.attention = dict(arm.attention)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=1, save_best=None)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.launcher = 'none'
    return cfg


def recipe_of(cfg: Config, data: Data, threads: int) -> str:
    """Start of the SHA-256 of what all arms of a table have to have in common: everything but the attention."""
    content = copy.deepcopy(cfg.to_dict())
    content.pop('attention', None)  # the configs' bases keep it there as well
    content['model']['backbone'].pop('attention', None)
    init_cfg = content['model']['backbone'].get('init_cfg')
    if data.backbones and init_cfg:
        init_cfg['checkpoint'] = data.backbones
    subsets = [data.train_every, data.test_every, data.corrupted_every, threads]
    text = json.dumps([content, subsets], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def manifest_sha256(data: Data) -> str:
    """SHA-256 of the data, from its manifest.

    Raises:
        UserError: If there is none: the data is not made, or half.
    """
    try:
        with open(data.manifest, encoding='utf-8') as f:
            return json.load(f)['sha256'][:12]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f'data {data.name}: {data.manifest} is no manifest of made data: make it with: {data.make}'
        ) from None


def do_piece(plan: Plan, data: Data, arm: Arm, seed: int, work_dir: str, commit: str) -> list[Row]:
    """Train, or resume, test, and write the rows to ``result.json`` in the piece's folder.

    Its checkpoints are removed then, its weights stay.
    """
    folder = piece_folder(work_dir, data, arm, seed)
    start = datetime.datetime.now()
    cfg = piece_config(data, arm)
    recipe, sha256 = recipe_of(cfg, data, plan.threads), manifest_sha256(data)
    cfg.work_dir = folder
    cfg.randomness = dict(seed=seed)
    if data.backbones:
        path = osp.abspath(osp.join(piece_folder(work_dir, plan.data[data.backbones], arm, seed), WEIGHTS))
        if not osp.isfile(path):
            raise UserError(f'{path} is not there: run {data.backbones} with {arm.name} and seed {seed} first')
        cfg.model.backbone.init_cfg.checkpoint = path
    check_data(cfg, ('train', 'test'))
    if newest_checkpoint(folder)[0]:
        set_resume(cfg, 'auto').hand_over()
    prepare_logs(cfg)
    use_every(cfg.train_dataloader, data.train_every, seed, cfg.default_scope)
    clean = copy.deepcopy(cfg.test_dataloader)
    use_every(cfg.test_dataloader, data.test_every, 0, cfg.default_scope)
    runner = build_runner(cfg)
    runner.train()
    metrics = {data.metric: runner.test()[data.metric]}
    if data.corrupted_every:
        use_every(clean, data.corrupted_every, 0, cfg.default_scope)
        for kind in corruptions.KINDS:
            loader = copy.deepcopy(clean)
            loader.dataset.pipeline.insert(1, dict(type='mmccd.BenchCorruption', kind=kind))
            loop = TestLoop(runner, loader, copy.deepcopy(cfg.test_evaluator))
            metrics[f'{kind} {data.metric}'] = loop.run()[data.metric]
    torch.save(dict(state_dict=runner.model.state_dict(), meta=dict(config=cfg.pretty_text)), osp.join(folder, WEIGHTS))
    seconds = (datetime.datetime.now() - start).total_seconds()
    rest = (
        recipe,
        sha256,
        attention_text(arm.attention or cfg.model.backbone.get('attention')),
        commit,
        mmccd.__version__,
        torch.__version__,
        device_name(),
        str(datetime.date.today()),
    )
    rows = [Row(data.name, arm.name, seed, m, round(float(v), 4), round(seconds, 1), *rest) for m, v in metrics.items()]
    text = valid_json([r.__dict__ for r in rows], indent=2)
    write_atomically(osp.join(folder, RESULT), text.encode())
    for path in glob.glob(osp.join(glob.escape(folder), 'epoch_*.pth')):
        remove_with_checksum(path)
    return rows


def read_result(folder: str) -> list[Row] | None:
    """The rows of a finished piece; None if it is not."""
    try:
        with open(osp.join(folder, RESULT), encoding='utf-8') as f:
            return [Row(**r) for r in json.load(f)]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as e:
        raise UserError(f'{osp.join(folder, RESULT)} cannot be read: {e}; remove it, and the piece is run again') from e


def use_every(loader: Mapping[str, Any], step: int, first: int, scope: str) -> None:
    """Let a loader use every ``step``-th image, from one that ``first`` shifts."""
    if step == 1:
        return
    dataset = loader['dataset']
    while 'dataset' in dataset:  # RepeatDataset and its like
        dataset = dataset['dataset']
    with DefaultScope.overwrite_default_scope(scope):
        count = len(DATASETS.build(copy.deepcopy(dataset)))
    dataset['indices'] = list(range(first % step, count, step))


def device_name() -> str:
    """Model of the GPU, or of the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as f:
            return next(line.split(':')[1].strip() for line in f if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
