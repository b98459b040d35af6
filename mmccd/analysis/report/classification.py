"""Predictions of a classifier: accuracy, by class and by image, and confusions."""

from __future__ import annotations

import json
import os.path as osp
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmccd.checkpoints.files import valid_json

from .predict import batches
from .run import Run

TOP = 5
COLUMNS = ('path', 'label', 'classes', 'scores')  # of stored predictions


@dataclass(frozen=True)
class Prediction:
    """Prediction of a classifier for an image.

    Attributes:
        path (str): The image.
        label (int): Its class.
        classes (tuple[int, ...]): The ``TOP`` most probable classes, the most probable first.
        scores (tuple[float, ...]): Their probabilities.
    """

    path: str
    label: int
    classes: tuple[int, ...]
    scores: tuple[float, ...]

    @property
    def right(self) -> bool:
        return self.classes[0] == self.label

    @property
    def score(self) -> float:
        """Probability of the predicted class; negative if that is wrong."""
        return self.scores[0] if self.right else -self.scores[0]


def predictions_of(run: Run, device: torch.device, limit: int | None = None) -> tuple[list[Prediction], list[str], str]:
    """Predictions, the classes' names, and where they are from.

    Raises:
        ValueError: If there are neither stored ones nor a checkpoint, or the stored ones cannot be used.
    """
    if run.results:
        predictions = read_predictions(run.results)
        names = run.classes() or [str(i) for i in range(1 + max(max(p.label, *p.classes) for p in predictions))]
        return predictions, names, run.results
    if not run.checkpoint:
        raise ValueError('there are no stored predictions and no checkpoint')
    model = run.model(device)
    found = []
    for batch in batches(run, limit):
        with torch.no_grad():
            samples = model.test_step(batch)
        for sample in samples:
            scores, classes = sample.pred_score.topk(min(TOP, len(sample.pred_score)))
            found.append(
                Prediction(sample.img_path, int(sample.gt_label), tuple(classes.tolist()), tuple(scores.tolist()))
            )
    names = model.dataset_meta.get('classes') or [str(i) for i in range(len(sample.pred_score))]
    source = osp.basename(run.checkpoint)
    if limit is not None:
        source += f', on the first {len(found):,} images'
    return found, list(names), source


def pack_predictions(predictions: Sequence[Prediction]) -> bytes:
    """Predictions as JSON, a line each."""
    rows = [[p.path, p.label, p.classes, [round(s, 4) for s in p.scores]] for p in predictions]
    lines = ',\n'.join(valid_json(row, separators=(',', ':')) for row in rows)
    return f'{{"columns": {json.dumps(COLUMNS)}, "rows": [\n{lines}\n]}}\n'.encode()


def read_predictions(path: str) -> list[Prediction]:
    """Read a file of :func:`pack_predictions`.

    Raises:
        ValueError: If it is another one.
    """
    with open(path, encoding='utf-8') as f:
        try:
            content = json.load(f)
            if content['columns'] != list(COLUMNS) or not content['rows']:
                raise ValueError('other columns, or no rows')
            return [
                Prediction(str(p), int(label), tuple(map(int, classes)), tuple(map(float, scores)))
                for p, label, classes, scores in content['rows']
            ]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise ValueError(f'{path} has no predictions: {type(e).__name__}: {e}') from e


def accuracy(predictions: Sequence[Prediction], top: int = 1) -> float:
    """Share of images whose class is among the ``top`` most probable, in percent."""
    return 100 * sum(p.label in p.classes[:top] for p in predictions) / len(predictions)


def class_accuracy(predictions: Sequence[Prediction], names: Sequence[str]) -> dict[str, float | None]:
    """Top-1 of each class, in percent; None for classes without an image."""
    right, all_ = Counter(p.label for p in predictions if p.right), Counter(p.label for p in predictions)
    return {name: 100 * right[i] / all_[i] if all_[i] else None for i, name in enumerate(names)}


def confusions(predictions: Sequence[Prediction]) -> Counter:
    """How often images of a class (first) are predicted as another one (second)."""
    return Counter((p.label, p.classes[0]) for p in predictions if not p.right)
