"""Find broken images, boxes, ids, classes and paths in the data of a config, before a training stops at them.

Ends with 0 if there are no errors (there may be warnings and notes), with 1 if there are, with 2 if the command is
wrong.
"""

import argparse
import os
import os.path as osp
import sys

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet
from mmccd.checkpoints.files import valid_json, write_atomically
from mmccd.cli.arguments import add_cfg_options, run_tool
from mmccd.cli.outputs import check_file, make_folder_of
from mmccd.cli.parser import RenamedOption, tool_parser
from mmccd.configs import load_config
from mmccd.data.checks import MAX_PIXELS, SPLITS, check_config, write_clean
from mmccd.errors import UserError

EXAMPLES = """examples:
  python tools/checks/check_dataset.py configs/retinanet_ccd_r50_fpn_1x_coco.py --workers 16 --out report.json
  python tools/checks/check_dataset.py configs/ccd_r50_8xb32_in1k.py --splits val
  python tools/checks/check_dataset.py CONFIG --splits train --write-clean data/mine/annotations/train_clean.json
"""


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--splits',
        '--sets',
        action=RenamedOption,
        nargs='+',
        choices=SPLITS,
        default=SPLITS,
        help='which splits; default: all',
    )
    parser.add_argument(
        '--workers', type=int, default=min(os.cpu_count() or 1, 8), help='processes that decode images; 0: this one'
    )
    parser.add_argument(
        '--max-pixels',
        type=int,
        default=MAX_PIXELS,
        help=f'larger images are named and not decoded; default: {MAX_PIXELS:,}',
    )
    parser.add_argument('--out', help='write all findings into this file (.json)')
    parser.add_argument(
        '--write-clean',
        metavar='OUT.json',
        help='write the COCO annotation file of the one split in --splits, repaired, without broken images and boxes',
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    for name, minimum in (('workers', 0), ('max_pixels', 1)):
        if getattr(args, name) < minimum:
            raise UserError(f'--{name.replace("_", "-")} must be at least {minimum}, got {getattr(args, name)}')
    if args.out and not args.out.endswith('.json'):
        raise UserError(f'--out must end with .json, got {args.out!r}')
    for option, path in (('--out', args.out), ('--write-clean', args.write_clean)):
        if path:
            check_file(path, option)
    if args.write_clean and osp.exists(args.write_clean):  # before the long work
        raise UserError(f'--write-clean: {args.write_clean} is there, and nothing is overwritten')
    cfg = load_config(args.config, args.cfg_options)
    report = check_config(cfg, tuple(args.splits), args.workers, args.max_pixels)
    print(report.text())
    if args.out:
        make_folder_of(args.out)
        write_atomically(args.out, valid_json(dict(config=args.config, **report.as_dict()), indent=1).encode())
    if args.write_clean:
        content = write_clean(report, args.write_clean)
        print(f'{args.write_clean}: {len(content["images"]):,} images, {len(content["annotations"]):,} boxes')
    sys.exit(1 if report.count('error') else 0)


if __name__ == '__main__':
    run_tool(main)
