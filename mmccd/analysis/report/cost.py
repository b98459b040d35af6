"""The page's section of complexity and speed."""

from __future__ import annotations

from .blocks import Section
from .context import Context
from .measure import count, describe, now, speed, surroundings
from .run import Run
from .tables import Cell, Table, compared, decimal

BUSY = 1.5  # ratio of the 80th to the 20th percentile of times


def cost_section(context: Context, prefix: str, runs: list[Run]) -> Section:
    section = Section(f'{prefix}-cost', 'Complexity and speed')
    known = [run for run in runs if run.cfg is not None]
    counts = {
        run.name: c
        for run in known
        if (c := section.attempt(run.name, lambda run=run: count(run.cfg, context.on_meta(run)))) is not None
    }
    names = [run.name for run in runs]
    if counts:
        table = Table('One image of the largest size of the test pipeline', ['quantity', *names])
        sizes = [f'{c[0][0]} × {c[0][1]}' if (c := counts.get(n)) else '–' for n in names]  # noqa: RUF001
        table.rows.append([Cell('size in pixels (height × width)'), *(Cell(s) for s in sizes)])  # noqa: RUF001
        for name, value, text in (
            ('parameters', lambda c: c[1].params, decimal(0)),
            ('of them in attention layers', lambda c: c[1].attention_params, decimal(0)),
            ('GFLOPs (as published: modules only)', lambda c: c[1].flops / 1e9, decimal(3)),
            ('GMACs (with all arithmetic of attention layers)', lambda c: c[2].flops / 1e9, decimal(3)),
            ('activations', lambda c: c[1].activations, decimal(0)),
            ('operations of attention layers', lambda c: c[1].attention_ops, decimal(0)),
        ):
            row = [value(counts[n]) if n in counts else None for n in names]
            table.rows.append(compared(name, row, text, None))
        section.tables.append(table)
    if context.options.seconds and counts:
        _add_speed(context, section, [run for run in known if run.name in counts], counts, names)
    return section


def _add_speed(context: Context, section: Section, runs: list[Run], counts: dict, names: list[str]) -> None:
    models = {}
    for run in runs:
        model = section.attempt(f'{run.name}, speed', lambda run=run: run.model(context.device))
        if model is not None:
            models[run.name] = (model, counts[run.name][0])
    times = section.attempt('speed', lambda: speed(models, context.device, context.options.seconds)) if models else None
    if not times:
        return
    place = surroundings(context.device)
    table = Table(f'Forward of one image, measured by this command: {describe(place)}, {now()}', ['time', *names])
    for k, name in ((1, 'ms, median'), (0, 'ms, 20th percentile'), (2, 'ms, 80th percentile')):
        table.rows.append(
            compared(name, [times[n][k] if n in times else None for n in names], decimal(2), 'low' if k == 1 else None)
        )
    if names[0] in times and len(names) > 1:
        base = times[names[0]][1]
        table.rows.append(
            [
                Cell('relative to the first run'),
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
            'The times vary too much: other processes were running on this machine. '
            'Measure again before comparing them.'
        )
    random = [run.name for run in runs if run.name in times and not run.checkpoint]
    if random:
        section.intro += (
            f'{", ".join(random)}: measured with random weights, which take the same time, since the folder has none.'
        )
