"""Comparison of runs as one HTML page, which loads nothing from elsewhere."""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import os.path as osp
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from mmengine.registry import init_default_scope
from PIL import Image
from torch import nn

from mmccd.analysis.attention_maps.gates import attention_layers, record_gates
from mmccd.analysis.attention_maps.sheet import draw_sheet
from mmccd.analysis.complexity import build_on_meta
from mmccd.analysis.inputs import prepare_image
from mmccd.env import keep_freed_memory
from mmccd.version import __version__

from . import classification as cls
from . import detection as det
from .curves import Curve, Plot, line_style
from .differences import config_differences, show
from .measure import count, speed, surroundings
from .run import Run, metrics_of
from .tables import Cell, Table, compared, decimal

HERE = Path(__file__).parent
IMAGE_SIDE, SHEET_WIDTH = 384, 1400  # pixels
CONFUSIONS = 12
ALL_RIGHT = ' All images are right: there is no worst one.'
BUSY = 1.5  # ratio of the 80th to the 20th percentile of times
TITLES = {'detection': 'Detection', 'classification': 'Classification', None: 'Other runs'}
LEGEND = (('truth', 'ground truth'), ('found', 'found'), ('false', 'false'), ('missed', 'missed'))


@dataclass
class Options:
    """What goes into a report.

    Attributes:
        images (int): Images in each gallery; 0 leaves them out, and the gates.
        gates (int): Images whose gates are drawn.
        seconds (float): About how long the speed is measured, for all runs of a task; 0 leaves it out.
        limit (int | None): Images that go through a model, where nothing is stored; None: the whole set.
    """

    images: int = 6
    gates: int = 2
    seconds: float = 10.0
    limit: int | None = None


@dataclass
class Panel:
    """An image with something below it: boxes over a stored one, or one of its own."""

    title: str
    text: str = ''
    note: str = ''
    image: str = ''
    uri: str = ''
    width: int = 0
    height: int = 0
    letters: float = 0
    boxes: list[dict] = field(default_factory=list)
    colour: int | None = None
    right: bool | None = None


@dataclass
class Item:
    """Panels of one image."""

    title: str
    panels: list[Panel]


@dataclass
class Gallery:
    """Items under a title. ``kind``: ``'rows'``, ``'cards'`` or ``'sheets'``."""

    title: str
    items: list[Item]
    kind: str = 'rows'
    intro: str = ''
    legend: tuple = ()


@dataclass
class Section:
    """A part of the page. ``problems``: why something is not in it."""

    id: str
    title: str
    intro: str = ''
    problems: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    details: list[dict] = field(default_factory=list)

    def attempt(self, what: str, work: Callable[[], Any]) -> Any:
        """Do something that may be impossible: then the page says why, and the rest of it is made."""
        try:
            return work()
        except Exception as e:  # whatever a model, a data set or a file may raise
            reason = str(e).strip() or 'no message'
            kind = '' if isinstance(e, (ValueError, OSError)) else f'{type(e).__name__}: '
            self.problems.append(f'{what}: {kind}{reason}')
            print(f'warning: {self.title}: {what}: {kind}{reason}', file=sys.stderr)
            return None


class Report:
    """A page about runs.

    Args:
        runs (Sequence[Run]): At least one; of each task, the first is what others are compared with.
        device (torch.device): For whatever goes through a model.
        options (Options): What goes into it.
    """

    def __init__(self, runs: Sequence[Run], device: torch.device, options: Options) -> None:
        self.runs, self.device, self.options = list(runs), device, options
        self.index = {run.name: i for i, run in enumerate(self.runs)}
        self.sources: dict[str, str] = {}
        self.images: list[dict] = []
        self._meta: dict[str, nn.Module] = {}
        if device.type == 'cpu':
            keep_freed_memory()

    def html(self, command: str = '') -> str:
        """The page.

        Args:
            command (str): How it was made; shown at its end.
        """
        tasks = []
        usable = [run for run in self.runs if run.usable]
        for task in dict.fromkeys(run.task for run in usable):
            runs = [run for run in usable if run.task == task]
            sections = self._sections(task, runs)
            tasks.append(
                dict(
                    id=f'task-{task}',
                    title=TITLES[task],
                    short=TITLES[task].lower(),
                    sections=sections,
                    runs=[self._card(run) for run in runs],
                )
            )
        script = (HERE / 'page.js').read_text(encoding='utf-8')
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        environment = Environment(
            loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        environment.filters['soft'] = _soft
        names = [run.name for run in self.runs]
        return environment.get_template('page.html').render(
            title=f'Report: {names[0]}' if len(names) == 1 else f'{len(names)} runs compared',
            made=f'{_now()}, mmccd {__version__}, {_sentence(surroundings(self.device))}',
            runs=[self._card(run) for run in self.runs],
            tasks=tasks,
            images=self.images,
            style=Markup((HERE / 'page.css').read_text(encoding='utf-8')),
            script=Markup(script),
            script_hash=f'sha256-{digest}',
            command=command,
        )

    def _card(self, run: Run) -> dict:
        """What is said of a run at the top."""
        facts = [('folder', run.folder)]
        if run.cfg is not None:
            facts.append(('model', _model_name(run)))
        if run.checkpoint:
            facts.append(('checkpoint', osp.basename(run.checkpoint)))
        if run.name in self.sources:
            facts.append(('predictions', self.sources[run.name]))
        badge = ''
        if run.recorded:
            known = [str(run.recorded[k]) for k in ('date', 'machine') if run.recorded.get(k)]
            badge = ', '.join(known)
        colour, dash = line_style(self.index[run.name])
        return dict(
            name=run.name,
            colour=colour,
            dash=dash,
            facts=facts,
            badge=badge,
            command=str((run.recorded or {}).get('command', '')),
            notes=run.notes,
        )

    def _on_meta(self, run: Run) -> nn.Module:
        """The model without weights, to look at and to count."""
        if run.name not in self._meta:
            init_default_scope(run.cfg.get('default_scope', 'mmengine'))
            self._meta[run.name] = build_on_meta(run.cfg)
        return self._meta[run.name]

    def _sections(self, task: str | None, runs: list[Run]) -> list[Section]:
        prefix = task or 'other'
        metrics = Section(f'{prefix}-metrics', 'Metrics')
        classes = Section(f'{prefix}-classes', 'Classes')
        images = Section(f'{prefix}-images', 'Images')
        gates = Section(f'{prefix}-gates', 'Gates')
        shown: list[str] = []
        if task == 'detection':
            shown = self._detection(runs, metrics, classes, images)
        elif task == 'classification':
            shown = self._classification(runs, metrics, classes, images)
        _logged_metrics(metrics, runs)
        if self.options.gates and self.options.images:
            self._gates(gates, runs, shown)
        sections = [
            metrics,
            self._curves(prefix, runs),
            classes,
            images,
            gates,
            self._cost(prefix, runs),
            self._differences(prefix, runs),
        ]
        return [s for s in sections if s.intro or s.problems or s.tables or s.plots or s.galleries or s.details]

    # ------------------------------------------------------------------------------------------- detection

    def _detection(self, runs: list[Run], metrics: Section, classes: Section, images: Section) -> list[str]:
        truths: dict[tuple, det.Truth] = {}
        found: dict[str, tuple[det.Truth, det.Evaluation, list[int]]] = {}
        for run in runs:

            def evaluate(run: Run = run) -> tuple:
                truth = det.truth_of(run)
                truth = truths.setdefault((osp.realpath(truth.path), tuple(truth.categories.values())), truth)
                detections, ids, source = det.detections_of(run, truth, self.device, self.options.limit)
                self.sources[run.name] = source
                return truth, det.evaluate(truth, detections, ids), ids

            result = metrics.attempt(run.name, evaluate)
            if result is not None:
                found[run.name] = result
        if not found:
            return []
        base, _, ids = next(iter(found.values()))
        same = {n: e for n, (truth, e, seen) in found.items() if truth is base and seen == ids}
        _tell_others(metrics, found, same)
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
        return images.attempt('images', lambda: self._detection_images(images, base, same)) or []

    def _detection_images(self, section: Section, truth: det.Truth, found: dict[str, det.Evaluation]) -> list[str]:
        n = self.options.images
        if not n:
            return []
        seen = {i: [e.images[i] for e in found.values()] for i in next(iter(found.values())).images}
        mean = {i: sum(p.f1 for p in ps) / len(ps) for i, ps in seen.items()}
        sure = {i: sum(p.confidence for p in ps) for i, ps in seen.items()}
        spread = {i: max(p.f1 for p in ps) - min(p.f1 for p in ps) for i, ps in seen.items()}
        size = {i: len(truth.boxes(i)) for i in seen}
        worst = sorted((i for i in seen if mean[i] < 1), key=lambda i: (mean[i], sure[i]))
        differ = sorted((i for i in seen if spread[i] > 0), key=lambda i: (-spread[i], sure[i]))
        best = sorted((i for i in seen if size[i]), key=lambda i: (-mean[i], -size[i], -sure[i]))
        section.intro = (
            f'Judged by F1 at a score of {det.SHOWN_FROM} and an IoU of 0.5, '
            f'{"the mean over the runs" if len(found) > 1 else "1 if all is right"}. '
            'Point at a box for its class and score.'
        )
        section.intro += '' if worst else ALL_RIGHT
        taken: set[int] = set()
        first = []
        for title, ids in (('Worst', worst), ('Where the runs differ most', differ), ('Best', best)):
            ids = [i for i in ids if i not in taken][:n]
            taken |= set(ids)
            items = [section.attempt(truth.image_path(i), lambda i=i: self._boxed(truth, i, found)) for i in ids]
            items = [item for item in items if item is not None]
            if items:
                section.galleries.append(Gallery(title, items, legend=LEGEND))
                first.append(truth.image_path(ids[0]))
        return list(dict.fromkeys([*first[:1], *first[-1:], *first]))

    def _boxed(self, truth: det.Truth, image_id: int, found: dict[str, det.Evaluation]) -> Item:
        path = truth.image_path(image_id)
        uri, size = _data_uri(path, IMAGE_SIDE)
        key = f'image-{len(self.images)}'
        self.images.append(dict(id=key, uri=uri, width=size[0], height=size[1]))
        boxes = truth.boxes(image_id)
        panels = [_panel('ground truth', key, size, boxes, f'{len(boxes)} object{"s" * (len(boxes) != 1)}')]
        for name, e in found.items():
            image = e.images[image_id]
            note = ', '.join(f'{image.count(s)} {s}' for s in ('found', 'false', 'missed') if image.count(s))
            panel = _panel(name, key, size, image.boxes, f'F1 {image.f1:.2f}' + (f': {note}' if note else ''))
            panel.colour = line_style(self.index[name])[0]
            panels.append(panel)
        return Item(_image_name('detection', path), panels)

    # -------------------------------------------------------------------------------------- classification

    def _classification(self, runs: list[Run], metrics: Section, classes: Section, images: Section) -> list[str]:
        found: dict[str, tuple[list[cls.Prediction], list[str]]] = {}
        for run in runs:

            def predict(run: Run = run) -> tuple:
                predictions, class_names, self.sources[run.name] = cls.predictions_of(
                    run, self.device, self.options.limit
                )
                if not predictions:
                    raise ValueError('there is no image in the test set')
                return predictions, class_names

            result = metrics.attempt(run.name, predict)
            if result is not None:
                found[run.name] = result
        if not found:
            return []
        base = next(iter(found))
        truth, class_names = {p.path: p.label for p in found[base][0]}, found[base][1]
        same = {n: p for n, (p, c) in found.items() if c == class_names and {x.path: x.label for x in p} == truth}
        _tell_others(metrics, found, same)
        names = [run.name for run in runs]
        values = [same.get(n) for n in names]
        table = Table(f'Accuracy in percent on {len(truth):,} images', ['metric', *names])
        for top in (1, cls.TOP):
            if top < len(class_names):
                table.rows.append(compared(f'top-{top}', [v and cls.accuracy(v, top) for v in values], decimal(2)))
        metrics.tables.append(table)

        counts = dict.fromkeys(class_names, 0)
        for label in truth.values():
            counts[class_names[label]] += 1
        accuracies = [v and cls.class_accuracy(v, class_names) for v in values]
        per_class = Table('Accuracy of each class in percent', ['class', 'images', *names])
        for name, n in counts.items():
            first, *row = compared(name, [a and a[name] for a in accuracies], decimal(1))
            per_class.rows.append([first, Cell(f'{n:,}', float(n)), *row])
        classes.tables.append(per_class)
        mistakes = {n: cls.confusions(p) for n, p in same.items()}
        total = sum(mistakes.values(), cls.Counter())
        if total:
            confused = Table(
                f'What is taken for what most often ({min(CONFUSIONS, len(total))} of {len(total)} pairs)',
                ['class', 'taken for', *same],
                words={0, 1},
            )
            for (label, said), _ in total.most_common(CONFUSIONS):
                first, *row = compared(
                    class_names[label], [m[label, said] for m in mistakes.values()], decimal(0), 'low'
                )
                confused.rows.append([first, Cell(class_names[said], class_names[said]), *row])
            classes.tables.append(confused)
        return images.attempt('images', lambda: self._classified(images, truth, class_names, same)) or []

    def _classified(
        self, section: Section, truth: dict[str, int], class_names: list[str], found: dict[str, list[cls.Prediction]]
    ) -> list[str]:
        n = self.options.images
        if not n:
            return []
        said = {path: [] for path in truth}
        for predictions in found.values():
            for p in predictions:
                said[p.path].append(p)
        order = sorted(said, key=lambda path: sum(p.score for p in said[path]))
        worst = [path for path in order if not all(p.right for p in said[path])]
        differ = [path for path in worst if any(p.right for p in said[path])]
        best = [path for path in reversed(order) if any(p.right for p in said[path])]
        section.intro = 'Worst: wrong with the highest score. Best: right with the highest score.'
        section.intro += '' if worst else ALL_RIGHT
        taken, first = set(), []
        for title, paths in (('Worst', worst), ('Where the runs differ most', differ), ('Best', best)):
            paths = [p for p in paths if p not in taken][:n]
            taken |= set(paths)
            items = []
            for path in paths:
                item = section.attempt(
                    path, lambda path=path: self._labelled(path, class_names, truth[path], dict(zip(found, said[path])))
                )
                items += [item] if item is not None else []
            if items:
                section.galleries.append(Gallery(title, items, 'cards'))
                first.append(paths[0])
        return list(dict.fromkeys([*first[:1], *first[-1:], *first]))

    def _labelled(self, path: str, class_names: list[str], label: int, said: dict[str, cls.Prediction]) -> Item:
        uri, (width, height) = _data_uri(path, IMAGE_SIDE // 2)
        panels = [
            Panel(
                f'label: {class_names[label]}',
                f'image of class {class_names[label]}',
                uri=uri,
                width=width,
                height=height,
            )
        ]
        for name, p in said.items():
            panels.append(
                Panel(
                    name,
                    note=f'{"right" if p.right else "wrong"}: {class_names[p.classes[0]]}, {p.scores[0]:.2f}',
                    colour=line_style(self.index[name])[0],
                    right=p.right,
                )
            )
        return Item(_image_name('classification', path), panels)

    # -------------------------------------------------------------------------------------------- any task

    def _curves(self, prefix: str, runs: list[Run]) -> Section:
        section = Section(f'{prefix}-training', 'Training')
        table = Table('Training, from the logs', ['quantity', *(run.name for run in runs)])
        last = [run.training[-1] if run.training else {} for run in runs]
        for name, values, text in (
            ('epochs, as last logged', [line.get('epoch') for line in last], decimal(0)),
            ('iterations, as last logged', [line.get('iter') for line in last], decimal(0)),
            ('seconds (iterations, no validation)', [run.seconds for run in runs], decimal(0)),
            (
                'ms an iteration, with its data',
                [run.seconds and 1e3 * run.seconds / run.training[-1]['step'] for run in runs],
                decimal(0),
            ),
            (
                'GPU memory in MB',
                [max((line['memory'] for line in run.training if 'memory' in line), default=None) for run in runs],
                decimal(0),
            ),
            ('last loss', [line.get('loss') for line in last], decimal(4)),
        ):
            if any(v is not None for v in values):
                table.rows.append(compared(name, values, text, None))
        section.tables += [table] if table.rows else []
        kinds = (
            ('training', 'iteration', lambda line: [k for k in line if 'loss' in k or k in ('lr', 'grad_norm')]),
            (
                'validation',
                'epoch' if all(run.by_epoch for run in runs) else 'iteration',
                lambda line: list(metrics_of(line)),
            ),
        )
        for attribute, x_label, keys_of in kinds:
            keys = dict.fromkeys(k for run in runs for line in getattr(run, attribute) for k in keys_of(line))
            for key in sorted(keys, key=lambda k: (k == 'lr', k != 'loss')):
                curves = []
                for run in runs:
                    points = [(line['step'], line[key]) for line in getattr(run, attribute) if key in keys_of(line)]
                    if points:
                        curves.append(Curve(self.index[run.name], run.name, points))
                title = dict(lr='learning rate').get(key, key)
                section.plots.append(Plot(title, x_label, curves))
        return section

    def _gates(self, section: Section, runs: list[Run], paths: Sequence[str]) -> None:
        without = []
        for run in runs if paths else ():
            try:
                attention_layers(self._on_meta(run).backbone)
            except Exception:  # no config, or one without such a model; the next section says more
                without.append(f'{run.name} has no attention with gates.')
                continue
            if not run.checkpoint:
                without.append(f'{run.name} has gates, but its folder has no weights.')
                continue
            model = section.attempt(run.name, partial(run.model, self.device))
            if model is None:
                continue
            layers, items = attention_layers(model.backbone), []
            for path in paths[: self.options.gates]:
                item = section.attempt(f'{run.name}, {path}', partial(_sheet, run, model, layers, path))
                items += [item] if item is not None else []
            if items:
                section.galleries.append(Gallery(run.name, items, 'sheets'))
        if section.galleries:
            without.insert(0, 'Red: the attention lets more through; blue: less. Each sheet has its own scale.')
        elif not any('weights' in text for text in without):
            return  # nobody expects any
        section.intro = ' '.join(without)

    def _cost(self, prefix: str, runs: list[Run]) -> Section:
        section = Section(f'{prefix}-cost', 'Complexity and speed')
        known = [run for run in runs if run.cfg is not None]
        counts = {
            run.name: c
            for run in known
            if (c := section.attempt(run.name, lambda run=run: count(run.cfg, self._on_meta(run)))) is not None
        }
        names = [run.name for run in runs]
        if counts:
            table = Table('One image of the largest size of the test pipeline', ['quantity', *names])
            sizes = [f'{c[0][0]} × {c[0][1]}' if (c := counts.get(n)) else '–' for n in names]  # noqa: RUF001
            table.rows.append([Cell('size in pixels (height × width)'), *(Cell(s) for s in sizes)])  # noqa: RUF001
            for name, value, text in (
                ('parameters', lambda c: c[1].params, decimal(0)),
                ('of them in attentions', lambda c: c[1].attention_params, decimal(0)),
                ('GFLOPs (as published: modules only)', lambda c: c[1].flops / 1e9, decimal(3)),
                ('GMACs (with all arithmetic of attentions)', lambda c: c[2].flops / 1e9, decimal(3)),
                ('activations', lambda c: c[1].activations, decimal(0)),
                ('operations of attentions', lambda c: c[1].attention_ops, decimal(0)),
            ):
                row = [value(counts[n]) if n in counts else None for n in names]
                table.rows.append(compared(name, row, text, None))
            section.tables.append(table)
        if self.options.seconds and counts:
            self._speed(section, [run for run in known if run.name in counts], counts, names)
        return section

    def _speed(self, section: Section, runs: list[Run], counts: dict, names: list[str]) -> None:
        models = {}
        for run in runs:
            model = section.attempt(f'{run.name}, speed', lambda run=run: run.model(self.device))
            if model is not None:
                models[run.name] = (model, counts[run.name][0])
        times = section.attempt('speed', lambda: speed(models, self.device, self.options.seconds)) if models else None
        if not times:
            return
        place = surroundings(self.device)
        table = Table(f'Forward of one image, measured by this command: {_sentence(place)}, {_now()}', ['time', *names])
        for k, name in ((1, 'ms, median'), (0, 'ms, 20th percentile'), (2, 'ms, 80th percentile')):
            table.rows.append(
                compared(
                    name, [times[n][k] if n in times else None for n in names], decimal(2), 'low' if k == 1 else None
                )
            )
        if names[0] in times and len(names) > 1:
            base = times[names[0]][1]
            table.rows.append(
                [
                    Cell('times the first one'),
                    *(
                        Cell(f'{times[n][1] / base:.2f}', times[n][1] / base) if n in times else Cell('–')  # noqa: RUF001
                        for n in names
                    ),
                ]
            )
        section.tables.append(table)
        section.intro = 'Speed: backbone, neck and heads, without post-processing, batch 1, the runs in turn. '
        if any(high > BUSY * low for low, _, high in times.values()):
            section.problems.append(
                'The times vary so much that the machine must have been busy with something else: '
                'measure again before comparing them.'
            )
        random = [run.name for run in runs if run.name in times and not run.checkpoint]
        if random:
            section.intro += (
                f'{", ".join(random)}: without weights in the folder, the model was built with random '
                'ones, which take as long.'
            )

    def _differences(self, prefix: str, runs: list[Run]) -> Section:
        section = Section(f'{prefix}-configs', 'Configs')
        known = [run for run in runs if run.cfg is not None]
        if len(known) > 1:
            found = config_differences([run.cfg for run in known])
            if found:
                table = Table(
                    'Where the configs differ', ['key', *(run.name for run in known)], words=set(range(len(known) + 1))
                )
                for key, values in found:
                    cells = [Cell(show(v), show(v), code=True) for v in values]
                    table.rows.append([Cell(key, key, code=True), *cells])
                section.tables.append(table)
            else:
                section.intro = 'The configs do not differ in anything that training and testing read.'
        section.details = [dict(title=f'Whole config of {run.name}', text=run.config_text) for run in known]
        return section


def _tell_others(section: Section, found: dict, same: dict) -> None:
    """Say which runs are left out, since they cannot be compared with the first one."""
    section.problems += [
        f'{name} is tested on other images or classes than {next(iter(found))}, and is left out '
        'here: make it a page of its own'
        for name in found
        if name not in same
    ]


def _logged_metrics(section: Section, runs: list[Run]) -> None:
    """Table of the validations during training: the last, with the best as a note."""
    names = dict.fromkeys(k for run in runs for line in run.validation for k in metrics_of(line))
    if not names:
        if not section.tables:
            section.problems.append('the logs have no validation')
        return
    table = Table('Validation during training: the last one', ['metric', *(run.name for run in runs)])
    for name in names:
        better = 'low' if 'loss' in name else 'high'
        values, notes = [], []
        for run in runs:
            series = [(line[name], line['step']) for line in run.validation if name in line]
            last = metrics_of(run.validation[-1]).get(name) if run.validation else None
            values.append(last)
            best = (min if better == 'low' else max)(series, default=None, key=lambda v: v[0])
            notes.append(
                ''
                if last is None or best[0] == last
                else f'best {best[0]:.3f} at {"epoch" if run.by_epoch else "iteration"} {best[1]:,}'
            )
        table.rows.append(compared(name, values, decimal(3), better, notes))
    section.tables.append(table)


def _panel(title: str, image: str, size: tuple[int, int], boxes: Sequence[det.Box], note: str) -> Panel:
    """Boxes over an image; letters about a sixteenth of its side."""
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


def _image_name(task: str | None, path: str) -> str:
    """What an image is called: in classification with its folder, mostly the class, for names recur."""
    return '/'.join(Path(path).parts[-2:]) if task == 'classification' else osp.basename(path)


def _sheet(run: Run, model: nn.Module, layers: dict[str, nn.Module], path: str) -> Item:
    name = _image_name(run.task, path)
    sheet = draw_sheet(record_gates(model, prepare_image(run.cfg, path), layers), name)
    uri, (width, height) = _data_uri(io.BytesIO(sheet), SHEET_WIDTH, 85)
    return Item(name, [Panel('', f'gates of {run.name} over {name}', uri=uri, width=width, height=height)])


def _data_uri(source: str | io.BytesIO, side: int, quality: int = 75) -> tuple[str, tuple[int, int]]:
    """An image as WebP, at most ``side`` pixels wide and high, and its own width and height."""
    with Image.open(source) as image:
        size = image.size
        image = image.convert('RGB')
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, 'WEBP', quality=quality)
    return f'data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}', size


def _model_name(run: Run) -> str:
    model = run.cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    attention = (backbone.get('attention') or {}).get('type')
    parts = [model.get('type'), backbone.get('type'), backbone.get('depth'), attention]
    return ', '.join(str(p if not isinstance(p, type) else p.__name__) for p in parts if p is not None)


def _soft(text: str) -> Markup:
    """Text that a narrow column may break behind its signs, and not inside of words."""
    return Markup(re.sub(r'([_/.,=])(?=[^\W\d])', r'\1<wbr>', str(escape(text))))


def _now() -> str:
    return datetime.datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z')


def _sentence(place: dict) -> str:
    threads = f', {place["threads"]} thread{"s" * (place["threads"] != 1)}' if 'threads' in place else ''
    return f'{place["device"]}{threads}, PyTorch {place["torch"]}'
