"""Detect objects in large images, in overlapping tiles that the model sees at full size.

Draws the boxes of each image and, with --json, writes them in pixels of the image file. Images that are not larger than
a tile give what the model gives without tiles.
"""

import argparse
import io
import os.path as osp

import numpy as np
from PIL import Image

import mmccd.cli  # first: before PyTorch and anything of mmdet
from mmccd.analysis.boxes import draw_boxes
from mmccd.analysis.tiles import Found, detect_tiled, split_pipeline
from mmccd.checkpoints.files import valid_json, write_atomically
from mmccd.cli.arguments import run_tool
from mmccd.cli.images import image_parser, output_folder, output_names, write_figure
from mmccd.cli.numbers import number, whole_number
from mmccd.cli.outputs import check_file, make_folder_of
from mmccd.configs import load_config
from mmccd.data.image_files import list_images
from mmccd.errors import UserError

EXAMPLES = """examples:
  python tools/analysis_tools/infer_tiled.py aerial.tif CONFIG CKPT --tile 512
  python tools/analysis_tools/infer_tiled.py images/ CONFIG CKPT --tile 640 --overlap 0.5 --json found.json --device cpu
  python tools/analysis_tools/infer_tiled.py scene.png configs/retinanet_ccd_r18_fpn_trees.py CKPT --tile 256
Tiles of about the size of the images in training are best. Objects have to fit into the overlap, 0.25 of a tile if not
given; --whole finds larger ones, too.
"""


def parse_args() -> argparse.Namespace:
    parser = image_parser(__doc__, EXAMPLES, '<name>_tiled', 'tiled')
    parser.add_argument('--tile', type=whole_number(16), required=True, metavar='PX', help='side of a tile in pixels')
    parser.add_argument(
        '--overlap',
        type=number(0, 0.9),
        default=0.25,
        metavar='SHARE',
        help='share of a tile that neighbours have in common; default: 0.25',
    )
    parser.add_argument('--whole', action='store_true', help='let the model see the whole image as well')
    parser.add_argument(
        '--batch-size', type=whole_number(1), default=1, metavar='N', help='tiles at a time; default: 1'
    )
    parser.add_argument('--score-thr', type=number(0, 1), default=0.3, metavar='S', help='minimum score; default: 0.3')
    parser.add_argument('--json', metavar='FILE', help='also write the results there')
    return parser.parse_args()


def entries(found: Found, classes: tuple) -> list[dict]:
    """For JSON, as infer_onnx.py writes them: label, name, score, box (x1, y1, x2, y2)."""
    names = dict(enumerate(classes))  # a checkpoint may have fewer than its model
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist())
    return [dict(label=k, name=names.get(k, str(k)), score=score, box=box) for k, score, box in rows]


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    if cfg.get('default_scope') != 'mmdet':
        raise UserError(f'{args.config} is no config of a detector')
    out_dir, results = output_folder(args, 'tiled'), {}
    if args.json:
        check_file(args.json, '--json')
    try:
        images = list_images(args.img)
        model = mmccd.init_model(cfg, args.checkpoint, args.device)
        classes = model.dataset_meta.get('classes') or ()
        load, _ = split_pipeline(cfg)
        for path, name in zip(images, output_names(images, args.img)):
            found = detect_tiled(model, path, args.tile, args.overlap, args.whole, args.batch_size)
            sure = found.scores >= args.score_thr
            found = Found(found.boxes[sure], found.scores[sure], found.labels[sure], found.tiles)
            results[path] = entries(found, classes)
            pixels = load(dict(img_path=path, img_id=0))['img'][..., ::-1].copy()
            texts = [f'{r["name"]} {r["score"]:.2f}' for r in results[path]] if len(results[path]) <= 100 else ()
            arrays = dict(boxes=found.boxes.numpy(), scores=found.scores.numpy(), labels=found.labels.numpy())
            figure = png(draw_boxes(pixels, found.boxes.numpy(), texts))
            write_figure(osp.join(out_dir, f'{name}_tiled'), figure, arrays if args.raw else None)
            tiles = f'{found.tiles} tile{"s" * (found.tiles > 1)}'
            print(f'{path}: {len(results[path])} objects in {tiles}')
    except ValueError as e:
        raise UserError(str(e)) from e
    if args.json:
        make_folder_of(args.json)
        write_atomically(args.json, valid_json(results, indent=1).encode())


def png(pixels: np.ndarray) -> bytes:
    """An RGB image (H, W, 3), uint8, as a file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, 'PNG')
    return out.getvalue()


if __name__ == '__main__':
    run_tool(main)
