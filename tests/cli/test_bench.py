"""Pieces of the attention bench: run, continued, kept apart and refused; a small bench from end to end."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image

from mmccd.analysis.bench.plan import Arm, Data, Plan, Table, read_plan
from mmccd.analysis.bench.rows import read_rows
from mmccd.cli.bench import recipes, run_pieces
from mmccd.cli.bench_piece import config_path, manifest_sha256, piece_config, piece_folder, recipe_of
from mmccd.errors import UserError

ROOT = Path(__file__).parents[2]
ARMS = (Arm('plain'), Arm('ccd', 'ccd_'), Arm('nothing', attention=dict(type='mmccd.NothingControl'), expect='same'))
# Stands for a piece: writes its rows, or ends with an error if its folder says so.
FAKE = """
import json, os, sys
work_dir, recipe, data, arm, seed = sys.argv[1:]
folder = os.path.join(work_dir, data, arm, f'seed_{seed}')
print('piece', arm, seed, os.environ['OMP_NUM_THREADS'])
if os.path.exists(os.path.join(folder, 'fail')):
    sys.exit(3)
row = dict(data=data, arm=arm, seed=int(seed), metric='accuracy/top1', value=80.5, seconds=1.0, recipe=recipe,
           sha256='s', attention='{}', commit='', mmccd='0', torch='2', device='d', date='2026-01-02')
json.dump([row], open(os.path.join(folder, 'result.json'), 'w'))
open(os.path.join(folder, 'weights.pth'), 'w').close()
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / 'made.json').write_text('{"sha256": "0123456789abcdef"}')
    config = str(ROOT / 'configs/{arm}r18_fashion.py')
    data = Data('clothes', config, str(tmp_path / 'made.json'), 'make it', 'accuracy/top1')
    return Plan((Table('clothes', data, ARMS, (0, 1)),), {a.name: a for a in ARMS}, {'clothes': data}, threads=2)


@pytest.fixture
def bench(plan: Plan, tmp_path: Path):
    script = tmp_path / 'piece.py'
    script.write_text(FAKE)
    recipe = recipe_of(piece_config(plan.data['clothes'], ARMS[0]), plan.data['clothes'], plan.threads)
    work_dir, csv = str(tmp_path / 'work'), str(tmp_path / 'rows.csv')
    command = [sys.executable, str(script), work_dir, recipe]

    def run(pieces=None, **other) -> int:
        given = dict(command=command, work_dir=work_dir, csv=csv, jobs=2) | other
        return run_pieces(plan, plan.pieces() if pieces is None else pieces, **given)

    return run


def test_runs_what_has_no_rows(bench, plan, tmp_path, capsys):
    assert bench(plan.pieces()[:2]) == 0
    first = capsys.readouterr().out
    assert first.startswith('2 pieces, 0 of them done')
    assert '[####################] 2/2 ' in first
    assert (tmp_path / 'work/clothes/ccd/seed_0/log.txt').read_text() == 'piece ccd 0 2\n'  # the plan's threads
    assert bench() == 0
    assert capsys.readouterr().out.startswith('6 pieces, 2 of them done')
    rows = read_rows(str(tmp_path / 'rows.csv'))
    assert sorted((r.arm, r.seed) for r in rows) == sorted((a.name, s) for a in ARMS for s in (0, 1))


def test_a_failed_piece_does_not_stop_the_others(bench, plan, tmp_path, capsys):
    folder = Path(piece_folder(str(tmp_path / 'work'), plan.data['clothes'], ARMS[1], 0))
    folder.mkdir(parents=True)
    (folder / 'fail').touch()
    assert bench() == 1
    out = capsys.readouterr().out
    assert f'clothes: ccd, seed 0: failed: exit code 3, see {folder / "log.txt"}' in out
    assert len(read_rows(str(tmp_path / 'rows.csv'))) == 5
    (folder / 'fail').unlink()
    assert bench() == 0
    assert len(read_rows(str(tmp_path / 'rows.csv'))) == 6


def test_rows_that_were_lost_come_from_the_pieces(bench, tmp_path):
    bench()
    (tmp_path / 'rows.csv').unlink()
    assert bench(command=[sys.executable, '-c', 'raise SystemExit(9)']) == 0
    assert len(read_rows(str(tmp_path / 'rows.csv'))) == 6


def test_lost_weights_are_trained_again_for_a_detector(bench, plan, tmp_path, capsys):
    bench(plan.pieces()[:1])
    weights = tmp_path / 'work/clothes/plain/seed_0/weights.pth'
    weights.unlink()
    assert bench(plan.pieces()[:1]) == 0 and not weights.exists()  # nobody needs them
    config = str(ROOT / 'configs/retinanet_{arm}r18_fpn_fashion.py')
    scenes = Data('scenes', config, str(tmp_path / 'made.json'), 'make it', 'coco/bbox_mAP', backbones='clothes')
    bench([*plan.pieces()[:1], (scenes, ARMS[0], 0)])
    assert weights.exists()
    assert [(r.data, r.arm) for r in read_rows(str(tmp_path / 'rows.csv'))] == [('clothes', 'plain')]


def test_a_piece_by_another_recipe_is_not_taken(bench, plan, tmp_path, capsys):
    folder = tmp_path / 'work/clothes/plain/seed_0'
    bench(plan.pieces()[:1])
    rows = json.loads((folder / 'result.json').read_text())
    (folder / 'result.json').write_text(json.dumps([dict(rows[0], recipe='other')]))
    (tmp_path / 'rows.csv').unlink()
    assert bench(plan.pieces()[:1]) == 1
    assert 'has a piece by another recipe' in capsys.readouterr().out


def test_two_benches_in_one_folder(bench, tmp_path):
    (tmp_path / 'work').mkdir()
    with FileLock(tmp_path / 'work' / 'lock'), pytest.raises(UserError, match=r'another bench runs in .*work'):
        bench()
    assert not (tmp_path / 'rows.csv').exists()


@pytest.mark.parametrize('content', [None, '', '{}', '[1]', '{"sha256": 1}'])
def test_data_that_is_not_made(bench, plan, tmp_path, content):
    (tmp_path / 'made.json').unlink()
    if content is not None:
        (tmp_path / 'made.json').write_text(content)
    with pytest.raises(
        UserError, match=r'data clothes: .*made\.json is no manifest of made data: make it with: make it'
    ):
        bench()
    assert not (tmp_path / 'work').exists()


def test_the_hash_of_the_data(plan):
    assert manifest_sha256(plan.data['clothes']) == '0123456789ab'


def test_an_unknown_config(plan):
    with pytest.raises(UserError, match=r"arm cdc: no config .*cdc_r18_fashion.py; did you mean 'ccd_r18_fashion.py'?"):
        config_path(plan.data['clothes'], Arm('cdc', 'cdc_'))


def test_recipes_are_alike_but_for_the_attention(plan):
    found = recipes(plan, plan.pieces())
    assert found.keys() == {('clothes', a.name) for a in ARMS}
    assert len(set(found.values())) == 1
    data = plan.data['clothes']
    changed = Data(**{**data.__dict__, 'options': {'optim_wrapper.optimizer.lr': 1.0}})
    fewer = Data(**{**data.__dict__, 'train_every': 2})
    own = next(iter(found.values()))
    assert (
        recipe_of(piece_config(changed, ARMS[0]), changed, 2)
        != own
        != recipe_of(piece_config(fewer, ARMS[0]), fewer, 2)
    )


def test_recipes_that_differ(plan):
    data = Data(**{**plan.data['clothes'].__dict__, 'config': str(ROOT / 'configs/{arm}.py')})
    arms = (Arm('plain', 'r18_fashion'), Arm('other', 'r18_digits'))
    with pytest.raises(UserError, match=r'data clothes: .* differ in more than the attention: plain; other'):
        recipes(plan, [(data, a, 0) for a in arms])


@pytest.mark.long
def test_a_small_bench_from_end_to_end(tmp_path):
    """Two networks, two seeds, eighty small images: run twice, checked, reported."""
    draws = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in 'ab':
            (tmp_path / 'data' / split / name).mkdir(parents=True)
            for i in range(20):
                image = draws.integers(0, 100, (20, 20), np.uint8)
                image[:, : 10 if name == 'a' else 20] += 100
                Image.fromarray(image).save(tmp_path / 'data' / split / name / f'{i}.png')
    (tmp_path / 'data' / 'made.json').write_text('{"sha256": "0123456789abcdef"}')
    base = textwrap.dedent(f"""
        _base_ = {str(ROOT / 'configs/r18_fashion.py')!r}
        model = dict(data_preprocessor=dict(num_classes=2), head=dict(num_classes=2))
        data = dict(data_root={str(tmp_path / 'data')!r}, metainfo=dict(_delete_=True, classes=('a', 'b')))
        train_dataloader = dict(batch_size=4, dataset=data)
        val_dataloader = dict(dataset=data)
        test_dataloader = dict(dataset=data)
        """)
    (tmp_path / 'r18_small.py').write_text(base)
    content = dict(
        data=dict(
            small=dict(
                config=str(tmp_path / '{arm}r18_small.py'),
                manifest=str(tmp_path / 'data' / 'made.json'),
                make='make it',
                metric='accuracy/top1',
                train_every=2,
                corrupted_every=4,
                options={'train_cfg.max_epochs': 1, 'train_dataloader.dataset.pipeline.1.scale': 32},
            )
        ),
        arms=dict(plain={}, destroys=dict(attention=dict(type='mmccd.DestroyingControl'), expect='worse')),
        tables=dict(small=dict(data='small', arms=['plain', 'destroys'], seeds=2)),
    )
    (tmp_path / 'plan.yml').write_text(yaml.safe_dump(content))

    def call(command: str, *options: str) -> subprocess.CompletedProcess:
        tool = ROOT / 'tools/analysis_tools/bench_attention.py'
        where = ['--plan', str(tmp_path / 'plan.yml'), *options]
        return subprocess.run(
            [sys.executable, str(tool), command, *where], cwd=tmp_path, capture_output=True, text=True
        )

    csv = ('--csv', str(tmp_path / 'rows.csv'))
    run = call('run', *csv, '--work-dir', str(tmp_path / 'work'), '--jobs', '2')
    assert run.returncode == 0, run.stdout + run.stderr
    rows = read_rows(csv[1])
    metrics = {'accuracy/top1', *(f'{k} accuracy/top1' for k in ('noise', 'blur', 'contrast'))}
    assert {(r.arm, r.seed, r.metric) for r in rows} == {
        (a, s, m) for a in ('plain', 'destroys') for s in (0, 1) for m in metrics
    }
    assert len({r.recipe for r in rows}) == 1 and {r.sha256 for r in rows} == {'0123456789ab'}
    folder = tmp_path / 'work/small/plain/seed_0'
    assert {p.name for p in folder.glob('*.pth')} == {'weights.pth'}
    assert 'Epoch(test) [1/1]' in (folder / 'log.txt').read_text()

    # The same bits from the same seed.
    value = {(r.arm, r.seed, r.metric): r.value for r in rows}
    again = call('run', '--csv', str(tmp_path / 'b.csv'), '--work-dir', str(tmp_path / 'other'))
    assert again.returncode == 0
    assert {(r.arm, r.seed, r.metric): r.value for r in read_rows(str(tmp_path / 'b.csv'))} == value
    assert call('check', *csv).stdout == 'small: complete\n'
    costs = ('--costs', str(tmp_path / 'costs.csv'))
    assert call('cost', '--runs', '1', *costs).returncode == 0
    report = call('report', *csv, *costs)
    assert '| destroys (control) |' in report.stdout and 'parameters' in report.stdout
    assert 'Control destroys: came out as' in report.stdout
    # A row less, and there is no table.
    lines = Path(csv[1]).read_text().splitlines(keepends=True)
    Path(csv[1]).write_text(''.join(line for line in lines if ',destroys,1,accuracy' not in line))
    report = call('report', *csv, *costs)
    assert (report.returncode, '| plain |' in report.stdout) == (1, False)
    assert 'not complete, so not compared: destroys lacks seed 1' in report.stdout


def test_tables_by_name():
    chosen = runpy.run_path(str(ROOT / 'tools/analysis_tools/bench_attention.py'), run_name='tool')['chosen']
    plan = read_plan(str(ROOT / 'benchmarks/attention/plan.yml'))
    assert [t.name for t in chosen(plan, ['ablation', 'fashion'])] == ['ablation', 'fashion']
    assert [t.name for t in chosen(plan, None)] == [t.name for t in plan.tables]
    with pytest.raises(UserError, match=r"not 'fashon'; did you mean 'fashion'\?"):
        chosen(plan, ['fashon'])
