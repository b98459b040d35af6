"""What the report says of several seeds: the tables of a bench that has the runs' networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mmccd.analysis.bench.rows import Row, append_rows
from mmccd.analysis.report.bench import bench_section

PLAIN = Row('a', 'plain', 0, 'accuracy/top1', 80.0, 9.5, 'r', 's', 'null', '1', '0.3', '2.11', 'a CPU', '2026-01-02')
CCD = '{"type": "mmccd.CCD"}'


def run(attention: dict | None) -> SimpleNamespace:
    return SimpleNamespace(cfg=dict(model=dict(backbone=dict(attention=attention))))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    content = dict(
        data=dict(a=dict(config='{arm}', manifest='m', make='m', metric='accuracy/top1')),
        arms=dict(plain={}, ccd={}, nothing=dict(expect='same')),
        tables=dict(a=dict(data='a', arms=['plain', 'ccd', 'nothing'], seeds=2)),
    )
    (tmp_path / 'plan.yml').write_text(yaml.safe_dump(content, sort_keys=False))
    rows = [replace(PLAIN, seed=s, value=80.0 + s) for s in (0, 1)]
    rows += [replace(PLAIN, arm='ccd', attention=CCD, seed=s, value=82.0 + s) for s in (0, 1)]
    rows += [replace(PLAIN, arm='nothing', seed=s, value=80.1 + s) for s in (0, 1)]
    append_rows(str(tmp_path / 'rows.csv'), rows)
    return tmp_path


def test_the_networks_of_the_runs(folder):
    section = bench_section(str(folder), 'detection', [run(None), run(dict(type='mmccd.CCD'))])
    (table,) = section.tables
    assert table.caption == 'a: accuracy/top1, 2 seeds, differences to plain'
    assert [[c.text for c in row] for row in table.rows] == [
        ['plain', '80.50', '0.71', '', '', ''],
        ['ccd', '82.50', '0.71', '+2.00', '± 0.00', 'better'],
    ]
    assert section.intro and not section.problems


@pytest.mark.parametrize(
    'runs', [[run(None)], [run(None), run(dict(type='mmccd.SE'))], [run(dict(type='mmccd.CCD', groups=8)), run(None)]]
)
def test_networks_that_the_bench_has_not(folder, runs):
    section = bench_section(str(folder), 'detection', runs)
    assert not section.tables and not section.intro


def test_an_incomplete_table_is_left_out(folder):
    path = folder / 'rows.csv'
    path.write_text(''.join(path.read_text().splitlines(keepends=True)[:-1]))
    assert not bench_section(str(folder), 'detection', [run(None), run(dict(type='mmccd.CCD'))]).tables


def test_no_bench_and_a_broken_one(folder):
    assert bench_section(None, 'detection', [run(None)]).problems == []
    (folder / 'rows.csv').write_text('a\n1\n')
    (problem,) = bench_section(str(folder), 'detection', [run(None)]).problems
    assert 'its columns must be' in problem
