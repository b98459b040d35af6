"""AP of tiled detection in an aerial photograph, beside one pass over the whole of it.

Examples:
    python benchmarks/bench_tiled.py work_dirs/demo_trees/retinanet_ccd_r18_fpn_trees/epoch_5.pth
    python benchmarks/bench_tiled.py CKPT --overlap 0.25 0.5 --out /tmp/tiled.csv

The checkpoint is that of ``make demo-trees``, the photograph the validation region of its data, put together from the
tiles of ``data/trees/val``, with the parts of a tree as one box again. Rows of results/tiled_cpu.csv: the photograph as
the test pipeline makes it smaller, and in tiles of 256 pixels, which is what the detector was trained on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path

import torch
from common import RESULTS, add_allocator, environment, use_allocator, write
from PIL import Image

import mmccd
from mmccd.analysis.tiles import Found, detect_tiled

TILE = 256
WHOLE = 100_000  # pixels of a tile that no image fills


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='of the config')
    parser.add_argument('--config', default='retinanet_ccd_r18_fpn_trees', help='default: %(default)s')
    parser.add_argument('--data', type=Path, default=Path('data/trees'), help='default: %(default)s')
    parser.add_argument('--overlap', type=float, nargs='+', default=[0.0, 0.25, 0.5], help='share of a tile')
    add_allocator(parser)
    parser.set_defaults(device='cpu')  # what the allocator asks for
    parser.add_argument('--out', type=Path, default=RESULTS / 'tiled_cpu.csv', help='default: %(default)s')
    return parser.parse_args()


def whole_photograph(data: Path) -> tuple[Image.Image, dict]:
    """The validation tiles as one image, and its trees as a COCO file's content."""
    coco = json.loads((data / 'annotations/instances_val.json').read_text())
    places = {i['id']: tuple(map(int, Path(i['file_name']).stem.split('_')[-2:])) for i in coco['images']}
    top = min(y for _, y in places.values())
    sides = {i['id']: (i['width'], i['height']) for i in coco['images']}
    width = max(places[i][0] + sides[i][0] for i in places)
    height = max(places[i][1] + sides[i][1] for i in places) - top
    photograph = Image.new('RGB', (width, height))
    for image in coco['images']:
        x, y = places[image['id']]
        photograph.paste(Image.open(data / 'val' / image['file_name']), (x, y - top))
    parts: dict[int, list] = {}
    for box in coco['annotations']:
        x, y = places[box['image_id']]
        left, upper, w, h = box['bbox']
        corners = left + x, upper + y - top, left + x + w, upper + y - top + h
        parts.setdefault(box['tree'], []).append((corners, box['iscrowd']))
    boxes = []
    for number, of_tree in enumerate(parts.values(), 1):
        (lefts, uppers, rights, lowers), crowds = zip(*(c for c, _ in of_tree)), [crowd for _, crowd in of_tree]
        x, y, w, h = min(lefts), min(uppers), max(rights) - min(lefts), max(lowers) - min(uppers)
        # Less than half of a single part is beyond the region's border; of several parts, most is in it.
        crowd = int(all(crowds) and len(crowds) == 1)
        boxes.append(dict(id=number, image_id=1, category_id=1, bbox=[x, y, w, h], area=w * h, iscrowd=crowd))
    image = dict(id=1, file_name='photograph.png', width=width, height=height)
    return photograph, dict(images=[image], categories=coco['categories'], annotations=boxes)


def average_precision(truth: Path, found: Found) -> tuple[float, float]:
    """AP and AP50 by pycocotools, of up to 1,000 detections."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    entries = [
        dict(image_id=1, category_id=1, score=score, bbox=[x1, y1, x2 - x1, y2 - y1])
        for (x1, y1, x2, y2), score in zip(found.boxes.tolist(), found.scores.tolist())
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(entries), 'bbox')
        evaluation.params.maxDets = [1, 10, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval['precision'][:, :, 0, 0, -1]  # (IoU, recall): all sizes, all detections
    return float(precision.mean()), float(precision[0].mean())


def main() -> None:
    args = parse_args()
    use_allocator(args)
    model = mmccd.init_model(args.config, args.checkpoint, device='cpu')
    ways = [('whole', WHOLE, 0.0, False)]
    for overlap in args.overlap:
        ways += [('tiles', TILE, overlap, False), ('tiles and whole', TILE, overlap, True)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        photograph, coco = whole_photograph(args.data)
        image, truth = Path(folder, 'photograph.png'), Path(folder, 'truth.json')
        photograph.save(image)
        truth.write_text(json.dumps(coco))
        trees = sum(not box['iscrowd'] for box in coco['annotations'])
        print(f'{photograph.width} x {photograph.height} pixels, {trees} trees')
        for way, side, overlap, whole in ways:
            begin = time.perf_counter()
            found = detect_tiled(model, str(image), side, overlap, whole)
            seconds = time.perf_counter() - begin
            ap, ap50 = average_precision(truth, found)
            row = dict(way=way, overlap=overlap, tiles=found.tiles, ap=round(ap, 4), ap50=round(ap50, 4))
            rows.append(dict(row, boxes=len(found.scores), trees=trees, seconds=round(seconds, 2)))
            print('{way:15} overlap {overlap:<4}  {tiles:3} tiles  AP {ap:.4f}  AP50 {ap50:.4f}'.format(**row))
    write([dict(row, **environment(torch.device('cpu'), args)) for row in rows], args.out)
    print(f'{len(rows)} rows in {args.out}')


if __name__ == '__main__':
    main()
