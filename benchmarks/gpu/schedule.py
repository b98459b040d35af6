"""When each step runs and for how long: steps are processes, so that one that fails or hangs costs only itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

TIME_IS_UP = 75  # exit code of a step that stopped its own work for lack of time
NOTES = 6  # of a step in the report, about
GRACE = 3.0  # seconds that a step may take to notice that its time is up
MINUTES = 9.5  # what the times below add up to


class Step(NamedTuple):
    """A step.

    Attributes:
        name (str): Of its module.
        ends (float): Seconds after the beginning at which it has to have ended, of a run of MINUTES.
        least (float): Seconds without which it is not worth starting.
        writes (str): Its file.
    """

    name: str
    ends: float
    least: float
    writes: str


# Steps of a row run at the same time; only rows of one step measure times.
ROWS: tuple[tuple[Step, ...], ...] = (
    (Step('machine', 40, 5, 'env.json'),),
    (Step('compilation', 80, 10, ''), Step('testing', 120, 20, 'tests.xml')),
    (Step('operators', 240, 15, 'op.csv'),),
    (Step('tuning', 330, 15, 'tuning.json'),),
    (Step('backbones', 510, 30, 'backbone.csv'),),
    (Step('profiling', 550, 15, 'profile.json'),),
    (Step('memcheck', 566, 8, 'profile.json'),),
)


class Outcome(NamedTuple):
    """What became of a step.

    Attributes:
        name (str): The step.
        state (str): 'done', 'skipped', 'stopped' (its time was up) or 'failed'.
        seconds (float): That it took.
        notes (tuple[str, ...]): What it said about itself.
    """

    name: str
    state: str
    seconds: float
    notes: tuple[str, ...] = ()


def due(step: Step, begin: float, minutes: float) -> float:
    """``time.time()`` at which the step has to have ended; what others leave over is the next one's."""
    return begin + step.ends * minutes / MINUTES


class Running:
    """A step that runs.

    Args:
        step (Step): Which.
        command (Sequence[str]): What it is.
        until (float): ``time.time()`` at which it has to have ended.
        env (Mapping[str, str]): Its environment.
        log (Path): Where its output goes.
    """

    def __init__(self, step: Step, command: Sequence[str], until: float, env: Mapping[str, str], log: Path) -> None:
        self.step, self.until, self.log, self.begin = step, until, log, time.time()
        with log.open('w') as file:
            # A process group, so that whatever it has started ends with it.
            self.process = subprocess.Popen(
                command, env=dict(env), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> Outcome:
        """Until it has ended; stop it once its time is up."""
        try:
            self.process.wait(timeout=max(0.1, self.until + GRACE - time.time()))
        except subprocess.TimeoutExpired:
            stopped = True
        else:
            stopped = self.process.returncode == TIME_IS_UP
        finally:
            self.stop()
        seconds = time.time() - self.begin
        text = self.log.read_text(errors='replace')
        lines = [line[len('note: ') :] for line in text.splitlines() if line.startswith('note: ')]
        lines = list(dict.fromkeys(lines))
        notes = lines if len(lines) <= NOTES else [*lines[: NOTES - 1], f'{len(lines) - NOTES} more', lines[-1]]
        if stopped:
            notes.append('stopped, its time was up; what it had written is kept')
        elif self.process.returncode:
            notes.append(f'exit code {self.process.returncode}: {last_line(text)}')
        state = 'stopped' if stopped else 'failed' if self.process.returncode else 'done'
        return Outcome(self.step.name, state, round(seconds, 1), tuple(notes))

    def stop(self) -> None:
        """End it, and what it has started."""
        for sign, seconds in ((signal.SIGTERM, 2), (signal.SIGKILL, 5)):
            try:
                os.killpg(self.process.pid, sign)
                self.process.wait(timeout=seconds)
            except ProcessLookupError:  # nobody is left
                return
            except subprocess.TimeoutExpired:
                continue


def last_line(text: str) -> str:
    """Of an output, or '' without any: of a Python error, what it says."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ''


def run_row(
    row: Sequence[Step], begin: float, minutes: float, env: Mapping[str, str], command: Sequence[str], logs: Path
) -> list[Outcome]:
    """Run the steps of a row at the same time.

    Args:
        begin (float): ``time.time()`` at the beginning of all.
        command (Sequence[str]): Runs a step, given its name and ``until``.
        logs (Path): Folder of the steps' outputs.
    """
    running: list[Running] = []
    outcomes: list[Outcome] = []
    try:
        for step in row:
            until = due(step, begin, minutes)
            left = until - time.time()
            if left < step.least:
                note = f'{max(0.0, left):.0f} s were left, it takes at least {step.least:.0f}'
                outcomes.append(Outcome(step.name, 'skipped', 0.0, (note,)))
                continue
            words = [sys.executable, *command, '--step', step.name, '--until', str(until)]
            running.append(Running(step, words, until, env, logs / f'{step.name}.log'))
        outcomes += [each.wait() for each in running]
    finally:
        for each in running:
            each.stop()
    return outcomes
