"""The page's section about errors of detectors: precision and recall, TIDE's kinds of errors, confusion matrices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmccd.data.checks.report import number

from . import detection as det
from .blocks import Section
from .classifiers import CONFUSIONS
from .context import Context
from .curves import Curve, Plot
from .errors import FOREGROUND, KINDS, RECALLS, find_errors, matrix
from .tables import Cell, Table, compared, decimal

SHOWN_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
MAX_CLASSES = 20  # of a confusion matrix that is shown whole


def add_errors(
    context: Context, section: Section, truth: det.Truth, names: Sequence[str], found: dict[str, det.Evaluation]
) -> None:
    """Fill the section.

    Args:
        context (Context): Of the page.
        section (Section): Gets plots and tables.
        truth (det.Truth): That all evaluations are of.
        names (Sequence[str]): All runs, in the order of the columns.
        found (dict[str, det.Evaluation]): Of the runs that can be compared.
    """
    section.intro = (
        'Precision by recall: the mean over the classes. Types of errors: what COCO AP at an IoU of '
        f'{FOREGROUND} would gain if all errors of a type were corrected (TIDE, ECCV 2020). '
        f'Confusion matrices: detections with a score of {det.SHOWN_FROM} or more at an IoU of {FOREGROUND}.'
    )
    for iou in SHOWN_IOUS:
        curves = [
            Curve(context.index[name], name, list(zip(RECALLS.tolist(), e.precision[iou])))
            for name, e in found.items()
            if e.precision[iou]
        ]
        if curves:
            section.plots.append(Plot(f'precision at an IoU of {iou}', 'recall', curves, False, (0.0, 1.0)))
    errors = {name: find_errors(e.matched) for name, e in found.items()}
    table = Table('Types of errors: gain in AP50', ['type', *names])
    for kind, text in KINDS.items():
        values = [errors[n].gains[kind] if n in errors else None for n in names]
        numbers = [number(errors[n].counts[kind], 'error', 'errors') if n in errors else '' for n in names]
        table.rows.append(compared(f'{kind}: {text}', values, decimal(3), 'low', numbers))
    section.tables.append(table)
    classes = [truth.categories[i] for i in sorted(truth.categories)]  # as COCO's evaluation sorts them
    order = [sorted(truth.categories).index(i) for i in truth.categories]
    for name, e in found.items():
        section.tables.append(_matrix_table(name, matrix(e.matched, order), [classes[k] for k in order]))
    pairs = {
        n: Counter({k: v for k, v in e.matched.confusion.items() if None not in k and k[0] != k[1]})
        for n, e in found.items()
    }
    total = sum(pairs.values(), Counter())
    if total:
        caption = f'Most frequent confusions ({min(CONFUSIONS, len(total))} of {len(total)} pairs)'
        confused = Table(caption, ['class', 'detected as', *found], words={0, 1})
        for (label, detected), _ in total.most_common(CONFUSIONS):
            first, *row = compared(classes[label], [p[label, detected] for p in pairs.values()], decimal(0), 'low')
            confused.rows.append([first, Cell(classes[detected], classes[detected]), *row])
        section.tables.append(confused)


def _matrix_table(run: str, counts: np.ndarray, names: list[str]) -> Table:
    """Rows are objects, columns what they are detected as; of many classes the rest together."""
    n = len(names)
    caption = f'Confusion matrix of {run}: objects in rows, what they are detected as in columns'
    if n > MAX_CLASSES:
        wrong = counts.sum(0)[:n] + counts.sum(1)[:n] - 2 * counts.diagonal()[:n]
        kept = sorted(np.argsort(-wrong, kind='stable')[:MAX_CLASSES].tolist())
        group = np.full(n + 1, len(kept))  # others
        group[kept], group[n] = np.arange(len(kept)), len(kept) + 1
        small = np.zeros((len(kept) + 2, len(kept) + 2), int)
        np.add.at(small, (group[:, None], group[None, :]), counts)
        counts, names = small, [*(names[k] for k in kept), 'other classes']
        caption += f' (the {MAX_CLASSES} of {n} classes with most errors)'
    rows, columns = [*names, 'no object'], [*names, 'not detected']
    table = Table(caption, ['object', *columns])
    sums = np.maximum(counts.sum(1), 1)
    for i, name in enumerate(rows):
        cells = [Cell(name, name)]
        for j in range(len(columns)):
            count, share = int(counts[i, j]), counts[i, j] / sums[i]
            if i == j == len(names):
                cells.append(Cell(''))
            else:
                cells.append(Cell(f'{count:,}', float(count), shade=float(share if i == j else -share)))
        table.rows.append(cells)
    return table
