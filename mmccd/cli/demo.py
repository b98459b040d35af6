"""What the demos share: steps that are done once, tools run with a log, and an orderly end on Ctrl-C and SIGTERM.

Nothing heavy is imported, so that a demo starts, and continues, at once.
"""

from __future__ import annotations

import argparse
import json
import os
import os.path as osp
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any

from mmccd.errors import UserError

from .outputs import check_folder
from .parser import tool_parser

# Lines of a tool's log that show its progress.
PROGRESS = re.compile(r'Epoch\((?:train|val|test)\).*|tensors loaded.*|bbox_mAP_copypaste.*|error: .*')
# (name shown, key of the metric); the keys are missing if the detector finds nothing at all.
METRICS = (('bbox mAP', 'bbox_mAP'), ('AP50', 'bbox_mAP_50'), ('AP75', 'bbox_mAP_75'))
SAVED = 85  # mmccd.engine.hooks.interrupt.EXIT_CODE, of a training that saved on a signal and ended
TAIL = 15  # lines of a log that are shown with an error


class Interrupted(KeyboardInterrupt):
    """The demo ends early. ``code``: its exit code. ``saved``: whether a training saved a checkpoint on the way."""

    def __init__(self, code: int, saved: bool = False) -> None:
        super().__init__()
        self.code, self.saved = code, saved


def run_demo(main: Callable[[], None], target: str) -> None:
    """Run a demo's ``main``. Ctrl-C and SIGTERM end it with one line that says how to continue.

    The exit code is then 128 plus the signal's number, as in a shell: 130 after Ctrl-C.

    Args:
        main (Callable): The demo.
        target (str): The command that runs it without options, e.g. ``'make demo'``.
    """

    def end(signum: int, frame: Any) -> None:
        raise Interrupted(128 + signum)

    signal.signal(signal.SIGTERM, end)
    try:
        main()
    except UserError as e:
        print(f'error: {e}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as e:
        options = [option for option in sys.argv[1:] if option != '--fresh']
        again = shlex.join(['python', *sys.argv[:1], *options]) if options else target
        saved = isinstance(e, Interrupted) and e.saved
        print(f'\ninterrupted{" and saved" if saved else ""}; `{again}` continues', file=sys.stderr)
        sys.exit(e.code if isinstance(e, Interrupted) else 128 + signal.SIGINT)


def demo_arguments(description: str, work_dir: str) -> argparse.ArgumentParser:
    """A parser with the options of all demos."""
    parser = tool_parser(description)
    parser.add_argument('--work-dir', default=work_dir, help='folder for everything that the demo writes')
    parser.add_argument('--fresh', action='store_true', help='discard earlier runs and start with the first step')
    return parser


def open_work_dir(args: argparse.Namespace, root: str) -> tuple[str, str, Steps]:
    """Make ``root`` the current folder; returns the work folder relative to it, the log in it, and its steps."""
    check_folder(args.work_dir, '--work-dir')
    work_dir = osp.abspath(args.work_dir)
    os.chdir(root)
    os.makedirs(work_dir, exist_ok=True)
    work_dir = osp.relpath(work_dir, root)
    path = osp.join(work_dir, 'steps.json')
    if args.fresh and osp.isfile(path):
        os.remove(path)
    return work_dir, osp.join(work_dir, 'demo.log'), Steps(path)


def run(log: str, tool: str, *args: str) -> None:
    """Run ``tools/<tool>``: its whole output is appended to ``log``, lines that show its progress are printed.

    Raises:
        Interrupted: On Ctrl-C or SIGTERM, after the tool has ended; or if the tool is a training that got a signal.
        SystemExit: If the tool fails, with the end of its log.
    """
    command = [sys.executable, osp.join('tools', tool), *args]
    print('$ python ' + ' '.join(command[1:]), flush=True)
    with open(log, 'a') as f:
        # A terminal sends Ctrl-C to the tool as well. It gets SIGTERM instead, on which a training saves. On Windows,
        # which has no fork, SIGTERM would end it at once: there it keeps the Ctrl-C.
        forks = hasattr(os, 'fork')
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=_ignore_ctrl_c if forks else None,
        )
        try:
            _copy(process.stdout, f, show=True)
            code = process.wait()
        except KeyboardInterrupt as e:
            if forks:
                process.terminate()
            print('\nending ...', file=sys.stderr, flush=True)
            _copy(process.stdout, f)
            code = process.wait()
            saved = code == SAVED or (tool == 'train.py' and code == 128 + signal.SIGINT)
            raise Interrupted(e.code if isinstance(e, Interrupted) else 128 + signal.SIGINT, saved) from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code == SAVED:
        raise Interrupted(SAVED, saved=True)
    if code:
        with open(log) as f:
            tail = ''.join(f.readlines()[-TAIL:])
        sys.exit(f'{tail}\nerror: {tool} ended with exit code {code}; its whole output is in {log}')


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _copy(lines: Iterable[str], log: IO[str], show: bool = False) -> None:
    for line in lines:
        log.write(line)
        match = PROGRESS.search(line) if show else None
        if match:
            print('  ' + match.group(0)[:150].rstrip(), flush=True)


def train(work_dir: str, log: str, config: str, interrupted: bool) -> None:
    """Train ``configs/<config>.py``; after an interruption, resume from the newest checkpoint if there is one."""
    resume = ['--resume'] if interrupted and osp.isfile(osp.join(work_dir, config, 'last_checkpoint')) else []
    run(log, 'train.py', f'configs/{config}.py', '--work-dir', osp.join(work_dir, config), *resume)


def test(work_dir: str, log: str, config: str, out: str, options: Sequence[str] = ()) -> None:
    """Test the last checkpoint of ``configs/<config>.py``; its metrics go to ``out``."""
    folder = osp.join(work_dir, config)
    more = ['--cfg-options', *options] if options else []
    checkpoint = last_checkpoint(work_dir, config)
    where = ['--work-dir', folder, '--out', out, '--out-item', 'metrics']
    run(log, 'test.py', f'configs/{config}.py', checkpoint, *where, *more)


def last_checkpoint(work_dir: str, config: str) -> str:
    """Path of the last epoch's checkpoint, relative to the current folder, as mmengine noted it."""
    with open(osp.join(work_dir, config, 'last_checkpoint')) as f:
        return osp.relpath(f.read().strip())


def read_json(path: str) -> dict | list:
    with open(path) as f:
        return json.load(f)


def average_precision(metrics: dict[str, float]) -> str:
    """AP, AP50 and AP75 in words."""
    return ', '.join(f'{name} {metrics.get(f"coco/{key}", 0):.3f}' for name, key in METRICS)


class Steps:
    """Completed steps, with their times summed over all calls, in a JSON file.

    Attributes:
        state (dict[str, dict]): ``seconds`` and ``done`` of each step, in their order.
        interrupted (bool): Whether an earlier call started the current step and did not complete it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.state = read_json(path) if osp.isfile(path) else {}
        self.interrupted = False

    def save(self) -> None:
        with open(f'{self.path}.partial', 'w') as f:
            json.dump(self.state, f, indent=2)
        os.replace(f'{self.path}.partial', self.path)

    def do(self, name: str, outputs: list[str], work: Callable[[], None]) -> None:
        """Do a step unless it is done and its outputs exist. All steps after it are then to be done again, too."""
        self.interrupted = not self.state.get(name, dict(done=True))['done']
        step = self.state.setdefault(name, dict(seconds=0.0, done=False))
        if step['done'] and all(osp.exists(o) for o in outputs):
            print(f'{name}: done ({step["seconds"]:.0f} s)', flush=True)
            return
        later = list(self.state)[list(self.state).index(name) + 1 :]
        for other in later:
            del self.state[other]
        step['done'] = False  # an interruption may leave outputs of an earlier call in place
        self.save()
        print(f'{name}:', flush=True)
        start = time.monotonic()
        try:
            work()
            step['done'] = True
        finally:
            step['seconds'] += time.monotonic() - start
            self.save()

    def print_table(self, results: dict[str, str], work_dir: str) -> None:
        """Print the time of each step, and its result in words."""
        width = max(24, *(len(name) + 2 for name in self.state))
        print(f'\n{"step":{width}}{"time":>8}   result')
        for name, step in self.state.items():
            print(f'{name:{width}}{step["seconds"]:6.0f} s   {results.get(name, "")}')
        total = sum(step['seconds'] for step in self.state.values())
        print(f'{"all":{width}}{total:6.0f} s   logs and checkpoints: {work_dir}')
