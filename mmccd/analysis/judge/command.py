"""What ``tools/checks/check_attention.py`` does: which modules, one after the other, and the files it writes."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmccd.errors import UserError, suggest

from .child import Job, judge, list_modules
from .page import html, versions
from .results import Table
from .run import Progress, chosen_checks

SUFFIXES = ('.md', '.json', '.html')
FIELDS = ('module', 'like', 'channels', 'size', 'options', 'like_options', 'checks')


def jobs_of(
    modules: Sequence[str], packages: Sequence[str], file: str | None, common: dict[str, Any], out: Sequence[str]
) -> tuple[list[Job], Table]:
    """Everything that is to be judged, its arguments checked; a table with what cannot be imported, and a title."""
    for path in map(Path, out):
        if path.suffix not in SUFFIXES or not path.parent.is_dir():
            raise UserError(f'--out must be .md, .json or .html in a folder that exists, got {str(path)!r}')
    if os.getcwd() not in sys.path:  # modules of the user's own
        sys.path.append(os.getcwd())
    jobs, left_out = [Job(module, **common) for module in modules], {}
    for package in packages:
        found, broken = list_modules(package)
        jobs += [Job(module, **common) for module in found]
        left_out.update(broken)
    title, text = '', ''
    if file is not None:
        listed, title, text = _listed(Path(file), common)
        jobs += listed
    if not jobs and not left_out:
        raise UserError('name a MODULE as package.module:Class, or a package with --all, or a --list')
    for job in jobs:
        job.subject()
    chosen_checks(common['checks'])
    return jobs, Table(left_out=left_out, title=title, text_above=text)


def _listed(path: Path, common: dict[str, Any]) -> tuple[list[Job], str, str]:
    """Jobs of a file, a list of objects with 'module' and what differs from the command line; title and text, if it is
    an object with these and the list as 'modules'.
    """
    try:
        entries = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as e:
        raise UserError(f'--list: {path} cannot be read as JSON: {e}') from e
    title, text = '', ''
    if isinstance(entries, dict):
        title, text = str(entries.get('title', '')), str(entries.get('text', ''))
        entries = entries.get('modules')
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get('module'), str) for e in entries
    ):
        raise UserError(f"--list: {path} must be a list of objects with a text 'module'")
    for entry in entries:
        for key in entry:
            if key not in FIELDS:
                raise UserError(f'--list: {path}: {entry["module"]} has the key {key!r}{suggest(key, FIELDS)}')
    jobs = [Job(**{**common, **entry, 'size': tuple(entry.get('size', common['size']))}) for entry in entries]
    return jobs, title, text


def judge_all(
    jobs: Sequence[Job], table: Table, seconds: float, lenient: bool, save: Callable[[Table], None] = lambda table: None
) -> None:
    """Judge one module after the other, with a progress bar.

    Args:
        jobs (Sequence[Job]): What is to be judged.
        table (Table): Gets the verdicts.
        seconds (float): Limit of one check.
        lenient (bool): Leave out, too, what cannot be built or has features of another shape: of all classes of a
            package, most are something else.
        save (Callable): Called after each module, so that nothing is lost if the next one takes too long.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f'--time-limit must be above 0, got {seconds}')
    total = sum(len(chosen_checks(job.checks)) for job in jobs)
    with _Bar(total) as bar:
        for job in jobs:
            verdict = judge(job, seconds, progress=bar.at(job.module))
            bar.fill(len(chosen_checks(job.checks)))
            if lenient and verdict.unfit:
                table.left_out[job.module] = verdict.unfit
            else:
                table.verdicts.append(verdict)
            save(table)


class _Bar:
    """tqdm's progress bar on a terminal; nothing where tqdm is not installed."""

    def __init__(self, total: int) -> None:
        try:
            from tqdm import tqdm
        except ImportError:
            self.bar = None
        else:
            self.bar = tqdm(total=total, unit='checks', disable=None, leave=False)
        self.done = 0

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def at(self, module: str) -> Progress:
        """Shows the check of a module that begins; each one is a step."""
        self.started = 0

        def progress(check: str) -> None:
            if self.bar is not None:
                self.bar.set_description(f'{module.rpartition(":")[2]}: {check}', refresh=False)
                if self.started:
                    self.bar.update()
            self.started += 1

        return progress

    def fill(self, count: int) -> None:
        """A module is done, of whose checks some may not have begun."""
        self.done += count
        if self.bar is not None:
            self.bar.update(self.done - self.bar.n)


def write(table: Table, out: Sequence[str], command: str) -> None:
    """Write the files, each by its suffix."""
    for path in map(Path, out):
        title = table.title or f'{len(table.verdicts)} attentions judged'
        if len(table.verdicts) == 1 and not table.title:
            title = f'{table.verdicts[0].module} judged'
        if path.suffix == '.html':
            text = html(table, title, command)
        elif path.suffix == '.json':
            text = json.dumps({**table.as_dict(), 'command': command, 'versions': versions(table)}, indent=1) + '\n'
        else:
            made = ', '.join(f'{k} {v}' for k, v in versions(table).items())
            each = [v.markdown() for v in table.verdicts] if len(table.verdicts) == 1 and not table.left_out else []
            head = [f'# {title}', *([table.text_above] if table.text_above else [])]
            text = '\n\n'.join([*head, f'```shell\n{command}\n```', f'{made}.', *(each or [table.markdown()])]) + '\n'
        partial = path.with_name(f'{path.name}.partial')
        partial.write_text(text, encoding='utf-8')
        os.replace(partial, path)
