"""The matrix run: a process a config, with a time limit; results are written one by one, and kept."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mmdet
import torch
import torchvision

import mmccd
from mmccd.checkpoints.files import valid_json, write_atomically
from mmccd.errors import UserError

from .trial import Result, Trial, try_config


def versions() -> dict[str, str]:
    """What the results depend on."""
    import mmcv
    import mmengine

    return dict(
        mmccd=mmccd.__version__,
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        mmengine=mmengine.__version__,
        mmcv=mmcv.__version__,
        mmdet=mmdet.__version__,
    )


def read_results(path: str | os.PathLike) -> list[Result]:
    """Results of an earlier run; none if there is no such file.

    Raises:
        UserError: If the file cannot be read, or is none of these.
    """
    if not os.path.exists(path):
        return []
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        return [_result(row) for row in content['results']]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f'{path} has no results of the matrix: {e}') from e


def _result(row: dict[str, Any]) -> Result:
    names = Trial.__dataclass_fields__
    control = row['control']
    return Result(row['config'], Trial(**{n: row[n] for n in names}), None if control is None else Trial(**control))


def run_matrix(
    configs: Sequence[str],
    path: str | os.PathLike,
    attention: str = 'mmccd.CCD',
    limit: float = 300,
    again: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> list[Result]:
    """Try configs one after the other; what ``path`` has results of already is kept.

    Args:
        configs (Sequence[str]): Their names.
        path (str | PathLike): JSON file of the results, which is written after each.
        attention (str): Name in the registry. Default: ``'mmccd.CCD'``.
        limit (float): Seconds for a config. Default: 300.
        again (Sequence[str]): Outcomes whose configs are tried again. Default: none.
        say (Callable): Is told about each config.

    Returns:
        list[Result]: All that ``path`` has, in the order of their names.
    """
    results = {result.config: result for result in read_results(path)}
    todo = [name for name in configs if name not in results or results[name].outcome in again]
    for i, name in enumerate(todo, 1):
        trial = in_process(name, attention, limit)
        control = None if trial.step == 'done' else in_process(name, None, limit)
        results[name] = result = Result(name, trial, control)
        save(path, results.values())
        why = f', {trial.step}: {trial.reason}' if trial.reason else ''
        say(f'[{i}/{len(todo)}] {name}: {result.outcome} ({trial.seconds:.0f} s){why}')
    save(path, results.values())
    return sorted(results.values(), key=lambda r: r.config)


def save(path: str | os.PathLike, results: Any) -> None:
    """Write results as JSON, in the order of their configs' names."""
    rows = [result.to_dict() for result in sorted(results, key=lambda r: r.config)]
    lines = ',\n'.join(f'  {valid_json(row)}' for row in rows)
    head = json.dumps(versions())
    write_atomically(os.fspath(path), f'{{"versions": {head},\n "results": [\n{lines}\n]}}\n'.encode())


def in_process(name: str, attention: str | None, limit: float) -> Trial:
    """:func:`try_config` in a process of its own, which is ended after ``limit`` seconds."""
    context = multiprocessing.get_context('forkserver' if 'forkserver' in _METHODS else 'spawn')
    if context.get_start_method() == 'forkserver':
        context.set_forkserver_preload([__name__])  # imports once what takes seconds
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(there, name, attention), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(limit):
            return Trial(reason=f'took longer than {limit:g} s', seconds=limit)
        return Trial(**here.recv())
    except EOFError:
        process.join()
        return Trial(reason=f'the process ended with code {process.exitcode}')
    finally:
        process.kill()
        process.join()
        here.close()


_METHODS = multiprocessing.get_all_start_methods()


def _child(pipe: Connection, name: str, attention: str | None) -> None:
    warnings.simplefilter('ignore')
    with open(os.devnull, 'w') as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        trial = try_config(name, attention)
    pipe.send(asdict(trial))
    pipe.close()
