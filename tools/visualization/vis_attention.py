"""Draw attention maps: the gates of the attention layers, one figure an image; classifiers and detectors.

The image goes through the test pipeline of the config, so that the gates are those that the network computes for it.
"""

import argparse
import os.path as osp

import mmccd.cli  # first: before PyTorch and anything of mmdet
from mmccd.analysis.attention_maps import attention_layers, choose_layers, draw_attention_maps, record_gates
from mmccd.analysis.inputs import prepare_image
from mmccd.cli.arguments import run_tool
from mmccd.cli.images import image_parser, output_folder, output_names, write_figure
from mmccd.configs import load_config
from mmccd.data.image_files import list_images
from mmccd.errors import UserError

EXAMPLES = """examples:
  python tools/visualization/vis_attention.py image.jpg CONFIG CKPT
  python tools/visualization/vis_attention.py images/ CONFIG CKPT --stages 3 4 --blocks 0 --groups mean 5 17 --raw
stages and blocks are numbered as in the names of the layers: layer3.0 is block 0 of stage 3
"""


def group(text: str) -> 'int | str':
    if text != 'mean' and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an index (from 0) or 'mean', got {text!r}")
    return text if text == 'mean' else int(text)


def parse_args() -> argparse.Namespace:
    parser = image_parser(__doc__, EXAMPLES, '<name>_gates', 'gates')
    parser.add_argument('--stages', nargs='+', type=int, metavar='N', help='stages, from 1; default: all')
    parser.add_argument('--blocks', nargs='+', type=int, metavar='N', help='blocks of a stage, from 0; default: all')
    parser.add_argument(
        '--groups',
        nargs='+',
        type=group,
        default=['mean'],
        metavar='N|mean',
        help='maps of a layer (in CCD, one a group): indices from 0, or their mean; default: mean',
    )
    parser.add_argument(
        '--range',
        nargs=2,
        type=float,
        metavar=('LOW', 'HIGH'),
        help='ends of the colour scale, to compare figures; default: 1st and 99th percentile of each figure',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.range and not args.range[0] < args.range[1]:
        raise UserError(f'--range must have LOW below HIGH, got {args.range[0]:g} {args.range[1]:g}')
    cfg = load_config(args.config, args.cfg_options)
    out_dir = output_folder(args, 'gates')
    try:
        images = list_images(args.img)
        model = mmccd.init_model(cfg, args.checkpoint, args.device)
        layers = choose_layers(attention_layers(model.backbone), args.stages, args.blocks)
        for path, name in zip(images, output_names(images, args.img)):
            seen = record_gates(model, prepare_image(cfg, path), layers)
            lines = (osp.basename(args.config), osp.basename(args.checkpoint))
            figure = draw_attention_maps(seen, osp.basename(path), lines, args.groups, args.range)
            write_figure(osp.join(out_dir, f'{name}_gates'), figure, seen.arrays() if args.raw else None)
    except ValueError as e:
        raise UserError(str(e)) from e


if __name__ == '__main__':
    run_tool(main)
