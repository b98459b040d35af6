"""The page's sections about detectors: metrics, classes, and images with boxes."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence

from . import detection as det
from .blocks import Item, Panel, Section
from .context import Context
from .curves import line_style
from .detector_errors import add_errors
from .images import ALL_RIGHT, IMAGE_SIDE, add_galleries, data_uri, image_name
from .run import Run
from .tables import Cell, Table, compared, decimal, tell_others

LEGEND = (('truth', 'ground truth'), ('found', 'found'), ('false', 'false'), ('missed', 'missed'))


def add_detectors(
    context: Context, runs: list[Run], metrics: Section, classes: Section, images: Section, errors: Section
) -> list[str]:
    """Fill the sections with detectors; returns paths of images worth showing again."""
    truths: dict[tuple, det.Truth] = {}
    found: dict[str, tuple[det.Truth, det.Evaluation, list[int]]] = {}
    for run in runs:

        def evaluate(run: Run = run) -> tuple:
            truth = det.truth_of(run)
            truth = truths.setdefault((osp.realpath(truth.path), tuple(truth.categories.values())), truth)
            detections, ids, source = det.detections_of(run, truth, context.device, context.options.limit)
            context.sources[run.name] = source
            return truth, det.evaluate(truth, detections, ids), ids

        result = metrics.attempt(run.name, evaluate)
        if result is not None:
            found[run.name] = result
    if not found:
        return []
    base, _, ids = next(iter(found.values()))
    same = {n: e for n, (truth, e, seen) in found.items() if truth is base and seen == ids}
    tell_others(metrics.problems, found, same)
    names = [run.name for run in runs]
    values = [same.get(n) for n in names]
    table = Table(f'COCO average precision (0 to 1) on {len(ids):,} images of {base.path}', ['metric', *names])
    for name in det.METRICS:
        row = [v and v.metrics[name] for v in values]
        if any(v is not None for v in row):
            table.rows.append(compared(name, row, decimal(3)))
    metrics.tables.append(table)

    objects = base.objects()
    per_class = Table('AP of each class', ['class', 'objects', *names])
    for name, n in objects.items():
        first, *row = compared(name, [v and v.classes.get(name) for v in values], decimal(3))
        per_class.rows.append([first, Cell(f'{n:,}', float(n)), *row])
    classes.tables.append(per_class)
    add_errors(context, errors, base, names, same)
    return images.attempt('images', lambda: _images(context, images, base, same)) or []


def _images(context: Context, section: Section, truth: det.Truth, found: dict[str, det.Evaluation]) -> list[str]:
    if not context.options.images:
        return []
    seen = {i: [e.images[i] for e in found.values()] for i in next(iter(found.values())).images}
    mean = {i: sum(p.f1 for p in ps) / len(ps) for i, ps in seen.items()}
    sure = {i: sum(p.confidence for p in ps) for i, ps in seen.items()}
    span = {i: max(p.f1 for p in ps) - min(p.f1 for p in ps) for i, ps in seen.items()}
    size = {i: len(truth.boxes(i)) for i in seen}
    worst = sorted((i for i in seen if mean[i] < 1), key=lambda i: (mean[i], sure[i]))
    chosen = {
        'Worst': worst,
        'Largest differences between runs': sorted((i for i in seen if span[i] > 0), key=lambda i: (-span[i], sure[i])),
        'Best': sorted((i for i in seen if size[i]), key=lambda i: (-mean[i], -size[i], -sure[i])),
    }
    section.intro = (
        f'Ranked by F1 at a score of {det.SHOWN_FROM} and an IoU of 0.5, '
        f'{"the mean over the runs" if len(found) > 1 else "1 if all is right"}. '
        'Point at a box for its class and score.'
    )
    section.intro += '' if worst else ALL_RIGHT
    return add_galleries(
        section,
        chosen,
        context.options.images,
        truth.image_path,
        lambda i: _boxed(context, truth, i, found),
        legend=LEGEND,
    )


def _boxed(context: Context, truth: det.Truth, image_id: int, found: dict[str, det.Evaluation]) -> Item:
    path = truth.image_path(image_id)
    uri, size = data_uri(path, IMAGE_SIDE)
    key = f'image-{len(context.images)}'
    context.images.append(dict(id=key, uri=uri, width=size[0], height=size[1]))
    boxes = truth.boxes(image_id)
    panels = [_panel('ground truth', key, size, boxes, f'{len(boxes)} object{"s" * (len(boxes) != 1)}')]
    for name, e in found.items():
        image = e.images[image_id]
        note = ', '.join(f'{image.count(s)} {s}' for s in ('found', 'false', 'missed') if image.count(s))
        panel = _panel(name, key, size, image.boxes, f'F1 {image.f1:.2f}' + (f': {note}' if note else ''))
        panel.colour = line_style(context.index[name])[0]
        panels.append(panel)
    return Item(image_name('detection', path), panels)


def _panel(title: str, image: str, size: tuple[int, int], boxes: Sequence[det.Box], note: str) -> Panel:
    """Boxes over an image, drawn as SVG by the template; letters are 1/17 of its longer side."""
    width, height = size
    letters = max(width, height) / 17
    drawn = []
    for b in sorted(boxes, key=lambda b: ('truth', 'found', 'missed', 'false').index(b.state)):
        label = b.name if b.score is None else f'{b.name} {b.score:.2f}'
        above = b.y - 0.25 * letters
        y = above if above >= letters else min(b.y + b.h + letters, height - 0.2 * letters)
        x = min(max(b.x, 0), max(width - 0.6 * letters * len(label), 0))
        drawn.append(
            dict(
                x=round(b.x, 1),
                y=round(b.y, 1),
                w=round(b.w, 1),
                h=round(b.h, 1),
                name=b.name,
                state=b.state,
                score=b.score,
                label=label,
                label_x=round(x, 1),
                label_y=round(y, 1),
            )
        )
    return Panel(
        title, f'{title}: {note}', note, image, width=width, height=height, letters=round(letters, 1), boxes=drawn
    )
