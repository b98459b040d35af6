"""Runs the pieces of the attention bench in processes of their own, so that each can end without the others."""

from __future__ import annotations

import os
import os.path as osp
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from filelock import FileLock, Timeout
from mmengine.utils import get_git_hash

from mmccd.analysis.bench.plan import Arm, Data, Plan
from mmccd.analysis.bench.rows import Row, append_rows, differences, read_rows
from mmccd.errors import UserError

from .bench_piece import check_metric, finished_piece, piece_folder, recipe_and_attention, surroundings

Piece = tuple[Data, Arm, int]
Name = tuple[str, str, int]  # of data, arm and seed
Origins = Mapping[tuple[str, str], Mapping[str, str]]  # by names of data and arm


def recipes(plan: Plan, pieces: Sequence[Piece]) -> dict[tuple[str, str], dict[str, str]]:
    """Today's recipe and attention by names of data and arm.

    Raises:
        UserError: If a config is missing or wrong, or two arms on one dataset differ in more than the attention.
    """
    of_pieces = {(data.name, arm.name): (data, arm) for data, arm, _ in pieces}
    found = {name: recipe_and_attention(plan, data, arm) for name, (data, arm) in of_pieces.items()}
    by_data: dict[str, dict[str, list[str]]] = {}
    for (of, name), own in found.items():
        by_data.setdefault(of, {}).setdefault(own['recipe'], []).append(name)
    for of, arms in by_data.items():
        if len(arms) > 1:
            groups = '; '.join(', '.join(names) for names in arms.values())
            raise UserError(f'data {of}: the configs of these differ in more than the attention: {groups}')
    return found


def run_pieces(plan: Plan, pieces: Sequence[Piece], command: Sequence[str], work_dir: str, csv: str, jobs: int) -> int:
    """Run what has no rows yet, and append rows as pieces end.

    A detector's piece has the classifier that initialises it run before it, unless its weights are there.

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
        UserError: If another bench uses the folder, data is not made, a config is wrong, or the file has rows that
            cannot be compared with those of today: before anything is run.
    """
    every = [*pieces, *(backbone for piece in pieces if (backbone := _backbone(plan, piece)) is not None)]
    own = recipes(plan, every)
    here = {data.name: surroundings(data) for data, _, _ in every}
    for data, arm in {data.name: (data, arm) for data, arm, _ in every}.values():
        check_metric(data, arm)
    today = {(data, arm): found | here[data] for (data, arm), found in own.items()}
    os.makedirs(work_dir, exist_ok=True)
    try:
        with FileLock(osp.join(work_dir, 'lock'), timeout=0):
            return _run(plan, pieces, today, command, work_dir, csv, jobs)
    except Timeout:
        raise UserError(f'another bench runs in {work_dir}: wait for its end, or choose another --work-dir') from None


def _run(
    plan: Plan, pieces: Sequence[Piece], today: Origins, command: Sequence[str], work_dir: str, csv: str, jobs: int
) -> int:
    rows = read_rows(csv)
    done = {(r.data, r.arm, r.seed) for r in rows}
    queue: dict[Name, Piece] = {}
    for piece in pieces:
        if _name(piece) not in done:
            backbone = _backbone(plan, piece)
            if backbone is not None and _finished(backbone, today, work_dir) is None:
                queue.setdefault(_name(backbone), backbone)
            queue.setdefault(_name(piece), piece)
    _check_rows(rows, {data for data, arm, seed in queue if (data, arm, seed) not in done}, today, csv)
    kept = sum(_name(piece) in done for piece in pieces)
    more = len(queue) - (len(pieces) - kept)
    print(f'{len(pieces)} pieces, {kept} of them done{f"; {more} more, for their weights" if more else ""}', flush=True)
    progress = _Progress(kept + len(queue), kept, jobs)
    env = dict(os.environ, OMP_NUM_THREADS=str(plan.threads), MKL_NUM_THREADS=str(plan.threads))
    failed = 0
    pool = ThreadPoolExecutor(jobs)
    running: list[subprocess.Popen] = []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        futures: dict[Name, Future[list[Row]]] = {}
        for name, piece in queue.items():
            backbone = _backbone(plan, piece)
            first = futures.get(_name(backbone)) if backbone is not None else None
            futures[name] = pool.submit(_piece, piece, first, today, command, work_dir, env, running)
        names = {future: name for name, future in futures.items()}
        for future in as_completed(names):
            data, arm, seed = names[future]
            label = f'{data}: {arm}, seed {seed}'
            try:
                found = future.result()
            except (UserError, OSError) as e:
                failed += 1
                print(f'{progress.next(None)} {label}: failed: {e}', flush=True)
                continue
            if names[future] not in done:
                append_rows(csv, found)
            print(f'{progress.next(found[0].seconds)} {label}: {found[0].metric} {found[0].value:g}', flush=True)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.terminate()  # it saves, and the next call resumes it
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    pool.shutdown()
    return failed


def _name(piece: Piece) -> Name:
    data, arm, seed = piece
    return data.name, arm.name, seed


def _backbone(plan: Plan, piece: Piece) -> Piece | None:
    """The piece whose weights initialise this one."""
    data, arm, seed = piece
    return (plan.data[data.backbones], arm, seed) if data.backbones else None


def _finished(piece: Piece, today: Origins, work_dir: str) -> list[Row] | None:
    data, arm, seed = piece
    return finished_piece(piece_folder(work_dir, data, arm, seed), today[data.name, arm.name])


def _check_rows(rows: Sequence[Row], unfinished: set[str], today: Origins, csv: str) -> None:
    """UserError if the file has rows that the plan would not give now, or, of unfinished data, not on this machine."""
    for row in rows:
        now = today.get((row.data, row.arm), {})
        if row.data not in unfinished:
            now = {key: value for key, value in now.items() if key not in ('torch', 'device')}
        others = differences(vars(row), now)
        if others:
            raise UserError(
                f'{csv} has rows of {row.data}, {row.arm} with another {", another ".join(others)}: they cannot be '
                'compared with what would be run now; name another file with --csv, or remove them'
            )


def _piece(
    piece: Piece,
    backbone: Future[list[Row]] | None,
    today: Origins,
    command: Sequence[str],
    work_dir: str,
    env: Mapping[str, str],
    running: list[subprocess.Popen],
) -> list[Row]:
    if backbone is not None:
        backbone.result()  # was started before this one; its error is this one's
    found = _finished(piece, today, work_dir)  # its rows may have been lost with the process that was to append them
    if found is not None:
        return found
    data, arm, seed = piece
    folder = piece_folder(work_dir, data, arm, seed)
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
    found = _finished(piece, today, work_dir)
    if found is None:
        raise UserError(f'it left no result, see {path}')
    return found


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
