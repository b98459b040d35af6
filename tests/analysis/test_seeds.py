"""Seeds compared by hand: values, paired differences, Student's t."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from mmccd.analysis.seeds import Result, read_results, summarise, table, write_results

ROOT = Path(__file__).parents[2]
TOP1, TOP5 = 'accuracy/top1', 'accuracy/top5'


def result(config: str, seed: int, value: float, metric: str = TOP1) -> Result:
    return Result(
        config,
        seed,
        metric,
        value,
        12.5,
        'train_cfg.max_epochs=2 a="[1, 2]"',
        'x86_64 CPU',
        '2.11.0',
        '1.0',
        '2026-01-02',
    )


@pytest.fixture
def results() -> list[Result]:
    """Plain 97, 98, 99; CCD one, two and three more."""
    return [
        *(result('plain', s, 97.0 + s) for s in range(3)),
        *(result('ccd', s, 98.0 + 2 * s) for s in range(3)),
        result('ccd', 0, 100.0, TOP5),
    ]


def test_mean_and_standard_deviation(results):
    plain, ccd = summarise(results, TOP1)
    assert (plain.config, plain.mean, plain.std) == ('plain', 98.0, 1.0)
    assert (ccd.config, ccd.mean, ccd.std) == ('ccd', 100.0, 2.0)
    assert ccd.values == {0: 98.0, 1: 100.0, 2: 102.0}


def test_difference_seed_by_seed(results):
    """1, 2, 3: mean 2, deviation 1 (unpaired it would be 2.2); Student's t with 2 degrees of freedom is 4.3027."""
    plain, ccd = summarise(results, TOP1)
    assert (ccd.difference, ccd.difference_std) == (2.0, 1.0)
    assert ccd.interval == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert (plain.difference, plain.interval) == (0.0, 0.0)


def test_only_seeds_that_both_have(results):
    """Seed 2 of the plain one is missing: 1, 2 are left; t with 1 degree of freedom is 12.706."""
    _, ccd = summarise([r for r in results if (r.config, r.seed) != ('plain', 2)], TOP1)
    assert (ccd.mean, ccd.difference) == (100.0, 1.5)
    assert ccd.interval == pytest.approx(12.706205 * math.sqrt(0.5) / math.sqrt(2), rel=1e-6)


def test_no_seed_in_common(results):
    _, ccd = summarise([r for r in results if (r.config == 'plain') == (r.seed == 0)], TOP1)
    assert math.isnan(ccd.difference)
    assert math.isnan(ccd.interval)


def test_order(results):
    assert [s.config for s in summarise(results, TOP1, ['ccd', 'plain'])] == ['ccd', 'plain']
    assert [s.config for s in summarise(results, TOP1, ['ccd'])] == ['ccd']


def test_metric_that_no_run_measured(results):
    with pytest.raises(
        ValueError, match=r"metric 'coco/bbox_mAP' was not measured by any run \(measured: accuracy/top"
    ):
        summarise(results, 'coco/bbox_mAP')


def test_table(results):
    assert table(summarise(results, TOP1), TOP1).splitlines()[2:] == [
        '| plain | 3 | 98.00 | 1.00 |  |  |',
        '| ccd | 3 | 100.00 | 2.00 | +2.00 | ± 2.48 |',
    ]


def test_table_of_one_seed(results):
    shares = [replace(r, value=r.value / 1000) for r in results if r.seed == 0 and r.metric == TOP1]
    assert table(summarise(shares, TOP1), TOP1).splitlines()[2:] == [
        '| plain | 1 | 0.0970 |  |  |  |',
        '| ccd | 1 | 0.0980 |  | +0.0010 |  |',
    ]


def test_file(results, tmp_path):
    path = str(tmp_path / 'new' / 'results.csv')
    write_results(path, results)
    assert sorted(read_results(path), key=str) == sorted(results, key=str)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('config,seed\nplain,0\n', 'its columns must be config, seed, metric, value, '),
        ('', 'its columns must be '),
    ],
)
def test_file_with_other_columns(tmp_path, content, message):
    (tmp_path / 'x.csv').write_text(content)
    with pytest.raises(ValueError, match=message):
        read_results(str(tmp_path / 'x.csv'))


def test_file_with_a_value_that_is_none(results, tmp_path):
    path = tmp_path / 'x.csv'
    write_results(str(path), results)
    path.write_text(path.read_text().replace('98.0', 'ninety'))
    with pytest.raises(ValueError, match=r'x.csv, line \d: could not convert string to float'):
        read_results(str(path))


@pytest.mark.parametrize(
    ('name', 'metric', 'configs'),
    [
        ('digits', TOP1, [f'{a}r18_digits' for a in ('', 'se_', 'ge_', 'cbam_', 'sk_', 'gc_', 'ccd_')]),
        ('trees', 'coco/bbox_mAP_50', ['retinanet_r18_fpn_trees', 'retinanet_ccd_r18_fpn_trees']),
    ],
)
def test_tables_of_the_results(name, metric, configs):
    """The tables in the documentation are those of the committed results, three seeds each."""
    results = read_results(str(ROOT / 'benchmarks' / 'seeds' / f'{name}.csv'))
    summaries = summarise(results, metric, configs)
    assert [s.config for s in summaries] == configs
    assert all(list(s.values) == [0, 1, 2] for s in summaries)
    assert table(summaries, metric) in (ROOT / 'docs' / 'results.md').read_text()
