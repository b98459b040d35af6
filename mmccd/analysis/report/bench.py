"""The page's section about several seeds: what the attention bench says of the runs' networks."""

from __future__ import annotations

import os.path as osp

from mmccd.analysis.bench.compare import Comparison, compare, shown_digits
from mmccd.analysis.bench.plan import Table as PlannedTable
from mmccd.analysis.bench.plan import read_plan
from mmccd.analysis.bench.rows import Row, attention_text, of_table, problems, read_rows

from .blocks import Section
from .run import Run
from .tables import Cell, Table

HEADS = ('network', 'mean', 'standard deviation', 'difference', 'interval', 'shown')


def bench_section(folder: str | None, prefix: str, runs: list[Run]) -> Section:
    """A table for each complete comparison of the bench that has the network of more than one run.

    Args:
        folder (str | None): Holds ``plan.yml`` and ``rows.csv``; None leaves the section empty.
        prefix (str): Of the section's id.
        runs (list[Run]): Those of a task.
    """
    section = Section(f'{prefix}-bench', 'Several seeds')
    if folder is None:
        return section
    plan = section.attempt(folder, lambda: read_plan(osp.join(folder, 'plan.yml')))
    rows = section.attempt(folder, lambda: read_rows(osp.join(folder, 'rows.csv')))
    for table in plan.tables if plan is not None and rows else ():
        names = _arms(table, rows, runs)
        if len(names) > 1 and not problems(rows, table):
            section.tables.append(_table(table, compare(rows, table), names))
    if section.tables:
        section.intro = (
            'The runs of this page are one training each, and two seeds of one network differ as well. The attention '
            'bench trained networks of its own with the attentions of these runs, with several seeds, on its own data '
            'and by its own recipe: differences by seed, with intervals of 95 % that hold for all comparisons of a '
            'table at once.'
        )
    return section


def _arms(table: PlannedTable, rows: list[Row], runs: list[Run]) -> set[str]:
    """Names of a table's arms that have the attention of a run."""
    own = {
        attention_text(((run.cfg.get('model') or {}).get('backbone') or {}).get('attention'))
        for run in runs
        if run.cfg is not None
    }
    controls = {a.name for a in table.arms if a.expect}
    return {r.arm for r in of_table(rows, table) if r.attention in own and r.arm not in controls}


def _table(table: PlannedTable, comparisons: list[Comparison], names: set[str]) -> Table:
    digits = shown_digits(comparisons)
    shown = Table(
        f'{table.data.name}: {table.data.metric}, {len(table.seeds)} seeds, differences to {table.arms[0].name}',
        list(HEADS),
        words={0, 5},
    )
    for c in comparisons:
        if c.arm in names:
            other = bool(c.verdict)
            shown.rows.append(
                [
                    Cell(c.arm, c.arm),
                    Cell(f'{c.mean:.{digits}f}', c.mean),
                    Cell(f'{c.std:.{digits}f}', c.std),
                    Cell(f'{c.difference:+.{digits}f}' if other else '', c.difference if other else None),
                    Cell(f'± {c.half:.{digits}f}' if other else '', c.half if other else None),
                    Cell(c.verdict, c.verdict),
                ]
            )
    return shown
