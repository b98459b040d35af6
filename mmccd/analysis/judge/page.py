"""Verdicts as one HTML page, which loads nothing from elsewhere."""

from __future__ import annotations

import platform
from datetime import date
from importlib import metadata
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mmccd.version import __version__

from .checks import CHECKS
from .results import COLUMNS, STATUSES, Table

HERE = Path(__file__).parent


def versions(table: Table) -> dict[str, str]:
    """What the verdicts depend on: Python, PyTorch, mmccd and the distributions of the modules."""
    found = dict(mmccd=__version__, torch=torch.__version__, python=platform.python_version())
    homes = metadata.packages_distributions() if table.verdicts else {}
    for verdict in table.verdicts:
        for distribution in homes.get(verdict.module.partition('.')[0].partition(':')[0], ()):
            found.setdefault(distribution, metadata.version(distribution))
    return found


def html(table: Table, title: str, command: str = '') -> str:
    """The page: a table of all modules and checks, then each module's findings.

    Args:
        table (Table): The verdicts.
        title (str): Of the page.
        command (str): How it was made; shown at its end.
    """
    report = HERE.parent / 'report'  # its head and its style, and more of the latter
    environment = Environment(
        loader=FileSystemLoader([HERE, report]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = [name for name in CHECKS if any(f.check == name for v in table.verdicts for f in v.findings)]
    return environment.get_template('page.html').render(
        title=title,
        made=f'{date.today()}, ' + ', '.join(f'{k} {v}' for k, v in versions(table).items()),
        counts=table.counts(),
        columns=COLUMNS,
        rows=list(zip(table.verdicts, table.rows())),
        checks=names,
        questions={name: CHECKS[name].question for name in names},
        grid=[(v, {f.check: f for f in v.findings}) for v in table.verdicts],
        statuses=STATUSES,
        left_out=table.left_out,
        style=Markup(''.join((folder / 'page.css').read_text(encoding='utf-8') for folder in (report, HERE))),
        command=command,
    )
