"""Rows of the attention bench, one a metric of a training, in a CSV file that grows; whether they can be compared."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmccd.checkpoints.files import write_atomically
from mmccd.errors import UserError

from .plan import Table

# What rows have to have in common to be compared; the attention, those of one arm.
COMMON = dict(recipe='recipe', attention='attention', sha256='data', torch='version of PyTorch', device='device')


@dataclass(frozen=True)
class Row:
    """One metric of one training.

    Attributes:
        data (str): Name of the dataset in the plan.
        arm (str): Name of the network in the plan.
        seed (int): ``randomness.seed``, and which images are trained on.
        metric (str): Its name in the evaluator; behind ``'noise '`` and so on, of corrupted images.
        value (float): In the metric's own unit.
        seconds (float): Wall-clock time of training and tests; of a resumed training, from where it was resumed.
        recipe (str): Start of the SHA-256 of all that the arms of a table have in common: config, options, subsets,
            and the recipe of the weights that a detector is initialised with.
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
    """Append rows, all of them or none; a new file gets its header. UserError if it cannot be written."""
    file, text = Path(path), io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
    try:
        before = file.read_bytes() if file.exists() else b''
        if not before:
            writer.writeheader()
        writer.writerows(asdict(r) for r in rows)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, before + text.getvalue().encode())
    except OSError as e:
        raise UserError(f'{path} cannot be written: {e}') from e


def read_rows(path: str) -> list[Row]:
    """Read what :func:`append_rows` wrote; no file has no rows.

    Raises:
        UserError: If the file cannot be read, has other columns, or a value is not a finite number.
    """
    if not Path(path).exists():
        return []
    line = 0
    try:
        with open(path, newline='', encoding='utf-8') as f:
            reader = csv.DictReader(f)
            columns = tuple(reader.fieldnames or ())
            if columns == COLUMNS:
                found = []
                for r in reader:
                    line = reader.line_num
                    numbers = dict(seed=int(r['seed']), value=_finite(r['value']), seconds=_finite(r['seconds']))
                    found.append(Row(**{**r, **numbers}))
                return found
    except (OSError, TypeError, ValueError, csv.Error) as e:
        raise UserError(f'{path}{f", line {line}" if line else ""}: {e}') from e
    raise UserError(f'{path}: its columns must be {", ".join(COLUMNS)}, got {", ".join(columns) or "none"}')


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f'a value must be finite, got {text!r}')
    return value


def differences(found: Mapping[str, Any], today: Mapping[str, str]) -> list[str]:
    """What is not as today, in words: ``'recipe abc (now def)'``.

    Args:
        found (Mapping): ``vars`` of a row, or what a piece's folder has instead.
        today (Mapping): Some of :data:`COMMON`, as the plan and this machine have it now.

    Example:
        >>> differences(dict(recipe='abc', torch='2.11'), dict(recipe='def', torch='2.11'))
        ['recipe abc (now def)']
    """
    return [f'{COMMON[k]} {found.get(k)} (now {now})' for k, now in today.items() if found.get(k) != now]


def of_table(rows: Iterable[Row], table: Table) -> list[Row]:
    """The rows of a table's arms and seeds."""
    arms, seeds = {a.name for a in table.arms}, set(table.seeds)
    return [r for r in rows if r.data == table.data.name and r.arm in arms and r.seed in seeds]


def problems(rows: Sequence[Row], table: Table, today: Mapping[str, Mapping[str, str]] | None = None) -> list[str]:
    """Why the rows of a table cannot be compared; none if they can.

    Each arm has to have each seed once, for each metric, and all rows the same recipe, data, PyTorch and device.

    Args:
        rows (Sequence[Row]): Any rows; those of other tables are left out.
        table (Table): What the plan declares.
        today (Mapping, optional): By arm what :func:`differences` takes. Default: nothing is asked for.
    """
    own = of_table(rows, table)
    main, found = table.data.metric, []
    for arm in table.arms:
        seeds = [r.seed for r in own if r.arm == arm.name and r.metric == main]
        missing = [str(s) for s in table.seeds if s not in seeds]
        double = sorted({str(s) for s in seeds if seeds.count(s) > 1})
        if missing:
            found.append(f'{arm.name} lacks seed {", ".join(missing)}')
        if double:
            found.append(f'{arm.name} has seed {", ".join(double)} more than once')
        for metric in sorted({r.metric for r in own} - {main}):
            others = [r.seed for r in own if r.arm == arm.name and r.metric == metric]
            if not missing and not double and sorted(others) != sorted(seeds):
                found.append(f'{arm.name} has {main} of the seeds {sorted(seeds)}, and {metric} of {sorted(others)}')
    for of, name in COMMON.items():
        values = sorted({getattr(r, of) for r in own})
        if of != 'attention' and len(values) > 1:
            few = {v: sorted({r.arm for r in own if getattr(r, of) == v}) for v in values}
            found.append(f'more than one {name}: ' + '; '.join(f'{v} ({", ".join(a)})' for v, a in few.items()))
    attentions = {a.name: sorted({r.attention for r in own if r.arm == a.name}) for a in table.arms}
    found += [f'{arm} was run as {" and as ".join(of)}' for arm, of in attentions.items() if len(of) > 1]
    for name, now in (today or {}).items():
        others = sorted({text for r in own if r.arm == name for text in differences(vars(r), now)})
        if others:
            found.append(f'{name} was run with {", ".join(others)}')
    return found
