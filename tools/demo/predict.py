"""A first prediction, without data and without training: photographs of clothes, by the weights in zoo/.

A classifier names the garment of a photograph, the detector finds the garments in a scene. Without arguments, the
images in zoo/images are predicted by both kinds.
"""

import argparse
import contextlib
import io
import os
from pathlib import Path

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet

# isort: split
from mmccd.apis import init_model
from mmccd.checkpoints.zoo import SCHEME, find_card
from mmccd.cli.arguments import run_tool
from mmccd.cli.numbers import number
from mmccd.cli.parser import tool_parser
from mmccd.data.image_files import list_images
from mmccd.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CLASSIFIER, DETECTOR = 'ccd_r18-w32_fashion', 'retinanet_ccd_r18-w32_fpn_fashion'
EXAMPLES = """examples:
  python tools/demo/predict.py
  python tools/demo/predict.py zoo/images/trouser.png --weights se_r18-w32_fashion
"""


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument('images', metavar='IMAGE', nargs='*', help='images or folders; default: zoo/images')
    parser.add_argument(
        '--weights',
        metavar='NAME',
        help=f'of zoo/; default: {DETECTOR} for images called scene*, {CLASSIFIER} for others',
    )
    parser.add_argument(
        '--score-thr', type=number(0, 1), default=0.4, metavar='S', help='minimum score of a detection; default: 0.4'
    )
    args = parser.parse_args()
    if args.weights is not None:
        args.weights = find_card(args.weights).name
    return args


def predict(name: str, images: list[str], score_thr: float) -> None:
    """Print what one network makes of some images."""
    model = init_model(name, f'{SCHEME}{name}', device='cpu')
    classes = model.dataset_meta['classes']
    print(f'{SCHEME}{name}')
    for image in images:
        if model.cfg.default_scope == 'mmpretrain':
            from mmpretrain import ImageClassificationInferencer

            with contextlib.redirect_stdout(io.StringIO()):  # a progress bar for one image
                found = ImageClassificationInferencer(model)(image)[0]
            print(f'  {image}: {found["pred_class"]} {found["pred_score"]:.2f}')
            continue
        from mmdet.apis import inference_detector

        found = inference_detector(model, image).pred_instances
        print(f'  {image}:')
        for label, score, box in zip(found.labels.tolist(), found.scores.tolist(), found.bboxes.round().int().tolist()):
            if score >= score_thr:
                print(f'    {classes[label]} {score:.2f} at {box}')


def main() -> None:
    args = parse_args()
    given = args.images or [os.path.relpath(ROOT / 'zoo' / 'images')]
    try:
        images = [image for path in given for image in list_images(path)]
    except ValueError as e:
        raise UserError(str(e)) from e
    jobs: dict[str, list[str]] = {}
    for image in images:
        scene = Path(image).name.startswith('scene')
        jobs.setdefault(args.weights or (DETECTOR if scene else CLASSIFIER), []).append(image)
    for name, of_it in jobs.items():
        predict(name, of_it, args.score_thr)


if __name__ == '__main__':
    run_tool(main)
