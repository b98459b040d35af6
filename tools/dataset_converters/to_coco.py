"""Convert labels of YOLO, Pascal VOC, LabelMe, CVAT or Label Studio into COCO files, exactly to the pixel.

Writes a file for each split, OUT/train.json and so on; OUT/all.json for a dataset without splits. Images stay where
they are. What has no box, or another shape, is counted and named; what is wrong is refused with file and line. Ends
with 0 if the files were written, with 2 if not. tools/make_config.py takes such folders directly.
"""

from __future__ import annotations

import argparse
import os
import os.path as osp
import shlex
from collections.abc import Sequence

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet
from mmccd.cli.arguments import run_tool
from mmccd.cli.own_formats import describe, shown_folder, write_split
from mmccd.cli.parser import tool_parser
from mmccd.data.formats import NAMES, WHOLE, check_splits, divide, read_labels, same_classes, to_coco
from mmccd.data.formats.voc import COORDINATES
from mmccd.errors import UserError

EXAMPLES = """examples:
  python tools/dataset_converters/to_coco.py my/yolo --out my/coco
  python tools/dataset_converters/to_coco.py my/labelme --out my/coco --val-share 0.2
  python tools/dataset_converters/to_coco.py data/VOCdevkit/VOC2007 --out data/voc2007 --voc-coordinates inclusive
formats: """ + '; '.join(f'{kind}: {text}' for kind, text in NAMES.items())


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument('folder', metavar='FOLDER', help='folder of a dataset, or the file in it that describes it')
    parser.add_argument('--out', required=True, metavar='OUT', help='folder to write into')
    parser.add_argument('--format', choices=list(NAMES), help='format of FOLDER; default: by what lies in it')
    parser.add_argument(
        '--val-share',
        type=float,
        metavar='SHARE',
        help='divide a dataset without splits: this share of its images, 0 to 1, at random into val.json',
    )
    parser.add_argument('--seed', type=int, default=0, help='of --val-share; default: 0')
    parser.add_argument(
        '--difficult',
        choices=('ignore', 'keep'),
        default='ignore',
        help="VOC's difficult objects: ignored in training and evaluation (default), or like all others",
    )
    parser.add_argument(
        '--voc-coordinates',
        choices=COORDINATES,
        default='auto',
        help='VOC boxes: pixels from 1, the last one included (inclusive: its definition), or corners from 0 as many '
        'tools write them; default: the latter where a box begins at 0',
    )
    parser.add_argument('--force', action='store_true', help='leave out what is wrong, and count it')
    parser.add_argument('--overwrite', action='store_true', help='replace files in OUT')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.val_share is not None and not 0 < args.val_share < 1:
        raise UserError(f'--val-share must be between 0 and 1, got {args.val_share}')
    if args.seed < 0:
        raise UserError(f'--seed must be at least 0, got {args.seed}')
    if osp.exists(args.out) and not osp.isdir(args.out):
        raise UserError(f'--out must be a folder, and {args.out} is a file')
    labelled = read_labels(args.folder, args.format, args.difficult, args.voc_coordinates)
    splits = {split: images for split, images in labelled.splits.items() if images}
    if args.val_share is not None:
        if set(splits) != {WHOLE} or len(splits[WHOLE]) < 2:
            found = ', '.join(splits) if set(splits) != {WHOLE} else 'one image'
            raise UserError(f'--val-share divides a dataset of images without splits, and {args.folder} has {found}')
        splits = divide(splits[WHOLE], args.val_share, args.seed)
    classes = same_classes({args.folder: labelled})
    written = {}
    for split, images in splits.items():
        source = f'{labelled.kind}, {args.folder}, {split}'
        written[osp.join(args.out, f'{split}.json')] = to_coco(images, classes, labelled.findings, source)
    if not args.force:
        labelled.findings.refuse(args.folder, 'Correct them, or add --force to leave them out')
    check_splits(written, args.folder)
    there = [path for path in written if osp.exists(path)]
    if there and not args.overwrite:
        raise UserError(f'{", ".join(there)}: there already; give another --out, or --overwrite')
    try:
        os.makedirs(args.out, exist_ok=True)
    except OSError as e:
        raise UserError(f'--out {args.out} cannot be made: {e.strerror}') from e
    if labelled.findings.counts:
        print(labelled.findings.text())
    print(f'{labelled.kind}, {len(classes)} classes: {", ".join(classes[:20])}{" ..." * (len(classes) > 20)}')
    options = []
    for path, split in written.items():
        split.folder = shown_folder(split.folder, args.folder)
        write_split(path, split)
        print(f'{path}: {describe(split)}')
        name = osp.splitext(osp.basename(path))[0]
        if name in ('train', 'val', 'test'):
            options += [f'--{name}', split.folder, path]
    if {'--train', '--val'} <= set(options):
        print(f'Next:\n  python tools/make_config.py {shlex.join(options)}')


if __name__ == '__main__':
    run_tool(main)
