"""Rows that grow, and what keeps them from being compared."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest

from mmccd.analysis.bench.rows import append_rows, problems, read_rows
from mmccd.errors import UserError


def test_rows_grow(tmp_path, rows):
    path = str(tmp_path / 'new' / 'rows.csv')
    assert read_rows(path) == []
    append_rows(path, rows[:5])
    append_rows(path, rows[5:])
    assert read_rows(path) == rows


def test_a_full_disk_leaves_whole_rows(tmp_path, rows):
    path = tmp_path / 'rows.csv'
    append_rows(str(path), rows[:2])
    before = path.read_bytes()
    with mock.patch('os.fsync', side_effect=OSError(28, 'No space left on device')), pytest.raises(OSError):
        append_rows(str(path), rows[2:])
    assert path.read_bytes() == before


@pytest.mark.parametrize('text', ['a,b\n1,2\n', ''])
def test_other_columns(tmp_path, text):
    path = tmp_path / 'rows.csv'
    path.write_text(text)
    with pytest.raises(UserError, match='its columns must be data, arm, seed'):
        read_rows(str(path))


def test_a_value_that_is_no_number(tmp_path, rows):
    path = tmp_path / 'rows.csv'
    append_rows(str(path), rows[:1])
    path.write_text(path.read_text().replace('80.0', 'eighty'))
    with pytest.raises(UserError, match=r'line 2.*eighty'):
        read_rows(str(path))


def test_complete(plan, rows):
    assert problems(rows, plan.tables[0]) == []
    assert problems(rows, plan.tables[0], dict.fromkeys(('plain', 'ccd'), 'abc')) == []
    assert problems(rows, plan.tables[2]) == ['plain lacks seed 0, 1', 'ccd lacks seed 0, 1']


@pytest.mark.parametrize(
    ('change', 'found'),
    [
        (lambda rows: [r for r in rows if (r.arm, r.seed) != ('ccd', 1)], 'ccd lacks seed 1'),
        (lambda rows: [*rows, rows[0]], 'plain has seed 0 more than once'),
        (lambda rows: [replace(rows[0], recipe='xyz'), *rows[1:]], 'more than one recipe'),
        (lambda rows: [replace(rows[0], sha256='xyz'), *rows[1:]], 'more than one data'),
        (lambda rows: [replace(rows[0], torch='2.15'), *rows[1:]], 'more than one version of torch'),
        (lambda rows: [replace(rows[0], device='a GPU'), *rows[1:]], 'more than one device'),
        (lambda rows: [replace(rows[0], attention='{"a": 1}'), *rows[1:]], 'plain was run as {"a": 1} and as {}'),
    ],
)
def test_what_cannot_be_compared(plan, rows, change, found):
    told = problems(change(rows), plan.tables[0])
    assert len(told) == 1 and found in told[0]


def test_another_recipe_than_today(plan, rows):
    told = problems(rows, plan.tables[0], dict(plain='abc', ccd='now'))
    assert told == ['ccd was run by recipe abc; the plan and its configs are now now']
