"""Download trained weights of the authors, convert them, and check that they are what their tables say.

The weights, and the scores that go with them, are the authors'. The file of each name lies on Google Drive; gdown
downloads it if it is installed, else Python does. A download that was cut is continued by the same command. What was
trained here, zoo://NAME, is in the folder zoo/ of a checkout, and is compared with its card alone.
"""

import argparse

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet
from mmccd.checkpoints.authors import MODELS, PAGE, find_model
from mmccd.checkpoints.zoo import SCHEME, find_card, list_zoo
from mmccd.cli.arguments import run_tool
from mmccd.cli.outputs import check_folder
from mmccd.cli.parser import tool_parser
from mmccd.models.weights import get_weights

EXAMPLES = """examples:
  python tools/model_converters/get_weights.py --list
  python tools/model_converters/get_weights.py ccd_r50_in1k
  python tools/model_converters/get_weights.py retinanet_ccd_r50_2x_coco --original ~/Downloads/epoch_24.pth
"""


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument('names', metavar='NAME', nargs='*', help='of the model; --list shows all')
    parser.add_argument('--list', action='store_true', help='show names, scores of the authors, and links')
    parser.add_argument('--out', default='checkpoints', help='folder of <NAME>.pth (default checkpoints)')
    parser.add_argument('--mirror', metavar='URL', help="take URL/<file id> instead of Google Drive's file")
    parser.add_argument('--original', metavar='FILE', help='the file of one NAME, where a browser saved it')
    parser.add_argument('--keep-original', action='store_true', help='keep the downloaded file, too')
    args = parser.parse_args()
    if args.list == bool(args.names):
        parser.error('give either names or --list')
    if args.original and len(args.names) > 1:
        parser.error(f'argument --original: is the file of one NAME, got {len(args.names)}')
    ours = [name for name in args.names if name.startswith(SCHEME)]
    if ours and (args.original or args.mirror or args.keep_original):
        parser.error(
            f'{ours[0]} is not downloaded: --original, --mirror and --keep-original are for weights of the authors'
        )
    for name in args.names:
        (find_card if name.startswith(SCHEME) else find_model)(name)  # before the first download
    return args


def main() -> None:
    args = parse_args()
    if args.list:
        width = max(map(len, MODELS))
        for model in MODELS.values():
            score = f'{model.metric} {model.score:.2f} (authors)'
            print(f'{model.name:{width}}  {model.parameters:>11,} parameters  {score:23}  {PAGE.format(model.file_id)}')
        for card in map(find_card, list_zoo()):
            print(f'{SCHEME}{card.name}  {card.parameters:,} parameters  {card.metric} {card.score:.4f}')
    check_folder(args.out, '--out')
    for name in args.names:
        if name.startswith(SCHEME):
            print(f'{get_weights(name)}: as its card describes it')
            continue
        model = find_model(name)
        path = get_weights(name, args.out, args.mirror, args.original, args.keep_original)
        print(
            f'{path}: {model.arch}, {model.parameters:,} parameters. The authors report {model.metric} '
            f'{model.score:.2f}; test it:\n  python tools/test.py configs/{model.config}.py {path}'
        )


if __name__ == '__main__':
    run_tool(main)
