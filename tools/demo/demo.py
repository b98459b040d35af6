"""The main job at small scale: pretrain CCD-ResNet-18 on digits, hand it over to RetinaNet, train, test, show.

Every step goes through the same tools that ImageNet and COCO use. Interrupted, the next call goes on where it was.
It ends with a page that compares the detector with the plain one: as it was recorded, or, with --plain, as trained now.
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
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

ROOT = osp.dirname(osp.dirname(osp.dirname(osp.abspath(__file__))))
DATA = 'data/digits'
REPORT = 'write the report'


class Job(NamedTuple):
    """A backbone, and the detector that it is handed over to. The names of steps and of files begin with theirs."""

    backbone: str
    detector: str
    steps: str = ''
    files: str = ''


CCD = Job('ccd_r18_digits', 'retinanet_ccd_r18_fpn_digits')
PLAIN = Job('r18_digits', 'retinanet_r18_fpn_digits', 'plain: ', 'plain_')
RECORDED = f'docs/runs/{PLAIN.detector}'
# Lines of a tool's log that tell how far it is.
PROGRESS = re.compile(r'Epoch\((?:train|val|test)\).*|tensors loaded.*|bbox_mAP_copypaste.*|error: .*')
SHOWN, ZOOM = 12, 3
# As the metric names them; it names none if the detector finds nothing at all.
METRICS = (('bbox mAP', 'bbox_mAP'), ('AP50', 'bbox_mAP_50'), ('AP75', 'bbox_mAP_75'))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for everything that the demo writes')
    parser.add_argument('--fresh', action='store_true', help='forget what was done and start again')
    parser.add_argument('--plain', action='store_true', help='train the plain detector, too (takes as long again)')
    parser.add_argument('--record', action='store_true', help=f'--plain, and store that run in {RECORDED}')
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
    """Draw the detections above 0.5 over the first validation images: one sheet of SHOWN images."""
    coco = read_json(f'{DATA}/det/annotations/instances_val.json')
    names = {c['id']: c['name'] for c in coco['categories']}
    images = coco['images'][:SHOWN]
    size = max(max(i['width'], i['height']) for i in images) * ZOOM
    sheet = Image.new('RGB', (4 * (size + 8) - 8, 3 * (size + 8) - 8), 'white')
    font = ImageFont.load_default(18)
    for k, entry in enumerate(images):
        image = Image.open(f'{DATA}/det/val/{entry["file_name"]}').convert('RGB').resize((size, size), Image.BICUBIC)
        draw = ImageDraw.Draw(image)
        for found in read_json(result_file):
            if found['image_id'] == entry['id'] and found['score'] >= 0.5:
                x, y, w, h = (v * ZOOM for v in found['bbox'])
                text = f'{names[found["category_id"]]} {found["score"]:.2f}'
                draw.rectangle((x, y, x + w, y + h), outline='#ffe000', width=2)
                y = y - 20 if y >= 20 else y + h
                draw.rectangle(draw.textbbox((x, y), text, font=font), fill='black')
                draw.text((x, y), text, fill='#ffe000', font=font)
        sheet.paste(image, (k % 4 * (size + 8), k // 4 * (size + 8)))
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
        later = list(self.state)[list(self.state).index(name) + 1 :]
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


def train_and_test(steps: Steps, log: str, work_dir: str, job: Job) -> dict[str, str]:
    """From the digits to a tested detector; returns what there is to say of its steps."""
    backbone, detector = osp.join(work_dir, job.backbone), osp.join(work_dir, job.detector)
    handed_over = f'checkpoints/{job.backbone}.pth'
    top1, coco, results = (
        osp.join(work_dir, job.files + name) for name in ('classification.json', 'detection.json', 'detections')
    )
    steps.do(
        f'{job.steps}pretrain the backbone',
        [osp.join(backbone, 'last_checkpoint')],
        lambda: train(work_dir, log, job.backbone, steps.interrupted),
    )
    steps.do(
        f'{job.steps}test the classifier',
        [top1],
        lambda: run(
            log,
            'test.py',
            f'configs/{job.backbone}.py',
            last_checkpoint(work_dir, job.backbone),
            '--work-dir',
            backbone,
            '--out',
            top1,
            '--out-item',
            'metrics',
        ),
    )
    steps.do(
        f'{job.steps}hand it over',
        [handed_over],
        lambda: run(log, 'model_converters/publish_model.py', last_checkpoint(work_dir, job.backbone), handed_over),
    )
    steps.do(
        f'{job.steps}train the detector',
        [osp.join(detector, 'last_checkpoint')],
        lambda: train(work_dir, log, job.detector, steps.interrupted),
    )
    steps.do(
        f'{job.steps}test the detector',
        [coco, f'{results}.bbox.json'],
        lambda: run(
            log,
            'test.py',
            f'configs/{job.detector}.py',
            last_checkpoint(work_dir, job.detector),
            '--work-dir',
            detector,
            '--out',
            coco,
            '--out-item',
            'metrics',
            '--cfg-options',
            f'test_evaluator.outfile_prefix={results}',
        ),
    )
    metrics = read_json(coco)
    return {
        f'{job.steps}test the classifier': f'top-1 {read_json(top1)["accuracy/top1"]:.1f} %',
        f'{job.steps}hand it over': handed_over,
        f'{job.steps}test the detector': ', '.join(
            f'{name} {metrics.get(f"coco/{key}", 0):.3f}' for name, key in METRICS
        ),
    }


def compare(steps: Steps, log: str, work_dir: str, page: str) -> str:
    """Write the page about the plain and the CCD detector; returns what it is about."""
    if steps.state.get(f'{PLAIN.steps}test the detector', {}).get('done'):
        plain, about = [osp.join(work_dir, PLAIN.detector)], 'plain against CCD'
    elif osp.isdir(RECORDED):
        plain, about = [RECORDED], 'plain (recorded) against CCD'
    else:
        plain, about = [], f'CCD alone: there is no {RECORDED}, and --plain trains the plain one'
    # Short: one sheet of gates, a second for the speed.
    steps.do(
        REPORT,
        [page],
        lambda: run(
            log,
            'analysis_tools/report.py',
            *plain,
            osp.join(work_dir, CCD.detector),
            '--out',
            page,
            '--gates',
            '1',
            '--speed',
            '1',
        ),
    )
    return about


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
    results = osp.join(work_dir, 'detections.bbox.json')
    sheet = osp.join(work_dir, 'detections.png')
    page = osp.join(work_dir, 'report.html')

    steps.do(
        'make the data', [f'{DATA}/digits.json'], lambda: run(log, 'dataset_converters/make_digits.py', '--out', DATA)
    )
    shown = train_and_test(steps, log, work_dir, CCD)
    steps.do('draw the detections', [sheet], lambda: contact_sheet(results, sheet))
    if args.plain or args.record:
        if f'{PLAIN.steps}pretrain the backbone' not in steps.state:
            steps.state.pop(REPORT, None)  # it was written without, and comes after these
        shown.update(train_and_test(steps, log, work_dir, PLAIN))
    about = compare(steps, log, work_dir, page)
    if args.record:
        run(
            log,
            'analysis_tools/report.py',
            osp.join(work_dir, PLAIN.detector),
            '--record',
            RECORDED,
            '--command',
            'python tools/demo/demo.py --plain',
        )

    counts = read_json(f'{DATA}/digits.json')['counts']
    scenes = counts['det']
    shown.update(
        {
            'make the data': f'{sum(counts["cls"].values()):,} digits, {scenes["train"]["images"]:,} + '
            f'{scenes["val"]["images"]:,} scenes',
            'draw the detections': sheet,
            REPORT: f'{page}: {about}',
        }
    )
    width = max(24, *(len(name) + 2 for name in steps.state))
    print(f'\n{"step":{width}}{"time":>8}   result')
    for name, step in steps.state.items():
        print(f'{name:{width}}{step["seconds"]:6.0f} s   {shown.get(name, "")}')
    print(f'{"all":{width}}{sum(s["seconds"] for s in steps.state.values()):6.0f} s   logs and checkpoints: {work_dir}')


if __name__ == '__main__':
    main()
