"""Draw class activation maps: which regions of an image are evidence for a class, or for each detection.

Grad-CAM, Grad-CAM++, HiResCAM and Eigen-CAM of pytorch-grad-cam (pip install grad-cam), one figure an image. The map of
a detection explains that detection's own score, at the anchor or region that it came from.
"""

import argparse
import os.path as osp
import sys

import mmccd.cli  # first: before PyTorch and anything of mmdet
from mmccd.analysis.cam import METHODS, draw_cams, explain, load_cam_class
from mmccd.analysis.inputs import prepare_image
from mmccd.cli.arguments import run_tool
from mmccd.cli.cams import THRESHOLD, TOPK, cam_options
from mmccd.cli.images import image_parser, output_folder, output_names, write_figure
from mmccd.cli.numbers import number, whole_number
from mmccd.configs import load_config
from mmccd.data.image_files import list_images
from mmccd.errors import UserError

EXAMPLES = """examples:
  python tools/visualization/vis_cam.py image.jpg CONFIG CKPT
  python tools/visualization/vis_cam.py image.jpg CLASSIFIER CKPT --target-category cat dog --method gradcam++
  python tools/visualization/vis_cam.py images/ DETECTOR CKPT --target-layers backbone.layer3 backbone.layer4 --raw
gradcam and gradcam++ weight whole channels: for a detection, they also show other objects that look alike. hirescam
shows the places that contribute to this detection. eigencam ignores classes: one map for the whole image.
Several layers: their maps are scaled to the image and to 0..1 each, and averaged.
"""


def parse_args() -> argparse.Namespace:
    parser = image_parser(__doc__, EXAMPLES, '<name>_<method>', 'cam')
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
        '--topk',
        type=whole_number(1),
        metavar='N',
        help=f'maximum number of detections, the highest scores first; default: {TOPK}',
    )
    parser.add_argument(
        '--score-thr', type=number(0, 1), metavar='S', help=f'minimum score of a detection; default: {THRESHOLD}'
    )
    parser.add_argument(
        '--zoom',
        type=number(1),
        metavar='F',
        help='panels show the surroundings of their detections, F times the box, for small objects; default: the '
        'whole image',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    load_cam_class(args.method or 'gradcam')
    cfg = load_config(args.config, args.cfg_options)
    out_dir = output_folder(args, 'cam')
    try:
        images = list_images(args.img)
        model = mmccd.init_model(cfg, args.checkpoint, args.device)
        options = cam_options(model, args)
        drawn, layers = 0, args.target_layers
        for path, name in zip(images, output_names(images, args.img)):
            image = prepare_image(cfg, path)
            found = explain(model, image, args.method, layers, options.categories, options.topk, options.threshold)
            layers = found.layers
            if not found.cams:
                of = f' of {", ".join(args.target_category)}' if args.target_category else ''
                print(
                    f'{path}: no detection{of} with a score of at least {options.threshold:g} (the highest of all: '
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
            figure = draw_cams(found, options.classes, osp.basename(path), lines, args.zoom)
            stem = osp.join(out_dir, f'{name}_{found.method}')
            write_figure(stem, figure, found.arrays() if args.raw else None)
    except ValueError as e:
        raise UserError(str(e)) from e
    if not drawn:
        raise UserError(
            f'nothing was drawn: no detection in {len(images)} image{"s" * (len(images) > 1)}; lower '
            f'--score-thr ({options.threshold:g})'
        )


if __name__ == '__main__':
    run_tool(main)
