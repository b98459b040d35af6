"""Export a classifier or a detector to ONNX, and check the file against PyTorch with onnxruntime.

The input is an RGB image, (N, 3, H, W), float32 from 0 to 255; normalisation and padding are in the graph. The file is
written only if every output agrees with PyTorch's: within 1e-4 (absolute up to 1, relative above), boxes within 0.01
pixels.
"""

import argparse
import os.path as osp
import sys

import mmccd.cli  # first: before PyTorch and anything of mmdet
from mmccd.checkpoints.files import write_atomically
from mmccd.checkpoints.read import check_checkpoint_file
from mmccd.cli.arguments import add_cfg_options, add_shape_argument, checked_shape, run_tool
from mmccd.cli.outputs import check_file, make_folder_of
from mmccd.cli.parser import RenamedOption, tool_parser
from mmccd.configs import config_name, load_config
from mmccd.data.image_files import list_images
from mmccd.deployment import (
    KINDS,
    RUNTIMES,
    SHAPES,
    check_packages,
    compare,
    export_onnx,
    markdown_table,
    onnxruntime_run,
    openvino_run,
    parity_images,
    quantize,
    resize_steps,
)
from mmccd.errors import UserError

EXAMPLES = """examples:
  python tools/deployment/export_onnx.py CONFIG CKPT
  python tools/deployment/export_onnx.py CONFIG CKPT --shape 800 1344 --images data/coco/val2017/000000000139.jpg
  python tools/deployment/export_onnx.py CONFIG CKPT --images data/coco/val2017 --also int8
  python tools/deployment/infer_onnx.py MODEL.onnx images/
kinds:
  end2end  classifiers: logits and scores; RetinaNet, Faster, Mask and Cascade R-CNN: boxes, scores and labels after
           the NMS of the config's test_cfg, one image at a time
  raw      classifiers: logits; RetinaNet: class logits and box deltas by level; two-stage detectors: features and the
           RPN's logits and deltas by level
"""


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--out', help='file to write; default: work_dirs/<config name>/<config name>.onnx')
    parser.add_argument('--kind', choices=KINDS, default='end2end', help='what is in the graph; default: end2end')
    add_shape_argument(parser, 'any size; with it, the model takes one image at a time')
    parser.add_argument(
        '--images',
        '--pictures',
        action=RenamedOption,
        metavar='IMG|DIR',
        help='compare on these images, resized, instead of noise',
    )
    parser.add_argument(
        '--also',
        nargs='+',
        choices=RUNTIMES,
        default=[],
        help='more rows of the table: the file in OpenVINO (pip install openvino); an 8-bit file, <out>_int8.onnx, '
        'calibrated on --images, which is kept as well',
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        check_packages(*({'openvino'} & set(args.also)))
    except ImportError as e:
        raise UserError(str(e)) from e
    shape = checked_shape(args.shape, 1)
    name = config_name(args.config)
    out = args.out or osp.join('work_dirs', name, f'{name}.onnx')
    check_file(out, '--out')
    check_checkpoint_file(args.checkpoint, 'checkpoint')
    cfg = load_config(args.config, args.cfg_options)
    try:
        images = parity_images([shape] if shape else SHAPES, list_images(args.images) if args.images else ())
        model = mmccd.init_model(cfg, args.checkpoint, device='cpu')
        network, content = export_onnx(model, args.kind, shape)
        small = quantize(content, images) if 'int8' in args.also else b''
        also = dict(int8=onnxruntime_run(small, network.outputs)) if small else {}
        if 'openvino' in args.also:
            also['openvino'] = openvino_run(content, network.outputs)
    except (ValueError, RuntimeError, ImportError) as e:
        raise UserError(str(e)) from e
    rows = compare(network, content, images, also)

    size = f'{shape[0]} x {shape[1]}' if shape else 'any height and width'
    print(f'{name}, {args.kind}, {size}, {len(content) / 1e6:.1f} MB; deviations from PyTorch:\n{markdown_table(rows)}')
    counts = [r.boxes for r in rows if r.output == 'boxes']
    if counts and not any(counts):
        print(
            'warning: no box was above score_thr, so none was compared: pass --images with objects in them',
            file=sys.stderr,
        )
    ok = all(r.ok for r in rows)
    path = out if ok else f'{out}.failed'
    make_folder_of(path)
    write_atomically(path, content)
    print(path)
    if ok and small:
        path = f'{osp.splitext(out)[0]}_int8.onnx'
        write_atomically(path, small)
        print(f'{path}, {len(small) / 1e6:.1f} MB')
    for step in resize_steps(cfg) if args.kind == 'end2end' else ():
        if step['step'] == 'unknown':
            print(
                f'warning: infer_onnx.py will refuse the file, it cannot follow {step["transform"]} of the test '
                'pipeline',
                file=sys.stderr,
            )
    if not ok:
        print('error: the exported model does not agree with PyTorch, see the table', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    run_tool(main)
