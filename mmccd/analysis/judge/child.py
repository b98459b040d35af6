"""The checks in a process of their own, which may hang or end: that is a line of the report then."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

from mmccd.errors import UserError

from .checks.base import shape_of
from .checks.shapes import LARGEST
from .packages import modules_of
from .results import Finding, Verdict, failed, note, skipped
from .run import Progress, chosen_checks, make_subject, run_checks, verdict_of

IMPORTS = 120.0  # seconds for a process to begin, which imports PyTorch and the module
RESTARTS = 4
POLL = 0.2  # seconds between two looks at the memory


@dataclass
class Job:
    """What is to be judged, as plain values.

    Attributes:
        module (str): ``package.module:Class``.
        like, channels, size, options, like_options, checks: As of :func:`mmccd.check_attention`.
    """

    module: str
    like: str | None = None
    channels: int = 256
    size: tuple[int, int] = (14, 14)
    options: dict[str, Any] = field(default_factory=dict)
    like_options: dict[str, Any] = field(default_factory=dict)
    checks: list[str] | None = None

    def subject(self) -> Any:
        """The subject of the checks; UserError if an argument is wrong."""
        return make_subject(self.module, self.like, self.channels, self.size, self.options, self.like_options)


def judge(job: Job, seconds: float = 30.0, memory: float | None = None, progress: Progress | None = None) -> Verdict:
    """Judge a module in another process.

    Args:
        job (Job): What is to be judged.
        seconds (float): Limit of one check. Default: 30.
        memory (float | None): Limit of the process, in bytes. Default: None, two thirds of what is free now.
        progress (Callable, optional): Called with the name of each check as it begins.

    Raises:
        UserError: As :func:`mmccd.check_attention`.
    """
    subject, names = job.subject(), chosen_checks(job.checks)
    memory = memory or _free_memory() * 2 / 3
    findings: dict[str, Finding] = {}
    deaths = 0
    while any(name not in findings for name in names):
        rest = [name for name in names if name not in findings]
        if deaths > RESTARTS:
            findings.update({name: _named(name, skipped('the process ended too often before')) for name in rest})
            break
        ended = _process(job, names, findings, seconds, memory, progress)
        if ended is None:
            break
        deaths += 1
        check, finding = ended
        findings[check] = _named(check, finding)
        if check in ('build', 'shape'):
            left = [name for name in names if name not in findings]
            findings.update({name: _named(name, skipped(f'{check} failed')) for name in left})
    return verdict_of(subject, [findings[name] for name in names if name in findings])


def _named(name: str, finding: Finding) -> Finding:
    finding.check = name
    return finding


def _process(
    job: Job,
    names: list[str],
    findings: dict[str, Finding],
    seconds: float,
    memory: float,
    progress: Progress | None,
) -> tuple[str, Finding] | None:
    """Run what is left in a new process; the check at which it hung or ended, or None."""
    context = get_context('spawn')  # a fork would share locks of threads that it does not have
    mine, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(theirs, job, [n for n in names if n not in findings]), daemon=True)
    with mock.patch.dict(os.environ, PYTHONWARNINGS='ignore'):  # of semaphores that a killed process has left
        child.start()
    theirs.close()
    at, case, begin, limit = names[0], '', time.monotonic(), IMPORTS
    for name in names:
        if name not in findings:
            at = name
            break
    try:
        while True:
            if mine.poll(POLL):
                try:
                    kind, value = mine.recv()
                except (EOFError, OSError):
                    child.join(5)
                    return at, failed(
                        f'the process ended ({_exit(child.exitcode)}){_where(case)}', 'no exit() in a module'
                    )
                if kind == 'end':
                    child.join(5)
                    return None
                if kind == 'start':
                    at, case, begin, limit = value, '', time.monotonic(), seconds
                    if progress is not None:
                        progress(value)
                elif kind == 'case':
                    case = value
                else:
                    findings[value.check] = value
                    begin = time.monotonic()
                continue
            large = case.startswith(shape_of(LARGEST))
            if time.monotonic() - begin > limit:
                text = f'no answer within {limit:g} s{_where(case)}'
                advice = 'raise --time-limit if it is only slow'
                return at, note(text, advice) if large else failed(text, advice)
            used = _memory_of(child.pid)
            if used > memory:
                text = f'it took more than {memory / 2**30:.1f} GiB{_where(case)}'
                advice = 'its memory grows with the square of the map: use it on small maps'
                return at, note(text, advice) if large else failed(text, advice)
    finally:
        if child.is_alive():
            child.kill()
        child.join(10)
        mine.close()


def _where(case: str) -> str:
    return f' at {case}' if case else ''


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        return f'signal {signal.Signals(-code).name}'
    return f'exit code {code}'


def _work(connection: Connection, job: Job, names: list[str]) -> None:
    """What the process does: the checks, told one by one."""
    _silence()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends this process

    import torch

    torch.set_num_threads(max(1, min(2, os.cpu_count() or 1)))
    needed = [name for name in ('build', 'shape') if name not in names]  # done before, and wanted again here
    subject = job.subject()
    for kind, value in run_checks(subject, [*needed, *names], lambda text: connection.send(('case', text))):
        if (value if kind == 'start' else value.check) not in needed:
            connection.send((kind, value))
    connection.send(('end', None))
    connection.close()


def list_modules(package: str, seconds: float = IMPORTS) -> tuple[list[str], dict[str, str]]:
    """As :func:`~mmccd.analysis.judge.packages.modules_of`, in another process: an import may hang or end it."""
    mine, theirs = (context := get_context('spawn')).Pipe(duplex=False)
    child = context.Process(target=_list, args=(theirs, package), daemon=True)
    child.start()
    theirs.close()
    try:
        if not mine.poll(seconds):
            raise UserError(f'--all: {package} cannot be imported within {seconds:g} s')
        found, error = mine.recv()
    except (EOFError, OSError):
        child.join(5)
        raise UserError(f'--all: importing {package} ends the process ({_exit(child.exitcode)})') from None
    finally:
        child.kill()
        child.join(10)
        mine.close()
    if error:
        raise UserError(error)
    return found


def _list(connection: Connection, package: str) -> None:
    _silence()
    try:
        connection.send((modules_of(package), ''))
    except UserError as e:
        connection.send((None, str(e)))
    connection.close()


def _silence() -> None:
    """What the module, its libraries and their crash handlers print is not the report."""
    sink = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(sink, stream)


def _free_memory() -> float:
    """Bytes that are free for new processes."""
    try:
        with open('/proc/meminfo') as f:
            for line in f:
                if line.startswith('MemAvailable'):
                    return float(line.split()[1]) * 1024
    except OSError:
        pass
    return 8.0 * 2**30


def _memory_of(pid: int | None) -> float:
    """Bytes that a process has in memory; 0 where that is not known."""
    try:
        with open(f'/proc/{pid}/statm') as f:
            return float(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except (OSError, ValueError, IndexError):
        return 0.0
