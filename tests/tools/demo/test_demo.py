"""The demos: what is done is not done again, Ctrl-C ends them in good order, and the drawing shows the detections."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmccd.analysis.boxes import YELLOW
from mmccd.cli import demo as shared
from mmccd.engine.hooks.interrupt import EXIT_CODE


@pytest.fixture
def demo(load_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return load_tool('demo/demo.py')


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Run steps 'a', 'b', 'c', each of which writes its file and takes a second, more for the clock; say which ran."""
    clock = [0.0]
    monkeypatch.setattr(shared.time, 'monotonic', lambda: clock[0])
    monkeypatch.chdir(tmp_path)

    def play(seconds: float = 1.0, fail: str | None = None, names: str = 'abc') -> list[str]:
        ran = []

        def work(name: str) -> None:
            ran.append(name)
            clock[0] += seconds
            if name == fail:
                raise KeyboardInterrupt
            Path(name).write_text(name)

        steps = shared.Steps('steps.json')
        for name in names:
            steps.do(name, [name], lambda name=name: work(name))
        return ran

    return play


def state() -> dict:
    return json.loads(Path('steps.json').read_text())


def test_done_steps_are_skipped(play, capsys):
    assert play() == ['a', 'b', 'c']
    assert state() == {name: dict(seconds=1.0, done=True) for name in 'abc'}
    capsys.readouterr()
    before = Path('steps.json').read_bytes()
    assert play() == []
    assert capsys.readouterr().out == 'a: done (1 s)\nb: done (1 s)\nc: done (1 s)\n'
    assert Path('steps.json').read_bytes() == before


def test_vanished_output_is_made_again_and_what_follows(play):
    play()
    Path('b').unlink()
    assert play() == ['b', 'c']
    assert state()['a'] == dict(seconds=1.0, done=True)
    assert state()['c'] == dict(seconds=1.0, done=True)


def test_first_step_again_means_all_again(play):
    play()
    Path('a').unlink()
    assert play(seconds=3) == ['a', 'b', 'c']
    assert list(state()) == ['a', 'b', 'c']
    assert [state()[name]['seconds'] for name in 'bc'] == [3.0, 3.0]


def test_step_done_again_is_not_forgotten_by_an_interruption(play):
    """'a' is made again, 'b' is interrupted: 'b' and 'c', though their files exist, come from the old 'a'."""
    play()
    Path('a').unlink()
    with pytest.raises(KeyboardInterrupt):
        play(fail='b')
    assert Path('c').exists()
    assert play() == ['b', 'c']


def test_times_add_up_over_an_interruption(play):
    with pytest.raises(KeyboardInterrupt):
        play(seconds=5, fail='b')
    assert state() == {'a': dict(seconds=5.0, done=True), 'b': dict(seconds=5.0, done=False)}
    assert play(seconds=2) == ['b', 'c']
    assert state() == {
        'a': dict(seconds=5.0, done=True),
        'b': dict(seconds=7.0, done=True),
        'c': dict(seconds=2.0, done=True),
    }


def test_interruption_while_made_again_is_not_taken_for_done(play):
    """The file of the first time still exists, but a step before it was done again."""
    play()
    Path('b').unlink()
    with pytest.raises(KeyboardInterrupt):
        play(fail='b')
    Path('b').write_text('half')
    assert play() == ['b', 'c']


def test_only_interrupted_steps_are_marked(demo):
    """A training resumes after an interruption only, not when its data were made again."""
    interrupted = {}

    def do(name: str, fail: bool = False) -> None:
        def work() -> None:
            interrupted[name] = steps.interrupted
            if fail:
                raise KeyboardInterrupt
            Path(name).write_text(name)

        steps.do(name, [name], work)

    steps = shared.Steps('steps.json')
    do('a')
    with pytest.raises(KeyboardInterrupt):
        do('b', fail=True)
    assert interrupted == {'a': False, 'b': False}
    steps = shared.Steps('steps.json')
    do('a')
    do('b')
    assert interrupted == {'a': False, 'b': True}
    Path('a').unlink()
    steps = shared.Steps('steps.json')
    do('a')
    do('b')
    assert interrupted == {'a': False, 'b': False}


@pytest.mark.parametrize(
    ('interrupted', 'checkpoint', 'resumes'), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_training_resumes_where_it_was_interrupted(demo, monkeypatch, interrupted, checkpoint, resumes):
    commands = []
    monkeypatch.setattr(shared, 'run', lambda *args: commands.append(args))
    Path('w/x').mkdir(parents=True)
    if checkpoint:
        Path('w/x/last_checkpoint').write_text('w/x/epoch_1.pth')
    shared.train('w', 'demo.log', 'x', interrupted)
    assert commands == [('demo.log', 'train.py', 'configs/x.py', '--work-dir', 'w/x', *['--resume'] * resumes)]


def test_state_is_there_while_a_step_runs(demo):
    """Killed without a word in the middle of a step: what was done before stays so, the rest is not."""
    seen = []
    steps = shared.Steps('steps.json')
    for name in 'ab':
        steps.do(name, [], lambda: seen.append(state()))
    assert seen[1] == {'a': dict(seconds=pytest.approx(0, abs=1), done=True), 'b': dict(seconds=0.0, done=False)}
    assert shared.Steps('steps.json').state == state()


def test_state_is_written_whole(play, demo, monkeypatch):
    """What is cut short while the state is written does not damage it."""
    play(names='a')

    def half(content: dict, f, **_: object) -> None:
        f.write('{"a": ')
        raise ZeroDivisionError

    monkeypatch.setattr(shared.json, 'dump', half)
    with pytest.raises(ZeroDivisionError):
        play(names='ab')
    assert state() == {'a': dict(seconds=1.0, done=True)}


# ---------------------------------------------------------------------------------------------- interruptions


def test_code_of_a_training_that_saved():
    assert shared.SAVED == EXIT_CODE


STUB = """
    import signal, sys, time

    def end(signum, frame):
        signal.signal(signum, signal.SIG_IGN)  # it comes twice: to the group, and from the demo
        print('saving', flush=True)
        sys.exit({on_term})

    signal.signal(signal.SIGTERM, end)
    print('Epoch(train) [1][1/2]', flush=True)
    {then}
"""


@pytest.fixture
def start(tmp_path, root, cpu_env):
    """Start a demo of one step, the training of 'x', in a group of its own, with tools/train.py as given."""
    started = []

    def start(tool: str | Path, *options: str) -> subprocess.Popen:
        if isinstance(tool, Path):
            (tmp_path / 'tools').symlink_to(tool)
        else:
            (tmp_path / 'tools').mkdir()
            (tmp_path / 'tools' / 'train.py').write_text(textwrap.dedent(tool))
        (tmp_path / 'demo.py').write_text(
            textwrap.dedent(f"""
                import sys
                from mmccd.cli.demo import demo_arguments, open_work_dir, run_demo, train

                def main():
                    work_dir, log, steps = open_work_dir(demo_arguments('', 'w').parse_args(), {str(tmp_path)!r})
                    steps.do('train', [], lambda: train(work_dir, log, 'x', steps.interrupted))

                run_demo(main, 'make x')
            """)
        )
        process = subprocess.Popen(
            [sys.executable, 'demo.py', *options],
            cwd=tmp_path,
            env={**cpu_env, 'PYTHONPATH': str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def read_until(process: subprocess.Popen, text: str) -> None:
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(process.stderr.read())


@pytest.mark.parametrize(
    ('signum', 'on_term', 'options', 'code', 'message'),
    [
        (signal.SIGINT, 85, (), 130, 'interrupted and saved; `make x` continues'),
        (signal.SIGTERM, 85, (), 143, 'interrupted and saved; `make x` continues'),
        (signal.SIGINT, 1, (), 130, 'interrupted; `make x` continues'),
        (
            signal.SIGINT,
            85,
            ('--fresh', '--work-dir', 'my w'),
            130,
            "interrupted and saved; `python demo.py --work-dir 'my w'` continues",
        ),
    ],
)
def test_interrupted_by_a_signal(start, tmp_path, signum, on_term, options, code, message):
    """Sent to the whole group, as a terminal does; what the tool writes at its end is in the log."""
    process = start(STUB.format(on_term=on_term, then='time.sleep(60)'), *options)
    read_until(process, 'Epoch(train)')
    os.killpg(process.pid, signum)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr.splitlines()[-1]) == (code, message)
    assert 'Traceback' not in stderr and 'error' not in stderr
    folder = tmp_path / (options[-1] if options else 'w')
    assert not json.loads((folder / 'steps.json').read_text())['train']['done']
    assert (folder / 'demo.log').read_text().splitlines()[-1] == 'saving'


def test_training_that_was_interrupted_itself(start):
    process = start(STUB.format(on_term=85, then='sys.exit(85)'))
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr.splitlines()[-1]) == (85, 'interrupted and saved; `make x` continues')


def test_tool_that_fails(start):
    process = start(STUB.format(on_term=85, then='sys.exit("because")'))
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert stderr.splitlines()[-3:] == [
        'because',
        '',
        'error: train.py ended with exit code 1; its whole output is in w/demo.log',
    ]
    assert 'Traceback' not in stderr


@pytest.mark.long
def test_ctrl_c_in_a_training(start, tmp_path, root, digits):
    """The real tool: it saves, and is resumed by the next call."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'digits').symlink_to(digits)
    (tmp_path / 'configs').mkdir()
    loaders = ''.join(
        f'{split}_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False)\n'
        for split in ('train', 'val', 'test')
    )
    (tmp_path / 'configs' / 'x.py').write_text(
        f'_base_ = {str(root / "configs" / "ccd_r18_digits.py")!r}\n{loaders}'
        'train_cfg = dict(max_epochs=1000, val_interval=1000)\ndefault_hooks = dict(logger=dict(interval=1))\n'
    )
    process = start(root / 'tools')
    read_until(process, 'Epoch(train)')
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr.splitlines()[-1]) == (130, 'interrupted and saved; `make x` continues')
    assert 'Traceback' not in stderr + (tmp_path / 'w' / 'demo.log').read_text()
    assert (tmp_path / 'w' / 'x' / 'last_checkpoint').is_file()


# -------------------------------------------------------------------------------------------- the detections


def found(image_id: int, category_id: int, box: tuple[int, ...], score: float) -> dict:
    return dict(image_id=image_id, category_id=category_id, bbox=box, score=score)


@pytest.fixture
def scenes() -> Path:
    """14 grey images, of which 12 are drawn, as the detector's validation set."""
    folder = Path('data/digits/det')
    (folder / 'annotations').mkdir(parents=True)
    (folder / 'val').mkdir()
    images = [dict(id=n, file_name=f'{n:06d}.png', width=64, height=64) for n in range(1, 15)]
    for image in images:
        Image.new('RGB', (64, 64), (10 * image['id'],) * 3).save(folder / 'val' / image['file_name'])
    categories = [dict(id=n + 1, name=str(n)) for n in range(10)]
    (folder / 'annotations' / 'instances_val.json').write_text(json.dumps(dict(images=images, categories=categories)))
    return folder


def near(pixels: np.ndarray, color: tuple[int, ...]) -> np.ndarray:
    return (abs(pixels.astype(int) - color) < 40).all(-1)


def test_drawing(demo, scenes):
    """4 x 3 images at three times their size, 8 px apart; boxes from a score of 0.5 on."""
    results = [
        found(1, 8, (10, 20, 30, 40), 0.5),
        found(2, 1, (10, 20, 30, 40), 0.49),
        found(12, 1, (0, 0, 20, 20), 0.9),
        found(13, 1, (0, 0, 20, 20), 0.9),
    ]
    Path('r.json').write_text(json.dumps(results))
    demo.draw_detections('r.json', 'out.png')
    image = np.array(Image.open('out.png'))
    assert image.shape == (3 * 200 - 8, 4 * 200 - 8, 3)
    tiles = {n: image[(n - 1) // 4 * 200 :, (n - 1) % 4 * 200 :][:192, :192] for n in range(1, 13)}
    for n, tile in tiles.items():
        if n not in (1, 12):
            assert (tile == 10 * n).all()  # the plain image, no box
    assert (image[:, 192:200] == 255).all()
    # Image 1: a frame from (30, 60) to (120, 180), its text above it, nothing inside.
    yellow = near(tiles[1], YELLOW)
    for row, column in ((60, 110), (180, 75), (150, 30), (100, 120)):
        assert yellow[row, column], (row, column)
    assert yellow[38:57, 30:90].any()
    assert (tiles[1][64:176, 34:116] == 10).all()
    assert (tiles[1][:34] == 10).all()
    # Image 12: a frame at the border, from (0, 0) to (60, 60).
    assert near(tiles[12], YELLOW)[[30, 60], [60, 30]].all()


def test_drawing_of_no_detections(demo, scenes):
    Path('r.json').write_text('[]')
    demo.draw_detections('r.json', 'out.png')
    image = np.array(Image.open('out.png'))
    assert (image[-10:, -10:] == 120).all()
    assert (image[:10, :10] == 10).all()


# ------------------------------------------------------------------------------------------------- the report


@pytest.fixture
def tools(demo, monkeypatch):
    """The demo in the current folder, with tools that write what they were to write; says which were called."""
    calls = []

    def run(log: str, tool: str, *args: str) -> None:
        calls.append((tool, *args))
        options = dict(zip(args, args[1:]))
        if tool.endswith('make_digits.py'):
            Path('data/digits').mkdir(parents=True)
            sizes = dict(images=2, boxes=3)
            Path('data/digits/digits.json').write_text(
                json.dumps(dict(counts=dict(cls=dict(train=4, val=1), det=dict(train=sizes, val=sizes))))
            )
        elif tool == 'train.py':
            Path(options['--work-dir']).mkdir(parents=True)
            Path(options['--work-dir'], 'last_checkpoint').write_text(f'{options["--work-dir"]}/epoch_5.pth')
        elif tool == 'test.py':
            Path(options['--out']).write_text(json.dumps({'accuracy/top1': 98.5, 'coco/bbox_mAP': 0.8}))
            if '--cfg-options' in args:
                Path(f'{args[-1].split("=")[1]}.bbox.json').write_text('[]')
        elif tool.endswith('publish_model.py'):
            Path('checkpoints').mkdir(exist_ok=True)
            Path(args[1]).write_text('')
        elif '--out' in options:
            Path(options['--out']).write_text('page')

    monkeypatch.setattr(demo, 'ROOT', str(Path.cwd()))
    monkeypatch.setattr(demo, 'run', run)
    monkeypatch.setattr(shared, 'run', run)
    monkeypatch.setattr(demo, 'draw_detections', lambda results, out: Path(out).write_text(''))

    def play(*options: str) -> list[tuple[str, ...]]:
        calls.clear()
        monkeypatch.setattr(sys, 'argv', ['demo.py', *options])
        demo.main()
        return list(calls)

    return play


def test_report_comes_last(tools, capsys):
    calls = tools()
    assert [c[0].split('/')[-1] for c in calls] == [
        'make_digits.py',
        'train.py',
        'test.py',
        'publish_model.py',
        'train.py',
        'test.py',
        'report.py',
    ]
    ccd, page = 'work_dirs/demo/retinanet_ccd_r18_fpn_digits', 'work_dirs/demo/report.html'
    assert calls[-1][1:4] == (ccd, '--out', page)
    assert f'{"write the report":24}     0 s   {page}: CCD alone: there is no docs/runs/' in capsys.readouterr().out
    assert tools() == []

    Path('docs/runs/retinanet_r18_fpn_digits').mkdir(parents=True)
    Path(page).unlink()
    [call] = tools()
    assert call[1:3] == ('docs/runs/retinanet_r18_fpn_digits', ccd)
    assert f'{page}: plain (recorded) against CCD\n' in capsys.readouterr().out


def test_plain_detector_is_trained_on_demand(tools, capsys):
    tools()
    capsys.readouterr()
    calls = tools('--plain', '--record')
    assert [c[0].split('/')[-1] for c in calls] == [
        'train.py',
        'test.py',
        'publish_model.py',
        'train.py',
        'test.py',
        'report.py',
        'report.py',
    ]
    assert [c[1] for c in calls[:2] + calls[3:5]] == [
        f'configs/{n}.py' for n in ('r18_digits', 'r18_digits', 'retinanet_r18_fpn_digits', 'retinanet_r18_fpn_digits')
    ]
    assert calls[2][2] == 'checkpoints/r18_digits.pth'
    assert calls[5][1:3] == ('work_dirs/demo/retinanet_r18_fpn_digits', 'work_dirs/demo/retinanet_ccd_r18_fpn_digits')
    assert calls[6][1:4] == (
        'work_dirs/demo/retinanet_r18_fpn_digits',
        '--record',
        'docs/runs/retinanet_r18_fpn_digits',
    )
    out = capsys.readouterr().out
    assert f'{"plain: pretrain the backbone":30}     0 s' in out
    assert f'{"plain: test the detector":30}     0 s   bbox mAP 0.800' in out
    assert list(json.loads(Path('work_dirs/demo/steps.json').read_text()))[-1] == 'write the report'
    assert tools() == []
    assert 'report.html: plain against CCD\n' in capsys.readouterr().out


def test_report_of_a_demo(demo, call_tool, made_up, toy_coco, monkeypatch):
    """The step itself, with the real tool."""
    monkeypatch.setattr(demo, 'run', lambda log, tool, *args: done.append(call_tool(tool, *args)))
    for name in ('retinanet_r18_fpn_digits', 'retinanet_ccd_r18_fpn_digits'):
        cfg = made_up.detection_config(toy_coco, name)
        cfg.test_evaluator.outfile_prefix = f'work_dirs/demo/{name}'
        made_up.detection_run(Path('work_dirs/demo') / name, cfg, None)
        Path(f'work_dirs/demo/{name}.bbox.json').write_text(json.dumps(made_up.DETECTIONS))
    metrics = f'COCO average precision (0 to 1) on 3 images of {toy_coco}/val.json'
    done, pages = [], []
    for state in ({}, {'plain: test the detector': dict(seconds=1, done=True)}):
        Path('steps.json').write_text(json.dumps(state))
        demo.compare(shared.Steps('steps.json'), 'demo.log', 'work_dirs/demo', 'report.html')
        pages.append(made_up.tables(Path('report.html').read_text()))
        Path('report.html').unlink()
    assert [code for code, _ in done] == [0, 0]
    assert pages[0][metrics][:2] == [['metric', 'retinanet_ccd_r18_fpn_digits'], ['AP', '0.532']]
    assert pages[1][metrics][:2] == [
        ['metric', 'retinanet_r18_fpn_digits', 'retinanet_ccd_r18_fpn_digits'],
        ['AP', '0.532', '0.532'],
    ]
    assert any(caption.startswith('Forward of one image') for caption in pages[1])
