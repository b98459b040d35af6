"""What the judge finds: a line a check, a verdict a module, a table of many modules."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

PASS, NOTE, FAIL, SKIPPED = STATUSES = ('pass', 'note', 'fail', 'skipped')


@dataclass
class Finding:
    """A line of the report.

    Attributes:
        check (str): Name of the check, one of :data:`mmccd.analysis.judge.checks.CHECKS`.
        status (str): ``'pass'``, ``'note'`` (a cost, or something to know), ``'fail'`` or ``'skipped'``.
        figure (str): What was found, in a few words and numbers.
        advice (str): What to do about it. Default: nothing.
        value (float | None): The figure as a number, where there is one. Default: None.
        seconds (float): Time that the check took.
    """

    check: str
    status: str
    figure: str
    advice: str = ''
    value: float | None = None
    seconds: float = 0.0


def passed(figure: str = '', value: float | None = None) -> Finding:
    """The check found nothing."""
    return Finding('', PASS, figure, value=value)


def note(figure: str, advice: str = '', value: float | None = None) -> Finding:
    """A cost, or something to know; no failure."""
    return Finding('', NOTE, figure, advice, value)


def failed(figure: str, advice: str = '', value: float | None = None) -> Finding:
    """A fault."""
    return Finding('', FAIL, figure, advice, value)


def skipped(reason: str) -> Finding:
    """The check could not be done, for a reason that is no fault of the module."""
    return Finding('', SKIPPED, reason)


@dataclass
class Verdict:
    """All findings about a module.

    Attributes:
        module (str): Its name, ``package.module:Class`` where it has one.
        channels (int): Channels of the features.
        size (tuple[int, int]): Height and width of the features where a check does not choose them.
        like (str | None): Definition that it was compared with.
        options (dict): Arguments that it was built with, beside the channels.
        findings (list[Finding]): In the order of the checks.
    """

    module: str
    channels: int
    size: tuple[int, int]
    like: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def __getitem__(self, check: str) -> Finding:
        """The finding of a check."""
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(check)

    def of(self, status: str) -> list[Finding]:
        """Findings of a status."""
        return [finding for finding in self.findings if finding.status == status]

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return bool(self.of(FAIL))

    @property
    def unfit(self) -> str | None:
        """Why the module could not be judged at all (it cannot be built, or has another output); None if it was."""
        for name in ('build', 'shape'):
            for finding in self.findings:
                if finding.check == name and finding.status == FAIL:
                    return finding.figure
        return None

    def counts(self) -> str:
        """``20 pass, 3 note, 1 fail, 0 skipped``."""
        return ', '.join(f'{len(self.of(status))} {status}' for status in STATUSES)

    def title(self) -> str:
        """The module, how it was built, and what it was compared with."""
        options = ''.join(f', {k}={v!r}' for k, v in self.options.items())
        return f'{self.module}({self.channels}{options})' + (f' like {self.like}' if self.like else '')

    def text(self) -> str:
        """For a terminal: a line a check; beneath what to do."""
        wide = max((len(f.check) for f in self.findings), default=0)
        lines = [self.title()]
        for f in self.findings:
            lines.append(f'{f.status:8}{f.check:{wide}}  {f.figure}')
            if f.advice:
                lines.append(f'{"":8}{"":{wide}}  -> {f.advice}')
        return '\n'.join([*lines, self.counts()])

    def __str__(self) -> str:
        return self.text()

    def markdown(self) -> str:
        """A table of the findings."""
        lines = [f'## {_cell(self.title())}', '', '| check | result | figure | what to do |', '|---|---|---|---|']
        lines += [f'| {f.check} | {_mark(f.status)} | {_cell(f.figure)} | {_cell(f.advice)} |' for f in self.findings]
        return '\n'.join([*lines, '', self.counts()])

    def as_dict(self) -> dict:
        """For programs."""
        return dict(
            module=self.module,
            like=self.like,
            channels=self.channels,
            size=list(self.size),
            options={k: _plain(v) for k, v in self.options.items()},
            failed=self.failed,
            findings=[
                {**asdict(f), 'value': f.value if f.value is None or math.isfinite(f.value) else None}
                for f in self.findings
            ],
        )


def _plain(value: Any) -> Any:
    """For JSON, which has no NaN and no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value if isinstance(value, (int, float, str, bool, type(None))) else repr(value)


COLUMNS = ('module', 'like', 'parameters', 'gain', 'forward', 'training', 'padding', 'failed checks')
_SHOWN = ('parameters', 'gain', 'forward', 'training', 'padding')


@dataclass
class Table:
    """Verdicts of many modules.

    Attributes:
        verdicts (list[Verdict]): Of the modules that were judged.
        left_out (dict[str, str]): Modules that were not, with the reason.
        title (str), text_above (str): Of the pages. Default: a title that counts the modules.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    title: str = ''
    text_above: str = ''

    @property
    def failed(self) -> bool:
        """Whether a module failed a check."""
        return any(v.failed for v in self.verdicts)

    def rows(self) -> list[list[str]]:
        """A row a module, by :data:`COLUMNS`."""
        rows = []
        for v in self.verdicts:
            values = {f.check: f.value for f in v.findings}
            cells = [_short(name, values.get(name)) for name in _SHOWN]
            rows.append([v.module, v.like or '', *cells, ', '.join(f.check for f in v.of(FAIL)) or 'none'])
        return rows

    def text(self) -> str:
        """For a terminal: a line a module; of a single one, a line a check."""
        if len(self.verdicts) == 1 and not self.left_out:
            return self.verdicts[0].text()
        rows = [list(COLUMNS), *self.rows()]
        wide = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        lines = ['  '.join(f'{cell:{w}}' for cell, w in zip(row, wide)).rstrip() for row in rows]
        return '\n'.join([*lines, self.counts()])

    def counts(self) -> str:
        """How many modules failed and were left out."""
        bad = sum(v.failed for v in self.verdicts)
        some = 'module' if len(self.verdicts) == 1 else 'modules'
        return f'{len(self.verdicts)} {some} judged, {bad} with a failed check, {len(self.left_out)} left out'

    def markdown(self, details: bool = True) -> str:
        """The table, what failed, and the notes on what was left out."""
        lines = ['| ' + ' | '.join(COLUMNS) + ' |', '|' + '---|' * len(COLUMNS)]
        lines += ['| ' + ' | '.join(_cell(cell) for cell in row) + ' |' for row in self.rows()]
        lines += ['', self.counts() + '.']
        if details:
            for v in self.verdicts:
                if v.failed:
                    lines += ['', f'## {_cell(v.title())}', '']
                    lines += [f'* **{f.check}**: {_cell(f.figure)}' for f in v.of(FAIL)]
        if self.left_out:
            lines += ['', '## Left out', '', *(f'* {_cell(k)}: {_cell(v)}' for k, v in self.left_out.items())]
        return '\n'.join(lines)

    def as_dict(self) -> dict:
        """For programs."""
        return dict(modules=[v.as_dict() for v in self.verdicts], left_out=self.left_out, failed=self.failed)


def _short(name: str, value: float | None) -> str:
    if value is None:
        return ''
    if name == 'parameters':
        return f'{value:,.0f}'
    return f'{100 * value:.3g} %' if name == 'padding' else f'{value:.3g}' if name == 'gain' else f'{value:.3g} x'


def _mark(status: str) -> str:
    return f'**{status}**' if status == FAIL else status


def _cell(text: str) -> str:
    """A text in a cell of Markdown."""
    return text.replace('\\', '\\\\').replace('|', '\\|').replace('<', '&lt;').replace('\n', ' ')
