"""Runs of several configs with several seeds: their results, compared seed by seed."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

# Metrics that tasks are usually compared by, in order of preference.
METRICS = ('coco/bbox_mAP', 'accuracy/top1')


@dataclass(frozen=True)
class Result:
    """One metric of one finished run.

    Attributes:
        config (str): Name of the config, without folder and ending.
        seed (int): ``randomness.seed`` of the run.
        metric (str): Its name in the evaluator, e.g. ``'coco/bbox_mAP'``.
        value (float): In the metric's own unit, of the last epoch.
        seconds (float): Wall-clock time of the training, summed over interruptions.
        options (str): ``--cfg-options`` that all runs had.
        device (str): Name of the GPU or CPU.
        torch (str): Version of PyTorch.
        mmccd (str): Version of mmccd.
        date (str): When it ended, YYYY-MM-DD.
    """

    config: str
    seed: int
    metric: str
    value: float
    seconds: float
    options: str
    device: str
    torch: str
    mmccd: str
    date: str


def write_results(path: str, results: Iterable[Result]) -> None:
    """Write a sorted CSV file: a row for each metric of each run."""
    rows = sorted((asdict(r) for r in results), key=lambda r: (r['metric'], r['config'], r['seed']))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w', newline='', encoding='utf-8') as f:
        writer = csv.DictWriter(f, [field.name for field in fields(Result)], lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def read_results(path: str) -> list[Result]:
    """Read a file of :func:`write_results`.

    Raises:
        ValueError: If the file has other columns or a value is not a number.
    """
    with open(path, newline='', encoding='utf-8') as f:
        reader = csv.DictReader(f)
        wanted = [field.name for field in fields(Result)]
        if reader.fieldnames != wanted:
            raise ValueError(f'{path}: its columns must be {", ".join(wanted)}, got {reader.fieldnames}')
        try:
            return [
                Result(
                    **{**row, 'seed': int(row['seed']), 'value': float(row['value']), 'seconds': float(row['seconds'])}
                )
                for row in reader
            ]
        except (TypeError, ValueError) as e:
            raise ValueError(f'{path}, line {reader.line_num}: {e}') from e


@dataclass(frozen=True)
class Summary:
    """A config's values over the seeds, and their differences to those of the first config.

    Attributes:
        config (str): Name of the config.
        values (dict[int, float]): Value by seed.
        mean (float): Over the seeds.
        std (float): Sample standard deviation (n - 1); NaN with one seed.
        difference (float): Mean of own value minus the first config's, over the seeds that both have; NaN without any.
        difference_std (float): Sample standard deviation of those differences; NaN with one seed.
        interval (float): Half the 95 % confidence interval of ``difference`` by Student's t; NaN with one seed.
    """

    config: str
    values: dict[int, float]
    mean: float
    std: float
    difference: float
    difference_std: float
    interval: float


def summarise(results: Sequence[Result], metric: str, order: Sequence[str] | None = None) -> list[Summary]:
    """Compare configs by one metric, differences taken seed by seed against the first.

    Args:
        results (Sequence[Result]): Of any configs and metrics.
        metric (str): Name of the metric to compare.
        order (Sequence[str] | None): Configs, beginning with the one to compare with. Default: as in ``results``.

    Raises:
        ValueError: If no result has this metric.
    """
    values: dict[str, dict[int, float]] = {name: {} for name in order or ()}
    for r in results:
        if r.metric == metric and (order is None or r.config in values):
            values.setdefault(r.config, {})[r.seed] = r.value
    values = {name: dict(sorted(v.items())) for name, v in values.items() if v}
    if not values:
        known = ', '.join(sorted({r.metric for r in results})) or 'none'
        raise ValueError(f'metric {metric!r} was not measured by any run (measured: {known})')
    first = next(iter(values.values()))
    found = []
    for name, own in values.items():
        differences = [v - first[seed] for seed, v in own.items() if seed in first]
        std, difference_std = _std(list(own.values())), _std(differences)
        n = len(differences)
        found.append(
            Summary(
                name,
                own,
                statistics.mean(own.values()),
                std,
                statistics.mean(differences) if n else math.nan,
                difference_std,
                _t95(n - 1) * difference_std / math.sqrt(n) if n > 1 else math.nan,
            )
        )
    return found


def table(summaries: Sequence[Summary], metric: str, digits: int | None = None) -> str:
    """A Markdown table of :func:`summarise`'s result.

    Args:
        summaries (Sequence[Summary]): The first is what the others are compared with.
        metric (str): Name of the metric, for the heading.
        digits (int | None): Decimals. Default: 4 for metrics between 0 and 1, else 2.
    """
    if digits is None:
        digits = 4 if all(abs(v) <= 1 for s in summaries for v in s.values.values()) else 2
    lines = [
        f'| config | seeds | {metric}, mean | standard deviation | minus {summaries[0].config}, by seed | '
        '95 % interval |',
        '|---|---:|---:|---:|---:|---:|',
    ]
    for i, s in enumerate(summaries):
        cells = [
            f'{s.mean:.{digits}f}',
            _shown(s.std, f'.{digits}f'),
            _shown(s.difference, f'+.{digits}f') if i else '',
            f'± {s.interval:.{digits}f}' if i and not math.isnan(s.interval) else '',
        ]
        lines.append(f'| {s.config} | {len(s.values)} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def _shown(value: float, form: str) -> str:
    return '' if math.isnan(value) else format(value, form)


def _std(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _t95(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t."""
    from scipy.stats import t  # a requirement of mmdet; half a second to import

    return float(t.ppf(0.975, freedom))
