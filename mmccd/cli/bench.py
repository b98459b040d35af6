"""Runs the pieces of the attention bench in processes of their own, so that each can end without the others."""

from __future__ import annotations

import os
import os.path as osp
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from filelock import FileLock, Timeout
from mmengine.utils import get_git_hash

from mmccd.analysis.bench.plan import Arm, Data, Plan
from mmccd.analysis.bench.rows import Row, append_rows, read_rows
from mmccd.errors import UserError

from .bench_piece import WEIGHTS, manifest_sha256, piece_config, piece_folder, read_result, recipe_of

Piece = tuple[Data, Arm, int]


def recipes(plan: Plan, pieces: Sequence[Piece]) -> dict[tuple[str, str], str]:
    """Today's recipe by names of data and arm.

    Raises:
        UserError: If a config is missing or wrong, or two arms on one dataset differ in more than the attention.
    """
    found: dict[tuple[str, str], str] = {}
    for data, arm, _ in pieces:
        if (data.name, arm.name) not in found:
            found[data.name, arm.name] = recipe_of(piece_config(data, arm), data, plan.threads)
    by_data: dict[str, dict[str, list[str]]] = {}
    for (of, name), recipe in found.items():
        by_data.setdefault(of, {}).setdefault(recipe, []).append(name)
    for of, arms in by_data.items():
        if len(arms) > 1:
            groups = '; '.join(', '.join(names) for names in arms.values())
            raise UserError(f'data {of}: the configs of these differ in more than the attention: {groups}')
    return found


def run_pieces(plan: Plan, pieces: Sequence[Piece], command: Sequence[str], work_dir: str, csv: str, jobs: int) -> int:
    """Run what has no rows yet, and append rows as pieces end.

    Args:
        plan (Plan): The plan.
        pieces (Sequence[Piece]): In this order.
        command (Sequence[str]): Starts a piece; the names of data, arm and seed are appended.
        work_dir (str): The pieces' folders are below it.
        csv (str): File of all rows.
        jobs (int): Pieces at a time.

    Returns:
        int: Number of pieces that failed.

    Raises:
        UserError: If another bench uses the folder, data is not made, or a config is wrong: before anything is run.
    """
    for data in {d.name: d for d, _, _ in pieces}.values():
        manifest_sha256(data)
    today = recipes(plan, pieces)
    os.makedirs(work_dir, exist_ok=True)
    try:
        with FileLock(osp.join(work_dir, 'lock'), timeout=0):
            return _run(plan, pieces, today, command, work_dir, csv, jobs)
    except Timeout:
        raise UserError(f'another bench runs in {work_dir}: wait for its end, or choose another --work-dir') from None


def _run(
    plan: Plan,
    pieces: Sequence[Piece],
    today: Mapping[tuple[str, str], str],
    command: Sequence[str],
    work_dir: str,
    csv: str,
    jobs: int,
) -> int:
    done = {(r.data, r.arm, r.seed, r.recipe) for r in read_rows(csv)}
    left = [(d, a, s) for d, a, s in pieces if (d.name, a.name, s, today[d.name, a.name]) not in done]
    needed = {(d.backbones, a.name, s) for d, a, s in left if d.backbones}
    lost = [  # rows without weights, which a detector is initialised with
        (d, a, s)
        for d, a, s in pieces
        if (d.name, a.name, s) in needed
        and (d, a, s) not in left
        and not osp.isfile(osp.join(piece_folder(work_dir, d, a, s), WEIGHTS))
    ]
    left = lost + left
    print(f'{len(pieces)} pieces, {len(pieces) - len(left)} of them done', flush=True)
    progress = _Progress(len(pieces) + len(lost), len(pieces) + len(lost) - len(left), jobs)
    env = dict(os.environ, OMP_NUM_THREADS=str(plan.threads), MKL_NUM_THREADS=str(plan.threads))
    failed = 0
    pool = ThreadPoolExecutor(jobs)
    running: list[subprocess.Popen] = []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        futures = {pool.submit(_piece, p, today, command, work_dir, env, running): p for p in left}
        for future in as_completed(futures):
            data, arm, seed = futures[future]
            label = f'{data.name}: {arm.name}, seed {seed}'
            try:
                rows = future.result()
            except (UserError, OSError) as e:
                failed += 1
                print(f'{progress.next(None)} {label}: failed: {e}', flush=True)
                continue
            if (data, arm, seed) not in lost:
                append_rows(csv, rows)
            value = next(r.value for r in rows if r.metric == data.metric)
            print(f'{progress.next(rows[0].seconds)} {label}: {data.metric} {value:g}', flush=True)
    except BaseException:
        for process in running:
            process.terminate()  # it saves, and the next call resumes it
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    pool.shutdown()
    return failed


def _piece(
    piece: Piece,
    today: Mapping[tuple[str, str], str],
    command: Sequence[str],
    work_dir: str,
    env: Mapping[str, str],
    running: list[subprocess.Popen],
) -> list[Row]:
    data, arm, seed = piece
    folder = piece_folder(work_dir, data, arm, seed)
    rows = read_result(folder)  # finished, but its rows were lost with the process that was to append them
    if rows is None or not osp.isfile(osp.join(folder, WEIGHTS)):
        os.makedirs(folder, exist_ok=True)
        path = osp.join(folder, 'log.txt')
        with open(path, 'a', encoding='utf-8') as log:
            process = subprocess.Popen(
                [*command, data.name, arm.name, str(seed)], stdout=log, stderr=subprocess.STDOUT, env=env
            )
            running.append(process)
            code = process.wait()
            running.remove(process)
        if code:
            raise UserError(f'exit code {code}, see {path}')
        rows = read_result(folder)
    if not rows or rows[0].recipe != today[data.name, arm.name]:
        raise UserError(f'{folder} has a piece by another recipe: choose another --work-dir, or remove it')
    return rows


class _Progress:
    """Counts pieces and estimates the time that is left from those that ended in this call."""

    def __init__(self, total: int, done: int, jobs: int) -> None:
        self.total, self.done, self.jobs = total, done, jobs
        self.seconds: list[float] = []

    def next(self, seconds: float | None) -> str:
        self.done += 1
        if seconds is not None:
            self.seconds.append(seconds)
        filled = round(20 * self.done / self.total)
        text = f'[{"#" * filled}{"." * (20 - filled)}] {self.done}/{self.total}'
        if self.seconds and self.done < self.total:
            left = statistics.mean(self.seconds[-20:]) * (self.total - self.done) / self.jobs
            text += f', {left / 60:.0f} min left'
        return text


def commit() -> str:
    """Commit of the working folder's repository, 12 digits; '' outside of one."""
    found = get_git_hash(digits=12, fallback='')
    return found if found.isalnum() else ''


def piece_command(plan: str, work_dir: str) -> list[str]:
    """How :func:`run_pieces` starts a piece."""
    return [sys.executable, osp.abspath(sys.argv[0]), 'piece', '--plan', plan, '--work-dir', work_dir]
