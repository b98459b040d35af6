"""All steps at small scale: pretrain CCD-ResNet-18 on digits, train RetinaNet with it, test it, draw its detections.

Every step runs the tools that are used for ImageNet and COCO. After an interruption, the next call continues where it
stopped. The last step writes a page that compares the detector with the plain one: a recorded run, or, with --plain,
one that the demo trains; and says what the attention bench found about the two with several seeds.
"""

from __future__ import annotations

import argparse
import os.path as osp
from typing import NamedTuple

from mmccd.cli.demo import (
    Steps,
    average_precision,
    demo_arguments,
    last_checkpoint,
    open_work_dir,
    read_json,
    run,
    run_demo,
    test,
    train,
)

ROOT = osp.dirname(osp.dirname(osp.dirname(osp.abspath(__file__))))
DATA = 'data/digits'
REPORT = 'write the report'


class Job(NamedTuple):
    """A backbone, and the detector that uses it. The names of its steps and files begin with ``steps``, ``files``."""

    backbone: str
    detector: str
    steps: str = ''
    files: str = ''


CCD = Job('ccd_r18_digits', 'retinanet_ccd_r18_fpn_digits')
PLAIN = Job('r18_digits', 'retinanet_r18_fpn_digits', 'plain: ', 'plain_')
RECORDED = f'docs/runs/{PLAIN.detector}'
BENCH = 'benchmarks/attention'
SHOWN, COLUMNS, ZOOM, GAP = 12, 4, 3, 8  # images, images in a row, times their size, pixels between them
SCORE = 0.5


def parse_args() -> argparse.Namespace:
    parser = demo_arguments(__doc__, 'work_dirs/demo')
    parser.add_argument('--plain', action='store_true', help='also train the plain detector (takes as long again)')
    parser.add_argument('--record', action='store_true', help=f'--plain, and store that run in {RECORDED}')
    return parser.parse_args()


def draw_detections(result_file: str, out: str) -> None:
    """Draw the detections with a score from SCORE on over the first SHOWN validation images, all in one image."""
    import numpy as np
    from PIL import Image

    import mmccd  # noqa: F401  before anything of mmdet
    from mmccd.analysis.boxes import draw_boxes

    coco = read_json(f'{DATA}/det/annotations/instances_val.json')
    names = {c['id']: c['name'] for c in coco['categories']}
    images = coco['images'][:SHOWN]
    found = {image['id']: [] for image in images}
    for detection in read_json(result_file):
        if detection['image_id'] in found and detection['score'] >= SCORE:
            found[detection['image_id']].append(detection)
    size = max(max(i['width'], i['height']) for i in images) * ZOOM
    step, rows = size + GAP, -(-SHOWN // COLUMNS)
    whole = Image.new('RGB', (COLUMNS * step - GAP, rows * step - GAP), 'white')
    for k, entry in enumerate(images):
        image = Image.open(f'{DATA}/det/val/{entry["file_name"]}').convert('RGB').resize((size, size), Image.BICUBIC)
        boxes = [[ZOOM * v for v in (x, y, x + w, y + h)] for x, y, w, h in (d['bbox'] for d in found[entry['id']])]
        texts = [f'{names[d["category_id"]]}: {d["score"]:.2f}' for d in found[entry['id']]]
        drawn = draw_boxes(np.asarray(image), boxes, texts)
        whole.paste(Image.fromarray(drawn), (k % COLUMNS * step, k // COLUMNS * step))
    whole.save(out)


def train_and_test(steps: Steps, log: str, work_dir: str, job: Job) -> dict[str, str]:
    """From the digits to a tested detector; returns the results of its steps in words."""
    backbone, detector = osp.join(work_dir, job.backbone), osp.join(work_dir, job.detector)
    published = f'checkpoints/{job.backbone}.pth'
    top1, coco, results = (
        osp.join(work_dir, job.files + name) for name in ('classification.json', 'detection.json', 'detections')
    )
    steps.do(
        f'{job.steps}pretrain the backbone',
        [osp.join(backbone, 'last_checkpoint')],
        lambda: train(work_dir, log, job.backbone, steps.interrupted),
    )
    steps.do(f'{job.steps}test the classifier', [top1], lambda: test(work_dir, log, job.backbone, top1))
    steps.do(
        f'{job.steps}publish the backbone',
        [published],
        lambda: run(log, 'model_converters/publish_model.py', last_checkpoint(work_dir, job.backbone), published),
    )
    steps.do(
        f'{job.steps}train the detector',
        [osp.join(detector, 'last_checkpoint')],
        lambda: train(work_dir, log, job.detector, steps.interrupted),
    )
    steps.do(
        f'{job.steps}test the detector',
        [coco, f'{results}.bbox.json'],
        lambda: test(work_dir, log, job.detector, coco, [f'test_evaluator.outfile_prefix={results}']),
    )
    return {
        f'{job.steps}test the classifier': f'top-1 {read_json(top1)["accuracy/top1"]:.1f} %',
        f'{job.steps}publish the backbone': published,
        f'{job.steps}test the detector': average_precision(read_json(coco)),
    }


def compare(steps: Steps, log: str, work_dir: str, page: str) -> str:
    """Write the page about the plain and the CCD detector; returns what it compares."""
    if steps.state.get(f'{PLAIN.steps}test the detector', {}).get('done'):
        plain, about = [osp.join(work_dir, PLAIN.detector)], 'plain against CCD'
    elif osp.isdir(RECORDED):
        plain, about = [RECORDED], 'plain (recorded) against CCD'
    else:
        plain, about = [], f'CCD alone: there is no {RECORDED}, and --plain trains the plain one'
    # Short: attention maps of one image, a second for the speed.
    options = ('--out', page, '--gates', '1', '--speed', '1')
    if osp.isfile(f'{BENCH}/rows.csv'):
        options += ('--bench', BENCH)
    ccd = osp.join(work_dir, CCD.detector)
    steps.do(REPORT, [page], lambda: run(log, 'analysis_tools/report.py', *plain, ccd, *options))
    return about


def main() -> None:
    args = parse_args()
    work_dir, log, steps = open_work_dir(args, ROOT)
    results, image, page = (osp.join(work_dir, n) for n in ('detections.bbox.json', 'detections.png', 'report.html'))
    steps.do(
        'make the data', [f'{DATA}/digits.json'], lambda: run(log, 'dataset_converters/make_digits.py', '--out', DATA)
    )
    shown = train_and_test(steps, log, work_dir, CCD)
    steps.do('draw the detections', [image], lambda: draw_detections(results, image))
    if args.plain or args.record:
        if f'{PLAIN.steps}pretrain the backbone' not in steps.state:
            steps.state.pop(REPORT, None)  # it was written without the plain detector, and comes after these steps
        shown.update(train_and_test(steps, log, work_dir, PLAIN))
    about = compare(steps, log, work_dir, page)
    if args.record:
        options = ('--record', RECORDED, '--command', 'python tools/demo/demo.py --plain')
        run(log, 'analysis_tools/report.py', osp.join(work_dir, PLAIN.detector), *options)

    counts = read_json(f'{DATA}/digits.json')['counts']
    digits, scenes = sum(counts['cls'].values()), [counts['det'][split]['images'] for split in ('train', 'val')]
    shown['make the data'] = f'{digits:,} digits, {scenes[0]:,} + {scenes[1]:,} scenes'
    shown['draw the detections'] = image
    shown[REPORT] = f'{page}: {about}'
    steps.print_table(shown, work_dir)


if __name__ == '__main__':
    run_demo(main, 'make demo')
