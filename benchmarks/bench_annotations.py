"""What the checks of a COCO annotation file cost at the start of a training, beside reading it.

Examples:
    python benchmarks/bench_annotations.py
    python benchmarks/bench_annotations.py --images 1000 --runs 3 --out /tmp/annotations.csv

A file of the size of instances_train2017.json is made in a temporary folder: 118,287 images with 860,001
annotations, 448 MB.
Times are those of the process on its core; the file is in the system's cache. Rows of results/annotations_cpu.csv,
which take turns:

    json.load   the file read as pycocotools does it
    parse       the same without collection of garbage, as mmccd reads
    check       is there anything to repair or to refuse in the parsed content
    categories  the names of the categories, which are searched in the file before it is read
    read_coco   parse and check, as training and evaluation do them

``of_load`` is the time by that of json.load, ``of_parse`` by that of parse: medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, environment, percentiles, write

from mmccd.data.checks.coco import read_coco
from mmccd.data.classes import parse_json, read_categories
from mmccd.data.plain import is_plain

IMAGES, ANNOTATIONS_AN_IMAGE, CROWDS = 118_287, 860_001 / 118_287, 10_000 / 860_001
POINTS = 21  # of a polygon, on average; with one in six objects in two polygons, the file has COCO's size


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=IMAGES, help='in the file; default: %(default)s, as in COCO')
    parser.add_argument('--runs', type=int, default=7, help='rounds; default: 7')
    parser.add_argument('--seed', type=int, default=0, help='of the file; default: 0')
    parser.add_argument(
        '--out', type=Path, default=RESULTS / 'annotations_cpu.csv', help='CSV file; default: %(default)s'
    )
    return parser.parse_args()


def annotations(rng: np.random.Generator, count: int, images: int) -> Iterator[str]:
    """Entries as COCO's file has them, one JSON object each; their shapes are drawn from 5,000."""
    sizes = rng.integers(6, 2 * POINTS - 5, 5000) * 2
    polygons = [str(np.round(rng.uniform(0, 640, n), 2).tolist()).replace(' ', '') for n in sizes]
    runs = [str(rng.integers(1, 2000, 4 * n).tolist()) for n in sizes[:100]]
    for start in range(0, count, 10_000):
        n = min(10_000, count - start)
        second, crowd = rng.random(n) < 1 / 6, rng.random(n) < CROWDS
        shapes = rng.integers(0, len(polygons), (n, 2)).tolist()
        boxes = np.round(rng.uniform(2, 300, (n, 4)), 2).tolist()
        areas = rng.uniform(10, 50_000, n).tolist()
        owners = rng.integers(0, images, n).tolist()
        labels = rng.integers(1, 91, n).tolist()
        for i, (one, two) in enumerate(shapes):
            if crowd[i]:
                shape = f'{{"counts": {runs[one % 100]},"size": [427,640]}}'
            else:
                shape = f'[{polygons[one]},{polygons[two]}]' if second[i] else f'[{polygons[one]}]'
            x, y, w, h = boxes[i]
            yield (
                f'{{"segmentation": {shape},"area": {areas[i]!r},"iscrowd": {int(crowd[i])},"image_id": '
                f'{owners[i] * 5 + 9},"bbox": [{x},{y},{w},{h}],"category_id": {labels[i]},"id": {start + i + 1}}}'
            )


def make_file(path: Path, images: int, seed: int) -> int:
    """Write it; its size in bytes."""
    rng = np.random.default_rng(seed)
    with open(path, 'w', encoding='utf-8') as f:
        f.write('{"info": {"description": "made up"},"licenses": [],"images": [')
        for i in range(images):
            name = f'{i * 5 + 9:012}.jpg'
            entry = dict(
                license=3,
                file_name=name,
                coco_url=f'http://images.example.org/train2017/{name}',
                height=427,
                width=640,
                date_captured='2013-11-14 11:18:45',
                flickr_url=f'http://farm9.example.org/8186/{i:010}_3ed6bf1e7c_z.jpg',
                id=i * 5 + 9,
            )
            f.write(',' * (i > 0) + json.dumps(entry))
        f.write('],"annotations": [')
        for i, entry in enumerate(annotations(rng, round(images * ANNOTATIONS_AN_IMAGE), images)):
            f.write(',' * (i > 0) + entry)
        categories = [dict(supercategory='thing', id=i, name=f'class {i}') for i in range(1, 91)]
        f.write(f'],"categories": {json.dumps(categories)}}}')
    return path.stat().st_size


def timed(function: Callable[[], object]) -> tuple[float, object]:
    """Milliseconds of a call on its core, whatever else the machine does, and what it returns."""
    gc.collect()
    begin = time.process_time()
    result = function()
    return 1e3 * (time.process_time() - begin), result


def load(path: Path) -> object:
    """As pycocotools reads a file."""
    with open(path) as f:
        return json.load(f)


def one_round(path: Path) -> dict[str, float]:
    """Milliseconds by row."""
    times = {'json.load': timed(lambda: load(path))[0]}
    times['parse'], content = timed(lambda: parse_json(path.read_bytes()))
    # Without timed: what the parser leaves to be collected is part of what comes next.
    begin = time.process_time()
    assert is_plain(content)
    times['check'] = 1e3 * (time.process_time() - begin)
    del content
    times['categories'], names = timed(lambda: read_categories(str(path)))
    assert len(names) == 90
    times['read_coco'] = timed(lambda: read_coco(str(path)))[0]
    return times


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'instances.json'
        size = make_file(path, args.images, args.seed)
        print(f'{size / 1e6:.0f} MB, {args.images:,} images')
        read_categories(str(path))  # from here on the file is in memory
        rounds = [one_round(path) for _ in range(args.runs)]
    where = environment(torch.device('cpu'), argparse.Namespace(allocator='default'))
    rows = []
    for name in rounds[0]:
        of = {key: float(np.median([r[name] / r[key] for r in rounds])) for key in ('json.load', 'parse')}
        rows.append(
            dict(
                step=name,
                **percentiles([r[name] for r in rounds]),
                of_load=round(of['json.load'], 4),
                of_parse=round(of['parse'], 4),
                file_bytes=size,
                runs=args.runs,
                **where,
            )
        )
        print(
            f'{name:12}{rows[-1]["ms_p50"]:9.0f} ms  {of["json.load"]:7.1%} of json.load  {of["parse"]:7.1%} of parse'
        )
    write(rows, args.out)
    checks = [(r['check'] + r['categories']) / r['json.load'] for r in rounds]
    print(f'check and categories together: {np.median(checks):.1%} of json.load; written to {args.out}')


if __name__ == '__main__':
    main()
