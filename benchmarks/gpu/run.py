"""Everything that a GPU has to tell about CCD, in ten minutes and one command, also on a machine without internet.

Examples:
    make gpu-wheels   # with internet: collects what a machine with PyTorch, Triton and numba lacks
    python benchmarks/gpu/run.py --wheels build/gpu-wheels --minutes 9.5 --out work_dirs/gpu
    python benchmarks/gpu/run.py --dry --out work_dirs/gpu-dry   # every step on the CPU, tiny, nothing timed

Steps: machine, compilation and tests, operators, tuning, backbones, profiling, memcheck; then the decision and the
report, which is written again after each step. A step has a time at which it has to have ended; it writes its file as
it goes, and is left out, with a note, where too little time is left.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# In the place of this folder: the checkout, and the benchmarks, which are imported without a package.
sys.path[:1] = [str(HERE.parent), str(HERE.parents[1])]

import argparse  # noqa: E402
import csv  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402

from gpu import decision, report, schedule  # noqa: E402

FILES = ('env.json', 'tests.xml', 'op.csv', 'tuning.json', 'backbone.csv', 'profile.json', 'decision.json', 'report.md')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help=f'folder for {", ".join(FILES)}')
    parser.add_argument(
        '--minutes', type=float, default=schedule.MINUTES, help='in which all ends; default: %(default)s'
    )
    parser.add_argument('--wheels', type=Path, help='folder of wheels to use besides what is installed')
    parser.add_argument('--dry', action='store_true', help='on the CPU, with tiny shapes, in a minute or two; no times')
    parser.add_argument('--logs', type=Path, help="folder for the steps' outputs; default: not kept")
    parser.add_argument('--step', help=argparse.SUPPRESS)  # a child's: run this one step
    parser.add_argument('--until', type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.minutes <= 0:
        parser.error(f'--minutes must be above 0, got {args.minutes}')
    if args.wheels is not None and not list(args.wheels.glob('*.whl')):
        parser.error(f'--wheels: no wheels in {args.wheels}; `make gpu-wheels` collects them')
    return args


def install(wheels: Path, target: Path) -> None:
    """Unpack the wheels into a folder of this run; nothing that is installed changes."""
    names = sorted(map(str, wheels.glob('*.whl')))
    pip = [sys.executable, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '--no-index', '--no-deps']
    done = subprocess.run([*pip, '--no-compile', '--target', str(target), *names], capture_output=True, text=True)
    if done.returncode:
        version = '.'.join(map(str, sys.version_info[:2]))
        raise SystemExit(
            f'the wheels in {wheels} cannot be installed here (for this Python: '
            f'make gpu-wheels GPU_PYTHON={version}):\n{done.stderr.strip()}'
        )


def environment(temporary: Path, dry: bool) -> dict[str, str]:
    """Of the steps: the checkout and the wheels on the path, caches of their own, which start empty."""
    paths = [str(temporary / 'site'), str(HERE.parents[1]), os.environ.get('PYTHONPATH', '')]
    env = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(path for path in paths if path),
        'TRITON_CACHE_DIR': str(temporary / 'triton'),
        'TORCHINDUCTOR_CACHE_DIR': str(temporary / 'inductor'),
    }
    for name in ('MMCCD_CCD_IMPL', 'TRITON_INTERPRET', 'TORCHDYNAMO_DISABLE'):  # each measurement says what it takes
        env.pop(name, None)
    if dry:
        env.update(TRITON_INTERPRET='1', TORCHDYNAMO_DISABLE='1', CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
    return env


def conclude(out: Path, outcomes: list[schedule.Outcome], dry: bool) -> None:
    """Decision and report, of what is there so far."""
    where = _json(out / 'env.json')
    testing = [o for o in outcomes if o.name == 'testing']
    tests = decision.read_tests(out / 'tests.xml', bool(testing) and testing[0].state == 'done')
    operators, backbones = _csv(out / 'op.csv'), _csv(out / 'backbone.csv')
    verdicts = decision.decide(operators, backbones, tests)
    decision.write(verdicts, where, out / 'decision.json')
    results = report.Results(
        dry=dry,
        outcomes=outcomes,
        where=where,
        tests=tests,
        operators=operators,
        tuning=_json(out / 'tuning.json'),
        backbones=backbones,
        profile=_json(out / 'profile.json'),
        verdicts=verdicts,
    )
    (out / 'report.md').write_text(report.markdown(results))


def _json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def _csv(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def run_step(args: argparse.Namespace) -> None:
    """In a process of its own."""
    from gpu.task import Task

    importlib.import_module(f'gpu.{args.step}').run(Task(args.out, args.dry, args.until))


def main() -> int:
    """Returns 1 if a step failed, else 0."""
    args = parse_args()
    if args.step:
        run_step(args)
        return 0
    begin = time.time()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the steps as Ctrl-C does
    args.out.mkdir(parents=True, exist_ok=True)
    for name in FILES:  # of an earlier run
        (args.out / name).unlink(missing_ok=True)
    outcomes: list[schedule.Outcome] = []
    with tempfile.TemporaryDirectory(prefix='mmccd-gpu-') as folder:
        temporary = Path(folder)
        if args.wheels is not None:
            install(args.wheels, temporary / 'site')
        env = environment(temporary, args.dry)
        logs = args.logs or temporary / 'logs'
        logs.mkdir(parents=True, exist_ok=True)
        command = [str(HERE / 'run.py'), '--out', str(args.out), *(['--dry'] if args.dry else [])]
        for row in schedule.ROWS:
            done = schedule.run_row(row, begin, args.minutes, env, command, logs)
            outcomes += done
            for outcome in done:
                print(
                    f'{outcome.name}: {outcome.state}, {outcome.seconds:.0f} s', *outcome.notes, sep='\n  ', flush=True
                )
            conclude(args.out, outcomes, args.dry)
            if outcomes[0].state == 'failed':  # without a GPU, or without a package, nothing else can run
                break
    print(f'{args.out / "report.md"}, after {time.time() - begin:.0f} s')
    return int(any(outcome.state == 'failed' for outcome in outcomes))


if __name__ == '__main__':
    sys.exit(main())
