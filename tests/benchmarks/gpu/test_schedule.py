"""Steps and their time: what is skipped, what is stopped, what is left behind."""

import sys
import time

import pytest
from gpu.schedule import MINUTES, ROWS, TIME_IS_UP, Outcome, Step, due, run_row

STEP = """
import subprocess, sys, time
from pathlib import Path
name = sys.argv[sys.argv.index('--step') + 1]
folder = Path(sys.argv[1])
if name == 'good':
    until = sys.argv[sys.argv.index('--until') + 1]
    print('something', 'note: twice', 'note: twice', f'note: until {{until}}', sep='\\n')
elif name == 'bad':
    raise ValueError('scales must be ints')
elif name == 'talks':
    for i in range(9):
        print('note:', i)
elif name == 'late':
    sys.exit({late})
else:
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
    (folder / 'child').write_text(str(child.pid))
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path):
    program = tmp_path / 'step.py'
    program.write_text(STEP.format(late=TIME_IS_UP))

    def call(*steps, begin=None):
        return run_row(steps, begin or time.time(), MINUTES, {}, [str(program), str(tmp_path)], tmp_path)

    return call


def test_the_plan_fits_its_minutes_and_leaves_room_for_the_report():
    ends = [step.ends for row in ROWS for step in row]
    assert ends == sorted(ends)
    assert 60 * MINUTES - 10 <= ends[-1] < 60 * MINUTES
    begins = [0.0, *(max(step.ends for step in row) for row in ROWS)]
    assert all(step.least <= step.ends - begin for begin, row in zip(begins, ROWS) for step in row)


def test_times_scale_with_the_minutes():
    step = Step('operators', 240, 15, 'op.csv')
    assert due(step, 1000.0, MINUTES) == 1240.0
    assert due(step, 1000.0, MINUTES / 2) == 1120.0


def test_done_and_failed_at_the_same_time(run):
    begin = time.time()
    good, bad = run(Step('good', 60, 1, ''), Step('bad', 60, 1, ''), begin=begin)
    assert good[:2] == ('good', 'done') and good.notes == ('twice', f'until {begin + 60}')
    assert bad[:2] == ('bad', 'failed')
    assert bad.notes == ('exit code 1: ValueError: scales must be ints',)


def test_skipped_when_time_is_short(run):
    [outcome] = run(Step('good', 60, 15, ''), begin=time.time() - 50)
    assert outcome == Outcome('good', 'skipped', 0.0, ('10 s were left, it takes at least 15',))


def test_first_and_last_of_many_notes(run):
    [outcome] = run(Step('talks', 60, 1, ''))
    assert outcome.notes == ('0', '1', '2', '3', '4', '3 more', '8')


def test_a_step_may_stop_itself(run):
    [outcome] = run(Step('late', 60, 1, ''))
    assert outcome.state == 'stopped' and 'time was up' in outcome.notes[0]


def test_stopped_with_all_that_it_started(run, tmp_path, monkeypatch):
    monkeypatch.setattr('gpu.schedule.GRACE', 0.0)
    [outcome] = run(Step('hangs', 1.5, 0.5, ''))
    assert outcome.state == 'stopped' and outcome.seconds < 6
    child = int((tmp_path / 'child').read_text())
    for _ in range(100):
        if not _runs(child):
            return
        time.sleep(0.05)
    pytest.fail(f'process {child} still runs')


def _runs(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def test_the_interpreter_is_ours(run, tmp_path):
    run(Step('good', 60, 1, ''))
    assert sys.executable and (tmp_path / 'good.log').read_text().startswith('something')
