"""Try the detectors of MMDetection with an attention: build, loss, gradients of every gate, predictions.

Each config in a process of its own, on two small made images, without a dataset, weights or a GPU. One that fails is
tried without the attention, too. The results are kept, so that the same command continues where it stopped: a JSON
file, and a page in Markdown beside it. Ends with 1 if one fails for a reason of mmccd.
"""

import argparse
import os.path as osp
import sys

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet
from mmccd.analysis import detector_matrix
from mmccd.analysis.detector_matrix.run import versions
from mmccd.checkpoints.files import write_atomically
from mmccd.cli.arguments import run_tool
from mmccd.cli.numbers import whole_number
from mmccd.cli.parser import tool_parser
from mmccd.errors import UserError

EXAMPLES = """examples:
  python tools/analysis_tools/detector_matrix.py --out docs/detector_matrix.json
  python tools/analysis_tools/detector_matrix.py 'faster_rcnn/*' 'd*/*' --attention mmccd.SE --out se.json
"""


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument(
        'configs', nargs='*', metavar='CONFIG', help="configs by name or pattern, 'atss/*'; default: all of the matrix"
    )
    parser.add_argument(
        '--out', default='work_dirs/detector_matrix.json', help='file of the results (default: %(default)s)'
    )
    parser.add_argument('--attention', default='mmccd.CCD', metavar='TYPE', help='default: %(default)s')
    parser.add_argument(
        '--limit', type=whole_number(1), default=300, metavar='SECONDS', help='for a config (default: %(default)s)'
    )
    parser.add_argument(
        '--again',
        nargs='+',
        default=[],
        choices=detector_matrix.OUTCOMES,
        help='try configs with one of these outcomes again',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not args.out.endswith('.json'):
        raise UserError(f'--out must end with .json, got {args.out!r}')
    if not osp.isdir(osp.dirname(args.out) or '.'):
        raise UserError(f'--out {args.out}: the folder {osp.dirname(args.out)} does not exist')
    configs = detector_matrix.matching(args.configs)
    results = detector_matrix.run_matrix(configs, args.out, args.attention, args.limit, args.again)
    page = osp.splitext(args.out)[0] + '.md'
    write_atomically(page, detector_matrix.markdown(results, versions(), args.attention).encode())
    print(f'{detector_matrix.counts(results)}\n{page}: written')
    sys.exit(any(result.outcome == 'fails' for result in results))


if __name__ == '__main__':
    run_tool(main)
