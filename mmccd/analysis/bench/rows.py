"""Rows of the attention bench, one a metric of a training, in a CSV file that grows; whether they can be compared."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from mmccd.errors import UserError

from .plan import Table


@dataclass(frozen=True)
class Row:
    """One metric of one training.

    Attributes:
        data (str): Name of the dataset in the plan.
        arm (str): Name of the network in the plan.
        seed (int): ``randomness.seed``, and which images are trained on.
        metric (str): Its name in the evaluator; behind ``'noise '`` and so on, of corrupted images.
        value (float): In the metric's own unit.
        seconds (float): Wall-clock time of training and tests.
        recipe (str): Start of the SHA-256 of all that the arms of a table have in common: config, options, subsets.
        sha256 (str): Start of the SHA-256 of the data.
        attention (str): ``model.backbone.attention``, as JSON.
        commit (str): Of the repository; '' outside of one.
        mmccd (str): Version.
        torch (str): Version.
        device (str): Model of the GPU or CPU.
        date (str): When it ended, YYYY-MM-DD.
    """

    data: str
    arm: str
    seed: int
    metric: str
    value: float
    seconds: float
    recipe: str
    sha256: str
    attention: str
    commit: str
    mmccd: str
    torch: str
    device: str
    date: str


def attention_text(attention: Mapping[str, Any] | None) -> str:
    """``model.backbone.attention`` as a row has it.

    Example:
        >>> attention_text(dict(type='mmccd.CCD', groups=8))
        '{"groups": 8, "type": "mmccd.CCD"}'
    """
    return json.dumps(attention, sort_keys=True)


COLUMNS = tuple(f.name for f in fields(Row))


def append_rows(path: str, rows: Iterable[Row]) -> None:
    """Append rows, all of them or none; a new file gets its header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
    if not os.path.isfile(path):
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        writer.writeheader()
    writer.writerows(asdict(r) for r in rows)
    with open(path, 'a', encoding='utf-8', newline='') as f:
        before = f.tell()
        try:
            f.write(text.getvalue())
            f.flush()
            os.fsync(f.fileno())
        except OSError:  # a full disk: half a row would make the file useless
            f.truncate(before)
            raise


def read_rows(path: str) -> list[Row]:
    """Read what :func:`append_rows` wrote; no file has no rows.

    Raises:
        UserError: If the file has other columns or a value is not a number.
    """
    if not os.path.isfile(path):
        return []
    with open(path, newline='', encoding='utf-8') as f:
        reader = csv.DictReader(f)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f'{path}: its columns must be {", ".join(COLUMNS)}, got {reader.fieldnames}')
        try:
            return [
                Row(**{**r, 'seed': int(r['seed']), 'value': float(r['value']), 'seconds': float(r['seconds'])})
                for r in reader
            ]
        except (TypeError, ValueError) as e:
            raise UserError(f'{path}, line {reader.line_num}: {e}') from e


def of_table(rows: Iterable[Row], table: Table) -> list[Row]:
    """The rows of a table's arms and seeds."""
    arms, seeds = {a.name for a in table.arms}, set(table.seeds)
    return [r for r in rows if r.data == table.data.name and r.arm in arms and r.seed in seeds]


def problems(rows: Sequence[Row], table: Table, recipes: Mapping[str, str] | None = None) -> list[str]:
    """Why the rows of a table cannot be compared; none if they can.

    Each arm has to have each seed once, and all rows the same recipe, data and versions.

    Args:
        rows (Sequence[Row]): Any rows; those of other tables are left out.
        table (Table): What the plan declares.
        recipes (Mapping[str, str], optional): Today's recipe by arm. Default: none is asked for.
    """
    own = of_table(rows, table)
    found = []
    for arm in table.arms:
        seeds = [r.seed for r in own if r.arm == arm.name and r.metric == table.data.metric]
        missing = [str(s) for s in table.seeds if s not in seeds]
        double = sorted({str(s) for s in seeds if seeds.count(s) > 1})
        if missing:
            found.append(f'{arm.name} lacks seed {", ".join(missing)}')
        if double:
            found.append(f'{arm.name} has seed {", ".join(double)} more than once')
    for name, of in (('recipe', 'recipe'), ('data', 'sha256'), ('version of torch', 'torch'), ('device', 'device')):
        values = sorted({getattr(r, of) for r in own})
        if len(values) > 1:
            few = {v: sorted({r.arm for r in own if getattr(r, of) == v}) for v in values}
            found.append(f'more than one {name}: ' + '; '.join(f'{v} ({", ".join(a)})' for v, a in few.items()))
    attentions = {a.name: sorted({r.attention for r in own if r.arm == a.name}) for a in table.arms}
    found += [f'{arm} was run as {" and as ".join(of)}' for arm, of in attentions.items() if len(of) > 1]
    for arm, recipe in (recipes or {}).items():
        others = sorted({r.recipe for r in own if r.arm == arm} - {recipe})
        if others:
            found.append(f'{arm} was run by recipe {", ".join(others)}; the plan and its configs are now {recipe}')
    return found
