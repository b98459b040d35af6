"""See the evidence: which parts of an image speak for a class, or for each detection; one contact sheet an image.

Grad-CAM, Grad-CAM++, HiResCAM and Eigen-CAM of pytorch-grad-cam (pip install grad-cam). The map of a detection is that
of its own score, at the very anchor or region which it came from.
"""

import argparse
import io
import os
import os.path as osp
import sys

import numpy as np

import mmccd
from mmccd.analysis import (
    METHODS,
    check_layers,
    class_index,
    draw_cam_sheet,
    explain,
    is_detector,
    list_images,
    load_cam_class,
    num_classes,
    output_names,
    prepare_image,
)
from mmccd.checkpoints.files import write_atomically
from mmccd.cli.arguments import OptionsAction, run_tool
from mmccd.configs import load_config
from mmccd.errors import UserError

EXAMPLES = """examples:
  python tools/visualization/vis_cam.py image.jpg CONFIG CKPT
  python tools/visualization/vis_cam.py image.jpg CLASSIFIER CKPT --target-category cat dog --method gradcam++
  python tools/visualization/vis_cam.py images/ DETECTOR CKPT --target-layers backbone.layer3 backbone.layer4 --raw
gradcam and gradcam++ weight whole channels: of a detection, they also show other objects that look alike. hirescam
shows the places that have a part in this very detection. eigencam knows no class: one map for the whole image.
Several layers: their maps are scaled to the image and to 0..1 each, and averaged.
"""


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number, at least 1, got {text!r}')
    return int(text)


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'must be a number from 0 to 1, got {text!r}')
    return value


def factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 1 <= value < float('inf'):
        raise argparse.ArgumentTypeError(f'must be a number, at least 1, got {text!r}')
    return value


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('img', metavar='IMG|DIR', help='an image, or a folder: all images in it and below')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--method', choices=METHODS, help='default: hirescam for detectors, gradcam for classifiers')
    parser.add_argument(
        '--target-layers',
        nargs='+',
        metavar='NAME',
        help='modules of the model, e.g. backbone.layer3.1; default: FPN levels of a detector (outputs of the neck), '
        'last stage of the backbone of a classifier',
    )
    parser.add_argument(
        '--target-category',
        nargs='+',
        metavar='CLASS',
        help='names or indices; a classifier: classes to explain, default: the predicted one; a detector: classes '
        'whose detections are explained, default: all',
    )
    parser.add_argument(
        '--topk', type=count, metavar='N', help='at most so many detections, the highest scores first; default: 8'
    )
    parser.add_argument(
        '--score-thr', type=share, metavar='S', help='detections have at least this score; default: 0.3'
    )
    parser.add_argument(
        '--zoom',
        type=factor,
        metavar='F',
        help='panels show the surroundings of their detections, F times the box, for small objects; default: all of '
        'the image',
    )
    parser.add_argument('--out-dir', help='folder for <name>_<method>.png; default: work_dirs/<config name>/cam')
    parser.add_argument(
        '--raw', action='store_true', help="write the arrays too, of the image's size: <name>_<method>.npz"
    )
    parser.add_argument('--device', help="'cpu', 'cuda', 'cuda:1', ...; default: a GPU if there is one")
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionsAction, help='override entries of the config: key.sub=value pairs'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    load_cam_class(args.method or 'gradcam')
    cfg = load_config(args.config, args.cfg_options)
    out_dir = args.out_dir or osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0], 'cam')
    try:
        images = list_images(args.img)
        model = mmccd.init_model(cfg, args.checkpoint, args.device)
        detector = is_detector(model)
        for option in ('topk', 'score_thr', 'zoom'):
            if not detector and getattr(args, option) is not None:
                raise UserError(f'--{option.replace("_", "-")} is for detections, and the config is of a classifier')
        if args.method == 'eigencam' and (args.zoom or (args.target_category and not detector)):
            raise UserError(
                f'--{"zoom" if args.zoom else "target-category"} asks for one map of each, and eigencam '
                'has only one for the whole image'
            )
        check_layers(model, args.target_layers or ())
        classes = model.dataset_meta.get('classes') or ()
        if len(classes) != num_classes(model):
            classes = tuple(map(str, range(num_classes(model))))
        categories = args.target_category and list(dict.fromkeys(class_index(c, classes) for c in args.target_category))
        threshold = 0.3 if args.score_thr is None else args.score_thr
        topk = args.topk or (8 if detector else None)

        drawn, layers = 0, args.target_layers
        for path, name in zip(images, output_names(images, args.img)):
            found = explain(model, prepare_image(cfg, path), args.method, layers, categories, topk, threshold)
            layers = found.layers
            if not found.cams:
                of = f' of {", ".join(args.target_category)}' if args.target_category else ''
                print(
                    f'{path}: no detection{of} with a score of at least {threshold:g} (the highest of all: '
                    f'{found.best:.3g}), nothing drawn',
                    file=sys.stderr,
                )
                continue
            drawn += 1
            lines = (
                osp.basename(args.config),
                osp.basename(args.checkpoint),
                f'{found.method} of ' + ', '.join(found.layers),
            )
            sheet = draw_cam_sheet(found, classes, osp.basename(path), lines, args.zoom)
            out = osp.join(out_dir, f'{name}_{found.method}')
            os.makedirs(osp.dirname(out), exist_ok=True)
            write_atomically(f'{out}.png', sheet)
            print(f'{out}.png')
            if args.raw:
                arrays = io.BytesIO()
                np.savez_compressed(arrays, **found.arrays())
                write_atomically(f'{out}.npz', arrays.getvalue())
                print(f'{out}.npz')
    except ValueError as e:
        raise UserError(str(e)) from e
    if not drawn:
        raise UserError(
            f'nothing was drawn: no detection in {len(images)} image{"s" * (len(images) > 1)}; lower '
            f'--score-thr ({threshold:g})'
        )


if __name__ == '__main__':
    run_tool(main)
