"""Whether ``impl='auto'`` takes the Triton kernels on this card: a rule over tables, which needs no PyTorch.

For each class of dtypes (half, float), layout and way (whole, split), Triton is taken where all of this holds:

(a) no test failed on the card, and no value at the timed shapes was beyond what is allowed;
(b) GPU time of forward + backward is at most 0.9 of the faster of ``torch`` and the textbook at every shape, and at
    most 0.5 in the geometric mean;
(c) host time of forward + backward is at most the textbook's, at every shape;
(d) peak memory of forward + backward is at most 1.05 of ``torch``'s, at every shape;
(e) a training step of CCD-ResNet-50 takes at most as long as with ``torch``, at every batch.

It may be called fast where, besides, it is nowhere slower than the compiled textbook. What was not measured does not
hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

BOTH, FORWARD = 'forward+backward', 'forward'
EVERY_SHAPE, MEAN, MEMORY = 0.9, 0.5, 1.05
CONDITIONS = ('a', 'b', 'c', 'd', 'e')
Rows = Iterable[Mapping[str, Any]]


class RanTests(NamedTuple):
    """What became of the tests.

    Attributes:
        ended (bool): Whether all that were chosen have run.
        passed (int): RanTests that passed.
        skipped (int): RanTests that were skipped.
        failed (tuple[str, ...]): Names of the others.
    """

    ended: bool
    passed: int = 0
    skipped: int = 0
    failed: tuple[str, ...] = ()


class Finding(NamedTuple):
    """A condition for one class.

    Attributes:
        holds (bool | None): None if it was not measured.
        why (str): The numbers.
    """

    holds: bool | None
    why: str


class Verdict(NamedTuple):
    """What ``auto`` takes for one class.

    Attributes:
        dtype (str): 'half' or 'float'.
        layout (str): 'contiguous' or 'channels_last'.
        way (str): 'whole' or 'split'.
        takes (str): 'triton' or 'torch'.
        findings (dict[str, Finding]): By the letters of CONDITIONS.
        fast (Finding): Whether it may be called fast.
    """

    dtype: str
    layout: str
    way: str
    takes: str
    findings: dict[str, Finding]
    fast: Finding


def dtype_class(dtype: str) -> str:
    return 'half' if dtype in ('float16', 'bfloat16') else 'float'


def decide(operators: Rows, backbones: Rows, tests: RanTests) -> list[Verdict]:
    """A verdict for every class in ``operators``.

    Args:
        operators: Rows of ``op.csv``: shape, dtype, layout, way, provider, mode, gpu_us, host_us, peak_bytes,
            error_of_allowed; '' where not measured.
        backbones: Rows of ``backbone.csv``: comparison, network, mode, batch, ms_p50.
        tests (RanTests): What became of them.
    """
    classes: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in operators:
        classes.setdefault((dtype_class(row['dtype']), row['layout'], row['way']), []).append(row)
    shapes: dict[str, set[str]] = {}  # of a way, measured in any class: each class has to have them all
    for (_, _, way), rows in classes.items():
        shapes.setdefault(way, set()).update(row['shape'] for row in rows)
    step = _step(list(backbones))
    verdicts = []
    for key, rows in classes.items():
        findings = dict(a=_right(rows, tests), b=_faster(rows, shapes[key[2]]))
        findings.update(c=_host(rows), d=_memory(rows), e=step)
        takes = 'triton' if all(finding.holds for finding in findings.values()) else 'torch'
        verdicts.append(Verdict(*key, takes, findings, _fast(rows, takes)))
    return verdicts


def _right(rows: list[Mapping[str, Any]], tests: RanTests) -> Finding:
    """Condition (a)."""
    errors = [float(r['error_of_allowed']) for r in rows if r['provider'] == 'triton' and _has(r, 'error_of_allowed')]
    if tests.failed:
        return Finding(False, f'{len(tests.failed)} tests failed')
    beyond = [error for error in errors if not error <= 1]  # NaN, too
    if beyond:
        return Finding(False, f'errors up to {max(beyond):.2f} of what is allowed')
    crashed = {f'{r["shape"]} {r["dtype"]}' for r in rows if r['provider'] == 'triton' and r.get('failed')}
    if crashed:
        return Finding(False, f'did not run: {", ".join(sorted(crashed))}')
    if not tests.ended or not tests.passed:
        return Finding(None, 'tests did not run to their end' if tests.passed else 'no test ran')
    if not errors:
        return Finding(None, 'no value was compared')
    return Finding(True, f'{tests.passed} tests passed, errors up to {max(errors):.2f} of what is allowed')


def _faster(rows: list[Mapping[str, Any]], shapes: set[str]) -> Finding:
    """Condition (b), of a class that has ``shapes``; one dtype has to have been measured at them all."""
    missing = [shapes - {row['shape'] for row in rows if row['dtype'] == dtype} for dtype in {r['dtype'] for r in rows}]
    if all(missing):
        return Finding(None, f'not measured at {", ".join(sorted(min(missing, key=len)))}')
    ratios = _ratios(rows, 'gpu_us', BOTH, lambda of: min(of('torch'), of('reference')))
    if isinstance(ratios, str):
        return Finding(None, ratios)
    worst, mean = max(ratios), math.exp(sum(map(math.log, ratios)) / len(ratios))
    return Finding(
        worst <= EVERY_SHAPE and mean <= MEAN,
        f'time at most {worst:.2f} (allowed {EVERY_SHAPE}), mean {mean:.2f} (allowed {MEAN}), {len(ratios)} inputs',
    )


def _host(rows: list[Mapping[str, Any]]) -> Finding:
    """Condition (c); bfloat16 has no host times of its own."""
    timed = [row for row in rows if row['dtype'] != 'bfloat16']
    return _at_most(_ratios(timed, 'host_us', BOTH, lambda of: of('reference')), 1.0, "the textbook's host time")


def _memory(rows: list[Mapping[str, Any]]) -> Finding:
    """Condition (d)."""
    return _at_most(_ratios(rows, 'peak_bytes', BOTH, lambda of: of('torch')), MEMORY, "the peak memory of 'torch'")


def _step(rows: list[Mapping[str, Any]]) -> Finding:
    """Condition (e)."""
    times = {
        (row['batch'], row['network']): float(row['ms_p50'])
        for row in rows
        if row['mode'] == 'train' and row.get('comparison', 'eager') == 'eager' and _has(row, 'ms_p50')
    }
    batches = sorted({batch for batch, _ in times}, key=int)
    pairs = [(times.get((b, 'ccd-triton')), times.get((b, 'ccd-torch'))) for b in batches]
    ratios = [triton / stock for triton, stock in pairs if triton is not None and stock is not None]
    if len(ratios) < len(pairs) or not pairs:
        return Finding(None, 'no training step was timed with both')
    return _at_most(ratios, 1.0, "the training step with 'torch'")


def _fast(rows: list[Mapping[str, Any]], takes: str) -> Finding:
    """Whether it is nowhere slower than the compiled textbook, forward and forward + backward."""
    if takes != 'triton':
        return Finding(None, "'auto' does not take it")
    ratios: list[float] = []
    for mode in (FORWARD, BOTH):
        timed = [row for row in rows if row['dtype'] != 'bfloat16']  # which is not compiled
        found = _ratios(timed, 'gpu_us', mode, lambda of: of('compiled'))
        if isinstance(found, str):
            return Finding(None, found)
        ratios += found
    return _at_most(ratios, 1.0, 'the time of the compiled textbook')


def _ratios(
    rows: list[Mapping[str, Any]], column: str, mode: str, rival: Callable[[Callable[[str], float]], float]
) -> list[float] | str:
    """Of Triton to its rival at every shape, dtype by dtype; or what is missing."""
    values: dict[tuple, dict[str, float]] = {}
    for row in rows:
        of_shape = values.setdefault((row['shape'], row['dtype']), {})
        if row['mode'] == mode and _has(row, column):
            of_shape[row['provider']] = float(row[column])
    ratios, missing = [], []
    for found in values.values():
        try:
            ratios.append(found['triton'] / rival(found.__getitem__))
        except KeyError as e:
            missing.append(e.args[0])
    if missing:
        names = ', '.join(sorted(set(missing)))
        return f'{column} of {names} not measured at {len(missing)} of {len(values)} inputs'
    return ratios or 'nothing was measured'


def _at_most(ratios: list[float] | str, allowed: float, what: str) -> Finding:
    if isinstance(ratios, str):
        return Finding(None, ratios)
    return Finding(max(ratios) <= allowed, f'at most {max(ratios):.2f} of {what} (allowed {allowed:g})')


def _has(row: Mapping[str, Any], column: str) -> bool:
    return row.get(column, '') not in ('', None)


def read_tests(path: Path, ended: bool) -> RanTests:
    """Of the file that pytest writes; none ran if it is not there or not whole.

    Args:
        path (Path): JUnit XML.
        ended (bool): Whether pytest came to its end.
    """
    try:
        cases = list(ElementTree.parse(path).iter('testcase'))
    except (OSError, ElementTree.ParseError):
        return RanTests(False)
    kinds = [{child.tag for child in case} for case in cases]
    bad = [f'{c.get("classname")}.{c.get("name")}' for c, kind in zip(cases, kinds) if kind & {'failure', 'error'}]
    skipped = sum('skipped' in kind for kind in kinds)
    return RanTests(ended, len(cases) - len(bad) - skipped, skipped, tuple(bad))


def write(verdicts: list[Verdict], where: Mapping[str, Any], path: Path) -> None:
    """As JSON: ``where`` (card and versions), the limits, and the verdicts."""
    content = dict(
        **where,
        limits=dict(every_shape=EVERY_SHAPE, mean=MEAN, host=1.0, memory=MEMORY, step=1.0),
        verdicts=[
            dict(v._asdict(), findings={k: f._asdict() for k, f in v.findings.items()}, fast=v.fast._asdict())
            for v in verdicts
        ],
    )
    path.write_text(json.dumps(content, indent=1) + '\n')
