"""Check data of your own, write a short config for them, and print what to run next.

A COCO-format split is a folder of images and a JSON file; images to classify are in a folder of class folders. Folders
of YOLO, Pascal VOC, LabelMe, CVAT and Label Studio are converted: COCO files are written beside the config.
Classes, evaluators, anchors, image size, schedule, learning rate and initial weights are chosen from what is found; a
comment beside each gives the reason. Ends with 0 if the config was written, with 2 if not.
"""

import argparse
import os
import os.path as osp
import shlex
import sys

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet
from mmccd.checkpoints.files import write_atomically
from mmccd.cli.arguments import run_tool
from mmccd.cli.own_config import BASES, OwnConfig, default_out, make_config, read_base
from mmccd.cli.own_formats import convert, labelled_folders
from mmccd.cli.parser import tool_parser
from mmccd.cli.stock_base import is_stock
from mmccd.data.checks.report import number
from mmccd.errors import UserError

TOOLS = osp.dirname(osp.abspath(__file__))
EXAMPLES = """examples:
  python tools/make_config.py --train my/train my/train.json --val my/val my/val.json --gpus 2
  python tools/make_config.py --train my/train my/train.json --val my/val my/val.json \\
      --base cascade_rcnn_se_r50_fpn_1x_coco --out my_detector.py
  python tools/make_config.py --train my/train my/train.json --val my/val my/val.json \\
      --base mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py                        (with CCD)
  python tools/make_config.py --train my/train --val my/val --out my_classifier.py    (folders of class folders)
  python tools/make_config.py --train my/yolo --val my/yolo                           (its splits train and val)
"""


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    pair = dict(nargs='+', metavar=('DIR', 'JSON'))
    parser.add_argument(
        '--train',
        required=True,
        **pair,
        help='images and COCO annotations; or class folders alone; or a folder of YOLO, VOC, LabelMe, CVAT or Label '
        'Studio, of which the split of this name is taken',
    )
    parser.add_argument('--val', required=True, **pair, help='the same, to validate on')
    parser.add_argument('--test', **pair, help='the same, to test on; default: what --val names')
    parser.add_argument(
        '--base',
        help='name of a config that comes with mmccd (mmccd.list_configs()), a config file, or a config of MMDetection '
        'or MMPretrain (mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py); default: '
        f'{BASES["mmdet"]}, or {BASES["mmpretrain"]} for class folders',
    )
    parser.add_argument(
        '--attention',
        metavar='TYPE',
        help="attention for the backbone of a base mmdet::... or mmpretrain::...; 'none' for none (default: mmccd.CCD)",
    )
    parser.add_argument('--out', help='config to write (.py); default: named after the base, in the current folder')
    parser.add_argument('--gpus', type=int, default=1, help='GPUs to train on; scales the learning rate (default 1)')
    parser.add_argument('--batch-size', type=int, help="images a GPU; scales the learning rate (default: the base's)")
    parser.add_argument(
        '--workers',
        type=int,
        default=min(os.cpu_count() or 1, 8),
        help='processes that decode images for the checks; 0: this one',
    )
    parser.add_argument('--force', action='store_true', help='write in spite of errors in the data')
    parser.add_argument('--overwrite', action='store_true', help='replace the file that --out names')
    return parser.parse_args()


def check_args(args: argparse.Namespace, kinds: dict[str, str]) -> str:
    """Refuse contradicting arguments; returns the scope of the task, by the number of paths and labelled folders."""

    def is_detection(name: str) -> bool:
        return len(getattr(args, name)) == 2 or f'--{name}' in kinds

    for name in ('train', 'val', 'test'):
        paths = getattr(args, name)
        if paths and len(paths) > 2:
            raise UserError(f'--{name} takes DIR JSON, or DIR alone for class folders; got {len(paths)} paths')
        if paths and is_detection(name) != is_detection('train'):
            raise UserError(
                f'--train and --{name} must be of one kind, both DIR JSON or both DIR: got '
                f'{" ".join(args.train)} and {" ".join(paths)}'
            )
    for name, minimum in (('gpus', 1), ('batch_size', 1), ('workers', 0)):
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise UserError(f'--{name.replace("_", "-")} must be at least {minimum}, got {value}')
    if args.attention is not None and not is_stock(args.base or ''):
        raise UserError('--attention is for a --base of MMDetection or MMPretrain (mmdet::...); others name theirs')
    if args.out is not None and not args.out.endswith('.py'):
        raise UserError(f'--out must end with .py, got {args.out!r}')
    return 'mmdet' if is_detection('train') else 'mmpretrain'


def check_out(out: str, overwrite: bool) -> None:
    """Refuse an output that cannot be written, before the long work."""
    if osp.exists(out) and not overwrite:
        raise UserError(f'--out {out} is there: give another name, or --overwrite')
    if not osp.isdir(osp.dirname(out) or '.'):
        raise UserError(f'--out {out}: the folder {osp.dirname(out)} does not exist')


def shown(tool: str) -> str:
    """A tool's path as short as one can type it from here."""
    path = osp.join(TOOLS, tool)
    relative = osp.relpath(path)
    return path if relative.startswith(osp.pardir) else relative


def check_command(*args: str) -> str:
    """The line that calls check_dataset.py."""
    return f'  {shlex.join(["python", shown("checks/check_dataset.py"), *args])}'


def clean_commands(own: OwnConfig, out: str) -> list[str]:
    """What writes the COCO files without their broken entries, once the config is there."""
    return [
        check_command(out, '--splits', split, '--write-clean', f'{osp.splitext(path)[0]}_clean.json')
        for path, split in own.broken.items()
    ]


def report_findings(own: OwnConfig, out: str, force: bool) -> list[str]:
    """Print what the checks found; a UserError if that is an error. Returns what writes files without it."""
    print(own.report.text())
    for warning in own.warnings:
        print(f'warning: {warning}', file=sys.stderr)
    commands = clean_commands(own, out)
    errors = own.report.count('error')
    if errors and not force:
        message = f'the data have {number(errors, "error", "errors")} (above), and nothing was written: fix them, or '
        message += 'add --force to have the config as it is'
        if commands:
            message += '. With that config,\n' + '\n'.join(commands) + '\n'
            message += 'writes the annotations without their broken entries, to be named here instead'
        raise UserError(message)
    return commands


def main() -> None:
    args = parse_args()
    data = {f'--{name}': getattr(args, name) for name in ('train', 'val', 'test') if getattr(args, name)}
    kinds = labelled_folders(data)
    scope = check_args(args, kinds)
    base = args.base or BASES[scope]
    cfg = read_base(base, scope, None if args.attention == 'none' else args.attention or 'mmccd.CCD')
    out = args.out or default_out(base)
    check_out(out, args.overwrite)
    converted = convert(data, kinds, out, args.force)
    with converted.written(args.overwrite):
        own = make_config(cfg, base, out, converted.data, args.gpus, args.batch_size, args.workers)
        if own.base:
            check_out(own.base[0], args.overwrite)
        if converted.files:
            print(converted.text())
        commands = report_findings(own, out, args.force)
        for path, text in [*([own.base] if own.base else []), (out, own.text)]:
            try:
                write_atomically(path, text.encode())
            except OSError as e:
                raise UserError(f'--out {path} could not be written: {e.strerror}') from e

    beside = f' (with {own.base[0]}, what --base has as one file)' if own.base else ''
    print(f'\n{own.text}\n{out}: written{beside}. Next:')
    if args.gpus > 1:  # the learning rate is that of all of them
        print(f'  {shown("dist_train.sh")} {out} {args.gpus}')
    else:
        print(f'  python {shown("train.py")} {out}')
    print('\n'.join(commands or [check_command(out)]))


if __name__ == '__main__':
    run_tool(main)
