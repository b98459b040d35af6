"""Write a short config for data of your own, check the data, and say what to run next.

A COCO-format set is a folder of images and a JSON file; a set to classify is a folder of class folders. Classes,
evaluators, anchors, image size, schedule, learning rate and start are chosen from what is found; a comment beside
each says why. Ends with 0 if the config was written, with 2 if not.
"""

import argparse
import os
import os.path as osp
import re
import shlex
import sys

from mmengine.config import Config

import mmccd
from mmccd.checkpoints.files import write_atomically
from mmccd.cli.arguments import run_tool
from mmccd.cli.own_config import classifier_text, detector_text
from mmccd.cli.own_data import Part, check_same_classes, decide, read_coco, read_folders
from mmccd.configs import load_config
from mmccd.data.checks import Report, check_config
from mmccd.data.checks.report import CLEANED, number
from mmccd.errors import UserError
from mmccd.models.build import build_model

TOOLS = osp.dirname(osp.dirname(osp.abspath(__file__)))
BASES = {'mmdet': 'retinanet_ccd_r50_fpn_1x_coco', 'mmpretrain': 'ccd_r50_8xb32_in1k'}
EXAMPLES = """examples:
  python tools/make_config.py --train my/train my/train.json --val my/val my/val.json --gpus 2
  python tools/make_config.py --train my/train my/train.json --val my/val my/val.json \\
      --base cascade_rcnn_se_r50_fpn_1x_coco --out my_detector.py
  python tools/make_config.py --train my/train --val my/val --out my_classifier.py    (folders of class folders)
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pair = dict(nargs='+', metavar=('DIR', 'JSON'))
    parser.add_argument('--train', required=True, **pair, help='images and COCO annotations, or class folders alone')
    parser.add_argument('--val', required=True, **pair, help='the same, to validate on')
    parser.add_argument('--test', **pair, help='the same, to test on; default: what --val names')
    parser.add_argument(
        '--base',
        help='name of a config that comes with mmccd (mmccd.list_configs()), or a config file; default: '
        f'{BASES["mmdet"]}, or {BASES["mmpretrain"]} for class folders',
    )
    parser.add_argument('--out', help='config to write (.py); default: named after the base, in the current folder')
    parser.add_argument('--gpus', type=int, default=1, help='GPUs to train on; the learning rate follows (default 1)')
    parser.add_argument('--batch-size', type=int, help="images a GPU; the learning rate follows (default: base's)")
    parser.add_argument(
        '--workers',
        type=int,
        default=min(os.cpu_count() or 1, 8),
        help='processes that decode images for the checks; 0: this one',
    )
    parser.add_argument('--force', action='store_true', help='write in spite of errors in the data')
    parser.add_argument('--overwrite', action='store_true', help='replace the file that --out names')
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> str:
    """Refuse what cannot be meant; returns the scope of the task, by the number of paths."""
    sets = {'--train': args.train, '--val': args.val, '--test': args.test}
    for name, paths in sets.items():
        if paths and len(paths) > 2:
            raise UserError(f'{name} takes DIR JSON, or DIR alone for class folders; got {len(paths)} paths')
        if paths and len(paths) != len(args.train):
            raise UserError(
                f'--train and {name} must be of one kind, both DIR JSON or both DIR: got '
                f'{" ".join(args.train)} and {" ".join(paths)}'
            )
    for name, least in (('gpus', 1), ('batch_size', 1), ('workers', 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f'--{name.replace("_", "-")} must be at least {least}, got {value}')
    if args.out is not None and not args.out.endswith('.py'):
        raise UserError(f'--out must end with .py, got {args.out!r}')
    return 'mmdet' if len(args.train) == 2 else 'mmpretrain'


def read_base(args: argparse.Namespace, scope: str) -> tuple[Config, str]:
    """The base and its path or name, whichever was given."""
    base = args.base or BASES[scope]
    cfg = load_config(base) if osp.isfile(base) or osp.dirname(base) else mmccd.get_config(base)
    if cfg.get('default_scope') != scope:
        kinds = {'mmdet': 'a detector', 'mmpretrain': 'a classifier'}
        raise UserError(
            f'--base {base} is {kinds.get(cfg.get("default_scope"), "for neither task")}, and --train is '
            f'data for {kinds[scope]} ({"DIR JSON" if scope == "mmdet" else "DIR"})'
        )
    return cfg, base


def default_out(base: str) -> str:
    """``retinanet_ccd_r50_fpn_own.py`` for ``retinanet_ccd_r50_fpn_1x_coco``."""
    return re.sub(r'(_8xb32|_(fsdp-)?1x|_2x|_24e)?(_legacy)?_(coco|in1k|digits|trees)$', '', base) + '_own.py'


def shown(path: str) -> str:
    """A path as short as one can type it from here."""
    relative = osp.relpath(path)
    return path if relative.startswith(osp.pardir) else relative


def check_command(*args: str) -> str:
    """The line that calls check_dataset.py."""
    return f'  {shlex.join(["python", shown(osp.join(TOOLS, "misc", "check_dataset.py")), *args])}'


def clean_commands(report: Report, parts: list[Part], out: str) -> list[str]:
    """What writes the COCO files without their broken entries, once the config is there."""
    broken = {name for kind in CLEANED for names, _ in report.findings.get(kind, ()) for name in names.split(', ')}
    files = {p.ann_file: p.argument[2:] for p in reversed(parts) if p.ann_file and p.argument[2:] in broken}
    return [
        check_command(out, '--sets', name, '--write-clean', f'{osp.splitext(path)[0]}_clean.json')
        for path, name in reversed(files.items())
    ]


def main() -> None:
    args = parse_args()
    scope = check_args(args)
    cfg, base = read_base(args, scope)
    stem = osp.splitext(osp.basename(base))[0]
    out = args.out or default_out(stem)
    if osp.exists(out) and not args.overwrite:
        raise UserError(f'--out {out} is there: give another name, or --overwrite')
    if not osp.isdir(osp.dirname(out) or '.'):
        raise UserError(f'--out {out}: the folder {osp.dirname(out)} does not exist')

    read = read_coco if scope == 'mmdet' else read_folders
    parts = [
        read(name, *paths)
        for name, paths in (('--train', args.train), ('--val', args.val), ('--test', args.test))
        if paths
    ]
    for other in parts[1:]:
        check_same_classes(parts[0], other)
    decisions = decide(cfg, stem, parts[0], args.gpus, args.batch_size)

    write = detector_text if scope == 'mmdet' else classifier_text
    named = f"__import__('mmccd').config_path({stem!r})"
    is_file = osp.isfile(base)
    text = write(cfg, repr(osp.relpath(base, osp.dirname(out) or '.')) if is_file else named, parts, decisions)
    own = Config.fromstring(write(cfg, repr(osp.abspath(base)) if is_file else named, parts, decisions), '.py')
    build_model(own)
    report = check_config(own, tuple(p.argument[2:] for p in parts), args.workers)
    print(report.text())
    for warning in dict.fromkeys(decisions.warnings):
        print(f'warning: {warning}', file=sys.stderr)
    commands = clean_commands(report, parts, out)
    if report.count('error') and not args.force:
        message = f'the data have {number(report.count("error"), "error", "errors")} (above), and nothing was '
        message += 'written: mend them, or add --force to have the config as it is'
        if commands:
            message += '. With that config,\n' + '\n'.join(commands) + '\n'
            message += 'writes the annotations without their broken entries, to be named here instead'
        raise UserError(message)
    try:
        write_atomically(out, text.encode())
    except OSError as e:
        raise UserError(f'--out {out} could not be written: {e.strerror}') from e

    print(f'\n{text}\n{out}: written. Next:')
    if args.gpus > 1:  # the learning rate is that of all of them
        print(f'  {shown(osp.join(TOOLS, "dist_train.sh"))} {out} {args.gpus}')
    else:
        print(f'  python {shown(osp.join(TOOLS, "train.py"))} {out}')
    print('\n'.join(commands or [check_command(out)]))


if __name__ == '__main__':
    run_tool(main)
