"""Tests of tools/demo/demo.py: what is done is not done again, and the sheet of images shows the detections."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def demo(load_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return load_tool('demo/demo.py')


@pytest.fixture
def play(demo, monkeypatch):
    """Run steps 'a', 'b', 'c', each of which writes its file and takes a second, more for the clock; say which ran."""
    clock = [0.0]
    monkeypatch.setattr(demo.time, 'monotonic', lambda: clock[0])

    def play(seconds: float = 1.0, fail: str | None = None, names: str = 'abc') -> list[str]:
        ran = []

        def work(name: str) -> None:
            ran.append(name)
            clock[0] += seconds
            if name == fail:
                raise KeyboardInterrupt
            Path(name).write_text(name)

        steps = demo.Steps('steps.json')
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


def test_first_step_anew_means_all_anew(play):
    play()
    Path('a').unlink()
    assert play(seconds=3) == ['a', 'b', 'c']
    assert list(state()) == ['a', 'b', 'c']
    assert [state()[name]['seconds'] for name in 'bc'] == [3.0, 3.0]


def test_step_done_anew_is_not_forgotten_by_an_interruption(play):
    """'a' is made again, 'b' breaks off: 'b' and 'c', though their files are there, come from the old 'a'."""
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


def test_breaking_off_while_made_again_is_not_taken_for_done(play):
    """The file of the first time is still there, but a step before it was done anew."""
    play()
    Path('b').unlink()
    with pytest.raises(KeyboardInterrupt):
        play(fail='b')
    Path('b').write_text('half')
    assert play() == ['b', 'c']


def test_only_interrupted_steps_are_told_so(demo):
    """A training goes on from its checkpoint after an interruption only, not when its data were made again."""
    told = {}

    def do(name: str, fail: bool = False) -> None:
        def work() -> None:
            told[name] = steps.interrupted
            if fail:
                raise KeyboardInterrupt
            Path(name).write_text(name)

        steps.do(name, [name], work)

    steps = demo.Steps('steps.json')
    do('a')
    with pytest.raises(KeyboardInterrupt):
        do('b', fail=True)
    assert told == {'a': False, 'b': False}
    steps = demo.Steps('steps.json')
    do('a')
    do('b')
    assert told == {'a': False, 'b': True}
    Path('a').unlink()
    steps = demo.Steps('steps.json')
    do('a')
    do('b')
    assert told == {'a': False, 'b': False}


@pytest.mark.parametrize(
    ('interrupted', 'checkpoint', 'resumes'), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_training_goes_on_where_it_broke_off(demo, monkeypatch, interrupted, checkpoint, resumes):
    commands = []
    monkeypatch.setattr(demo, 'run', lambda *args: commands.append(args))
    Path('w/x').mkdir(parents=True)
    if checkpoint:
        Path('w/x/last_checkpoint').write_text('w/x/epoch_1.pth')
    demo.train('w', 'demo.log', 'x', interrupted)
    assert commands == [('demo.log', 'train.py', 'configs/x.py', '--work-dir', 'w/x', *['--resume'] * resumes)]


def test_state_is_there_while_a_step_runs(demo):
    """Killed without a word in the middle of a step: what was done before stays so, the rest is not."""
    seen = []
    steps = demo.Steps('steps.json')
    for name in 'ab':
        steps.do(name, [], lambda: seen.append(state()))
    assert seen[1] == {'a': dict(seconds=pytest.approx(0, abs=1), done=True), 'b': dict(seconds=0.0, done=False)}
    assert demo.Steps('steps.json').state == state()


def test_state_is_written_whole(play, demo, monkeypatch):
    """What is cut short while the state is written does not damage it."""
    play(names='a')

    def half(content: dict, f, **_: object) -> None:
        f.write('{"a": ')
        raise ZeroDivisionError

    monkeypatch.setattr(demo.json, 'dump', half)
    with pytest.raises(ZeroDivisionError):
        play(names='ab')
    assert state() == {'a': dict(seconds=1.0, done=True)}


def found(image_id: int, category_id: int, box: tuple[int, ...], score: float) -> dict:
    return dict(image_id=image_id, category_id=category_id, bbox=box, score=score)


@pytest.fixture
def scenes() -> Path:
    """14 grey images, of which the sheet shows 12, as the detector's validation set."""
    folder = Path('data/digits/det')
    (folder / 'annotations').mkdir(parents=True)
    (folder / 'val').mkdir()
    images = [dict(id=n, file_name=f'{n:06d}.png', width=64, height=64) for n in range(1, 15)]
    for image in images:
        Image.new('RGB', (64, 64), (10 * image['id'],) * 3).save(folder / 'val' / image['file_name'])
    categories = [dict(id=n + 1, name=str(n)) for n in range(10)]
    (folder / 'annotations' / 'instances_val.json').write_text(json.dumps(dict(images=images, categories=categories)))
    return folder


def test_contact_sheet(demo, scenes):
    """4 x 3 images at three times their size, 8 px apart; boxes from a score of 0.5 on."""
    results = [
        found(1, 8, (10, 20, 30, 40), 0.5),
        found(2, 1, (10, 20, 30, 40), 0.49),
        found(12, 1, (0, 0, 20, 20), 0.9),
        found(13, 1, (0, 0, 20, 20), 0.9),
    ]
    Path('r.json').write_text(json.dumps(results))
    demo.contact_sheet('r.json', 'sheet.png')
    sheet = np.array(Image.open('sheet.png'))
    assert sheet.shape == (3 * 200 - 8, 4 * 200 - 8, 3)
    tiles = {n: sheet[(n - 1) // 4 * 200 :, (n - 1) % 4 * 200 :][:192, :192] for n in range(1, 13)}
    yellow = {n: (tile == (0xFF, 0xE0, 0)).all(axis=2) for n, tile in tiles.items()}
    for n, tile in tiles.items():
        if n not in (1, 12):
            assert (tile == 10 * n).all()  # the plain image, no box
    assert (sheet[:, 192:200] == 255).all()
    # Image 1: a frame of 2 px from (30, 60) to (120, 180), nothing inside, the text with its score above.
    for row, column in ((60, 75), (61, 75), (180, 75), (100, 30), (100, 31), (100, 120)):
        assert yellow[1][row, column], (row, column)
    assert not yellow[1][65:175, 35:115].any()
    assert yellow[1][40:58].any()
    # Image 12: no room above, so that the text stands below the box.
    assert yellow[12][0, 30]
    assert yellow[12][61:85].any()


def test_contact_sheet_of_no_detections(demo, scenes):
    Path('r.json').write_text('[]')
    demo.contact_sheet('r.json', 'sheet.png')
    sheet = np.array(Image.open('sheet.png'))
    assert (sheet[-10:, -10:] == 120).all()
    assert (sheet[:10, :10] == 10).all()


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
    monkeypatch.setattr(demo, 'contact_sheet', lambda results, out: Path(out).write_text(''))

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
        demo.compare(demo.Steps('steps.json'), 'demo.log', 'work_dirs/demo', 'report.html')
        pages.append(made_up.tables(Path('report.html').read_text()))
        Path('report.html').unlink()
    assert [code for code, _ in done] == [0, 0]
    assert pages[0][metrics][:2] == [['metric', 'retinanet_ccd_r18_fpn_digits'], ['AP', '0.532']]
    assert pages[1][metrics][:2] == [
        ['metric', 'retinanet_r18_fpn_digits', 'retinanet_ccd_r18_fpn_digits'],
        ['AP', '0.532', '0.532'],
    ]
    assert any(caption.startswith('Forward of one image') for caption in pages[1])
