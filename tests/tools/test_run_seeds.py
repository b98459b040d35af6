"""Several configs with several seeds: what is trained, kept, refused and written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmccd.analysis.seeds import Result, read_results, write_results

TOOL = 'analysis_tools/run_seeds.py'
CONFIGS = ('r18_digits', 'ccd_r18_digits')
OPTIONS = [
    'train_cfg.max_epochs=1',
    'train_dataloader.batch_size=16',
    'default_hooks.checkpoint.save_best=None',
    *(
        f'{split}_dataloader.{key}'
        for split in ('train', 'val', 'test')
        for key in ('num_workers=0', 'persistent_workers=False')
    ),
]


@pytest.fixture(scope='module')
def place(folder, digits) -> Path:
    (folder / 'data').mkdir()
    (folder / 'data' / 'digits').symlink_to(digits)
    return folder


@pytest.fixture(scope='module')
def args(root) -> list:
    return [
        *(root / f'configs/{name}.py' for name in CONFIGS),
        '--seeds',
        1,
        '--first-seed',
        5,
        '--cfg-options',
        *OPTIONS,
    ]


@pytest.fixture(scope='module')
def first(run_tool, place, args) -> str:
    return run_tool(TOOL, *args, cwd=place).stdout


@pytest.mark.long
def test_both_are_trained_and_compared(place, first):
    """The value of a run is its last validation's; 20 digits, so a multiple of five."""
    found = {r.config: r for r in read_results(str(place / 'work_dirs/seeds/results.csv'))}
    assert list(found) == sorted(CONFIGS)
    for name, r in found.items():
        folder = place / 'work_dirs' / 'seeds' / name / 'seed_5'
        [log] = folder.glob('*/vis_data/scalars.json')
        last = json.loads(log.read_text().splitlines()[-1])
        assert (r.seed, r.metric, r.value) == (5, 'accuracy/top1', last['accuracy/top1'])
        assert r.value % 5 == 0
        [config] = folder.glob('*.py')
        assert 'seed=5' in config.read_text()
    plain, ccd = (found[name].value for name in CONFIGS)
    assert (
        f'| r18_digits | 1 | {plain:.2f} |  |  |  |\n| ccd_r18_digits | 1 | {ccd:.2f} |  | {ccd - plain:+.2f} |  |\n'
    ) in first


@pytest.mark.long
def test_what_is_done_is_kept(run_tool, place, first, args):
    """Called again, nothing is trained; what was interrupted before its evaluation is evaluated, to the same value."""
    folder = place / 'work_dirs' / 'seeds' / 'ccd_r18_digits' / 'seed_5'
    before = (place / 'work_dirs/seeds/results.csv').read_text()
    state = json.loads((folder / 'run.json').read_text())
    (folder / 'run.json').write_text(json.dumps({**state, 'metrics': None}))
    [log] = folder.glob('*/vis_data/scalars.json')
    log.write_text(''.join(line for line in log.read_text().splitlines(True) if 'accuracy' not in line))
    out = run_tool(TOOL, *args, cwd=place).stdout
    assert 'r18_digits, seed 5: training' not in out.replace('ccd_r18_digits', '')
    assert '[2/2] ccd_r18_digits, seed 5: training' in out
    assert out[out.index('| config') :] == first[first.index('| config') :]
    again = json.loads((folder / 'run.json').read_text())
    assert again['metrics'] == state['metrics']
    assert again['seconds'] > state['seconds']
    values = [r.value for r in read_results(str(place / 'work_dirs/seeds/results.csv'))]
    assert values == [float(line.split(',')[3]) for line in before.splitlines()[1:]]


@pytest.mark.long
def test_other_settings_are_not_mixed_in(run_tool, place, first, args):
    done = run_tool(TOOL, *args, 'optim_wrapper.optimizer.lr=1e-4', cwd=place, expect=2)
    assert 'r18_digits/seed_5 has a run with other settings (its --cfg-options: train_cfg.max' in done.stderr
    assert 'choose another --work-dir, or remove it' in done.stderr


@pytest.mark.long
def test_run_that_fails(run_tool, place, root):
    done = run_tool(
        TOOL,
        root / 'configs/r18_digits.py',
        '--seeds',
        1,
        '--work-dir',
        'failing',
        '--cfg-options',
        'optim_wrapper.optimizer.type=NoSuchOptimizer',
        cwd=place,
        expect=1,
    )
    assert 'failed: tools/train ended with exit code 2, see failing/r18_digits/seed_0/run.log' in done.stdout
    assert done.stderr.endswith('error: 1 of 1 runs failed\n')
    assert 'NoSuchOptimizer' in (place / 'failing/r18_digits/seed_0/run.log').read_text()


def test_evaluation_without_a_metric(load_tool, root, workplace, monkeypatch):
    """MMDetection measures nothing where nothing is found: the run counts as failed, not as done."""
    tool = load_tool(TOOL)
    args = SimpleNamespace(work_dir='seeds', gpus=None, raw_options=[], cfg_options=None, backbones=None)
    run = tool.Run(str(root / 'configs/r18_digits.py'), 0, args, 'tools')
    log = workplace / 'seeds/r18_digits/seed_0/20260102_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('{"loss": 1.0, "step": 1}\n{"data_time": 0.1, "time": 0.2, "step": 1}\n')
    monkeypatch.setattr(run, '_call', lambda *command: None)
    with pytest.raises(RuntimeError, match=r'its evaluation gave no metric .* above model\.test_cfg\.score_thr'):
        run.do()
    assert run.results() == []
    log.write_text(log.read_text() + '{"accuracy/top1": 50.0, "time": 0.2, "step": 1}\n')
    run.do()
    assert [(r.metric, r.value) for r in run.results()] == [('accuracy/top1', 50.0)]


# The terminal's Ctrl-C, and a training that needs a moment to save.
SAVING = """
import os, pathlib, signal, time
os.kill(os.getppid(), signal.SIGINT)
time.sleep(0.5)
pathlib.Path('saved').touch()
"""


def test_control_c_waits_until_the_training_has_saved(load_tool, root, workplace):
    tool = load_tool(TOOL)
    args = SimpleNamespace(work_dir='seeds', gpus=None, raw_options=[], cfg_options=None, backbones=None)
    (workplace / 'tools').mkdir()
    (workplace / 'tools' / 'train.py').write_text(SAVING)
    run = tool.Run(str(root / 'configs/r18_digits.py'), 0, args, 'tools')
    with pytest.raises(KeyboardInterrupt, match='the same command continues'):
        run.do()
    assert (workplace / 'saved').exists()
    assert json.loads((workplace / 'seeds/r18_digits/seed_0/run.json').read_text())['seconds'] >= 0.5


def test_table_of_a_file(call_tool, capsys, tmp_path):
    path = tmp_path / 'results.csv'
    write_results(
        str(path),
        [
            Result(c, s, 'coco/bbox_mAP', v, 1, '', 'd', 't', 'm', '2026-01-02')
            for c, s, v in (('a', 0, 0.5), ('a', 1, 0.6), ('b', 0, 0.7), ('b', 1, 0.7))
        ],
    )
    assert call_tool(TOOL, '--from', path) == (0, '')
    assert '| b | 2 | 0.7000 | 0.0000 | +0.1500 | ± 0.6353 |\n' in capsys.readouterr().out
    # The configs that are asked for, in their order; differences are to the first.
    assert call_tool(TOOL, '--from', path, 'b', 'configs/a.py') == (0, '')
    assert '| a | 2 | 0.5500 | 0.0707 | -0.1500 | ± 0.6353 |\n' in capsys.readouterr().out
    code, stderr = call_tool(TOOL, '--from', path, 'bb')
    assert (code, "no results of 'bb'; did you mean 'b'?" in stderr) == (2, True)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ([], 'name the config files to compare, or a file of results with --from'),
        (['r18_digits.py', '--seeds', 0], '--seeds must be at least 1, got 0'),
        (['r18_digits.py', '--gpus', 0], '--gpus must be at least 1, got 0'),
        (['r18_digits.py', 'r18_digits.py'], 'each config once, and no two with the same name; got r18_digits more'),
        (['r18_digit.py'], "config '"),
        (
            ['r18_digits.py', '--cfg-options', 'randomness.seed=3'],
            '--cfg-options randomness.seed: run_seeds.py sets it',
        ),
        (['--from', 'x.csv'], '--from: '),
        (['r18_digits.py', '--backbones', 'x'], 'has no model.backbone.init_cfg.checkpoint that is a file'),
        (
            ['retinanet_r18_fpn_digits.py', '--backbones', 'x'],
            '--backbones: x/r18_digits/seed_0 has no checkpoint; train',
        ),
        (['retinanet_r18_fpn_digits.py'], "init_cfg.checkpoint 'checkpoints/r18_digits.pth' does not exist"),
    ],
)
def test_refused(refused, workplace, root, args, message):
    args = [root / 'configs' / a if str(a).endswith('.py') else a for a in args]
    assert message in refused(TOOL, *args)
