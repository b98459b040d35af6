"""See the gates of CCD, SE, GE, CBAM, ECA, SK and GC: one contact sheet an image, for classifiers and detectors.

The image goes through the test pipeline of the config, so the gates are those of the image as the network sees it.
"""

import argparse
import io
import os
import os.path as osp

import numpy as np
import torch
from mmengine.device import get_device

import mmccd  # noqa: F401  before anything of mmdet
from mmccd.analysis import (
    attention_layers,
    choose_layers,
    draw_sheet,
    list_images,
    load_model,
    output_names,
    prepare_image,
    record_gates,
)
from mmccd.checkpoints.files import write_atomically
from mmccd.checkpoints.fit import check_checkpoint_fits
from mmccd.checkpoints.read import check_checkpoint_file
from mmccd.cli.arguments import OptionsAction, run_tool
from mmccd.configs import load_config
from mmccd.errors import UserError
from mmccd.models.build import check_model

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
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('img', metavar='IMG|DIR', help='an image, or a folder: all images in it and below')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
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
        help='ends of the colour scale, to compare sheets; default: 1st and 99th percentile of each sheet',
    )
    parser.add_argument('--out-dir', help='folder for <name>_gates.png; default: work_dirs/<config name>/gates')
    parser.add_argument('--raw', action='store_true', help='write the arrays too, all maps: <name>_gates.npz')
    parser.add_argument('--device', help="'cpu', 'cuda', 'cuda:1', ...; default: a GPU if there is one")
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionsAction, help='override entries of the config: key.sub=value pairs'
    )
    return parser.parse_args()


def check_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise UserError(f'--device {name!r} cannot be used: {str(e).splitlines()[0]}') from e
    return device


def main() -> None:
    args = parse_args()
    if args.range and not args.range[0] < args.range[1]:
        raise UserError(f'--range must have LOW below HIGH, got {args.range[0]:g} {args.range[1]:g}')
    device = check_device(args.device or get_device())
    cfg = load_config(args.config, args.cfg_options)
    check_checkpoint_file(args.checkpoint, 'checkpoint')
    out_dir = args.out_dir or osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0], 'gates')
    model = check_model(cfg)
    try:
        names = choose_layers(attention_layers(model.backbone), args.stages, args.blocks)
        images = list_images(args.img)
    except ValueError as e:
        raise UserError(str(e)) from e
    check_checkpoint_fits(args.checkpoint, model)

    model = load_model(cfg, args.checkpoint, device)
    layers = {name: model.backbone.get_submodule(name) for name in names}
    for path, name in zip(images, output_names(images, args.img)):
        try:
            seen = record_gates(model, prepare_image(cfg, path), layers)
            sheet = draw_sheet(
                seen,
                osp.basename(path),
                (osp.basename(args.config), osp.basename(args.checkpoint)),
                args.groups,
                args.range,
            )
        except ValueError as e:
            raise UserError(str(e)) from e
        out = osp.join(out_dir, f'{name}_gates')
        os.makedirs(osp.dirname(out), exist_ok=True)
        write_atomically(f'{out}.png', sheet)
        print(f'{out}.png')
        if args.raw:
            arrays = io.BytesIO()
            np.savez_compressed(arrays, **seen.arrays())
            write_atomically(f'{out}.npz', arrays.getvalue())
            print(f'{out}.npz')


if __name__ == '__main__':
    run_tool(main)
