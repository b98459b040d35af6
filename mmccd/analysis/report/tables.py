"""Tables of the page: runs in columns, differences to the first one, the best one marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Cell:
    """A cell. ``key``: what a column is sorted by, a number or a text; None: at the end, either way.

    ``change`` is shown beside the text, ``note`` below it. ``shade``, 0 to 1: how dark the cell is, in the colour of
    what is right, or of what is wrong where it is below 0.
    """

    text: str
    key: float | str | None = None
    change: str = ''
    note: str = ''
    best: bool = False
    code: bool = False
    shade: float = 0.0


@dataclass
class Table:
    """A table; the first cell of a row is its header. ``words``: (columns) that hold text, at the left."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    words: set[int] = field(default_factory=lambda: {0})


def decimal(digits: int) -> Callable[[float], str]:
    """Formats a number with thousands separators and a fixed number of digits."""
    return lambda value: f'{value:,.{digits}f}'


def compared(
    name: str,
    values: Sequence[float | None],
    text: Callable[[float], str] = str,
    better: str | None = 'high',
    extra: Sequence[str] = (),
) -> list[Cell]:
    """A row: the value of each run, with its difference to the first run's, of the numbers as they are written.

    So readers can check them, and tables of rounded and of exact values agree.

    Args:
        name (str): Header of the row.
        values (Sequence[float | None]): None where there is none.
        text (Callable[[float], str]): Writes a number.
        better (str | None): ``'high'`` or ``'low'``: what is marked as the best, unless all are shown alike. Default:
            ``'high'``; None: nothing is marked.
        extra (Sequence[str]): Notes, one a run.
    """
    known = [v for v in values if v is not None]
    best = text(max(known) if better == 'high' else min(known)) if better and known else None
    alike = len({text(v) for v in known}) < 2
    cells = [Cell(name, name)]
    for i, value in enumerate(values):
        if value is None:
            cells.append(Cell('–'))  # noqa: RUF001
            continue
        change = '' if not i or values[0] is None else _signed(_number(text(value)) - _number(text(values[0])), text)
        cells.append(
            Cell(text(value), float(value), change, extra[i] if extra else '', not alike and text(value) == best)
        )
    return cells


def _number(text: str) -> float:
    return float(text.replace(',', ''))


def _signed(difference: float, text: Callable[[float], str]) -> str:
    shown = text(abs(difference))
    if shown == text(0.0):
        return ''
    return f'+{shown}' if difference > 0 else f'\N{MINUS SIGN}{shown}'


def tell_others(problems: list[str], found: dict, same: dict) -> None:
    """Note which runs are left out, since they cannot be compared with the first one."""
    problems += [
        f'{name} is tested on other images or classes than {next(iter(found))}, and is left out here: '
        'make a separate page for it'
        for name in found
        if name not in same
    ]
