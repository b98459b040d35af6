"""Make the weights of zoo/, or train some of them again and compare the bits.

Each network is trained from scratch on one thread of the CPU, minutes each, and written in half precision with a card:
config, hash of the data, seed, log, score, versions, licence. --verify trains into the work folder and changes nothing
in zoo/: the same SHA-256 is success, another is an error that says what else is different from the card.
"""

import argparse
from pathlib import Path

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet

# isort: split
from mmccd.checkpoints.zoo import find_card, zoo_folder
from mmccd.cli.arguments import run_tool
from mmccd.cli.outputs import check_folder
from mmccd.cli.parser import tool_parser
from mmccd.cli.zoo import check_names, make, verify
from mmccd.cli.zoo_page import write_page

EXAMPLES = """examples:
  python tools/model_converters/make_zoo.py
  python tools/model_converters/make_zoo.py --verify ccd_r18-w32_fashion
"""


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument('names', metavar='NAME', nargs='*', help='of the network; all if none is named')
    parser.add_argument('--verify', action='store_true', help='compare with the cards instead of writing them')
    parser.add_argument('--out', default=str(zoo_folder()), help='folder of files and cards (default zoo)')
    parser.add_argument('--work-dir', default='work_dirs/zoo', help='folder of the trainings (default work_dirs/zoo)')
    parser.add_argument(
        '--trained', action='store_true', help='write what the trainings in the work folder left, without training'
    )
    args = parser.parse_args()
    if args.verify and args.trained:
        parser.error('argument --trained: not with --verify, which trains')
    return args


def main() -> None:
    args = parse_args()
    models = check_names(args.names)
    check_folder(args.out, '--out')
    check_folder(args.work_dir, '--work-dir')
    work_dir = Path(args.work_dir).resolve()
    if args.verify:
        for model in models:
            print(verify(model, find_card(model.name).content, work_dir))
        return
    for model in models:
        card = make(model, Path(args.out), work_dir, args.trained)
        print(f'{card["file"]}: {card["size"]:,} bytes, {card["metric"]} {card["score"]:.4f}, SHA-256 {card["sha256"]}')
    write_page(Path(args.out))


if __name__ == '__main__':
    run_tool(main)
