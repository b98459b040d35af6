"""Train configs with several seeds each, and compare them seed by seed: mean, standard deviation, paired difference.

Finished runs are kept and interrupted ones resumed, so that the same command goes on where it was. One run at a time,
each by tools/train.py or, with --gpus, by tools/dist_train.sh. The value of a run is that of its last epoch.
"""

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

import torch

import mmccd
from mmccd.analysis.seeds import METRICS, Result, read_results, summarise, table, write_results
from mmccd.checkpoints.resume import newest_checkpoint
from mmccd.cli.arguments import OptionsAction, run_tool
from mmccd.cli.checks import check_data, check_init_checkpoint
from mmccd.configs import load_config
from mmccd.env import is_local
from mmccd.errors import UserError
from mmccd.models.build import build_model

TOOLS = osp.dirname(osp.dirname(osp.abspath(__file__)))
EXAMPLES = """examples:
  python tools/analysis_tools/run_seeds.py configs/r18_digits.py configs/{se,ccd}_r18_digits.py --seeds 3
  python tools/analysis_tools/run_seeds.py configs/retinanet_r18_fpn_digits.py \\
      configs/retinanet_ccd_r18_fpn_digits.py --seeds 3 --backbones work_dirs/seeds --cfg-options train_cfg.max_epochs=2
  python tools/analysis_tools/run_seeds.py --from benchmarks/seeds/digits.csv
"""


class RawOptionsAction(OptionsAction):
    """Keeps the words as well, to hand them on."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        super().__call__(parser, namespace, values, option_string)
        namespace.raw_options = list(values)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='*', metavar='CONFIG', help='config files; differences are to the first')
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='seeds of each config (default: 3)')
    parser.add_argument('--first-seed', type=int, default=0, metavar='K', help='seeds are K, K + 1, ... (default: 0)')
    parser.add_argument(
        '--work-dir', default='work_dirs/seeds', help='runs go to WORK_DIR/<config>/seed_<k> (default: %(default)s)'
    )
    parser.add_argument(
        '--backbones',
        metavar='DIR',
        help='start each detector from the backbone that an earlier call trained with the same seed: '
        'DIR/<name of init_cfg.checkpoint>/seed_<k>',
    )
    parser.add_argument('--gpus', type=int, metavar='N', help='processes of each run (default: one, tools/train.py)')
    parser.add_argument('--metric', help=f'metric of the table (default: {" or ".join(METRICS)})')
    parser.add_argument('--csv', help='write the results of all runs here (default: WORK_DIR/results.csv)')
    parser.add_argument('--from', dest='source', metavar='CSV', help='train nothing, print the table of this file')
    parser.add_argument(
        '--cfg-options', nargs='+', action=RawOptionsAction, help='as in tools/train.py, the same for all runs'
    )
    parser.set_defaults(raw_options=[])
    return parser.parse_args()


def name_of(config: str) -> str:
    return osp.splitext(osp.basename(config))[0]


class Run:
    """One config with one seed, in a folder of its own. ``run.json`` there says what it is and how far.

    Raises:
        UserError: If the folder holds a run of other settings.
    """

    def __init__(self, config: str, seed: int, args: argparse.Namespace) -> None:
        self.config, self.seed, self.gpus = config, seed, args.gpus
        self.folder = osp.join(args.work_dir, name_of(config), f'seed_{seed}')
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
                    f'{self.folder} holds a run with other settings (its --cfg-options: '
                    f'{" ".join(state["options"]) or "none"}; or its config has changed): choose another '
                    '--work-dir, or remove it'
                )
            self.state = state

    def _backbone(self, cfg, folder: str) -> str:
        start = cfg.model.backbone.get('init_cfg') or {}
        if not start.get('checkpoint') or not is_local(start.checkpoint):
            raise UserError(
                f'--backbones: {self.config} has no model.backbone.init_cfg.checkpoint that is a file, so '
                'there is nothing to put a backbone in place of'
            )
        folder = osp.join(folder, name_of(start.checkpoint), f'seed_{self.seed}')
        path, _ = newest_checkpoint(folder)
        if path is None:
            raise UserError(
                f'--backbones: {folder} has no checkpoint; train it first with: run_seeds.py '
                f'{osp.join(osp.dirname(self.config), name_of(start.checkpoint))}.py'
            )
        return path

    def save(self) -> None:
        os.makedirs(self.folder, exist_ok=True)
        path = osp.join(self.folder, 'run.json')
        with open(f'{path}.partial', 'w') as f:
            json.dump(self.state, f, indent=2)
        os.replace(f'{path}.partial', path)

    def _call(self, tool: str, *args: str) -> None:
        """Run a tool, its output behind what is in ``run.log``."""
        if self.gpus:
            command = ['bash', osp.join(TOOLS, f'dist_{tool}.sh'), *args]
        else:
            command = [sys.executable, osp.join(TOOLS, f'{tool}.py'), *args]
        start = time.monotonic()
        with open(osp.join(self.folder, 'run.log'), 'a') as log:
            try:
                done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)
            finally:
                if tool == 'train':
                    self.state['seconds'] += time.monotonic() - start
                self.save()
        if done.returncode:
            raise RuntimeError(f'tools/{tool} ended with exit code {done.returncode}, see {log.name}')

    def do(self) -> None:
        """Train, or go on training, and note the last epoch's metrics.

        Raises:
            RuntimeError: If a tool fails, or nothing was measured.
        """
        self.save()
        gpus = [str(self.gpus)] if self.gpus else []
        resume = ['--resume'] if newest_checkpoint(self.folder)[0] else []
        self._call('train', self.config, *gpus, '--work-dir', self.folder, *resume, '--cfg-options', *self.options)
        metrics = self._last_metrics()
        if not metrics:  # interrupted between the last checkpoint and its evaluation
            out = osp.join(self.folder, 'metrics.json')
            self._call(
                'test',
                self.config,
                newest_checkpoint(self.folder)[0],
                *gpus,
                '--work-dir',
                self.folder,
                '--out',
                out,
                '--out-item',
                'metrics',
                '--cfg-options',
                *self.options,
            )
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

    def _last_metrics(self) -> dict:
        """Those of the newest log, if the run was evaluated after its last epoch."""
        logs = sorted(glob.glob(osp.join(glob.escape(self.folder), '*', 'vis_data', 'scalars.json')))
        if not logs:
            return {}
        with open(logs[-1]) as f:
            lines = f.readlines()
        last = json.loads(lines[-1]) if lines else {}
        return {} if 'loss' in last else last

    def results(self) -> list[Result]:
        """A result a metric; none of a run that is not finished."""
        s = self.state
        rest = (' '.join(s['options']), s['device'], s['torch'], s['mmccd'], s['date']) if s['metrics'] else ()
        return [
            Result(name_of(self.config), self.seed, metric, round(value, 4), round(s['seconds'], 1), *rest)
            for metric, value in (s['metrics'] or {}).items()
        ]


def check(args: argparse.Namespace) -> None:
    """What can be wrong with the arguments, found before hours of training."""
    if not args.configs:
        raise UserError('name the config files to compare, or a file of results with --from')
    for option, value, least in (('--seeds', args.seeds, 1), ('--gpus', args.gpus, 1)):
        if value is not None and value < least:
            raise UserError(f'{option} must be at least {least}, got {value}')
    names = [name_of(c) for c in args.configs]
    double = sorted({n for n in names if names.count(n) > 1})
    if double:
        raise UserError(f'each config once, and no two with the same name; got {", ".join(double)} more than once')
    for key in args.cfg_options or {}:
        if key in ('randomness.seed', 'work_dir'):
            raise UserError(f'--cfg-options {key}: run_seeds.py sets it (--seeds, --first-seed, --work-dir)')
    for config in args.configs:
        cfg = load_config(config, args.cfg_options)
        check_data(cfg, ('train', 'val'))
        model = build_model(cfg)
        if not args.backbones:
            check_init_checkpoint(cfg, model)


def print_table(results: list[Result], metric: str | None, order: list[str] | None = None) -> None:
    measured = {r.metric for r in results}
    metric = metric or next((m for m in METRICS if m in measured), None)
    if metric is None:
        raise UserError(f'--metric is needed: the runs have {", ".join(sorted(measured)) or "no metric"}')
    try:
        print(table(summarise(results, metric, order), metric))
    except ValueError as e:
        raise UserError(f'--metric: {e}') from e


def main() -> None:
    args = parse_args()
    if args.source:
        if args.configs:
            raise UserError(f'--from trains nothing: leave the configs out, got {" ".join(args.configs)}')
        try:
            results = read_results(args.source)
        except (OSError, ValueError) as e:
            raise UserError(f'--from: {e}') from e
        print_table(results, args.metric)
        return
    check(args)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    runs = [Run(config, seed, args) for seed in seeds for config in args.configs]  # a whole seed first
    path = args.csv or osp.join(args.work_dir, 'results.csv')
    failed = []
    for i, run in enumerate(runs, 1):
        label = f'[{i}/{len(runs)}] {name_of(run.config)}, seed {run.seed}'
        if run.state['metrics'] is None:
            print(f'{label}: training', flush=True)
            try:
                run.do()
            except RuntimeError as e:
                print(f'{label}: failed: {e}', flush=True)
                failed.append(label)
                continue
        shown = next(
            (f'{m} {run.state["metrics"][m]:g}' for m in (args.metric, *METRICS) if m in run.state['metrics']), 'done'
        )
        print(f'{label}: {shown} ({run.state["seconds"]:.0f} s)', flush=True)
        write_results(path, [r for run in runs for r in run.results()])
    results = [r for run in runs for r in run.results()]
    if results:
        print()
        print_table(results, args.metric, [name_of(c) for c in args.configs])
        print(f'\nall metrics of all runs: {path}')
    if failed:
        print(f'error: {len(failed)} of {len(runs)} runs failed', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    run_tool(main)
