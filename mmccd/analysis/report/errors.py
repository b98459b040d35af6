"""What is wrong with detections: the six kinds of errors of TIDE, and the confusion matrix.

TIDE: Bolya et al., ECCV 2020, https://arxiv.org/abs/2008.08115, sections 2.2 and 2.3, at an IoU of 0.5 for a match and
0.1 for the background. Own code, since tidecv (2020) imports seaborn and OpenCV for its plots. Detections are matched
as COCO's evaluation has matched them, at most 100 of a class in an image, and AP is COCO's at an IoU of 0.5. Counts
are tidecv's. So are gains, but where errors of class and of place are near one object: there tidecv corrects only the
best of both kinds together, and so neither alone finds all that it could.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU of a match; below the latter there is no object
KINDS = {
    'Cls': 'right place, wrong class',
    'Loc': 'right class, IoU below 0.5',
    'Both': 'wrong class, IoU below 0.5',
    'Dupe': 'found already, with a higher score',
    'Bkg': 'no object there',
    'Miss': 'not found, nor by one of the above',
}
RECALLS = np.linspace(0, 1, 101)


@dataclass
class Errors:
    """Errors of a detector.

    Attributes:
        ap (float): COCO's AP at an IoU of 0.5, 0 to 1.
        counts (dict[str, int]): Errors of each of ``KINDS``.
        gains (dict[str, float]): What AP would gain if all errors of a kind were corrected, and no others.
    """

    ap: float
    counts: dict[str, int]
    gains: dict[str, float]


@dataclass
class Matched:
    """Detections and objects of all images, side by side.

    Attributes:
        labels, scores (np.ndarray): (D, ) of each detection; the class by its position in the sorted ids.
        right (np.ndarray): (D, ) bool: matched by COCO's evaluation.
        kinds (np.ndarray): (D, ) the error's kind, or ``''``.
        objects (np.ndarray): (D, ) the object that a corrected detection would find; -1: none.
        classes (np.ndarray): (G, ) of each object that is no crowd.
        found (np.ndarray): (G, ) bool.
        confusion (dict): (class of the object, class of the detection): how often; None is the background.
    """

    labels: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    kinds: np.ndarray
    objects: np.ndarray
    classes: np.ndarray
    found: np.ndarray
    confusion: dict[tuple[int | None, int | None], int] = field(default_factory=dict)


def match(e: COCOeval, min_score: float) -> Matched:
    """Find out what each detection is, from an evaluation that has run.

    Args:
        e (COCOeval): After ``evaluate()``, its first IoU threshold 0.5 and its first area everything.
        min_score (float): Of detections in the confusion matrix.
    """
    position = {id_: k for k, id_ in enumerate(e.params.catIds)}
    everything = list(e.params.areaRng[0])
    entries: dict = {}
    for entry in e.evalImgs:
        if entry is not None and list(entry['aRng']) == everything:
            entries.setdefault(entry['image_id'], []).append(entry)
    columns: list[tuple] = []
    classes: list[np.ndarray] = []
    found: list[np.ndarray] = []
    confusion: dict = {}
    n = 0
    for of_image in entries.values():
        image = _Image(e, of_image, position)
        for d in range(len(image.labels)):
            kind, g = image.kind(d)
            columns.append((image.labels[d], image.scores[d], image.match[d] >= 0, kind, g + n if g >= 0 else -1))
        classes.append(image.classes)
        found.append(image.found)
        image.add_confusion(confusion, min_score)
        n += len(image.classes)
    labels, scores, right, kinds, objects = zip(*columns) if columns else ((),) * 5
    return Matched(
        np.array(labels, int),
        np.array(scores, float),
        np.array(right, bool),
        np.array(kinds, 'U4'),
        np.array(objects, int),
        np.concatenate([*classes, np.zeros(0, int)]),
        np.concatenate([*found, np.zeros(0, bool)]),
        confusion,
    )


class _Image:
    """The detections of an image, the highest score first, its objects, and their IoUs."""

    def __init__(self, e: COCOeval, entries: list[dict], position: dict) -> None:
        ids = [g for entry in entries for g, ignored in zip(entry['gtIds'], entry['gtIgnore']) if not ignored]
        row = {g: i for i, g in enumerate(ids)}
        found = [
            (position[entry['category_id']], score, d, row.get(int(g), -1))
            for entry in entries
            for d, score, g, ignored in zip(
                entry['dtIds'], entry['dtScores'], entry['dtMatches'][0], entry['dtIgnore'][0]
            )
            if not ignored
        ]
        found.sort(key=lambda f: -f[1])
        self.labels = np.array([f[0] for f in found], int)
        self.scores = np.array([f[1] for f in found], float)
        self.match = np.array([f[3] for f in found], int)
        self.classes = np.array([position[e.cocoGt.anns[g]['category_id']] for g in ids], int)
        self.found = np.isin(np.arange(len(ids)), self.match)
        boxes = np.array([e.cocoDt.anns[f[2]]['bbox'] for f in found], float).reshape(-1, 4)
        truth = np.array([e.cocoGt.anns[g]['bbox'] for g in ids], float).reshape(-1, 4)
        self.iou = np.zeros((len(found), len(ids)))
        if self.iou.size:
            self.iou = np.asarray(coco_mask.iou(boxes, truth, np.zeros(len(ids), np.uint8)))

    def kind(self, d: int) -> tuple[str, int]:
        """The error's kind and the object that it should have found; of what is right, none."""
        if self.match[d] >= 0:
            return '', int(self.match[d])
        iou, same = self.iou[d], self.classes == self.labels[d]
        if not len(iou):
            return 'Bkg', -1
        own, other = np.where(same, iou, -1), np.where(same, -1, iou)
        if BACKGROUND <= own.max() < FOREGROUND:
            return 'Loc', int(own.argmax())
        if other.max() >= FOREGROUND:
            return 'Cls', int(other.argmax())
        if own.max() >= FOREGROUND:
            return 'Dupe', -1
        return ('Bkg', -1) if iou.max() < BACKGROUND else ('Both', -1)

    def add_confusion(self, confusion: dict, min_score: float) -> None:
        """Count each object once and each detection once: of its own class, else of the nearest left at an IoU of 0.5,
        else of the background."""
        shown = self.scores >= min_score
        pairs = {d: int(g) for d, g in enumerate(self.match) if g >= 0 and shown[d]}
        taken = set(pairs.values())
        free = [
            (-self.iou[d, g], d, g)
            for d, g in zip(*np.nonzero(self.iou >= FOREGROUND))
            if shown[d] and d not in pairs and g not in taken
        ]
        for _, d, g in sorted(free):
            if d not in pairs and g not in taken:
                pairs[d] = g
                taken.add(g)
        for d in np.flatnonzero(shown):
            key = (int(self.classes[pairs[d]]) if d in pairs else None, int(self.labels[d]))
            confusion[key] = confusion.get(key, 0) + 1
        for g, label in enumerate(self.classes):
            if g not in taken:
                confusion[int(label), None] = confusion.get((int(label), None), 0) + 1


def find_errors(m: Matched) -> Errors:
    """The errors of each kind, and what they cost."""
    # An object that an error of class or place was near is not missed: correcting that error finds it.
    near = np.zeros(len(m.classes), bool)
    near[m.objects[np.isin(m.kinds, ('Cls', 'Loc'))]] = True
    missed = ~m.found & ~near
    counts = {kind: int((m.kinds == kind).sum()) for kind in KINDS}
    counts['Miss'] = int(missed.sum())
    ap = mean_ap(m.labels, m.scores, m.right, m.classes)
    gains = {}
    for kind in KINDS:
        labels, right, classes = m.labels.copy(), m.right.copy(), m.classes
        keep = np.ones(len(labels), bool)
        if kind == 'Miss':
            classes = classes[~missed]
        else:
            keep = m.kinds != kind
            if kind in ('Cls', 'Loc'):  # the best one finds its object, unless that is found
                best = _best(np.flatnonzero(~keep), m)
                keep[best], right[best], labels[best] = True, True, m.classes[m.objects[best]]
        gains[kind] = mean_ap(labels[keep], m.scores[keep], right[keep], classes, np.unique(m.classes)) - ap
    return Errors(ap, counts, gains)


def _best(wrong: np.ndarray, m: Matched) -> list[int]:
    best: dict[int, int] = {}
    for d in wrong:
        g = int(m.objects[d])
        if not m.found[g] and (g not in best or m.scores[d] > m.scores[best[g]]):
            best[g] = int(d)
    return list(best.values())


def mean_ap(
    labels: np.ndarray, scores: np.ndarray, right: np.ndarray, classes: np.ndarray, among: np.ndarray | None = None
) -> float:
    """COCO's AP over the classes that have objects, at 101 recalls.

    Args:
        labels, scores, right (np.ndarray): (D, ) class, score and whether it counts, of each detection.
        classes (np.ndarray): (G, ) of each object.
        among (np.ndarray | None): Classes that detections count in without an object, with an AP of 0. Default: none.
    """
    found = []
    for k in np.unique(classes) if among is None else among:
        own = labels == k
        if not (classes == k).any():
            found += [0.0] * bool(own.any())
            continue
        hits = right[own][np.argsort(-scores[own], kind='mergesort')]
        recall = np.cumsum(hits) / (classes == k).sum()
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        found.append(precision[np.searchsorted(recall, RECALLS, side='left')].mean())
    return float(np.mean(found)) if found else 0.0


def matrix(m: Matched, classes: Sequence[int]) -> np.ndarray:
    """The confusion matrix, (K + 1, K + 1): rows are objects, columns detections; the last of each is the background.

    Args:
        m (Matched): Detections and objects.
        classes (Sequence[int]): Positions of the K classes, in the order to be shown.
    """
    place = {k: i for i, k in enumerate(classes)}
    place[None] = len(classes)
    counts = np.zeros((len(place), len(place)), int)
    for (row, column), n in m.confusion.items():
        counts[place[row], place[column]] += n
    return counts
