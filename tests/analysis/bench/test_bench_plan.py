"""Plans: what they declare, and every way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmccd.analysis.bench.plan import read_plan
from mmccd.errors import UserError

ROOT = Path(__file__).parents[3]


def test_pieces_are_once_each_and_by_seed(plan):
    own = [(d.name, a.name, s) for d, a, s in plan.pieces()]
    arms = ('plain', 'ccd', 'nothing', 'destroys')
    assert (
        own
        == [
            *(('clothes', a, s) for s in range(3) for a in arms),  # those of the second table are among them
            *(('scenes', a, s) for s in range(2) for a in arms[:2]),
        ]
    )
    assert [(a.name, s) for _, a, s in plan.pieces(plan.tables[1:2])] == [
        (a, s) for s in range(2) for a in ('plain', 'ccd')
    ]


def test_the_plan_that_is_shipped():
    plan = read_plan(str(ROOT / 'benchmarks/attention/plan.yml'))
    main = plan.tables[0]
    assert (main.name, len(main.seeds)) == ('fashion', 5)
    assert len([a for a in main.arms if not a.expect]) == 12
    assert sorted(a.expect for a in main.arms if a.expect) == ['same', 'worse']
    for data, arm, _ in plan.pieces():
        assert (ROOT / data.config.format(arm=arm.prefix)).is_file()


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        ('threads', 0, 'threads must be at least 1, got 0'),
        ('threads', 'two', "threads must be of type int, got 'two'"),
        ('threads', True, 'threads must be of type int, got True'),
        ('sedes', 3, "has no entry 'sedes'"),
        ('data.clothes.config', 'configs/r18_fashion.py', 'must have {arm}'),
        ('data.clothes.train_every', 0, 'data.clothes.train_every must be at least 1, got 0'),
        ('data.clothes.corrupted_every', -1, 'corrupted_every must be at least 0, got -1'),
        ('data.scenes.backbones', 'cloths', "'cloths' is not declared; did you mean 'clothes'?"),
        ('data.scenes.backbones', 'scenes', "data.scenes.backbones must name data without backbones, got 'scenes'"),
        ('data.clothes.metrik', 'a', "data.clothes has no entry 'metrik'; did you mean 'metric'?"),
        ('arms.nothing.expect', 'better', "arms.nothing.expect must be one of same, worse, got 'better'"),
        ('arms.nothing.attention', {}, 'arms.nothing.attention needs a type'),
        ('tables.clothes.arms', ['plain', 'cdc'], "tables.clothes.arms: 'cdc' is not declared; did you mean 'ccd'?"),
        ('tables.clothes.arms', ['plain'], 'two or more, each once, got plain'),
        ('tables.clothes.arms', ['plain', 'ccd', 'plain'], 'two or more, each once, got plain, ccd, plain'),
        ('tables.clothes.seeds', 1, 'tables.clothes.seeds must be at least 2, for a deviation, got 1'),
        ('tables.clothes.data', 'trees', "'trees' is not declared"),
        ('tables', None, 'the plan.tables must be of type dict, got None'),
    ],
)
def test_wrong_entries(content, written, path, value, message):
    *parents, last = path.split('.')
    entry = content
    for name in parents:
        entry = entry[name]
    entry[last] = value
    with pytest.raises(UserError) as e:
        read_plan(written(content))
    assert message in str(e.value) and 'plan.yml' in str(e.value)


def test_names_that_yaml_reads_as_numbers(content, written):
    content['data'][2026] = content['data'].pop('clothes')
    content['data']['scenes']['backbones'] = '2026'
    content['arms'][18] = {}
    content['tables'] = {7: dict(data='2026', arms=['plain', 18], seeds=2)}
    plan = read_plan(written(content))
    assert [(t.name, t.data.name, [a.name for a in t.arms]) for t in plan.tables] == [('7', '2026', ['plain', '18'])]


@pytest.mark.parametrize('key', ['data', 'arms', 'tables'])
def test_missing_entries(content, written, key):
    del content[key]
    with pytest.raises(UserError, match=f"the plan needs an entry '{key}'"):
        read_plan(written(content))


@pytest.mark.parametrize('text', ['a: [', '- 1\n- 2\n', ''])
def test_no_plan_at_all(written, text):
    with pytest.raises(UserError, match=r'plan\.yml: '):
        read_plan(written(text))


def test_no_file(tmp_path):
    with pytest.raises(UserError, match='No such file'):
        read_plan(str(tmp_path / 'none.yml'))
