"""Tests of tools/misc/demo.py: what is done is not done again, and the sheet of pictures shows the detections."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def demo(load_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return load_tool('misc/demo.py')


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


@pytest.mark.parametrize(('interrupted', 'checkpoint', 'resumes'), [(True, True, True), (True, False, False),
                                                                    (False, True, False)])
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
    """14 grey pictures, of which the sheet shows 12, as the detector's validation set."""
    folder = Path('data/digits/det')
    (folder / 'annotations').mkdir(parents=True)
    (folder / 'val').mkdir()
    images = [dict(id=n, file_name=f'{n:06d}.png', width=64, height=64) for n in range(1, 15)]
    for image in images:
        Image.new('RGB', (64, 64), (10 * image['id'], ) * 3).save(folder / 'val' / image['file_name'])
    categories = [dict(id=n + 1, name=str(n)) for n in range(10)]
    (folder / 'annotations' / 'instances_val.json').write_text(json.dumps(dict(images=images, categories=categories)))
    return folder


def test_contact_sheet(demo, scenes):
    """4 x 3 pictures at three times their size, 8 px apart; boxes from a score of 0.5 on."""
    results = [found(1, 8, (10, 20, 30, 40), 0.5), found(2, 1, (10, 20, 30, 40), 0.49),
               found(12, 1, (0, 0, 20, 20), 0.9), found(13, 1, (0, 0, 20, 20), 0.9)]
    Path('r.json').write_text(json.dumps(results))
    demo.contact_sheet('r.json', 'sheet.png')
    sheet = np.array(Image.open('sheet.png'))
    assert sheet.shape == (3 * 200 - 8, 4 * 200 - 8, 3)
    tiles = {n: sheet[(n - 1) // 4 * 200:, (n - 1) % 4 * 200:][:192, :192] for n in range(1, 13)}
    yellow = {n: (tile == (0xff, 0xe0, 0)).all(axis=2) for n, tile in tiles.items()}
    for n, tile in tiles.items():
        if n not in (1, 12):
            assert (tile == 10 * n).all()  # the plain picture, no box
    assert (sheet[:, 192:200] == 255).all()
    # Picture 1: a frame of 2 px from (30, 60) to (120, 180), nothing inside, the text with its score above.
    for row, column in ((60, 75), (61, 75), (180, 75), (100, 30), (100, 31), (100, 120)):
        assert yellow[1][row, column], (row, column)
    assert not yellow[1][65:175, 35:115].any()
    assert yellow[1][40:58].any()
    # Picture 12: no room above, so that the text stands below the box.
    assert yellow[12][0, 30]
    assert yellow[12][61:85].any()


def test_contact_sheet_of_no_detections(demo, scenes):
    Path('r.json').write_text('[]')
    demo.contact_sheet('r.json', 'sheet.png')
    sheet = np.array(Image.open('sheet.png'))
    assert (sheet[-10:, -10:] == 120).all()
    assert (sheet[:10, :10] == 10).all()
