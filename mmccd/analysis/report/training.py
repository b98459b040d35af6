"""The page's sections from logs and configs: training, validation during training, and differences of the configs."""

from __future__ import annotations

from .blocks import Section
from .context import Context
from .curves import Curve, Plot
from .differences import config_differences, show
from .run import Run, metrics_of
from .tables import Cell, Table, compared, decimal


def training_section(context: Context, prefix: str, runs: list[Run]) -> Section:
    """Times and losses, and all logged curves."""
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
                    curves.append(Curve(context.index[run.name], run.name, points))
            title = dict(lr='learning rate').get(key, key)
            section.plots.append(Plot(title, x_label, curves))
    return section


def add_logged_metrics(section: Section, runs: list[Run]) -> None:
    """Add a table of the last validation during training, with the best one as a note."""
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


def configs_section(prefix: str, runs: list[Run]) -> Section:
    """Differences of the configs, and each one whole."""
    section = Section(f'{prefix}-configs', 'Configs')
    known = [run for run in runs if run.cfg is not None]
    if len(known) > 1:
        found = config_differences([run.cfg for run in known])
        if found:
            table = Table(
                'Differences between the configs',
                ['key', *(run.name for run in known)],
                words=set(range(len(known) + 1)),
            )
            for key, values in found:
                cells = [Cell(show(v), show(v), code=True) for v in values]
                table.rows.append([Cell(key, key, code=True), *cells])
            section.tables.append(table)
        else:
            section.intro = 'The configs do not differ in anything that training and testing read.'
    section.details = [dict(title=f'Whole config of {run.name}', text=run.config_text) for run in known]
    return section
