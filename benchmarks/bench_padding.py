"""AP by the batch that a detector is tested in, with images of two shapes, with and without ignore_padding.

Examples:
    python benchmarks/bench_padding.py --work-dir work_dirs/padding
    python benchmarks/bench_padding.py --only retinanet --train-with --work-dir work_dirs/padding
    python benchmarks/bench_padding.py --only retinanet --retinanet work_dirs/padding/retinanet/epoch_5.pth

Makes the demo's scenes, and cuts every second one to its upper half, so that each batch of two and more has padding.
Trains a detector where no checkpoint is given, with ignore_padding off (on with --train-with) and, so that a CPU does
it, shortly: Cascade R-CNN on RetinaNet's backbone, which stays as it is, with 60 proposals. One checkpoint is tested in
all ways.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, add_allocator, environment, use_allocator, write
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from PIL import Image

import mmccd
from mmccd.checkpoints.files import write_atomically
from mmccd.checkpoints.read import read_checkpoint

ROOT = Path(__file__).parents[1]
DETECTORS = ('retinanet', 'cascade_rcnn')
EPOCHS = dict(classifier=4, retinanet=5, cascade_rcnn=3)
PROPOSALS = dict(max_per_img=60, nms_pre=200)
SCENES = 480  # that Cascade R-CNN is trained on


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', choices=DETECTORS, default=list(DETECTORS), help='detectors')
    for name in DETECTORS:
        parser.add_argument(f'--{name.replace("_", "-")}', metavar='CKPT', help=f'checkpoint of {name}, not trained')
    parser.add_argument(
        '--batch', type=int, nargs='+', default=[1, 2, 16], help='batches, the first one to compare with'
    )
    parser.add_argument('--train-with', action='store_true', help='train the detectors with ignore_padding')
    parser.add_argument('--scenes', type=int, nargs=2, default=[1200, 200], help='scenes to train on and to test on')
    parser.add_argument('--work-dir', type=Path, help='folder of data and trainings; default: one that is removed')
    add_allocator(parser)
    parser.set_defaults(device='cpu')  # what the allocator asks for
    parser.add_argument('--out', type=Path, default=RESULTS / 'padding_cpu.csv')
    return parser.parse_args()


def run(*command: object) -> None:
    """A tool of this checkout; what fails ends the benchmark."""
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


def make_data(folder: Path, scenes: list[int]) -> None:
    """``digits`` as the demo has them, and ``half``, whose every second scene ends at half its height."""
    if (folder / 'half').is_dir():
        return
    options = [f'--{k}-scenes={n}' for k, n in zip(('train', 'val'), scenes)]
    run('tools/dataset_converters/make_digits.py', '--out', folder / 'digits', '--overwrite', *options)
    out = Path(tempfile.mkdtemp(dir=folder))
    for split in ('train', 'val'):
        cut(folder / 'digits/det', out, split)
    out.rename(folder / 'half')


def cut(source: Path, out: Path, split: str) -> None:
    """Copy a split; a box of which less than half is left goes."""
    annotations = f'annotations/instances_{split}.json'
    coco = json.loads((source / annotations).read_text())
    (out / split).mkdir(parents=True)
    (out / 'annotations').mkdir(exist_ok=True)
    for i, entry in enumerate(coco['images']):
        image = Image.open(source / split / entry['file_name'])
        entry['height'] //= 1 + i % 2
        image.crop((0, 0, image.width, entry['height'])).save(out / split / entry['file_name'])
    heights = {entry['id']: entry['height'] for entry in coco['images']}
    kept = []
    for box in coco['annotations']:
        x, y, w, h = box['bbox']
        left = min(y + h, heights[box['image_id']]) - y
        if left >= h / 2:
            kept.append(dict(box, bbox=[x, y, w, left], area=w * left))
    coco['annotations'] = kept
    (out / annotations).write_text(json.dumps(coco))


def train(name: str, folder: Path, data: str, options: dict[str, Any]) -> Path:
    """Train a config on one of the folders of data, unless that is done; returns the checkpoint."""
    work_dir = folder / (f'{name}_ignore_padding' if options.get('model.backbone.ignore_padding') else name)
    checkpoint = work_dir / f'epoch_{EPOCHS[name]}.pth'
    if checkpoint.is_file():
        return checkpoint
    for split in ('train', 'val', 'test'):
        options[f'{split}_dataloader.dataset.data_root'] = f'{folder / data}/'
        if name in DETECTORS and split != 'train':
            options[f'{split}_evaluator.ann_file'] = folder / data / 'annotations/instances_val.json'
    epochs = dict.fromkeys(('train_cfg.max_epochs', 'param_scheduler.1.end', 'param_scheduler.1.T_max'), EPOCHS[name])
    options.update(epochs, **{'train_cfg.val_interval': EPOCHS[name]})
    config = 'configs/ccd_r18_digits.py' if name == 'classifier' else f'configs/{name}_ccd_r18_fpn_digits.py'
    given = [f'{k}={v}' for k, v in options.items()]
    run('tools/train.py', config, '--work-dir', work_dir, '--cfg-options', *given)
    return checkpoint


def backbone_of(checkpoint: Path, out: Path) -> Path:
    """The tensors of a network's backbone, in a file of their own."""
    state = read_checkpoint(checkpoint)['state_dict']
    own = {k: v for k, v in state.items() if k.startswith('backbone.')}
    content = io.BytesIO()
    torch.save(dict(state_dict=own), content)
    write_atomically(str(out), content.getvalue())
    return out


def checkpoint_of(name: str, args: argparse.Namespace, folder: Path) -> str:
    """The given one, or a trained one."""
    given = getattr(args, name)
    if given:
        return str(given)
    options: dict[str, Any] = {'model.backbone.ignore_padding': args.train_with}
    if name == 'retinanet':
        weights = backbone_of(train('classifier', folder, 'digits/cls', {}), folder / 'classifier.pth')
    else:
        retinanet = Path(checkpoint_of('retinanet', args, folder))
        weights = backbone_of(retinanet, folder / f'{retinanet.parent.name}.pth')
        options.update({'train_dataloader.dataset.indices': SCENES, 'model.backbone.frozen_stages': 4})
        options['optim_wrapper.optimizer.lr'] = 2e-3
        for key, value in PROPOSALS.items():
            options[f'model.train_cfg.rpn_proposal.{key}'] = options[f'model.test_cfg.rpn.{key}'] = value
    options['model.backbone.init_cfg.checkpoint'] = weights
    return str(train(name, folder, 'half', options))


def load_images(cfg: Any, folder: Path) -> tuple[list[dict], Any]:
    """What the test pipeline makes of every image, and the dataset's meta information."""
    from mmengine.registry import DATASETS, init_default_scope

    init_default_scope('mmdet')
    dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, data_root=f'{folder}/', _scope_='mmdet'))
    return [dataset[i] for i in range(len(dataset))], dataset.metainfo


def test(
    model: torch.nn.Module, images: list[dict], batch: int, evaluator: Evaluator
) -> tuple[float, list[torch.Tensor]]:
    """AP, and of every image the scores of its detections."""
    scores = []
    for start in range(0, len(images), batch):
        with torch.no_grad():
            samples = model.test_step(pseudo_collate(images[start : start + batch]))
        evaluator.process(data_samples=samples)
        scores += [sample.pred_instances.scores for sample in samples]
    return evaluator.evaluate(len(images))['coco/bbox_mAP_full'], scores


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two lists of detections do, by their number or by a score."""
    return len(a) != len(b) or not torch.allclose(a, b, atol=1e-4)


def measure(name: str, checkpoint: str, args: argparse.Namespace, folder: Path) -> list[dict]:
    """A row for each batch, off and on."""
    from mmdet.evaluation import CocoMetric

    class Metric(CocoMetric):
        """With all digits of AP, which mmdet's rounds to three."""

        def compute_metrics(self, results: list) -> dict[str, float]:
            metrics = super().compute_metrics(results)
            return dict(metrics, bbox_mAP_full=full_ap(self, results))

    rows = []
    trained = 'elsewhere' if getattr(args, name) else 'with' if args.train_with else 'without'
    cfg = mmccd.get_config(f'{name}_ccd_r18_fpn_digits')
    if name == 'cascade_rcnn':
        cfg.model.test_cfg.rpn.update(PROPOSALS)
    images, meta = load_images(cfg, folder / 'half')
    for on in (False, True):
        cfg.model.backbone.ignore_padding = on
        model = mmccd.init_model(cfg, checkpoint, device='cpu')
        alone: list[torch.Tensor] = []
        for batch in args.batch:
            evaluator = Evaluator(Metric(ann_file=str(folder / 'half/annotations/instances_val.json'), metric='bbox'))
            evaluator.dataset_meta = meta
            begin = time.perf_counter()
            ap, scores = test(model, images, batch, evaluator)
            seconds = time.perf_counter() - begin
            alone = alone or scores
            others = sum(map(differ, scores, alone))
            row = dict(detector=name, trained=trained, ignore_padding=on, batch=batch, ap=round(ap, 5))
            rows.append(dict(row, images=len(images), images_changed=others, seconds=round(seconds, 1)))
            print(
                '{detector:13} ignore_padding {ignore_padding!s:5} batch {batch:<3} AP {ap:.4f}  '
                'other detections in {images_changed} of {images} images'.format(**rows[-1]),
                flush=True,
            )
    return rows


def full_ap(metric: Any, results: list) -> float:
    """AP of gathered results by pycocotools alone."""
    from pycocotools.cocoeval import COCOeval

    found = [
        dict(
            image_id=p['img_id'], category_id=metric.cat_ids[int(label)], score=float(score), bbox=metric.xyxy2xywh(box)
        )
        for _, p in results
        for box, label, score in zip(p['bboxes'], p['labels'], p['scores'])
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(metric._coco_api, metric._coco_api.loadRes(found), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def main() -> None:
    args = parse_args()
    use_allocator(args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.work_dir or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        make_data(folder, args.scenes)
        rows = []
        for name in args.only:
            rows += measure(name, checkpoint_of(name, args, folder), args, folder)
    write([dict(row, **environment(torch.device('cpu'), args)) for row in rows], args.out)
    print(f'{len(rows)} rows in {args.out}')


if __name__ == '__main__':
    main()
