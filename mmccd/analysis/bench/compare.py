"""What the rows of a table show: paired differences by seed, with intervals that hold for all comparisons at once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student

from .cost import Cost
from .plan import Table
from .rows import Row, of_table

BETTER, WORSE, SAME = 'better', 'worse', 'no difference shown'


@dataclass(frozen=True)
class Comparison:
    """An arm against the first of its table.

    Attributes:
        arm (str): Its name.
        mean (float): Of the metric over the seeds.
        std (float): Sample standard deviation.
        difference (float): Mean over the seeds of own value minus the first arm's; NaN for the first itself.
        half (float): Half the interval of ``difference``; NaN for the first.
        corrupted (float): Mean over corruptions and seeds; NaN if none was tested.
        corrupted_difference (float): The same minus the first arm's.
        corrupted_half (float): Half its interval.
        expect (str | None): Of a planted control.
    """

    arm: str
    mean: float
    std: float
    difference: float = math.nan
    half: float = math.nan
    corrupted: float = math.nan
    corrupted_difference: float = math.nan
    corrupted_half: float = math.nan
    expect: str | None = None

    @property
    def verdict(self) -> str:
        """``'better'`` or ``'worse'`` if the interval excludes 0, else ``'no difference shown'``; '' for the first."""
        return _verdict(self.difference, self.half)

    @property
    def as_expected(self) -> bool:
        """Whether a control came out as it has to; True for all else."""
        return self.expect is None or self.verdict == dict(same=SAME, worse=WORSE)[self.expect]


def half_interval(differences: Sequence[float], comparisons: int, level: float = 0.95) -> float:
    """Half the confidence interval of a mean difference, corrected for the number of comparisons by Bonferroni.

    Args:
        differences (Sequence[float]): One a seed, at least two.
        comparisons (int): Number of intervals that are to hold all at once.
        level (float): Of all of them together. Default: 0.95.

    Example:
        >>> round(half_interval([1.0, 2.0, 3.0], 1), 4)  # 4.3027 / sqrt(3)
        2.4841
    """
    n = len(differences)
    quantile = float(student.ppf(1 - (1 - level) / (2 * comparisons), n - 1))
    return quantile * statistics.stdev(differences) / math.sqrt(n)


def compare(rows: Sequence[Row], table: Table) -> list[Comparison]:
    """Compare a table's arms with its first. The rows have to be complete (:func:`.rows.problems`).

    The intervals of the metric hold for all arms at once, and so do those of the corrupted images: not both together.
    """
    clean = _values(rows, table, lambda metric: metric == table.data.metric)
    corrupted = _values(rows, table, lambda metric: metric.endswith(' ' + table.data.metric))
    count = len(table.arms) - 1
    first = table.arms[0].name
    found = []
    for arm in table.arms:
        own = clean[arm.name]
        more = {}
        if corrupted.get(arm.name):
            more['corrupted'] = statistics.mean(corrupted[arm.name].values())
        if arm.name != first:
            more['difference'], more['half'] = _paired(own, clean[first], count)
            if corrupted.get(arm.name):
                paired = _paired(corrupted[arm.name], corrupted[first], count)
                more['corrupted_difference'], more['corrupted_half'] = paired
        found.append(
            Comparison(
                arm.name, statistics.mean(own.values()), statistics.stdev(own.values()), expect=arm.expect, **more
            )
        )
    return found


def markdown(comparisons: Sequence[Comparison], table: Table, costs: Sequence[Cost] = ()) -> str:
    """The comparisons as a Markdown table, the best mean first after the arm that they are compared with.

    Args:
        comparisons (Sequence[Comparison]): Of :func:`compare`.
        table (Table): Of the plan.
        costs (Sequence[Cost]): Of any tables; those of this one become columns.
    """
    cost = {c.arm: c for c in costs if c.table == table.name}
    first, rest = comparisons[0], sorted(comparisons[1:], key=lambda c: -c.mean)
    digits = shown_digits(comparisons)
    robust = not math.isnan(first.corrupted)
    heads = ['network', table.data.metric, 'deviation', f'minus {first.arm}', 'interval', 'shown']
    heads += ['corrupted', f'minus {first.arm}', 'interval'] if robust else []
    heads += ['parameters', 'step', 'saved, MiB'] if cost else []
    lines = [f'| {" | ".join(heads)} |', '|---|' + '---:|' * 4 + '---|' + '---:|' * (len(heads) - 6)]
    for c in (first, *rest):
        cells = [f'{c.arm} (control)' if c.expect else c.arm, f'{c.mean:.{digits}f}', f'{c.std:.{digits}f}']
        cells += [*_pair(c.difference, c.half, digits), c.verdict]
        if robust:
            cells += [f'{c.corrupted:.{digits}f}', *_pair(c.corrupted_difference, c.corrupted_half, digits)]
        if cost:
            own = cost.get(c.arm)
            cells += [f'{own.parameters:,}', f'{own.of_first:.3f}', f'{own.saved_mib:.1f}'] if own else ['', '', '']
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def shown_digits(comparisons: Sequence[Comparison]) -> int:
    """Digits behind the point that a table shows: 4 of a share of 1, 2 of per cent."""
    return 4 if all(abs(c.mean) <= 1 for c in comparisons) else 2


def _values(rows: Sequence[Row], table: Table, chosen) -> dict[str, dict[int, float]]:
    """Mean of the chosen metrics by arm and seed."""
    all_of: dict[str, dict[int, list[float]]] = {}
    for r in of_table(rows, table):
        if chosen(r.metric):
            all_of.setdefault(r.arm, {}).setdefault(r.seed, []).append(r.value)
    return {a: {s: statistics.mean(v) for s, v in sorted(of.items())} for a, of in all_of.items()}


def _paired(own: Mapping[int, float], first: Mapping[int, float], count: int) -> tuple[float, float]:
    differences = [value - first[seed] for seed, value in own.items()]
    return statistics.mean(differences), half_interval(differences, count)


def _verdict(difference: float, half: float) -> str:
    if math.isnan(difference):
        return ''
    return SAME if abs(difference) <= half else BETTER if difference > 0 else WORSE


def _pair(difference: float, half: float, digits: int) -> tuple[str, str]:
    return ('', '') if math.isnan(difference) else (f'{difference:+.{digits}f}', f'± {half:.{digits}f}')
