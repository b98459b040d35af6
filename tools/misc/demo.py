"""The main job at small scale: pretrain CCD-ResNet-18 on digits, hand it over to RetinaNet, train, test, show.

Every step goes through the same tools that ImageNet and COCO use. Interrupted, the next call goes on where it was.
"""
import argparse
import json
import os
import os.path as osp
import re
import subprocess
import sys
import time
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFont

ROOT = osp.dirname(osp.dirname(osp.dirname(osp.abspath(__file__))))
DATA = 'data/digits'
BACKBONE = 'ccd_r18_digits'
DETECTOR = 'retinanet_ccd_r18_fpn_digits'
# Lines of a tool's log that tell how far it is.
PROGRESS = re.compile(r'Epoch\((?:train|val|test)\).*|tensors loaded.*|bbox_mAP_copypaste.*|error: .*')
SHOWN, ZOOM = 12, 3
# As the metric names them; it names none if the detector finds nothing at all.
METRICS = (('bbox mAP', 'bbox_mAP'), ('AP50', 'bbox_mAP_50'), ('AP75', 'bbox_mAP_75'))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for everything that the demo writes')
    parser.add_argument('--fresh', action='store_true', help='forget what was done and start again')
    return parser.parse_args()


def run(log: str, tool: str, *args: str) -> None:
    """Run a tool, its whole output appended to ``log``, the lines that tell its progress on the screen."""
    command = [sys.executable, osp.join('tools', tool), *args]
    print('$ python ' + ' '.join(command[1:]), flush=True)
    with open(log, 'a') as f:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            for line in process.stdout:
                f.write(line)
                match = PROGRESS.search(line)
                if match:
                    print('  ' + match.group(0)[:150].rstrip(), flush=True)
        finally:
            if process.poll() is None:
                process.terminate()
            code = process.wait()
    if code:
        with open(log) as f:
            tail = ''.join(f.readlines()[-15:])
        sys.exit(f'{tail}\nerror: {tool} ended with exit code {code}; its whole output is in {log}')


def train(work_dir: str, log: str, config: str, interrupted: bool) -> None:
    """Train; after an interruption from the newest checkpoint, if there is one."""
    resume = ['--resume'] if interrupted and osp.isfile(osp.join(work_dir, config, 'last_checkpoint')) else []
    run(log, 'train.py', f'configs/{config}.py', '--work-dir', osp.join(work_dir, config), *resume)


def last_checkpoint(work_dir: str, config: str) -> str:
    """Path of the last epoch's checkpoint, as mmengine noted it."""
    with open(osp.join(work_dir, config, 'last_checkpoint')) as f:
        return osp.relpath(f.read().strip(), ROOT)


def read_json(path: str) -> dict | list:
    with open(path) as f:
        return json.load(f)


def contact_sheet(result_file: str, out: str) -> None:
    """Draw the detections above 0.5 over the first validation pictures: one sheet of SHOWN pictures."""
    coco = read_json(f'{DATA}/det/annotations/instances_val.json')
    names = {c['id']: c['name'] for c in coco['categories']}
    images = coco['images'][:SHOWN]
    size = max(max(i['width'], i['height']) for i in images) * ZOOM
    sheet = Image.new('RGB', (4 * (size + 8) - 8, 3 * (size + 8) - 8), 'white')
    font = ImageFont.load_default(18)
    for k, image in enumerate(images):
        picture = Image.open(f'{DATA}/det/val/{image["file_name"]}').convert('RGB').resize((size, size), Image.BICUBIC)
        draw = ImageDraw.Draw(picture)
        for found in read_json(result_file):
            if found['image_id'] == image['id'] and found['score'] >= 0.5:
                x, y, w, h = (v * ZOOM for v in found['bbox'])
                text = f'{names[found["category_id"]]} {found["score"]:.2f}'
                draw.rectangle((x, y, x + w, y + h), outline='#ffe000', width=2)
                y = y - 20 if y >= 20 else y + h
                draw.rectangle(draw.textbbox((x, y), text, font=font), fill='black')
                draw.text((x, y), text, fill='#ffe000', font=font)
        sheet.paste(picture, (k % 4 * (size + 8), k // 4 * (size + 8)))
    sheet.save(out)


class Steps:
    """Steps that were done, with their times over all calls, in a file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.state = read_json(path) if osp.isfile(path) else {}
        self.interrupted = False  # whether the step that is being done was begun before

    def save(self) -> None:
        with open(f'{self.path}.partial', 'w') as f:
            json.dump(self.state, f, indent=2)
        os.replace(f'{self.path}.partial', self.path)

    def do(self, name: str, outputs: list[str], work: Callable[[], None]) -> None:
        """Do a step unless it is done and its outputs are there; whatever comes after a step done anew is, too."""
        self.interrupted = not self.state.get(name, dict(done=True))['done']
        step = self.state.setdefault(name, dict(seconds=0.0, done=False))
        if step['done'] and all(osp.exists(o) for o in outputs):
            print(f'{name}: done ({step["seconds"]:.0f} s)', flush=True)
            return
        later = list(self.state)[list(self.state).index(name) + 1:]
        for other in later:
            del self.state[other]
        step['done'] = False  # a file of the last time may be there, should this time break off
        self.save()
        print(f'{name}:', flush=True)
        start = time.monotonic()
        try:
            work()
            step['done'] = True
        finally:
            step['seconds'] += time.monotonic() - start
            self.save()


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

    handed_over = f'checkpoints/{BACKBONE}.pth'
    top1 = osp.join(work_dir, 'classification.json')
    coco = osp.join(work_dir, 'detection.json')
    results = osp.join(work_dir, 'detections')
    sheet = osp.join(work_dir, 'detections.png')

    steps.do('make the data', [f'{DATA}/digits.json'],
             lambda: run(log, 'dataset_converters/make_digits.py', '--out', DATA))
    steps.do('pretrain the backbone', [osp.join(work_dir, BACKBONE, 'last_checkpoint')],
             lambda: train(work_dir, log, BACKBONE, steps.interrupted))
    steps.do('test the classifier', [top1], lambda: run(
        log, 'test.py', f'configs/{BACKBONE}.py', last_checkpoint(work_dir, BACKBONE), '--work-dir',
        osp.join(work_dir, BACKBONE), '--out', top1, '--out-item', 'metrics'))
    steps.do('hand it over', [handed_over], lambda: run(
        log, 'model_converters/publish_model.py', last_checkpoint(work_dir, BACKBONE), handed_over))
    steps.do('train the detector', [osp.join(work_dir, DETECTOR, 'last_checkpoint')],
             lambda: train(work_dir, log, DETECTOR, steps.interrupted))
    steps.do('test the detector', [coco, f'{results}.bbox.json'], lambda: run(
        log, 'test.py', f'configs/{DETECTOR}.py', last_checkpoint(work_dir, DETECTOR), '--work-dir',
        osp.join(work_dir, DETECTOR), '--out', coco, '--out-item', 'metrics', '--cfg-options',
        f'test_evaluator.outfile_prefix={results}'))
    steps.do('draw the detections', [sheet], lambda: contact_sheet(f'{results}.bbox.json', sheet))

    accuracy, metrics = read_json(top1), read_json(coco)
    counts = read_json(f'{DATA}/digits.json')['counts']
    scenes = counts['det']
    shown = {
        'make the data': f'{sum(counts["cls"].values()):,} digits, {scenes["train"]["images"]:,} + '
                         f'{scenes["val"]["images"]:,} scenes',
        'test the classifier': f'top-1 {accuracy["accuracy/top1"]:.1f} %',
        'hand it over': handed_over,
        'test the detector': ', '.join(f'{name} {metrics.get(f"coco/{key}", 0):.3f}' for name, key in METRICS),
        'draw the detections': sheet,
    }
    print(f'\n{"step":24}{"time":>8}   result')
    for name, step in steps.state.items():
        print(f'{name:24}{step["seconds"]:6.0f} s   {shown.get(name, "")}')
    print(f'{"all":24}{sum(s["seconds"] for s in steps.state.values()):6.0f} s   logs and checkpoints: {work_dir}')


if __name__ == '__main__':
    main()
