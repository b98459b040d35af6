"""The smoke tests in every supported Python, with both stacks and the oldest and the newest PyTorch, one at a time.

    make matrix
    make matrix MATRIX='3.10 newest'

For each row: a new environment of 6 GB in ``.venv-matrix``, ``make smoke`` in it, ``tools/checks/check_env.py``, the
demo until it trains, and the environment is removed. A row whose Python is not on this machine is named and left out.
The last lines are the table of docs/installation.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
VENV = '.venv-matrix'
GIGABYTES = 9  # of an environment, with what pip unpacks on the way
FITS = 'import ensurepip, sys, venv; sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])'


class Row(NamedTuple):
    """An environment.

    Attributes:
        python (str): Its Python, as 3.12.
        requirements (str): File of what runs; what tests need is in the file of the same name with ``-test``.
        instead (Mapping[str, str]): Requirement by name that takes the place of the one there; '' for none.
    """

    python: str
    requirements: str = 'requirements.txt'
    instead: Mapping[str, str] = {}


ROWS = {
    '3.10': Row('3.10'),
    '3.11': Row('3.11'),
    '3.12': Row('3.12'),
    '3.13': Row('3.13'),
    'openmmlab': Row('3.11', 'requirements-openmmlab.txt'),
    'oldest': Row('3.10', instead=dict(torch='torch==2.6.0', torchvision='torchvision==0.21.0', sympy='sympy==1.13.1')),
    'newest': Row(
        '3.13', instead=dict(torch='torch==2.15.0', torchvision='torchvision==0.29.2', setuptools='setuptools')
    ),
}


def find_python(version: str) -> str | None:
    """A Python of this version that can make environments: on the path, or one of pyenv's."""
    pyenv = sorted((Path.home() / '.pyenv' / 'versions').glob(f'{version}.*/bin/python'))
    for path in (f'python{version}', sys.executable, *map(str, reversed(pyenv))):
        found = shutil.which(path)
        if found and subprocess.run([found, '-c', FITS, version], capture_output=True).returncode == 0:
            return found
    return None


def changed(text: str, instead: Mapping[str, str]) -> str:
    """The text of a requirements file with other requirements instead of those of the same name.

    Raises:
        ValueError: If a name is not in the file.
    """
    lines, left = [], set(instead)
    for line in text.splitlines():
        name = re.match(r'[\w.-]*', line).group()
        if name in instead:
            line = instead[name] if name in left else ''
            left.discard(name)
        lines.append(line)
    if left:
        raise ValueError(f'no requirement named {", ".join(sorted(left))}')
    return '\n'.join(line for line in lines if line) + '\n'


def write_requirements(row: Row, folder: Path) -> Path:
    """Both files of a row, with its changes; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / row.requirements
    path.write_text(changed((ROOT / row.requirements).read_text(), row.instead))
    tests = row.requirements.replace('.txt', '-test.txt')
    (folder / tests).write_text((ROOT / tests).read_text())
    return path


def run_row(name: str, python: str) -> str:
    """Make the environment, test, remove it. Returns a line of the table."""
    row, start = ROWS[name], time.monotonic()
    venv = ROOT / VENV
    shutil.rmtree(venv, ignore_errors=True)
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < GIGABYTES:
        return f'| {name} | | | not run: {free:.0f} GB of disk are free, {GIGABYTES} are needed |'
    requirements = write_requirements(row, ROOT / 'build' / 'matrix' / name)
    variables = [f'VENV={VENV}', f'PYTHON={python}', f'REQUIREMENTS={requirements.relative_to(ROOT)}']
    try:
        code, out = _run('make', 'env-test', *variables)
        if code:
            return f'| {name} | | | environment FAILED: {_last(out)} |'
        versions = _run(f'{VENV}/bin/python', '-c', VERSIONS)[1].strip().splitlines()[-1]
        code, out = _run('make', 'smoke', *variables)
        passed = re.findall(r'=+ (.*?(?:passed|failed|error).*?) =*$', out, re.MULTILINE)
        result = (passed or [_last(out)])[-1]
        broken, report = _run(f'{VENV}/bin/python', 'tools/checks/check_env.py')
        found = re.findall(r'^(?:BROKEN|warning): .*', report, re.MULTILINE)
        result += '' if not code else ' FAILED'
        result += '; demo: ' + start_demo(ROOT / VENV / 'bin' / 'python', ROOT / 'build' / 'matrix' / 'demo')
        result += f'; check_env: {"; ".join(found) or "no problem"}' + (' FAILED' if broken else '')
        return f'| {name} | {versions} | {(time.monotonic() - start) / 60:.0f} min | {result} |'
    finally:
        shutil.rmtree(venv, ignore_errors=True)


def start_demo(python: Path, work_dir: Path) -> str:
    """Start the demo and interrupt it when it trains; what there is to say about it."""
    shutil.rmtree(work_dir, ignore_errors=True)
    command = [str(python), 'tools/demo/demo.py', '--work-dir', str(work_dir)]
    print('$ ' + ' '.join(command), flush=True)
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    lines, trains = [], False
    for line in process.stdout:
        print(line, end='', flush=True)
        lines.append(line)
        if 'Epoch(train)' in line and not trains:
            trains = True
            os.killpg(process.pid, signal.SIGTERM)  # the tools that it runs, too; Ctrl-C may be ignored
    process.wait()
    shutil.rmtree(work_dir, ignore_errors=True)
    return 'trains' if trains else f'{_last("".join(lines))} FAILED'


VERSIONS = """
from importlib.metadata import PackageNotFoundError, version
import platform
def v(*names):
    for name in names:
        try:
            return f'{name} {version(name)}'
        except PackageNotFoundError:
            pass
print(', '.join([f'Python {platform.python_version()}', v('torch'), v('torchvision'), v('numpy'),
                 v('onedl-mmdetection', 'mmdet'), v('setuptools')]))
"""


def _run(*command: str) -> tuple[int, str]:
    """Exit code and output, which is shown as well."""
    print('$ ' + ' '.join(command if '-c' not in command else command[:1]), flush=True)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        print(line, end='', flush=True)
        lines.append(line)
    return process.wait(), ''.join(lines)


def _last(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), 'no output')


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('rows', nargs='*', metavar='ROW', help=f'of {", ".join(ROWS)}; default: all')
    args = parser.parse_args(argv)
    unknown = [name for name in args.rows if name not in ROWS]
    if unknown:
        parser.error(f'unknown row {", ".join(unknown)}: there are {", ".join(ROWS)}')
    missing = False
    lines = ['| row | versions | time | result |', '|---|---|---|---|']
    for name in args.rows or ROWS:
        python = find_python(ROWS[name].python)
        if python is None:
            missing = True
            lines.append(f'| {name} | | | not run: no Python {ROWS[name].python} here |')
        else:
            lines.append(run_row(name, python))
    print('\n' + '\n'.join(lines))
    return int(any('FAILED' in line for line in lines) or (missing and bool(args.rows)))


if __name__ == '__main__':
    sys.exit(main())
