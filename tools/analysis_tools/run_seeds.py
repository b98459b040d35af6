"""Train configs with several seeds each, and compare them seed by seed: mean, standard deviation, paired difference.

Finished runs are kept and interrupted ones resumed, so that the same command continues where it stopped. One run at a
time, each by tools/train.py or, with --gpus, by tools/dist_train.sh. The value of a run is that of its last epoch.
"""

from __future__ import annotations

import argparse
import os.path as osp
import sys

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet
from mmccd.analysis.seeds import METRICS, read_results, write_results
from mmccd.cli.arguments import OptionsAction, run_tool
from mmccd.cli.parser import tool_parser
from mmccd.cli.seed_runs import Run, check_runs, chosen, results_table
from mmccd.configs import config_name
from mmccd.errors import UserError

TOOLS = osp.dirname(osp.dirname(osp.abspath(__file__)))
EXAMPLES = """examples:
  python tools/analysis_tools/run_seeds.py configs/r18_digits.py configs/{se,ccd}_r18_digits.py --seeds 3
  python tools/analysis_tools/run_seeds.py configs/retinanet_r18_fpn_digits.py \\
      configs/retinanet_ccd_r18_fpn_digits.py --seeds 3 --backbones work_dirs/seeds --cfg-options train_cfg.max_epochs=2
  python tools/analysis_tools/run_seeds.py --from benchmarks/seeds/digits.csv r18_digits se_r18_digits ccd_r18_digits
"""


class RawOptionsAction(OptionsAction):
    """Also keeps the words, to pass them on."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        super().__call__(parser, namespace, values, option_string)
        namespace.raw_options = list(values)


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument('configs', nargs='*', metavar='CONFIG', help='config files; differences are to the first')
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='seeds of each config (default: 3)')
    parser.add_argument('--first-seed', type=int, default=0, metavar='K', help='seeds are K, K + 1, ... (default: 0)')
    parser.add_argument(
        '--work-dir', default='work_dirs/seeds', help='runs go to WORK_DIR/<config>/seed_<k> (default: %(default)s)'
    )
    parser.add_argument(
        '--backbones',
        metavar='DIR',
        help='initialise each detector with the backbone that an earlier call trained with the same seed: '
        'DIR/<name of init_cfg.checkpoint>/seed_<k>',
    )
    parser.add_argument('--gpus', type=int, metavar='N', help='processes of each run (default: one, tools/train.py)')
    parser.add_argument('--metric', help=f'metric of the table (default: {" or ".join(METRICS)})')
    parser.add_argument('--csv', help='write the results of all runs here (default: WORK_DIR/results.csv)')
    parser.add_argument(
        '--from', dest='source', metavar='CSV', help='do not train: print the table of this file, with these configs'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=RawOptionsAction, help='as in tools/train.py, the same for all runs'
    )
    parser.set_defaults(raw_options=[])
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.source:
        try:
            results = read_results(args.source)
        except (OSError, ValueError) as e:
            raise UserError(f'--from: {e}') from e
        print(results_table(*chosen(results, args.configs, args.source, args.metric)))
        return
    check_runs(args)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    runs = [Run(config, seed, args, TOOLS) for seed in seeds for config in args.configs]  # a whole seed first
    path = args.csv or osp.join(args.work_dir, 'results.csv')
    failed = []
    for i, run in enumerate(runs, 1):
        label = f'[{i}/{len(runs)}] {config_name(run.config)}, seed {run.seed}'
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
        print(results_table(results, args.metric, [config_name(c) for c in args.configs]))
        print(f'\nall metrics of all runs: {path}')
    if failed:
        print(f'error: {len(failed)} of {len(runs)} runs failed', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    run_tool(main)
