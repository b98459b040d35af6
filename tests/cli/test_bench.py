"""Pieces of the attention bench: run, continued, kept apart and refused; a small bench from end to end."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image

from mmccd.analysis.bench.plan import Arm, Data, Plan, Table, read_plan
from mmccd.analysis.bench.rows import Row, append_rows, read_rows
from mmccd.cli import bench_piece
from mmccd.cli.bench import recipes, run_pieces
from mmccd.cli.bench_piece import (
    check_metric,
    config_path,
    do_piece,
    piece_config,
    piece_folder,
    recipe_and_attention,
    surroundings,
)
from mmccd.errors import UserError

ROOT = Path(__file__).parents[2]
ARMS = (Arm('plain'), Arm('ccd', 'ccd_'), Arm('nothing', attention=dict(type='mmccd.NothingControl'), expect='same'))
# Stands for a piece: writes its rows, or ends with an error if its folder says so, or its backbone is not there.
FAKE = """
import json, os, sys, time
work_dir, origins, data, arm, seed = sys.argv[1:]
folder = os.path.join(work_dir, data, arm, f'seed_{seed}')
print('piece', arm, seed, os.environ['OMP_NUM_THREADS'])
if os.path.exists(os.path.join(folder, 'fail')):
    sys.exit(3)
if data == 'scenes' and not os.path.exists(os.path.join(work_dir, 'clothes', arm, f'seed_{seed}', 'weights.pth')):
    sys.exit(4)
if os.path.exists(os.path.join(folder, 'slow')):
    time.sleep(0.5)
metric = 'coco/bbox_mAP' if data == 'scenes' else 'accuracy/top1'
row = dict(data=data, arm=arm, seed=int(seed), metric=metric, value=80.5, seconds=1.0, commit='', mmccd='0',
           date='2026-01-02', **json.loads(origins)[data][arm])
json.dump([row], open(os.path.join(folder, 'result.json'), 'w'))
open(os.path.join(folder, 'weights.pth'), 'w').close()
"""


def make_plan(tmp_path: Path) -> Plan:
    (tmp_path / 'made.json').write_text('{"sha256": "0123456789abcdef"}')
    config = str(ROOT / 'configs/{arm}r18_fashion.py')
    data = Data('clothes', config, str(tmp_path / 'made.json'), 'make it', 'accuracy/top1')
    config = str(ROOT / 'configs/retinanet_{arm}r18_fpn_fashion.py')
    scenes = Data('scenes', config, data.manifest, 'make it', 'coco/bbox_mAP', backbones='clothes')
    tables = (Table('clothes', data, ARMS, (0, 1)),)
    return Plan(tables, {a.name: a for a in ARMS}, {'clothes': data, 'scenes': scenes}, threads=2)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(tmp_path)


@pytest.fixture(scope='module')
def origins(tmp_path_factory) -> dict:
    """By names of data and arm what the rows of the plan's pieces have."""
    plan = make_plan(tmp_path_factory.mktemp('plan'))
    return {
        d.name: {a.name: recipe_and_attention(plan, d, a) | surroundings(d) for a in ARMS} for d in plan.data.values()
    }


@pytest.fixture
def bench(plan: Plan, origins: dict, tmp_path: Path):
    script = tmp_path / 'piece.py'
    script.write_text(FAKE)
    work_dir, csv = str(tmp_path / 'work'), str(tmp_path / 'rows.csv')
    command = [sys.executable, str(script), work_dir, json.dumps(origins)]

    def run(pieces=None, **other) -> int:
        given = dict(command=command, work_dir=work_dir, csv=csv, jobs=2) | other
        return run_pieces(plan, plan.pieces() if pieces is None else pieces, **given)

    return run


def test_runs_what_has_no_rows(bench, plan, tmp_path, capsys):
    assert bench(plan.pieces()[:2]) == 0
    first = capsys.readouterr().out
    assert '2 pieces, 0 of them done\n' in first
    assert '[####################] 2/2 ' in first
    assert (tmp_path / 'work/clothes/ccd/seed_0/log.txt').read_text() == 'piece ccd 0 2\n'  # the plan's threads
    assert bench() == 0
    assert '6 pieces, 2 of them done\n' in capsys.readouterr().out
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
    capsys.readouterr()
    assert bench([*plan.pieces()[:1], (plan.data['scenes'], ARMS[0], 0)]) == 0
    assert '2 pieces, 1 of them done; 1 more, for their weights\n' in capsys.readouterr().out
    assert weights.exists()
    rows = read_rows(str(tmp_path / 'rows.csv'))
    assert [(r.data, r.arm) for r in rows] == [('clothes', 'plain'), ('scenes', 'plain')]


def test_a_detector_waits_for_its_classifier(bench, plan, tmp_path):
    """That of the same network and seed is run before it, asked for or not, and whatever else runs meanwhile."""
    folder = tmp_path / 'work/clothes/ccd/seed_1'
    folder.mkdir(parents=True)
    (folder / 'slow').touch()
    assert bench([(plan.data['scenes'], ARMS[1], 1)]) == 0
    assert [(r.data, r.arm, r.seed) for r in read_rows(str(tmp_path / 'rows.csv'))] == [
        ('clothes', 'ccd', 1),
        ('scenes', 'ccd', 1),
    ]


def test_a_detector_whose_classifier_fails(bench, plan, tmp_path, capsys):
    folder = tmp_path / 'work/clothes/ccd/seed_1'
    folder.mkdir(parents=True)
    (folder / 'fail').touch()
    assert bench([(plan.data['scenes'], ARMS[1], 1)]) == 2
    assert f'scenes: ccd, seed 1: failed: exit code 3, see {folder / "log.txt"}' in capsys.readouterr().out
    assert not (tmp_path / 'work/scenes').exists()


@pytest.mark.parametrize('key', ['recipe', 'device'])
def test_another_piece_is_not_taken(bench, plan, tmp_path, capsys, key):
    folder = tmp_path / 'work/clothes/plain/seed_0'
    bench(plan.pieces()[:1])
    rows = json.loads((folder / 'result.json').read_text())
    (folder / 'result.json').write_text(json.dumps([dict(rows[0], **{key: 'other'})]))
    (tmp_path / 'rows.csv').unlink()
    assert bench(plan.pieces()[:1]) == 1
    assert f'{folder} has another piece: ' in capsys.readouterr().out
    with pytest.raises(UserError, match='has another piece: '):  # before anything is run
        bench([(plan.data['scenes'], ARMS[0], 0)])


@pytest.mark.parametrize('key', ['recipe', 'attention', 'sha256', 'torch'])
def test_rows_that_cannot_be_compared_with_what_is_left(bench, plan, tmp_path, key):
    """Found before hours of training. Where nothing is left, PyTorch and device may be another machine's."""
    path = str(tmp_path / 'rows.csv')
    bench(plan.pieces()[:1])
    row = dict(vars(read_rows(path)[0]), **{key: 'other'})
    os.remove(path)
    append_rows(path, [Row(**row)])
    with pytest.raises(UserError, match=r'rows\.csv has rows of clothes, plain with another .* other \(now '):
        bench(plan.pieces()[:2])
    assert not (tmp_path / 'work/clothes/ccd').exists()
    if key == 'torch':
        assert bench(plan.pieces()[:1]) == 0
    else:
        with pytest.raises(UserError, match='cannot be compared'):
            bench(plan.pieces()[:1])


@pytest.fixture
def piece(plan, tmp_path, monkeypatch):
    """Runs a piece that trains nothing, and has these metrics; returns its folder."""
    monkeypatch.setattr(bench_piece, 'check_data', lambda cfg, loaders: None)

    def run(**metrics: float) -> Path:
        runner = SimpleNamespace(train=lambda: None, test=lambda: metrics, model=torch.nn.Linear(2, 2))
        monkeypatch.setattr(bench_piece, 'build_runner', lambda cfg: runner)
        do_piece(plan, plan.data['clothes'], ARMS[1], 0, str(tmp_path / 'work'), '')
        return tmp_path / 'work/clothes/ccd/seed_0'

    return run


def test_a_piece_says_what_it_is(piece, origins):
    folder, origin = piece(**{'accuracy/top1': 80.12345}), origins['clothes']['ccd']
    (row,) = json.loads((folder / 'result.json').read_text())
    assert (row['value'], row['arm'], row['metric']) == (80.1235, 'ccd', 'accuracy/top1')
    assert {key: row[key] for key in origin} == origin == json.loads((folder / 'origin.json').read_text())
    assert origin['attention'] == '{"type": "mmccd.CCD"}'


@pytest.mark.parametrize('metrics', [{}, {'accuracy/top1': float('nan')}])
def test_a_metric_that_is_no_number(piece, tmp_path, metrics):
    with pytest.raises(UserError, match=r'accuracy/top1 is (nan|None) after the training'):
        piece(**metrics)
    assert not (tmp_path / 'work/clothes/ccd/seed_0/result.json').exists()


@pytest.mark.parametrize('content', [None, '[1]', '{"recipe": "other"}'])
def test_a_checkpoint_of_another_piece_is_not_resumed(piece, monkeypatch, content):
    """Such as one of the plan before it was changed: its result would stand under today's recipe."""
    path = piece(**{'accuracy/top1': 80.0}) / 'origin.json'
    origin, checkpoint = path.read_text(), Mock()
    monkeypatch.setattr(bench_piece, 'set_resume', lambda cfg, asked: checkpoint)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(UserError, match=r'seed_0 has another piece: recipe (None|other) \(now '):
        piece(**{'accuracy/top1': 80.0})
    checkpoint.hand_over.assert_not_called()
    path.write_text(origin)
    piece(**{'accuracy/top1': 80.0})
    checkpoint.hand_over.assert_called_once()


def test_a_piece_that_lives_on(piece, tmp_path):
    """Of a bench that was killed."""
    folder = tmp_path / 'work/clothes/ccd/seed_0'
    folder.mkdir(parents=True)
    with FileLock(folder / 'lock'), pytest.raises(UserError, match=f'{folder}: another process trains this piece'):
        piece(**{'accuracy/top1': 80.0})


def test_two_benches_in_one_folder(bench, tmp_path):
    (tmp_path / 'work').mkdir()
    with FileLock(tmp_path / 'work' / 'lock'), pytest.raises(UserError, match=r'another bench runs in .*work'):
        bench()
    assert not (tmp_path / 'rows.csv').exists()


@pytest.mark.parametrize('content', [None, '', '{}', '[1]', '{"sha256": null}'])
def test_data_that_is_not_made(bench, plan, tmp_path, content):
    (tmp_path / 'made.json').unlink()
    if content is not None:
        (tmp_path / 'made.json').write_text(content)
    with pytest.raises(UserError, match=r'made\.json is no manifest of complete data: make it with: make it'):
        bench()
    assert not (tmp_path / 'work').exists()


def test_the_hash_of_the_data(plan):
    assert surroundings(plan.data['clothes'])['sha256'] == '0123456789ab'


def test_an_unknown_config(plan):
    with pytest.raises(UserError, match=r"arm cdc: no config .*cdc_r18_fashion.py; did you mean 'ccd_r18_fashion.py'?"):
        config_path(plan.data['clothes'], Arm('cdc', 'cdc_'))


def test_recipes_are_alike_but_for_the_attention(plan):
    found = recipes(plan, plan.pieces())
    assert found.keys() == {('clothes', a.name) for a in ARMS}
    assert len({own['recipe'] for own in found.values()}) == 1
    assert [own['attention'] for own in found.values()] == [
        'null', '{"type": "mmccd.CCD"}', '{"type": "mmccd.NothingControl"}'
    ]  # fmt: skip
    other = recipe_and_attention(plan, plan.data['clothes'], Arm('ccd', 'ccd_', dict(type='mmccd.CCD', groups=8)))
    assert other == dict(found['clothes', 'ccd'], attention='{"groups": 8, "type": "mmccd.CCD"}')


@pytest.mark.parametrize('change', [dict(options={'optim_wrapper.optimizer.lr': 1.0}), dict(train_every=2)])
def test_what_a_recipe_is(plan, change):
    """That of the classifier is part of the detector's."""
    changed = replace(plan, data=dict(plan.data, clothes=replace(plan.data['clothes'], **change)))
    for name in ('clothes', 'scenes'):
        then, now = (recipe_and_attention(p, p.data[name], ARMS[0])['recipe'] for p in (plan, changed))
        assert then != now
    threads = replace(plan, threads=1)
    assert recipes(threads, threads.pieces()) != recipes(plan, plan.pieces())


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            dict(config='configs/_base_/attention/{arm}ccd.py'),
            r'attention/ccd\.py is no config for this: it has no model',
        ),
        (dict(backbones='scenes'), r"r18_fashion\.py has no model\.backbone\.init_cfg\.checkpoint.*'scenes'"),
    ],
)
def test_configs_that_cannot_be_compared(plan, change, message):
    change = {key: str(ROOT / value) if key == 'config' else value for key, value in change.items()}
    with pytest.raises(UserError, match=message):
        piece_config(replace(plan.data['clothes'], **change), ARMS[0])


def test_a_metric_that_is_not_measured(bench, plan):
    check_metric(plan.data['clothes'], ARMS[0])
    check_metric(plan.data['scenes'], ARMS[0])
    wrong = replace(plan.data['clothes'], metric='accuracy/top5')
    with pytest.raises(UserError, match=r"data\.clothes\.metric: .* no 'accuracy/top5'; did you mean 'accuracy/top1'"):
        bench([(wrong, ARMS[0], 0)])


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
