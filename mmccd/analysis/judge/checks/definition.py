"""The module beside the definition of ``--like``: its number of parameters, its values and its gradients."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..mapping import TURNS, Mapping, candidates, shapes_of
from ..references import Reference, find_reference
from ..references.base import COMMON, Mutant
from ..results import Finding, failed, note, passed, skipped
from ..subject import Subject
from .base import Case, attempt, check, difference, number, with_gradient

SIZE = (9, 7)  # another number of rows than of columns
SECONDS = 8.0  # that are spent on finding a mapping, and again on finding what is wrong
EQUAL = 1e-6  # what constants rounded to float32 leave
NEARLY = 1e-4  # what another number beside a deviation leaves, where that is not small


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _options(options: dict[str, Any]) -> str:
    return ', '.join(f'{k}={v}' for k, v in options.items())


@check('parameters', 'Are there as many parameters as the definition has?')
def parameters(s: Subject, case: Case) -> Finding:
    case('counting')
    count = _count(s.build())
    if s.like is None:
        return Finding('', 'pass', f'{count:,}', value=count)
    kind = find_reference(s.like)
    for variant in kind.variants:
        reference, error = attempt(lambda: kind(s.channels, **{**variant, **s.like_options}))  # noqa: B023
        if error:
            return skipped(f'{s.like} cannot be built with {s.channels} channels: {error}')
        if _count(reference) == count:
            how = f' ({_options(variant)})' if variant else ''
            return Finding('', 'pass', f'{count:,}, as {s.like}{how}', value=count)
    expected = _count(kind(s.channels, **{**kind.variants[0], **s.like_options}))
    text = f'{count:,}, and {s.like} has {expected:,} ({kind.formula})'
    if expected:
        text += f': {count / expected:.3g} times as many'
    explained = _explanation(kind, s, count)
    if explained:
        return failed(f'{text}; it is that of {explained}', f'pass --like-options {explained} if this is meant', count)
    return failed(text, f'compare its layers with the paper: {kind.paper}', count)


def _explanation(kind: type[Reference], s: Subject, count: int) -> str:
    """Options of the definition with which it has this number."""
    for values in itertools.product(*kind.searched.values()):
        options = dict(zip(kind.searched, values))
        reference, error = attempt(lambda: kind(s.channels, **{**s.like_options, **options}))  # noqa: B023
        if not error and _count(reference) == count:
            usual = kind(s.channels)
            changed = {k: v for k, v in options.items() if _count(kind(s.channels, **{k: v})) != _count(usual)}
            return ' '.join(f'{k}={v}' for k, v in (changed or options).items())
    return ''


class Match(NamedTuple):
    """The definition with the module's weights in it."""

    away: float
    reference: Reference
    mapping: Mapping
    tried: int
    options: dict[str, Any]


def _best(
    module: nn.Module, s: Subject, x: Tensor, y: Tensor, options: list[dict], mutant: Mutant | None, seconds: float
) -> Match | None:
    """The mapping with the nearest values, over all options of the definition and all orders of like shapes."""
    best, end = None, time.monotonic() + seconds
    assert s.like is not None
    kind = find_reference(s.like)
    for choice in options:
        reference, error = attempt(lambda: kind(s.channels, **choice).to(s.dtype).eval())  # noqa: B023
        if error:
            continue
        for tried, mapping in enumerate(candidates(module, reference), 1):
            mapping.fill()
            with torch.no_grad():
                right, error = attempt(lambda: reference(x))  # noqa: B023
            if error:
                break
            if mutant is not None:
                right = mutant.result(x, right)
            away = difference(y, right)
            if best is None or away < best.away:
                best = Match(away, reference, mapping, tried, choice)
            if away < EQUAL or time.monotonic() > end:
                break
        if best is not None and best.away < EQUAL:
            return best
    return best


@check('equality', 'Does it compute what the definition does? values and gradients, weights mapped by shape')
def equality(s: Subject, case: Case) -> Finding:
    if s.like is None:
        return skipped('pass --like NAME to compare it with a definition')
    kind = find_reference(s.like)
    tolerance = EQUAL if s.dtype == torch.float64 else 1e-4
    size = SIZE if not attempt(lambda: s.lively(19)(s.features(3, SIZE)))[1] else s.size
    module, x = s.lively(19), s.features(3, size, seed=5)
    with torch.no_grad():
        y, error = attempt(lambda: module(x.clone()))
    if error:
        return failed(f'raises {error}')
    case('mapping the weights')
    options = [{**variant, **s.like_options} for variant in kind.variants]
    match = _best(module, s, x, y, options, None, SECONDS)
    if match is not None and tolerance < match.away <= NEARLY:
        return note(
            f'values as {s.like} up to {number(match.away)} of the largest feature',
            'another eps of a norm?',
            match.away,
        )
    if match is None or match.away > tolerance:
        case('looking for what is different')
        return _different(s, kind, module, x, y, match)
    return _gradients(s, match, module, x, tolerance)


def _gradients(s: Subject, match: Match, module: nn.Module, x: Tensor, tolerance: float) -> Finding:
    match.mapping.fill()
    reference = match.reference
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(6)).to(x)
    reference.zero_grad()
    (_, right), (_, found) = with_gradient(reference, x, upstream), with_gradient(module, x, upstream)
    how = f', {_options(match.options)}' if match.options else ''
    if match.mapping.turn:
        how += f', {match.mapping.turn}'
    if match.tried > 1:
        how += f', the best of {match.tried} orders of weights of the same shape'
    text = f'values as {s.like} (largest difference {number(match.away)}{how})'
    if difference(found, right) > 10 * tolerance:
        return failed(f'{text}, but another gradient of the input (by {number(difference(found, right))})')
    scale = max((p.grad.abs().amax().item() for p in reference.parameters() if p.grad is not None), default=0.0)
    for (source, name), (target, other) in match.mapping.pairs:
        mine, theirs = getattr(source, name), getattr(target, other)
        if not isinstance(mine, nn.Parameter) or theirs.grad is None:
            continue
        if mine.grad is None:
            if theirs.grad.abs().amax().item() <= 1e-9 * scale:
                continue
            return failed(f'{text}, but no gradient of {name} {tuple(mine.shape)}')
        gap = (TURNS[match.mapping.turn](mine.grad).reshape(theirs.shape) - theirs.grad).abs().amax().item()
        if gap > 10 * tolerance * max(scale, 1e-12):
            return failed(f'{text}, but another gradient of {name} {tuple(mine.shape)}')
    # In training, statistics are those of the batch.
    module.train()
    reference.train()
    with torch.no_grad():
        (mine, error), (theirs, other_error) = attempt(lambda: module(x.clone())), attempt(lambda: reference(x))
    if not error and not other_error and difference(mine, theirs) > tolerance:
        away = number(difference(mine, theirs))
        return note(
            f'{text}; in training mode it is {away} away', 'dropout, or norms with other statistics', match.away
        )
    return passed(f'{text}, gradients too', match.away)


def _different(
    s: Subject, kind: type[Reference], module: nn.Module, x: Tensor, y: Tensor, match: Match | None
) -> Finding:
    """Name the mistake, if it is one that is known."""
    advice = f'compare it with the paper: {kind.paper}'
    end = time.monotonic() + SECONDS
    for text, options, mutant in _mistakes(s, kind):
        if time.monotonic() > end:
            break
        found = _best(module, s, x, y, [options], mutant, 1.0)
        if found is not None and found.away <= NEARLY:
            near = f', up to {number(found.away)}' if found.away > EQUAL else ''
            return failed(f'it {text}{near}', advice)
    if match is None:
        mine, theirs = shapes_of(module), shapes_of(kind(s.channels, **{**kind.variants[0], **s.like_options}))
        return failed(
            f'its weights do not fit: {_listed(mine)}; {s.like} has {_listed(theirs)}',
            advice,
        )
    return failed(
        f'it computes something else: {number(match.away)} of the largest feature away from {s.like}, with the best of '
        f'{match.tried} orders of its weights',
        advice,
        match.away,
    )


def _mistakes(s: Subject, kind: type[Reference]) -> Iterator[tuple[str, dict[str, Any], Mutant]]:
    """Each known mistake on each variant; then the right thing with other options, and mistakes of those."""
    for mutant in (*kind.mutants, *COMMON):
        for variant in kind.variants:
            yield mutant.text, {**variant, **s.like_options, **mutant.options}, mutant
    plain = Mutant('', {})
    for values in itertools.product(*kind.searched.values()):
        options = dict(zip(kind.searched, values))
        yield f'is {s.like} with {_options(options)}', {**s.like_options, **options}, plain
    for mutant in (*kind.mutants, *COMMON):
        for values in itertools.product(*kind.searched.values()):
            options = dict(zip(kind.searched, values))
            text = f'{mutant.text} (and {_options(options)})'
            yield text, {**s.like_options, **options, **mutant.options}, mutant


def _listed(shapes: list[str]) -> str:
    text = ', '.join(shapes[:8])
    return f'{text}, ...' if len(shapes) > 8 else text or 'none'
