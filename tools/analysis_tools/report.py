"""Compare runs: one self-contained HTML page about work folders.

Metrics with AP by size, curves, classes, worst and best images beside the ground truth, attention maps, complexity,
speed, and the differences of the configs. Runs of a task are compared with the first one of it. What is not available
is left out, and the page gives the reason.
"""

import argparse
import os
import os.path as osp
import shlex
import sys

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet
from mmccd.analysis.report import Options, Report, read_runs, record
from mmccd.apis import checked_device
from mmccd.checkpoints.files import write_atomically
from mmccd.cli.arguments import run_tool
from mmccd.cli.numbers import whole_number
from mmccd.cli.outputs import check_folder
from mmccd.cli.parser import RenamedOption, tool_parser
from mmccd.errors import UserError

EXAMPLES = """examples:
  python tools/analysis_tools/report.py work_dirs/retinanet_r50_fpn_1x_coco work_dirs/retinanet_ccd_r50_fpn_1x_coco
  python tools/analysis_tools/report.py WORK_DIR --limit 200 --no-speed --out report.html
Detections are read from a COCO result file in the work folder, or where the last tools/test.py wrote one
(--cfg-options test_evaluator.outfile_prefix=WORK_DIR/val). Without one, they are predicted with the newest
checkpoint, which takes longer.
"""


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='work folders of mmengine, or recorded ones')
    parser.add_argument(
        '--out', help='file to write; default: report.html in WORK_DIR, or in the deepest folder that contains all'
    )
    parser.add_argument('--device', help="'cpu', 'cuda', 'cuda:1', ...; default: a GPU if there is one")
    parser.add_argument(
        '--limit', type=whole_number(0), metavar='N', help='predict only the first N images; default: all'
    )
    parser.add_argument(
        '--images',
        '--pictures',
        action=RenamedOption,
        type=whole_number(0),
        default=6,
        metavar='N',
        help='images in each group (worst, different, best); 0 leaves them and the attention maps out; default: 6',
    )
    parser.add_argument(
        '--gates', type=whole_number(0), default=2, metavar='N', help='images with attention maps; default: 2'
    )
    parser.add_argument(
        '--speed', type=float, default=10, metavar='SECONDS', help='about how long the speed is measured; default: 10'
    )
    parser.add_argument(
        '--bench', metavar='DIR', help='folder of an attention bench (plan.yml, rows.csv): what several seeds say'
    )
    parser.add_argument('--no-speed', action='store_const', const=0.0, dest='speed', help='measure no speed')
    parser.add_argument(
        '--record',
        metavar='DIR',
        help='instead of a page, store what a page needs of WORK_DIR in a small folder without weights',
    )
    parser.add_argument('--command', help='with --record: the command that made the run, for readers')
    return parser.parse_args()


def default_out(work_dirs: list[str]) -> str:
    """``report.html`` in the work folder, or in the deepest folder that contains all of several."""
    folders = {osp.realpath(folder) for folder in work_dirs}
    if len(folders) == 1:
        return osp.join(work_dirs[0], 'report.html')
    return osp.relpath(osp.join(osp.commonpath([osp.dirname(folder) for folder in folders]), 'report.html'))


def main() -> None:
    args = parse_args()
    if args.limit == 0:
        raise UserError('--limit must be at least 1, got 0')
    if not args.speed >= 0:
        raise UserError(f'--speed must be a time in seconds, got {args.speed}')
    if args.record and (len(args.work_dirs) != 1 or not args.command or args.limit):
        raise UserError('--record takes one WORK_DIR, all of its images (no --limit), and --command')
    missing = [folder for folder in args.work_dirs if not osp.isdir(folder)]
    if missing:
        raise UserError(f'WORK_DIR must be a folder that exists, got {", ".join(map(repr, missing))}')
    out = args.out or default_out(args.work_dirs)
    folder = osp.dirname(out) or '.'
    if osp.isdir(out) or not osp.isdir(folder):
        raise UserError(f'--out must be a file in a folder that exists, got {out!r}')
    if not args.record and not os.access(folder, os.W_OK):
        raise UserError(f'nothing can be written into {folder!r}: choose another --out')
    if args.bench and not all(osp.isfile(osp.join(args.bench, n)) for n in ('plan.yml', 'rows.csv')):
        raise UserError(f'--bench must be a folder with plan.yml and rows.csv, got {args.bench!r}')
    if args.record:
        check_folder(args.record, '--record')
    device = checked_device(args.device)
    runs = read_runs(args.work_dirs)
    empty = [f'{run.folder}: {"; ".join(run.notes)}' for run in runs if not run.usable]
    if len(empty) == len(runs):
        raise UserError('there is nothing to report:\n  ' + '\n  '.join(empty))
    for reason in empty:
        print(f'warning: nothing to report of {reason}', file=sys.stderr)
    if args.record:
        print('\n'.join(record(runs[0], args.record, args.command, device)))
        return
    report = Report(runs, device, Options(args.images, args.gates, args.speed, args.limit, args.bench))
    page = report.html(f'{osp.basename(sys.argv[0])} {shlex.join(sys.argv[1:])}').encode()
    write_atomically(out, page)
    print(f'{out}: {len(page) / 1e6:.1f} MB')


if __name__ == '__main__':
    run_tool(main)
