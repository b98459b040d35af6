"""Trainings of configs with several seeds, by the tools: kept when finished, and resumed when not."""

from __future__ import annotations

import argparse
import datetime
import glob
import hashlib
import json
import os
import os.path as osp
import platform
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from mmengine.config import Config

import mmccd
from mmccd.analysis.seeds import METRICS, Result, summarise, table
from mmccd.checkpoints.files import valid_json, write_atomically
from mmccd.checkpoints.resume import newest_checkpoint
from mmccd.configs import config_name, load_config
from mmccd.env import is_local
from mmccd.errors import UserError, suggest
from mmccd.models.build import build_model

from .arguments import require_entries
from .checks import check_data
from .initial_weights import check_init_checkpoint, check_load_from
from .outputs import check_file, check_folder


def check_runs(args: argparse.Namespace) -> None:
    """Check the arguments of ``run_seeds.py`` before hours of training; UserError if one is wrong."""
    if not args.configs:
        raise UserError('name the config files to compare, or a file of results with --from')
    for option, value, minimum in (('--seeds', args.seeds, 1), ('--gpus', args.gpus, 1)):
        if value is not None and value < minimum:
            raise UserError(f'{option} must be at least {minimum}, got {value}')
    check_folder(args.work_dir, '--work-dir')
    if args.csv:
        check_file(args.csv, '--csv')
    names = [config_name(c) for c in args.configs]
    double = sorted({n for n in names if names.count(n) > 1})
    if double:
        raise UserError(f'each config once, and no two with the same name; got {", ".join(double)} more than once')
    for key in args.cfg_options or {}:
        if key in ('randomness.seed', 'work_dir'):
            raise UserError(f'--cfg-options {key}: run_seeds.py sets it (--seeds, --first-seed, --work-dir)')
    for config in args.configs:
        cfg = load_config(config, args.cfg_options)
        require_entries(cfg, config, 'model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
        check_data(cfg, ('train', 'val'))
        model = build_model(cfg)
        if not args.backbones:
            check_init_checkpoint(cfg, model)
            check_load_from(cfg, model)


def chosen(
    results: Sequence[Result], configs: Sequence[str], source: str, metric: str | None
) -> tuple[list[Result], str | None, list[str] | None]:
    """Arguments of :func:`results_table` for the configs (names or files) that are asked for; all if none is.

    Raises:
        UserError: If a config has no results in ``source``.
    """
    names = [config_name(c) for c in configs]
    known = {r.config for r in results}
    for name in names:
        if name not in known:
            near = suggest(name, known) or f'; it has {", ".join(sorted(known))}'
            raise UserError(f'--from {source}: there are no results of {name!r}{near}')
    return [r for r in results if not names or r.config in names], metric, names or None


def results_table(results: Sequence[Result], metric: str | None, order: Sequence[str] | None = None) -> str:
    """The table of a metric.

    Args:
        results (Sequence[Result]): Of all runs.
        metric (str, optional): Default: the first of ``METRICS`` that was measured.
        order (Sequence[str], optional): Names of the configs; differences are to the first. Default: as they come.

    Raises:
        UserError: If the metric was not measured, or none is given and none of the usual ones was.
    """
    measured = {r.metric for r in results}
    metric = metric or next((m for m in METRICS if m in measured), None)
    if metric is None:
        raise UserError(f'--metric is needed: the runs have {", ".join(sorted(measured)) or "no metric"}')
    try:
        return table(summarise(results, metric, order), metric)
    except ValueError as e:
        raise UserError(f'--metric: {e}') from e


class Run:
    """One config with one seed, in a folder of its own; ``run.json`` in it has its settings and its state.

    Args:
        config (str): Config file.
        seed (int): ``randomness.seed``.
        args (argparse.Namespace): Of ``run_seeds.py``.
        tools (str): The folder of ``train.py``, ``test.py`` and the launchers.

    Raises:
        UserError: If the folder has a run with other settings.
    """

    def __init__(self, config: str, seed: int, args: argparse.Namespace, tools: str) -> None:
        self.config, self.seed, self.gpus, self.tools = config, seed, args.gpus, tools
        self.folder = osp.join(args.work_dir, config_name(config), f'seed_{seed}')
        self.options = [*args.raw_options, f'randomness.seed={seed}']
        self.state = dict(options=args.raw_options, gpus=args.gpus or 1, seconds=0.0, metrics=None)
        cfg = load_config(config, args.cfg_options)
        if args.backbones:
            self.options.append(f'model.backbone.init_cfg.checkpoint={self._backbone(cfg, args.backbones)}')
        text = json.dumps([cfg.to_dict(), self.options, self.state['gpus']], sort_keys=True, default=str)
        self.state['fingerprint'] = hashlib.sha256(text.encode()).hexdigest()
        path = osp.join(self.folder, 'run.json')
        if osp.isfile(path):
            with open(path) as f:
                state = json.load(f)
            if state['fingerprint'] != self.state['fingerprint']:
                raise UserError(
                    f'{self.folder} has a run with other settings (its --cfg-options: '
                    f'{" ".join(state["options"]) or "none"}; or its config has changed): choose another '
                    '--work-dir, or remove it'
                )
            self.state = state

    def _backbone(self, cfg: Config, folder: str) -> str:
        init_cfg = cfg.model.backbone.get('init_cfg') or {}
        if not isinstance(init_cfg, dict) or not init_cfg.get('checkpoint') or not is_local(init_cfg.checkpoint):
            raise UserError(
                f'--backbones: {self.config} has no model.backbone.init_cfg.checkpoint that is a file, so '
                'there is nothing to replace by a trained backbone'
            )
        folder = osp.join(folder, config_name(init_cfg.checkpoint), f'seed_{self.seed}')
        path, _ = newest_checkpoint(folder)
        if path is None:
            raise UserError(
                f'--backbones: {folder} has no checkpoint; train it first with: run_seeds.py '
                f'{osp.join(osp.dirname(self.config), config_name(init_cfg.checkpoint))}.py'
            )
        return path

    def save(self) -> None:
        os.makedirs(self.folder, exist_ok=True)
        write_atomically(osp.join(self.folder, 'run.json'), valid_json(self.state, indent=2).encode())

    def _call(self, tool: str, *args: str) -> None:
        """Run a tool; its output is appended to ``run.log``."""
        if self.gpus:
            command = ['bash', osp.join(self.tools, f'dist_{tool}.sh'), *args]
        else:
            command = [sys.executable, osp.join(self.tools, f'{tool}.py'), *args]
        start = time.monotonic()
        with open(osp.join(self.folder, 'run.log'), 'a') as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                process.wait()
            except KeyboardInterrupt:
                process.wait()  # a terminal sends Ctrl-C to the tool as well, and a training saves
                raise KeyboardInterrupt('the same command continues') from None
            finally:
                if process.poll() is None:  # a second Ctrl-C
                    process.kill()
                    process.wait()
                if tool == 'train':
                    self.state['seconds'] += time.monotonic() - start
                self.save()
        if process.returncode:
            raise RuntimeError(f'tools/{tool} ended with exit code {process.returncode}, see {log.name}')

    def do(self) -> None:
        """Train, or resume, and note the last epoch's metrics.

        Raises:
            RuntimeError: If a tool fails, or its evaluation gives no metric.
        """
        self.save()
        gpus = [str(self.gpus)] if self.gpus else []
        resume = ['--resume'] if newest_checkpoint(self.folder)[0] else []
        self._call('train', self.config, *gpus, '--work-dir', self.folder, *resume, '--cfg-options', *self.options)
        metrics = self._last_metrics()
        if not metrics:  # interrupted between the last checkpoint and its evaluation
            out = osp.join(self.folder, 'metrics.json')
            checkpoint = newest_checkpoint(self.folder)[0]
            where = ('--work-dir', self.folder, '--out', out, '--out-item', 'metrics')
            self._call('test', self.config, checkpoint, *gpus, *where, '--cfg-options', *self.options)
            with open(out) as f:
                metrics = json.load(f)
        metrics = {k: v for k, v in metrics.items() if isinstance(v, (int, float)) and '/' in k}
        if not metrics:
            raise RuntimeError(
                'its evaluation gave no metric (MMDetection gives none if a detector finds nothing '
                f'above model.test_cfg.score_thr), see {osp.join(self.folder, "run.log")}'
            )
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + ' CPU'
        self.state.update(
            metrics=metrics,
            device=device,
            torch=torch.__version__,
            mmccd=mmccd.__version__,
            date=str(datetime.date.today()),
        )
        self.save()

    def _last_metrics(self) -> dict[str, float]:
        """Metrics of the newest log, if the run was evaluated after its last epoch."""
        logs = sorted(glob.glob(osp.join(glob.escape(self.folder), '*', 'vis_data', 'scalars.json')))
        if not logs:
            return {}
        with open(logs[-1]) as f:
            lines = f.readlines()
        last = json.loads(lines[-1]) if lines else {}
        return {} if 'loss' in last else last

    def results(self) -> list[Result]:
        """A result for each metric; none of a run that is not finished."""
        s = self.state
        rest = (' '.join(s['options']), s['device'], s['torch'], s['mmccd'], s['date']) if s['metrics'] else ()
        return [
            Result(config_name(self.config), self.seed, metric, round(value, 4), round(s['seconds'], 1), *rest)
            for metric, value in (s['metrics'] or {}).items()
        ]
