"""Types of errors and confusion matrices of detectors: planted errors, and AP against pycocotools'."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmccd.analysis.report import detection
from mmccd.analysis.report.detector_errors import MAX_CLASSES, _matrix_table
from mmccd.analysis.report.errors import KINDS, find_errors, matrix, mean_ap

CAT, DOG = 7, 3  # ids; the file lists the cat first, and evaluation sorts them
IMAGES, SIDE = 4, 100
BOXES = {CAT: ([0, 0, 20, 20], [40, 0, 20, 20]), DOG: ([0, 40, 20, 20],)}
NEAR = 12  # pixels to the right: IoU 160 / 640 = 1 / 4


def make_truth(path, annotations, categories=((CAT, 'cat'), (DOG, 'dog')), images=IMAGES):
    content = dict(
        images=[dict(id=i, file_name=f'{i}.png', width=SIDE, height=SIDE) for i in range(1, images + 1)],
        categories=[dict(id=i, name=name) for i, name in categories],
        annotations=[
            dict(a, id=n, area=a['bbox'][2] * a['bbox'][3], iscrowd=a.get('iscrowd', 0))
            for n, a in enumerate(annotations, 1)
        ],
    )
    path.write_text(json.dumps(content))
    return detection.Truth(str(path), '')


@pytest.fixture
def truth(tmp_path):
    objects = [
        dict(image_id=i, category_id=c, bbox=b) for i in range(1, IMAGES + 1) for c, bs in BOXES.items() for b in bs
    ]
    return make_truth(tmp_path / 'truth.json', objects)


def oracle(score: float = 0.9) -> list[dict]:
    return [
        dict(image_id=i, category_id=c, bbox=list(b), score=score)
        for i in range(1, IMAGES + 1)
        for c, bs in BOXES.items()
        for b in bs
    ]


def moved(found: dict, **changes) -> dict:
    return {**found, **changes}


def planted(kind: str) -> list[dict]:
    """Detections with errors of one kind alone, in the first two images, on the first cat of each."""
    found = oracle()
    for i in (1, 2):
        cat = next(d for d in found if d['image_id'] == i)
        x, y, w, h = cat['bbox']
        if kind == 'Cls':
            cat['category_id'] = DOG
        elif kind == 'Loc':
            cat['bbox'] = [x + NEAR, y, w, h]
        elif kind == 'Both':
            found.append(moved(cat, category_id=DOG, bbox=[x + NEAR, y, w, h], score=0.95))
        elif kind == 'Dupe':
            found.append(moved(cat, score=0.85))
        elif kind == 'Bkg':
            found.append(moved(cat, bbox=[70, 70, 20, 20], score=0.95))
        else:
            found.remove(cat)
    return found


@pytest.mark.parametrize('kind', KINDS)
def test_a_detector_with_one_kind_of_error_has_that_kind(truth, kind):
    e = detection.evaluate(truth, planted(kind))
    errors = find_errors(e.matched)
    assert errors.counts == {k: 2 * (k == kind) for k in KINDS}
    assert errors.ap == pytest.approx(e.metrics['AP50'])
    # Corrected, everything is right; a duplicate below its original costs nothing.
    assert errors.gains[kind] == pytest.approx(1 - errors.ap)
    assert errors.gains[kind] > 0.05 or kind == 'Dupe'
    assert all(errors.gains[k] == pytest.approx(0) for k in KINDS if k != kind)


def test_all_right_and_nothing_found(truth):
    errors = find_errors(detection.evaluate(truth, oracle()).matched)
    assert (errors.ap, set(errors.counts.values()), set(errors.gains.values())) == (1, {0}, {0})
    errors = find_errors(detection.evaluate(truth, []).matched)
    assert (errors.ap, errors.counts['Miss'], sum(errors.counts.values())) == (0, 12, 12)
    assert all(errors.gains[k] == 0 for k in KINDS)  # without objects there is no AP


def test_gains_worked_out_by_hand(truth):
    """Duplicates above what is right: of 8 cats the first in two images counts twice."""
    found = planted('Dupe')
    for d in found[-2:]:
        d['score'] = 0.95
    for i in (1, 2):  # what was right is now the duplicate, since it scores less
        next(d for d in found if d['image_id'] == i)['score'] = 0.5
    errors = find_errors(detection.evaluate(truth, found).matched)
    assert errors.counts['Dupe'] == 2
    assert errors.ap == pytest.approx(1)
    # A corrected class must not find an object twice: the dog on a cat that is found is suppressed.
    found = [*oracle(), dict(image_id=1, category_id=DOG, bbox=[0, 0, 20, 20], score=0.95)]
    errors = find_errors(detection.evaluate(truth, found).matched)
    assert errors.counts == {**dict.fromkeys(KINDS, 0), 'Cls': 1}
    # 4 dogs after 1 error: precision 4 / 5 at each recall; cats 1.
    assert errors.ap == pytest.approx((1 + 4 / 5) / 2)
    assert errors.gains['Cls'] == pytest.approx(0.1)
    # Of two errors near one object only the best finds it.
    found = [d for d in oracle() if d['image_id'] > 1]
    found += [dict(image_id=1, category_id=CAT, bbox=[x, 0, 20, 20], score=s) for x, s in ((11, 0.3), (12, 0.2))]
    errors = find_errors(detection.evaluate(truth, found).matched)
    assert (errors.counts['Loc'], errors.counts['Miss']) == (2, 2)
    # Cats 6 of 8: recalls 0 to 0.75, then 7 of 8 to 0.87, out of 101.
    assert errors.gains['Loc'] == pytest.approx((88 - 76) / 101 / 2)


def random_detections(rng, truth, n: int) -> list[dict]:
    corners = rng.integers(0, 60, (n, 2))
    return [
        dict(
            image_id=int(rng.integers(1, IMAGES + 1)),
            category_id=int(rng.choice((CAT, DOG))),
            bbox=[int(x), int(y), 20, int(rng.integers(15, 25))],
            score=float(rng.random()),
        )
        for x, y in corners
    ]


def test_against_pycocotools_and_crowds(tmp_path):
    rng = np.random.default_rng(0)
    objects = random_detections(rng, None, 30)
    for o in objects[:6]:
        o['iscrowd'] = 1
    truth = make_truth(tmp_path / 'truth.json', objects)
    found = random_detections(rng, truth, 200) + [dict(o, score=0.5) for o in objects[::2]]
    e = detection.evaluate(truth, found)
    m = e.matched
    assert mean_ap(m.labels, m.scores, m.right, m.classes) == pytest.approx(e.metrics['AP50'], abs=1e-12)
    errors = find_errors(m)
    assert sum(errors.counts.values()) - errors.counts['Miss'] == (~m.right).sum()
    assert len(m.classes) == 24 and len(m.labels) < len(found)  # detections on crowds are no errors
    assert all(errors.gains[k] > -1e-12 for k in KINDS)
    counts = matrix(m, [1, 0])
    shown = m.scores >= detection.SHOWN_FROM
    # Each object is in one row once, each detection in one column once.
    assert counts[:2].sum(1).tolist() == [(m.classes == 1).sum(), (m.classes == 0).sum()]
    assert counts[:, :2].sum(0).tolist() == [(shown & (m.labels == 1)).sum(), (shown & (m.labels == 0)).sum()]
    assert counts[2, 2] == 0


def test_confusion_matrix(truth):
    found = planted('Cls')
    found += planted('Bkg')[-2:-1]
    found = [d for d in found if not (d['image_id'] == 4 and d['category_id'] == DOG)]
    found.append(dict(image_id=3, category_id=CAT, bbox=[0, 0, 20, 20], score=detection.SHOWN_FROM - 0.01))
    counts = matrix(detection.evaluate(truth, found).matched, [1, 0])  # cat (7), dog (3): as in the file
    assert counts.tolist() == [[6, 2, 0], [0, 3, 1], [1, 0, 0]]


def test_tables_of_many_classes():
    n = MAX_CLASSES + 5
    counts = np.diag(np.full(n + 1, 10))
    counts[n, n] = 0
    counts[2:22, n] = np.arange(20, 40)  # of class 2 to 21 many are missed
    counts[0, 1] = 3
    counts[0, 2] = 1
    table = _matrix_table('it', counts, [f'c{i}' for i in range(n)])
    assert table.columns == ['object', *(f'c{i}' for i in range(2, 22)), 'other classes', 'not detected']
    assert len(table.rows) == MAX_CLASSES + 2
    others = {c: cell.text for c, cell in zip(table.columns, table.rows[MAX_CLASSES])}
    assert (others['other classes'], others['c2'], others['not detected']) == ('53', '1', '0')
    first = dict(zip(table.columns, table.rows[0]))
    assert (first['c2'].shade, first['not detected'].shade) == (pytest.approx(1 / 3), pytest.approx(-2 / 3))
    assert f'the {MAX_CLASSES} of {n} classes with most errors' in table.caption
