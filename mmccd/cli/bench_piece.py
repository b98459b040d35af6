"""A piece of the attention bench: one training with one seed, its test, and the same test on corrupted images."""

from __future__ import annotations

import copy
import datetime
import glob
import hashlib
import json
import math
import os
import os.path as osp
from collections.abc import Mapping
from typing import Any

import torch
from filelock import FileLock, Timeout
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import TestLoop

import mmccd
from mmccd.analysis.bench import controls, corruptions  # noqa: F401  registers what plans name
from mmccd.analysis.bench.plan import Arm, Data, Plan
from mmccd.analysis.bench.rows import Row, attention_text, differences
from mmccd.checkpoints.files import remove_with_checksum, valid_json, write_atomically
from mmccd.checkpoints.resume import set_resume
from mmccd.checkpoints.write import checkpoint_bytes
from mmccd.configs import load_config
from mmccd.env import processor_name
from mmccd.errors import UserError, suggest

from .arguments import require_entries
from .checks import check_data
from .logs import prepare_logs
from .made_data import made_sha256
from .metric_names import classes_of, metric_names
from .runner import build_runner

ORIGIN, RESULT, WEIGHTS = 'origin.json', 'result.json', 'weights.pth'


def piece_folder(work_dir: str, data: Data, arm: Arm, seed: int) -> str:
    return osp.join(work_dir, data.name, arm.name, f'seed_{seed}')


def config_path(data: Data, arm: Arm) -> str:
    """The config file of an arm.

    Raises:
        UserError: If it is not there; the message has the nearest name.
    """
    path = data.config.replace('{arm}', arm.prefix)
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
    path = config_path(data, arm)
    cfg = load_config(path, dict(data.options))
    require_entries(cfg, path, 'model', 'train_dataloader', 'test_dataloader', 'test_evaluator', 'default_hooks')
    if cfg.model.get('backbone') is None:
        raise UserError(f'{path} has no model.backbone, whose attentions are compared')
    if data.backbones and not (cfg.model.backbone.get('init_cfg') or {}).get('checkpoint'):
        raise UserError(
            f'{path} has no model.backbone.init_cfg.checkpoint, which data.{data.name}.backbones, {data.backbones!r}, '
            'takes the place of'
        )
    if arm.attention is not None:
        cfg.model.backbone.attention = dict(arm.attention)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=1, save_best=None)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.launcher = 'none'
    return cfg


def recipe_and_attention(plan: Plan, data: Data, arm: Arm) -> dict[str, str]:
    """Of a piece, as its rows have them.

    The recipe is the start of the SHA-256 of what all arms of a table have to have in common: everything but the
    attention.
    """
    content = copy.deepcopy(piece_config(data, arm).to_dict())
    content.pop('attention', None)  # the configs' bases keep it there as well
    attention = content['model']['backbone'].pop('attention', None)
    if data.backbones:
        source = recipe_and_attention(plan, plan.data[data.backbones], arm)
        content['model']['backbone']['init_cfg']['checkpoint'] = source['recipe']
    subsets = [data.train_every, data.test_every, data.corrupted_every, plan.threads]
    text = json.dumps([content, subsets], sort_keys=True, default=str)
    return dict(recipe=hashlib.sha256(text.encode()).hexdigest()[:12], attention=attention_text(attention))


def surroundings(data: Data) -> dict[str, str]:
    """Data, PyTorch and device of a piece that is run now, as its rows have them; UserError if data is not made."""
    sha256 = made_sha256(data.manifest, data.make)[:12]
    return dict(sha256=sha256, torch=torch.__version__, device=device_name())


def check_metric(data: Data, arm: Arm) -> None:
    """UserError if the evaluator of a piece does not give the metric of its data; one that is not known may."""
    cfg = piece_config(data, arm)
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
    classes = classes_of(cfg, 'test_dataloader')
    names = [metric_names(evaluator, cfg.get('default_scope'), classes) for evaluator in evaluators]
    known = [name for of in names for name in of or ()]
    if None not in names and data.metric not in known:
        near = suggest(data.metric, known) or f'; it gives {", ".join(known)}'
        raise UserError(f'data.{data.name}.metric: the evaluator gives no {data.metric!r}{near}')


def do_piece(plan: Plan, data: Data, arm: Arm, seed: int, work_dir: str, commit: str) -> list[Row]:
    """Train, or resume, test, and write the rows to ``result.json`` in the piece's folder.

    Its checkpoints are removed then, its weights stay.

    Raises:
        UserError: If another process trains the piece, or its folder has a checkpoint of another one.
    """
    folder = piece_folder(work_dir, data, arm, seed)
    os.makedirs(folder, exist_ok=True)
    try:
        with FileLock(osp.join(folder, 'lock'), timeout=0):
            return _do_piece(plan, data, arm, seed, work_dir, commit)
    except Timeout:  # of a bench that was killed, whose pieces live on
        raise UserError(f'{folder}: another process trains this piece: wait for its end') from None


def _do_piece(plan: Plan, data: Data, arm: Arm, seed: int, work_dir: str, commit: str) -> list[Row]:
    folder = piece_folder(work_dir, data, arm, seed)
    start = datetime.datetime.now()
    cfg = piece_config(data, arm)
    origin = recipe_and_attention(plan, data, arm) | surroundings(data)
    cfg.work_dir = folder
    cfg.randomness = dict(seed=seed)
    if data.backbones:
        path = osp.abspath(osp.join(piece_folder(work_dir, plan.data[data.backbones], arm, seed), WEIGHTS))
        if not osp.isfile(path):
            raise UserError(f'{path} is not there: run {data.backbones} with {arm.name} and seed {seed} first')
        cfg.model.backbone.init_cfg.checkpoint = path
    check_data(cfg, ('train', 'test'))
    resumed = set_resume(cfg, 'auto')
    if resumed is None:
        write_atomically(osp.join(folder, ORIGIN), valid_json(origin, indent=2).encode())
    else:
        check_origin(folder, read_origin(folder), origin)
        resumed.hand_over()
    prepare_logs(cfg)
    use_every(cfg.train_dataloader, data.train_every, seed, cfg.default_scope)
    clean = copy.deepcopy(cfg.test_dataloader)
    use_every(cfg.test_dataloader, data.test_every, 0, cfg.default_scope)
    runner = build_runner(cfg)
    runner.train()
    metrics = {data.metric: runner.test().get(data.metric)}
    if data.corrupted_every:
        use_every(clean, data.corrupted_every, 0, cfg.default_scope)
        for kind in corruptions.KINDS:
            loader = copy.deepcopy(clean)
            loader.dataset.pipeline.insert(1, dict(type='mmccd.BenchCorruption', kind=kind))
            loop = TestLoop(runner, loader, copy.deepcopy(cfg.test_evaluator))
            metrics[f'{kind} {data.metric}'] = loop.run().get(data.metric)
    for name, value in metrics.items():
        if value is None or not math.isfinite(value):
            raise UserError(f'{name} is {value} after the training, and cannot be compared')
    weights = dict(state_dict=runner.model.state_dict(), meta=dict(config=cfg.pretty_text))
    write_atomically(osp.join(folder, WEIGHTS), checkpoint_bytes(weights))
    seconds = round((datetime.datetime.now() - start).total_seconds(), 1)
    rest = dict(origin, commit=commit, mmccd=mmccd.__version__, date=str(datetime.date.today()))
    rows = [Row(data.name, arm.name, seed, m, round(float(v), 4), seconds, **rest) for m, v in metrics.items()]
    write_atomically(osp.join(folder, RESULT), valid_json([vars(r) for r in rows], indent=2).encode())
    for path in glob.glob(osp.join(glob.escape(folder), 'epoch_*.pth')):
        remove_with_checksum(path)
    return rows


def finished_piece(folder: str, origin: Mapping[str, str]) -> list[Row] | None:
    """The rows of a piece that is finished and whose weights are there; else None.

    Raises:
        UserError: If it is another piece than that of today's plan, or its rows cannot be read.
    """
    path = osp.join(folder, RESULT)
    if not osp.isfile(path) or not osp.isfile(osp.join(folder, WEIGHTS)):
        return None
    try:
        with open(path, encoding='utf-8') as f:
            rows = [Row(**r) for r in json.load(f)]
        check_origin(folder, vars(rows[0]), origin)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, IndexError) as e:
        raise UserError(f'{path} cannot be read: {e}; remove it, and the piece is run again') from e
    return rows


def read_origin(folder: str) -> dict[str, str]:
    """What the training in a piece's folder was begun with; nothing if it cannot be read."""
    try:
        with open(osp.join(folder, ORIGIN), encoding='utf-8') as f:
            found = json.load(f)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def check_origin(folder: str, found: Mapping[str, Any], origin: Mapping[str, str]) -> None:
    """UserError if a piece's folder has another piece than that of today's plan."""
    others = differences(found, origin)
    if others:
        raise UserError(f'{folder} has another piece: {", ".join(others)}; choose another --work-dir, or remove it')


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
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
