"""Detections of a run and their evaluation: COCO's average precision, by size, by class and by image."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os.path as osp
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmccd.checkpoints.files import valid_json
from mmccd.data.checks.coco import read_coco

from .errors import Matched, match
from .predict import batches
from .run import Run, annotation_file

SHOWN_FROM = 0.3  # score from which a detection counts in an image
COLUMNS = ('image_id', 'category_id', 'x', 'y', 'w', 'h', 'score')  # of stored detections
METRICS = {  # name: place in COCOeval.stats
    'AP': 0,
    'AP50': 1,
    'AP75': 2,
    'AP small': 3,
    'AP medium': 4,
    'AP large': 5,
    'AR': 8,
    'AR small': 9,
    'AR medium': 10,
    'AR large': 11,
}


@dataclass(frozen=True)
class Box:
    """A box (x, y, w, h) in pixels. ``state``: ``'found'``, ``'missed'``, ``'false'``, or ``'truth'``."""

    x: float
    y: float
    w: float
    h: float
    name: str
    state: str
    score: float | None = None


@dataclass
class Image:
    """Boxes of an image, among detections with a score from ``SHOWN_FROM`` on, at an IoU of 0.5."""

    boxes: list[Box] = field(default_factory=list)

    def count(self, state: str) -> int:
        return sum(b.state == state for b in self.boxes)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 for an empty image that was left empty."""
        found, wrong = self.count('found'), self.count('false') + self.count('missed')
        return 2 * found / (2 * found + wrong) if found + wrong else 1.0

    @property
    def confidence(self) -> float:
        """Mean score of what was found, minus that of what is false: the order among images of the same F1."""
        scores = [b.score if b.state == 'found' else -b.score for b in self.boxes if b.score is not None]
        return sum(scores) / len(scores) if scores else 0.0


@dataclass
class Evaluation:
    """Detections against ground truth.

    Attributes:
        metrics (dict[str, float | None]): By the names of ``METRICS``, 0 to 1; None where there is no such object.
        classes (dict[str, float | None]): AP of each class.
        images (dict[int, Image]): By image id.
        precision (dict[float, list[float]]): By IoU, the mean over the classes at recalls of 0, 0.01, ... 1.
        matched (Matched): What each detection is; classes by their position in the sorted ids.
        source (str): Where the detections are from.
    """

    metrics: dict[str, float | None]
    classes: dict[str, float | None]
    images: dict[int, Image]
    precision: dict[float, list[float]]
    matched: Matched
    source: str = ''


class Truth:
    """Ground truth of a split.

    Args:
        path (str): COCO annotation file.
        image_folder (str): What ``file_name`` is relative to.
        classes (Sequence[str] | None): Categories to evaluate, by name. Default: None, all.

    Raises:
        ValueError: If the file cannot be used.
    """

    def __init__(self, path: str, image_folder: str, classes: Sequence[str] | None = None) -> None:
        self.path, self.image_folder = path, image_folder
        self.coco = COCO()
        self.coco.dataset = read_coco(path)
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco.createIndex()
        self.categories = {
            c['id']: c['name'] for c in self.coco.dataset['categories'] if classes is None or c['name'] in classes
        }
        if not self.categories:
            raise ValueError(f'annotation file {path} has none of the classes of the config')

    def image_path(self, image_id: int) -> str:
        return osp.join(self.image_folder, self.coco.imgs[image_id]['file_name'])

    def objects(self) -> dict[str, int]:
        """Number of objects of each class."""
        return {
            name: sum(not a['iscrowd'] for a in self.coco.loadAnns(self.coco.getAnnIds(catIds=[i])))
            for i, name in self.categories.items()
        }

    def boxes(self, image_id: int) -> list[Box]:
        """Ground truth of an image, crowds left out."""
        found = self.coco.loadAnns(self.coco.getAnnIds(imgIds=[image_id], catIds=list(self.categories), iscrowd=False))
        return [Box(*a['bbox'], self.categories[a['category_id']], 'truth') for a in found]


def truth_of(run: Run) -> Truth:
    """Ground truth of the split that a run is tested on."""
    dataset = run.dataset()
    prefix = dataset.get('data_prefix') or {}
    prefix = prefix.get('img', '') if isinstance(prefix, dict) else prefix
    return Truth(
        annotation_file(run.cfg, run.test_split()), osp.join(dataset.get('data_root') or '', prefix), run.classes()
    )


def detections_of(
    run: Run, truth: Truth, device: torch.device, limit: int | None = None
) -> tuple[list[dict], list[int], str]:
    """Detections, the ids of the images that they are of, and where they are from.

    Raises:
        ValueError: If there are neither stored ones nor a checkpoint, or the stored ones cannot be used.
    """
    everything = sorted(truth.coco.imgs)
    if run.results:
        return read_detections(run.results, truth), everything, run.results
    if not run.checkpoint:
        raise ValueError('there are no stored detections (*.bbox.json) and no checkpoint')
    model = run.model(device)
    order = [i for i, name in truth.categories.items() if name in set(model.dataset_meta['classes'])]
    found, seen = [], []
    for batch in batches(run, limit):
        with torch.no_grad():
            samples = model.test_step(batch)
        for sample in samples:
            seen.append(sample.img_id)
            p = sample.pred_instances
            boxes = p.bboxes.cpu().double().numpy()
            boxes[:, 2:] -= boxes[:, :2]
            found += [
                dict(image_id=sample.img_id, category_id=order[label], bbox=box, score=score)
                for box, label, score in zip(boxes.tolist(), p.labels.tolist(), p.scores.tolist())
            ]
    source = osp.basename(run.checkpoint)
    if len(seen) < len(everything):
        source += f', on the first {len(seen):,} of {len(everything):,} images'
    return found, sorted(seen), source


def read_detections(path: str, truth: Truth) -> list[dict]:
    """Read a COCO result file, or one of :func:`pack_detections`.

    Raises:
        ValueError: If it is neither, or of other images or classes.
    """
    with open(path, encoding='utf-8') as f:
        try:
            found = json.load(f)
        except (ValueError, RecursionError) as e:
            raise ValueError(f'{path} is not a JSON file: {e}') from e
    if isinstance(found, dict) and found.get('columns') == list(COLUMNS) and isinstance(found.get('rows'), list):
        found = [
            dict(image_id=r[0], category_id=r[1], bbox=r[2:6], score=r[6])
            for r in found['rows']
            if isinstance(r, list) and len(r) == len(COLUMNS)
        ]
    if not isinstance(found, list):
        raise ValueError(f'{path} has no list of detections')
    for d in found:
        if not (
            isinstance(d, dict)
            and isinstance(d.get('bbox'), list)
            and len(d['bbox']) == 4
            and all(_is_real(v) for v in (*d['bbox'], d.get('score')))
        ):
            raise ValueError(
                f'{path}: a detection needs image_id, category_id, bbox of 4 numbers and score, got {str(d)[:100]}'
            )
        if d.get('image_id') not in truth.coco.imgs or d.get('category_id') not in truth.coco.cats:
            raise ValueError(
                f'{path} is of other images or classes than {truth.path}: image_id '
                f'{d.get("image_id")!r}, category_id {d.get("category_id")!r}'
            )
    return found


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def pack_detections(detections: Sequence[dict]) -> bytes:
    """Detections as JSON in a third of the size: rows instead of objects, boxes to 0.1 pixel, scores to 4 digits."""
    rows = [
        [d['image_id'], d['category_id'], *(round(v, 1) for v in d['bbox']), round(d['score'], 4)] for d in detections
    ]
    lines = ',\n'.join(valid_json(row, separators=(',', ':')) for row in rows)
    return f'{{"columns": {json.dumps(COLUMNS)}, "rows": [\n{lines}\n]}}\n'.encode()


def evaluate(truth: Truth, detections: Sequence[dict], image_ids: Sequence[int] | None = None) -> Evaluation:
    """COCO's evaluation of boxes, at most 100 an image.

    Args:
        truth (Truth): Ground truth.
        detections (Sequence[dict]): With ``image_id``, ``category_id``, ``bbox`` (x, y, w, h) and ``score``.
        image_ids (Sequence[int] | None): Images to evaluate. Default: None, all.
    """
    image_ids = sorted(truth.coco.imgs if image_ids is None else image_ids)
    found = COCO()
    # Not by COCO.loadRes, which fails on an empty list.
    found.dataset = dict(
        images=truth.coco.dataset['images'],
        categories=truth.coco.dataset['categories'],
        annotations=[dict(d, id=i, area=d['bbox'][2] * d['bbox'][3], iscrowd=0) for i, d in enumerate(detections, 1)],
    )
    with contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
        e = COCOeval(truth.coco, found, 'bbox')
        e.params.imgIds, e.params.catIds = image_ids, list(truth.categories)
        e.evaluate()
        e.accumulate()
        e.summarize()
    precision = e.eval['precision'][:, :, :, 0, -1]  # (IoUs, recalls, classes)
    classes = {}
    for k, id_ in enumerate(sorted(truth.categories)):  # COCO's evaluation sorts them
        known = precision[:, :, k][precision[:, :, k] > -1]
        classes[id_] = float(known.mean()) if known.size else None
    metrics = {name: float(e.stats[i]) if e.stats[i] > -1 else None for name, i in METRICS.items()}
    classes = {name: classes[id_] for id_, name in truth.categories.items()}
    known = precision[0, 0] > -1  # classes with objects
    curves = {
        float(np.round(iou, 2)): precision[t][:, known].mean(1).tolist() if known.any() else []
        for t, iou in enumerate(e.params.iouThrs)
    }
    return Evaluation(metrics, classes, _images(truth, found, e, image_ids), curves, match(e, SHOWN_FROM))


def _images(truth: Truth, found: COCO, e: COCOeval, image_ids: Sequence[int]) -> dict[int, Image]:
    """Boxes of each image, as COCO's evaluation matched them at an IoU of 0.5."""
    images = {i: Image() for i in image_ids}
    everything = tuple(e.params.areaRng[0])
    assert np.isclose(e.params.iouThrs[0], 0.5)
    for entry in e.evalImgs:
        if entry is None or tuple(entry['aRng']) != everything:
            continue
        boxes, name = images[entry['image_id']].boxes, truth.categories[entry['category_id']]
        matched = set()
        for id_, gt, ignored, score in zip(
            entry['dtIds'], entry['dtMatches'][0], entry['dtIgnore'][0], entry['dtScores']
        ):
            if score < SHOWN_FROM or ignored:  # ignored: it is on a crowd
                continue
            if gt:
                matched.add(int(gt))
            boxes.append(Box(*found.anns[id_]['bbox'], name, 'found' if gt else 'false', float(score)))
        boxes += [
            Box(*truth.coco.anns[id_]['bbox'], name, 'missed')
            for id_, ignored in zip(entry['gtIds'], entry['gtIgnore'])
            if not ignored and id_ not in matched
        ]
    return images
