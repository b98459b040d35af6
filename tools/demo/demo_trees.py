"""The second demo, with real boxes: find trees in aerial photographs, in a part of the scene that training never saw.

RetinaNet with CCD-ResNet-18 starts from the backbone that the first demo trains on digits; that is made here if it is
not there. Interrupted, the next call goes on where it was.
"""

import argparse
import os
import os.path as osp

from demo import CCD, METRICS, ROOT, Steps, last_checkpoint, read_json, run, train
from PIL import Image, ImageDraw, ImageFont

DATA = 'data/trees'
BACKBONE, DETECTOR = CCD.backbone, 'retinanet_ccd_r18_fpn_trees'
SHOWN_SCORE = 0.3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', default='work_dirs/demo_trees', help='folder for everything that the demo writes')
    parser.add_argument('--fresh', action='store_true', help='forget what was done and start again')
    return parser.parse_args()


def pretrain(work_dir: str, log: str, interrupted: bool, out: str) -> None:
    """The first demo's backbone."""
    run(log, 'dataset_converters/make_digits.py')
    train(work_dir, log, BACKBONE, interrupted)
    run(log, 'model_converters/publish_model.py', last_checkpoint(work_dir, BACKBONE), out)


def test(work_dir: str, log: str, part: str, metrics: str, results: str) -> None:
    """COCO's metrics of one part of the data, and its detections."""
    ann_file = f'annotations/instances_{part}.json'
    run(
        log,
        'test.py',
        f'configs/{DETECTOR}.py',
        last_checkpoint(work_dir, DETECTOR),
        '--work-dir',
        osp.join(work_dir, DETECTOR),
        '--out',
        metrics,
        '--out-item',
        'metrics',
        '--cfg-options',
        f'test_dataloader.dataset.ann_file={ann_file}',
        f'test_dataloader.dataset.data_prefix.img={part}/',
        f'test_evaluator.ann_file={DATA}/{ann_file}',
        f'test_evaluator.outfile_prefix={results}',
    )


def draw(result_file: str, out: str) -> None:
    """The validation part of the scene, its tiles side by side: drawn boxes in white, detections in yellow."""
    coco = read_json(f'{DATA}/annotations/instances_val.json')
    places = {i['id']: tuple(map(int, i['file_name'][: -len('.png')].split('_')[-2:])) for i in coco['images']}
    top = min(y for _, y in places.values())
    width = max(places[i['id']][0] + i['width'] for i in coco['images'])
    height = max(places[i['id']][1] + i['height'] for i in coco['images']) - top
    scene = Image.new('RGB', (width, height))
    for image in coco['images']:
        x, y = places[image['id']]
        scene.paste(Image.open(f'{DATA}/val/{image["file_name"]}'), (x, y - top))
    pen = ImageDraw.Draw(scene)
    font = ImageFont.load_default(14)

    def rectangle(image_id: int, box: list[float], colour: str) -> tuple[float, float]:
        x, y = box[0] + places[image_id][0], box[1] + places[image_id][1] - top
        pen.rectangle((x, y, x + box[2], y + box[3]), outline=colour, width=2)
        return x, y

    for tree in coco['annotations']:
        if not tree['iscrowd']:
            rectangle(tree['image_id'], tree['bbox'], 'white')
    for found in read_json(result_file):
        if found['score'] >= SHOWN_SCORE:
            x, y = rectangle(found['image_id'], found['bbox'], '#ffe000')
            pen.text((x + 3, y + 1), f'{found["score"]:.1f}'.lstrip('0'), fill='#ffe000', font=font)
    text = f'white: drawn by people    yellow: detected, score {SHOWN_SCORE} or more'
    pen.rectangle(pen.textbbox((8, 6), text, font=font), fill='black')
    pen.text((8, 6), text, fill='white', font=font)
    scene.save(out)


def main() -> None:
    args = parse_args()
    work_dir = osp.abspath(args.work_dir)
    os.chdir(ROOT)
    os.makedirs(work_dir, exist_ok=True)
    work_dir = osp.relpath(work_dir, ROOT)
    path = osp.join(work_dir, 'steps.json')
    log = osp.join(work_dir, 'demo.log')
    if args.fresh and osp.isfile(path):
        os.remove(path)
    steps = Steps(path)

    backbone = f'checkpoints/{BACKBONE}.pth'
    metrics = {part: osp.join(work_dir, f'{part}.json') for part in ('val', 'transfer')}
    results = {part: osp.join(work_dir, f'{part}_detections') for part in metrics}
    image = osp.join(work_dir, 'detections.png')

    steps.do(
        'cut the tiles', [f'{DATA}/trees.json'], lambda: run(log, 'dataset_converters/make_trees.py', '--out', DATA)
    )
    if not osp.isfile(backbone):
        steps.do('pretrain the backbone', [backbone], lambda: pretrain(work_dir, log, steps.interrupted, backbone))
    steps.do(
        'train the detector',
        [osp.join(work_dir, DETECTOR, 'last_checkpoint')],
        lambda: train(work_dir, log, DETECTOR, steps.interrupted),
    )
    for part, name in (('val', 'test in the same scene'), ('transfer', 'test in other scenes')):
        steps.do(
            name,
            [metrics[part], f'{results[part]}.bbox.json'],
            lambda part=part: test(work_dir, log, part, metrics[part], results[part]),
        )
    steps.do('draw the detections', [image], lambda: draw(f'{results["val"]}.bbox.json', image))

    counts = read_json(f'{DATA}/trees.json')['counts']
    found = {part: read_json(file) for part, file in metrics.items()}
    ap = {
        part: ', '.join(f'{name} {values.get(f"coco/{key}", 0):.3f}' for name, key in METRICS)
        for part, values in found.items()
    }
    shown = {
        'cut the tiles': ', '.join(f'{part} {c["trees"]} trees' for part, c in counts.items()),
        'pretrain the backbone': backbone,
        'test in the same scene': ap['val'],
        'test in other scenes': ap['transfer'],
        'draw the detections': image,
    }
    print(f'\n{"step":24}{"time":>8}   result')
    for name, step in steps.state.items():
        print(f'{name:24}{step["seconds"]:6.0f} s   {shown.get(name, "")}')
    print(f'{"all":24}{sum(s["seconds"] for s in steps.state.values()):6.0f} s   logs and checkpoints: {work_dir}')


if __name__ == '__main__':
    main()
