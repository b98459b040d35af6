"""Time and memory, beside a copy of the features."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..results import Finding, failed, note
from ..subject import Subject
from .base import Case, attempt, check

SECONDS = 0.6  # for each of the two things compared
SIZE = (56, 56)
SLOW, SLOW_TRAINING, LARGE = 60.0, 150.0, 12.0  # from here on, the note says so


def _times(calls: list[Callable[[], object]], seconds: float = SECONDS) -> list[float]:
    """Median seconds of each call, taken in turns."""
    for call in calls:
        call()
    found: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end or len(found[0]) < 3:
        for call, times in zip(calls, found):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in found]


def _subject(s: Subject) -> tuple[nn.Module, Tensor]:
    """The module in float32 and features of a usual size, or of the one size that it takes."""
    module = s.lively(18, torch.float32)
    x = s.features(2, SIZE, dtype=torch.float32)
    with torch.no_grad():
        if attempt(lambda: module(x.clone()))[1]:
            x = s.features(2, dtype=torch.float32)
    return module, x


@check('forward', 'How long does a forward take, in copies of the features?')
def forward(s: Subject, case: Case) -> Finding:
    case('forward')
    module, x = _subject(s)
    with torch.no_grad():
        found, error = attempt(lambda: _times([lambda: module(x), x.clone]))
    return _timed(found, error, x, SLOW)


@check('training', 'How long do forward and backward take, in copies of the features?')
def training(s: Subject, case: Case) -> Finding:
    case('forward and backward')
    module, x = _subject(s)
    leaf, upstream = x.requires_grad_(), torch.ones_like(x)

    def step() -> None:
        leaf.grad = None
        module(leaf * 1).backward(upstream)

    found, error = attempt(lambda: _times([step, x.detach().clone]))
    return _timed(found, error, x, SLOW_TRAINING)


def _timed(found: list[float], error: str, x: Tensor, slow: float) -> Finding:
    if error:
        return failed(f'raises {error}')
    ratio = found[0] / found[1]
    n, c, h, w = x.shape
    text = (
        f'{ratio:.1f} times a copy of ({n}, {c}, {h}, {w}): {1e3 * found[0]:.2f} ms, {torch.get_num_threads()} threads'
    )
    return note(text, 'slow beside what it does: look for large temporary maps' if ratio > slow else '', ratio)


@check('memory', 'How much does it keep for the backward, in copies of the features?')
def memory(s: Subject, case: Case) -> Finding:
    case('tensors kept for the backward')
    module, x = _subject(s)
    own = {p.untyped_storage().data_ptr() for p in [*module.parameters(), *module.buffers()]}
    leaf = x.requires_grad_()
    source = leaf * 1
    own.add(source.untyped_storage().data_ptr())
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with saved_tensors_hooks(keep, lambda t: t):
        y, error = attempt(lambda: module(source))
    if error:
        return failed(f'raises {error}')
    del y
    value = sum(kept.values()) / x.untyped_storage().nbytes()
    advice = 'torch.utils.checkpoint, or fewer maps of full size' if value > LARGE else ''
    return note(f'{value:.2f} copies of the features, beside its input', advice, value)
