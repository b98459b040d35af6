"""What the pages say of the attention bench is what its rows and costs give."""

from __future__ import annotations

import pytest

from mmccd.analysis.bench.compare import compare, markdown
from mmccd.analysis.bench.cost import read_costs
from mmccd.analysis.bench.plan import read_plan
from mmccd.analysis.bench.rows import problems, read_rows


@pytest.fixture
def bench(root):
    """The table, its comparisons and costs."""
    folder = root / 'benchmarks' / 'attention'
    table = read_plan(str(folder / 'plan.yml')).tables[0]
    rows = read_rows(str(folder / 'rows.csv'))
    assert problems(rows, table) == []
    costs = [c for c in read_costs(str(folder / 'costs.csv')) if c.table == table.name]
    return table, compare(rows, table), costs


def test_the_page_has_the_table(root, bench):
    table, comparisons, costs = bench
    text = (root / 'docs' / 'attention_bench.md').read_text()
    assert markdown(comparisons, table, costs) in text
    ccd = next(c for c in comparisons if c.arm == 'ccd')
    assert f'CCD is at {ccd.difference:+.2f} ± {ccd.half:.2f}' in text


def test_nothing_was_shown_but_the_control(bench):
    """What both pages say in words."""
    _, comparisons, _ = bench
    assert {c.arm: c.verdict for c in comparisons if c.verdict not in ('', 'no difference shown')} == {
        'destroys': 'worse'
    }
    assert all(c.as_expected for c in comparisons)


def test_the_readme_has_its_numbers(root, bench):
    _, (first, *others), costs = bench
    step = {c.arm: c.of_first for c in costs}
    ordered = [first, *sorted(others, key=lambda c: -c.mean)]
    expected = [
        ['', *(c.arm for c in ordered)],
        ['top-1, mean', *(f'{c.mean:.2f}' for c in ordered)],
        ['minus plain', '', *(f'{c.difference:+.2f}' for c in ordered[1:])],
        ['interval', '', *(f'± {c.half:.2f}' for c in ordered[1:])],
        ['training step', *(f'{step[c.arm]:.3f}' for c in ordered)],
    ]
    lines = (root / 'README.md').read_text().splitlines()
    found = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    for row in expected:
        assert row in found
