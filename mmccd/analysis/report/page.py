"""Comparison of runs as one HTML page, which loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import os.path as osp
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from mmccd.env import keep_freed_memory
from mmccd.version import __version__

from .attention import attention_section
from .bench import bench_section
from .blocks import Section
from .classifiers import add_classifiers
from .context import Context, Options
from .cost import cost_section
from .curves import line_style
from .detectors import add_detectors
from .measure import describe, now, surroundings
from .run import Run
from .training import add_logged_metrics, configs_section, training_section

HERE = Path(__file__).parent
TITLES = {'detection': 'Detection', 'classification': 'Classification', None: 'Other runs'}


class Report:
    """A page about runs.

    Args:
        runs (Sequence[Run]): At least one; the others of a task are compared with its first one.
        device (torch.device): For all that goes through a model.
        options (Options): Contents of the page.
    """

    def __init__(self, runs: Sequence[Run], device: torch.device, options: Options) -> None:
        self.runs = list(runs)
        self.context = Context.of(self.runs, device, options)
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
            made=f'{now()}, mmccd {__version__}, {describe(surroundings(self.context.device))}',
            runs=[self._card(run) for run in self.runs],
            tasks=tasks,
            images=self.context.images,
            style=Markup((HERE / 'page.css').read_text(encoding='utf-8')),
            script=Markup(script),
            script_hash=f'sha256-{digest}',
            command=command,
        )

    def _card(self, run: Run) -> dict:
        """Facts about a run, for the top of the page."""
        facts = [('folder', run.folder)]
        if run.cfg is not None:
            facts.append(('model', _model_name(run)))
        if run.checkpoint:
            facts.append(('checkpoint', osp.basename(run.checkpoint)))
        if run.name in self.context.sources:
            facts.append(('predictions', self.context.sources[run.name]))
        badge = ''
        if run.recorded:
            known = [str(run.recorded[k]) for k in ('date', 'machine') if run.recorded.get(k)]
            badge = ', '.join(known)
        colour, dash = line_style(self.context.index[run.name])
        return dict(
            name=run.name,
            colour=colour,
            dash=dash,
            facts=facts,
            badge=badge,
            command=str((run.recorded or {}).get('command', '')),
            notes=run.notes,
        )

    def _sections(self, task: str | None, runs: list[Run]) -> list[Section]:
        prefix, options = task or 'other', self.context.options
        metrics = Section(f'{prefix}-metrics', 'Metrics')
        classes = Section(f'{prefix}-classes', 'Classes')
        images = Section(f'{prefix}-images', 'Images')
        errors = Section(f'{prefix}-errors', 'Errors')
        add = {'detection': add_detectors, 'classification': add_classifiers}.get(task)
        shown = add(self.context, runs, metrics, classes, images, errors) if add else []
        add_logged_metrics(metrics, runs)
        bench = bench_section(options.bench, prefix, runs)
        sections = [metrics, bench, training_section(self.context, prefix, runs), classes, errors, images]
        if options.gates and options.images:
            sections.append(attention_section(self.context, prefix, runs, shown))
        sections += [cost_section(self.context, prefix, runs), configs_section(prefix, runs)]
        return [s for s in sections if s.intro or s.problems or s.tables or s.plots or s.galleries or s.details]


def _model_name(run: Run) -> str:
    model = run.cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    attention = (backbone.get('attention') or {}).get('type')
    parts = [model.get('type'), backbone.get('type'), backbone.get('depth'), attention]
    return ', '.join(str(p if not isinstance(p, type) else p.__name__) for p in parts if p is not None)


def _soft(text: str) -> Markup:
    """Text that a narrow column may break after punctuation, not inside words."""
    return Markup(re.sub(r'([_/.,=])(?=[^\W\d])', r'\1<wbr>', str(escape(text))))
