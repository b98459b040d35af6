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
    full = mock.patch('os.fsync', side_effect=OSError(28, 'No space left on device'))
    with full, pytest.raises(UserError, match=r'rows\.csv cannot be written: .*No space left'):
        append_rows(str(path), rows[2:])
    assert path.read_bytes() == before


def test_an_end_while_rows_are_written_leaves_whole_rows(tmp_path, rows):
    """At every moment the old file or the new one is there: here, the process ends before the renaming."""
    path = tmp_path / 'rows.csv'
    append_rows(str(path), rows[:2])
    with mock.patch('os.replace', side_effect=SystemExit), pytest.raises(SystemExit):
        append_rows(str(path), rows[2:])
    assert read_rows(str(path)) == rows[:2]


def test_an_empty_file_gets_a_header(tmp_path, rows):
    path = tmp_path / 'rows.csv'
    path.touch()
    append_rows(str(path), rows[:2])
    assert read_rows(str(path)) == rows[:2]


@pytest.mark.parametrize('text', ['a,b\n1,2\n', ''])
def test_other_columns(tmp_path, text):
    path = tmp_path / 'rows.csv'
    path.write_text(text)
    with pytest.raises(UserError, match='its columns must be data, arm, seed'):
        read_rows(str(path))


@pytest.mark.parametrize('value', ['eighty', '', 'nan', 'inf'])
def test_a_value_that_is_no_number(tmp_path, rows, value):
    path = tmp_path / 'rows.csv'
    append_rows(str(path), rows[:1])
    path.write_text(path.read_text().replace('80.0', value))
    with pytest.raises(UserError, match=rf"rows\.csv, line 2: .*'{value}'"):
        read_rows(str(path))


@pytest.mark.parametrize('content', [b'\xff\xfe\x00', b'\x89PNG\x0d\x0a\x1a\x0a\x00'])
def test_no_text(tmp_path, content):
    (tmp_path / 'rows.csv').write_bytes(content)
    with pytest.raises(UserError, match=r'rows\.csv: '):
        read_rows(str(tmp_path / 'rows.csv'))


def test_a_folder(tmp_path):
    with pytest.raises(UserError, match='Is a directory'):
        read_rows(str(tmp_path))


def test_complete(plan, rows):
    assert problems(rows, plan.tables[0]) == []
    now = dict(recipe='abc', attention='{}')
    assert problems(rows, plan.tables[0], dict(plain=now, ccd=now)) == []
    assert problems(rows, plan.tables[2]) == ['plain lacks seed 0, 1', 'ccd lacks seed 0, 1']


@pytest.mark.parametrize(
    ('change', 'found'),
    [
        (lambda rows: [r for r in rows if (r.arm, r.seed) != ('ccd', 1)], 'ccd lacks seed 1'),
        (lambda rows: [*rows, rows[0]], 'plain has seed 0 more than once'),
        (lambda rows: [replace(rows[0], recipe='xyz'), *rows[1:]], 'more than one recipe'),
        (lambda rows: [replace(rows[0], sha256='xyz'), *rows[1:]], 'more than one data'),
        (lambda rows: [replace(rows[0], torch='2.15'), *rows[1:]], 'more than one version of PyTorch'),
        (lambda rows: [replace(rows[0], device='a GPU'), *rows[1:]], 'more than one device'),
        (lambda rows: [replace(rows[0], attention='{"a": 1}'), *rows[1:]], 'plain was run as {"a": 1} and as {}'),
        (
            lambda rows: [r for r in rows if (r.arm, r.seed, r.metric) != ('ccd', 1, 'blur accuracy/top1')],
            'ccd has accuracy/top1 of the seeds [0, 1, 2], and blur accuracy/top1 of [0, 2]',
        ),
    ],
)
def test_what_cannot_be_compared(plan, rows, change, found):
    told = problems(change(rows), plan.tables[0])
    assert len(told) == 1 and found in told[0]


def test_another_recipe_than_today(plan, rows):
    today = dict(plain=dict(recipe='abc', attention='{}'), ccd=dict(recipe='def', attention='{"groups": 8}'))
    told = problems(rows, plan.tables[0], today)
    assert told == ['ccd was run with attention {} (now {"groups": 8}), recipe abc (now def)']
