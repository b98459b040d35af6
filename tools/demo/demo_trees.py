"""The second demo, with real boxes: find trees in aerial photographs, in a region that is not in the training data.

RetinaNet with CCD-ResNet-18 is initialised with the backbone that the first demo trains on digits; without it, this
demo trains it first. After an interruption, the next call continues where it stopped.
"""

from __future__ import annotations

import os.path as osp

from mmccd.cli import demo

ROOT = osp.dirname(osp.dirname(osp.dirname(osp.abspath(__file__))))
DATA = 'data/trees'
BACKBONE, DETECTOR = 'ccd_r18_digits', 'retinanet_ccd_r18_fpn_trees'
SCORE = 0.3
TESTS = {'val': 'test in the same scene', 'transfer': 'test in other scenes'}  # step by split


def pretrain(work_dir: str, log: str, interrupted: bool, out: str) -> None:
    """Train and publish the first demo's backbone."""
    demo.run(log, 'dataset_converters/make_digits.py')
    demo.train(work_dir, log, BACKBONE, interrupted)
    demo.run(log, 'model_converters/publish_model.py', demo.last_checkpoint(work_dir, BACKBONE), out)


def test_split(work_dir: str, log: str, split: str, metrics: str, results: str) -> None:
    """COCO's metrics of one split, and the detections in it."""
    ann_file = f'annotations/instances_{split}.json'
    options = [
        f'test_dataloader.dataset.ann_file={ann_file}',
        f'test_dataloader.dataset.data_prefix.img={split}/',
        f'test_evaluator.ann_file={DATA}/{ann_file}',
        f'test_evaluator.outfile_prefix={results}',
    ]
    demo.test(work_dir, log, DETECTOR, metrics, options)


def draw_detections(result_file: str, out: str) -> None:
    """The validation region, its tiles side by side: boxes drawn by people in white, detections in yellow."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    import mmccd  # noqa: F401  before anything of mmdet
    from mmccd.analysis.boxes import WHITE, draw_boxes

    coco = demo.read_json(f'{DATA}/annotations/instances_val.json')
    places = {i['id']: tuple(map(int, i['file_name'][: -len('.png')].split('_')[-2:])) for i in coco['images']}
    top = min(y for _, y in places.values())
    width = max(places[i['id']][0] + i['width'] for i in coco['images'])
    height = max(places[i['id']][1] + i['height'] for i in coco['images']) - top
    scene = Image.new('RGB', (width, height))
    for image in coco['images']:
        x, y = places[image['id']]
        scene.paste(Image.open(f'{DATA}/val/{image["file_name"]}'), (x, y - top))

    def placed(entry: dict) -> tuple[float, float, float, float]:
        x, y = entry['bbox'][0] + places[entry['image_id']][0], entry['bbox'][1] + places[entry['image_id']][1] - top
        return x, y, x + entry['bbox'][2], y + entry['bbox'][3]

    trees = [placed(a) for a in coco['annotations'] if not a['iscrowd']]
    found = [d for d in demo.read_json(result_file) if d['score'] >= SCORE]
    drawn = draw_boxes(np.asarray(scene), trees, color=WHITE, line_width=1.5)
    scores = [f'{d["score"]:.1f}'.lstrip('0') for d in found]
    drawn = draw_boxes(drawn, [placed(d) for d in found], scores, font_size=7, line_width=1.5)
    scene = Image.fromarray(drawn)
    pen, font = ImageDraw.Draw(scene), ImageFont.load_default(14)
    text = f'white: drawn by people    yellow: detected, score {SCORE} or more'
    pen.rectangle(pen.textbbox((8, 6), text, font=font), fill='black')
    pen.text((8, 6), text, fill='white', font=font)
    scene.save(out)


def main() -> None:
    args = demo.demo_arguments(__doc__, 'work_dirs/demo_trees').parse_args()
    work_dir, log, steps = demo.open_work_dir(args, ROOT)
    backbone = f'checkpoints/{BACKBONE}.pth'
    metrics = {split: osp.join(work_dir, f'{split}.json') for split in TESTS}
    results = {split: osp.join(work_dir, f'{split}_detections') for split in TESTS}
    image = osp.join(work_dir, 'detections.png')

    steps.do(
        'cut the tiles',
        [f'{DATA}/trees.json'],
        lambda: demo.run(log, 'dataset_converters/make_trees.py', '--out', DATA),
    )
    if not osp.isfile(backbone):
        steps.do('pretrain the backbone', [backbone], lambda: pretrain(work_dir, log, steps.interrupted, backbone))
    steps.do(
        'train the detector',
        [osp.join(work_dir, DETECTOR, 'last_checkpoint')],
        lambda: demo.train(work_dir, log, DETECTOR, steps.interrupted),
    )
    for split, name in TESTS.items():
        files = metrics[split], results[split]
        outputs = [files[0], f'{files[1]}.bbox.json']
        steps.do(name, outputs, lambda split=split, files=files: test_split(work_dir, log, split, *files))
    steps.do('draw the detections', [image], lambda: draw_detections(f'{results["val"]}.bbox.json', image))

    counts = demo.read_json(f'{DATA}/trees.json')['counts']
    shown = {name: demo.average_precision(demo.read_json(metrics[split])) for split, name in TESTS.items()}
    shown['cut the tiles'] = ', '.join(f'{split} {c["trees"]} trees' for split, c in counts.items())
    shown['pretrain the backbone'] = backbone
    shown['draw the detections'] = image
    steps.print_table(shown, work_dir)


if __name__ == '__main__':
    demo.run_demo(main, 'make demo-trees')
