"""Comparisons worked by hand; controls whose outcome is known; and how often nothing is taken for something."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from mmccd.analysis.bench.compare import BETTER, SAME, WORSE, compare, half_interval, markdown
from mmccd.analysis.bench.cost import Cost


def test_half_interval():
    # Student's t for 2 degrees of freedom: 4.3027 at 97.5 %, 7.6488 at 1 - 0.025 / 3.
    assert half_interval([1.0, 2.0, 3.0], 1) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert half_interval([1.0, 2.0, 3.0], 3) == pytest.approx(7.648771 / math.sqrt(3), rel=1e-4)
    assert half_interval([1.0, 1.0], 5) == 0


def test_compare(plan, rows):
    plain, ccd, nothing, destroys = compare(rows, plan.tables[0])
    assert (plain.mean, plain.std, plain.verdict) == (81, 1, '')
    assert math.isnan(plain.difference)
    assert (ccd.mean, ccd.difference) == (83, 2)
    assert ccd.half == pytest.approx(7.648771 / math.sqrt(3), rel=1e-4)  # three comparisons, not one
    assert ccd.verdict == SAME
    assert (nothing.verdict, nothing.as_expected) == (SAME, True)
    assert (destroys.difference, destroys.verdict, destroys.as_expected) == (-10, WORSE, True)
    assert ccd.corrupted == 81.5  # the mean of 82 and 81
    assert ccd.corrupted_difference == 2.5


def test_fewer_comparisons_show_more(plan, rows):
    closer = [replace(r, value=r.value + (100 if r.arm == 'ccd' else 0)) for r in rows]
    assert compare(closer, plan.tables[0])[1].verdict == BETTER


def test_a_control_that_comes_out_wrong(plan, rows):
    wrong = [replace(r, arm=dict(nothing='destroys', destroys='nothing').get(r.arm, r.arm)) for r in rows]
    *_, nothing, destroys = compare(wrong, plan.tables[0])
    assert (nothing.verdict, nothing.as_expected) == (WORSE, False)
    assert (destroys.verdict, destroys.as_expected) == (SAME, False)


def test_false_alarms_are_as_rare_as_promised(row):
    """Of 500 tables of 12 networks that do not differ, about one in twenty shows a difference anywhere."""
    draws = np.random.default_rng(0)
    alarms = 0
    for _ in range(500):
        values = draws.normal(80, 0.5, (13, 5)) + draws.normal(0, 0.5, 5)
        alarms += any(abs((own - values[0]).mean()) > half_interval(list(own - values[0]), 12) for own in values[1:])
    assert 0.01 < alarms / 500 < 0.06


def test_markdown(plan, rows):
    costs = [Cost('clothes', 'ccd', 1234, 5.0, 1.05, 20.0, 64, 20, '123', '2.11', 'a CPU', 1)]
    lines = markdown(compare(rows, plan.tables[0]), plan.tables[0], costs).splitlines()
    assert lines[0].startswith('| network | accuracy/top1 | deviation | minus plain | interval | shown | corrupted')
    assert lines[0].endswith('| parameters | step | saved, MiB |')
    assert [line.split(' | ')[0] for line in lines[2:]] == [
        '| plain', '| ccd', '| nothing (control)', '| destroys (control)',
    ]  # fmt: skip
    assert lines[3].startswith('| ccd | 83.00 | 2.00 | +2.00 | ± 4.42 | no difference shown | 81.50 | +2.50 |')
    assert lines[3].endswith('| 1,234 | 1.050 | 20.0 |')
    of_others = markdown(compare(rows, plan.tables[0]), plan.tables[0], [replace(costs[0], table='again')])
    assert 'parameters' not in of_others
    assert len({line.count('|') for line in lines}) == 1
