"""All checks of one module, in this process."""

from __future__ import annotations

import contextlib
import inspect
import io
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from mmccd.errors import UserError, suggest

from .checks import CHECKS, Check
from .references import find_reference
from .results import FAIL, Finding, Verdict, failed, skipped
from .subject import Subject, one_line

# Told the name of each check as it begins.
Progress = Callable[[str], None]
NEEDED = ('build', 'shape')  # without these nothing else can be asked


def check_attention(
    module: Any,
    like: str | None = None,
    channels: int = 256,
    size: tuple[int, int] = (14, 14),
    options: dict[str, Any] | None = None,
    like_options: dict[str, Any] | None = None,
    checks: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Judge a module from (N, C, H, W) to the same: is it what its paper says, and is it fit for use?

    The checks are those of ``tools/checks/check_attention.py``, in this process: what hangs or ends it, hangs or ends
    this. The module itself is not changed, and neither are the random numbers that follow.

    Args:
        module (nn.Module | type | Callable | str): A module, a class, a function from a number of channels to a
            module, or ``'package.module:Class'``.
        like (str, optional): A definition to compare it with, e.g. ``'CBAM'``. Default: None.
        channels (int): Channels of the features. Default: 256.
        size (tuple[int, int]): Height and width of the features, in pixels. Default: (14, 14).
        options (dict, optional): Arguments of the class or the function. Those that the definition has as well go to
            it, too.
        like_options (dict, optional): Options of the definition alone.
        checks (Sequence[str], optional): Names of checks, in place of all of them.
        progress (Callable, optional): Called with the name of each check as it begins.

    Returns:
        Verdict: Its findings; ``print`` shows them.

    Raises:
        UserError: If there is no such definition, check or option, or a number is out of range.

    Example:
        >>> import torch
        >>> import mmccd
        >>> verdict = mmccd.check_attention(torch.nn.Identity, channels=8, size=(6, 6), checks=['gain', 'nan'])
        >>> print(verdict['gain'].status, verdict['gain'].value)
        pass 1.0
    """
    subject = make_subject(module, like, channels, size, options, like_options)
    names = chosen_checks(checks)
    findings = []
    for kind, value in run_checks(subject, names):
        if kind == 'start' and progress is not None:
            progress(value)
        elif kind == 'done':
            findings.append(value)
    return verdict_of(subject, findings)


def make_subject(
    module: Any,
    like: str | None,
    channels: int,
    size: tuple[int, int],
    options: dict[str, Any] | None,
    like_options: dict[str, Any] | None,
) -> Subject:
    """A subject of checked arguments; UserError as :func:`check_attention`."""
    for name, value in (('channels', channels), ('size', min(size)), ('size', max(size))):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f'{name} must be at least 1, got {value}')
    if isinstance(module, str) and not all(module.partition(':')):
        raise UserError(f"MODULE must be package.module:Class, e.g. 'mmccd.models:CCD', got {module!r}")
    chosen = dict(like_options or {})
    if like is None:
        if chosen:
            raise UserError(f'options of the definition need --like, got {chosen}')
    else:
        kind = find_reference(like)
        like = kind.__name__
        names = _options_of(kind)
        for name in chosen:
            if name not in names:
                raise UserError(f'{like} has no option {name!r}{suggest(name, names)}; it has {", ".join(names)}')
        # The same word may have another meaning: a ratio of 1 / 16 is none of the definition's.
        taken = {k: v for k, v in (options or {}).items() if k in names and _fits(v, names[k])}
        chosen = {**taken, **chosen}
    return Subject(module, channels, size, dict(options or {}), like, chosen)


def _options_of(kind: type) -> dict[str, Any]:
    """Options of a definition with their defaults."""
    parameters = inspect.signature(kind).parameters
    return {n: p.default for n, p in parameters.items() if n not in ('channels', 'shared', 'options')}


def _fits(value: Any, default: Any) -> bool:
    """Whether a value is of the kind of a default."""
    return not (isinstance(value, float) and isinstance(default, int))


def chosen_checks(checks: Iterable[str] | None) -> list[str]:
    """Names of checks with those that all others need, in order. UserError if there is no such check."""
    if checks is None:
        return list(CHECKS)
    for name in checks:
        if name not in CHECKS:
            raise UserError(f'there is no check {name!r}{suggest(name, CHECKS)}; there are {", ".join(CHECKS)}')
    return [name for name in CHECKS if name in NEEDED or name in checks]


def run_checks(
    subject: Subject, names: Sequence[str], report_case: Callable[[str], None] = lambda text: None
) -> Iterator[tuple[str, Any]]:
    """('start', name) and ('done', finding) of each check in turn."""
    broken = ''
    for name in names:
        yield 'start', name
        begin = time.perf_counter()
        if broken:
            finding = skipped(f'{broken} failed')
        else:
            finding = _one(CHECKS[name], subject, report_case)
            if name in NEEDED and finding.status == FAIL:
                broken = name
        finding.check, finding.seconds = name, round(time.perf_counter() - begin, 3)
        yield 'done', finding


def _one(check: Check, subject: Subject, report_case: Callable[[str], None]) -> Finding:
    """A check, whatever the module does to it."""
    case = ['']

    def note_case(text: str) -> None:
        case[0] = text
        report_case(text)

    with torch.random.fork_rng(devices=[]), torch.enable_grad(), _quiet():
        try:
            return check.run(subject, note_case)
        except (Exception, SystemExit) as e:  # of a foreign module: whatever it raises is what is reported
            return failed(f'{case[0]}: raises {one_line(e)}' if case[0] else f'raises {one_line(e)}')


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What a module prints and warns of is not the report."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        yield


def verdict_of(subject: Subject, findings: list[Finding]) -> Verdict:
    """The findings, with what they are about."""
    return Verdict(subject.name, subject.channels, subject.size, subject.like, subject.options, findings)
