"""Gradients: one for every parameter, and the right one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..results import Finding, failed, note, passed
from ..subject import Subject
from .base import Case, attempt, check, number

DRAWS = 4
SIZE = (24, 24)  # large enough that every weight of a dilated kernel is used
ZERO = 1e-12  # of the largest gradient: what rounding leaves of a derivative that is zero


@check('gradients', 'Does every parameter get a gradient?')
def gradients(s: Subject, case: Case) -> Finding:
    """Over several weights and features, in both modes, since a ReLU may be closed in one of them."""
    case('weights and features drawn several times')
    size = SIZE if not attempt(lambda: s.lively(0)(s.features(2, SIZE)))[1] else s.size
    names = [name for name, p in s.build().named_parameters() if p.requires_grad]
    if not names:
        return passed('no parameters')
    largest: dict[str, Tensor] = {}
    used: set[str] = set()
    for draw in range(DRAWS):
        for training in (False, True):
            module = s.lively(draw).train(training)
            x = s.features(4, size, seed=draw)
            grads, error = attempt(lambda: _gradients(module, x, draw))  # noqa: B023
            if error:
                if training:
                    continue
                return failed(f'raises {error}', 'the backward has to run')
            for name, grad in grads.items():
                used.add(name)
                grad = grad.abs().nan_to_num(1.0)
                largest[name] = torch.maximum(largest[name], grad) if name in largest else grad
    scale = max((grad.amax().item() for grad in largest.values() if grad.numel()), default=0.0)
    parameters = dict(s.build().named_parameters())
    dead, without_effect, partly = [], [], []
    for name in names:
        if name not in used:
            dead.append(f'{name} {tuple(parameters[name].shape)} is not used')
            continue
        grad = largest[name]
        if grad.numel() and grad.amax().item() <= ZERO * scale:
            # A constant before a softmax or a norm changes nothing: harmless, where it is a bias.
            bias = parameters[name].numel() == 1 or (parameters[name].dim() == 1 and name.endswith('bias'))
            (without_effect if bias else dead).append(f'{name} {tuple(parameters[name].shape)} has no effect')
        elif grad.numel() >= 4 and (share := (grad == 0).double().mean().item()) >= 0.1:
            partly.append(f'{100 * share:.0f} % of {name} is never used')
    if dead or partly:
        return failed(
            '; '.join([*dead, *partly]),
            'remove it, or use it: DistributedDataParallel stops at parameters without a gradient',
            len(dead) + len(partly),
        )
    if without_effect:
        return note('; '.join(without_effect), 'a constant before a softmax or a norm: bias=False saves it', 0.0)
    return passed(f'all {len(names)}', 0.0)


def _gradients(module: nn.Module, x: Tensor, seed: int) -> dict[str, Tensor]:
    leaf = x.requires_grad_()
    y = module(leaf * 1)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y)
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(y, list(named.values()), upstream, allow_unused=True)
    return {name: grad for name, grad in zip(named, found) if grad is not None}


@check('derivative', 'Is the gradient that of the output, by finite differences in float64?')
def derivative(s: Subject, case: Case) -> Finding:
    if s.dtype != torch.float64:
        return note('not measured: it does not compute in float64')
    case('one direction in all inputs and parameters')
    gaps = []  # three, of which the middle one counts: a kink may be hit
    for seed in range(3):
        module = s.lively(seed + 7)
        x = s.features(2, seed=seed)
        found, error = attempt(lambda: _directional(module, x, seed))  # noqa: B023
        if error:
            return failed(f'raises {error}')
        by_autograd, by_differences = found
        scale = max(abs(by_differences), abs(by_autograd), 1e-6)
        gaps.append(min(abs(by_autograd - by_differences) / scale, 1e9))
    worst = sorted(gaps)[1]
    if worst > 1e-3:
        return failed(
            f'{number(worst)} away',
            'detach(), .data or a backward of its own: leave it, if this is meant, and say so in its documentation',
            worst,
        )
    return passed(f'{number(worst)} away', worst)


def _directional(module: nn.Module, x: Tensor, seed: int) -> tuple[float, float]:
    """The derivative along a random direction, by autograd and by central differences."""
    generator = torch.Generator().manual_seed(seed)
    values = [x, *(p for p in module.parameters() if p.requires_grad)]
    directions = [torch.randn(v.shape, generator=generator).to(v) for v in values]
    weight = torch.randn(x.shape, generator=generator).to(x)
    leaf = x.clone().requires_grad_()
    y = module(leaf * 1)
    grads = torch.autograd.grad((y * weight).sum(), [leaf, *values[1:]], allow_unused=True)
    by_autograd = sum((g * d).sum().item() for g, d in zip(grads, directions) if g is not None)
    step, sums = 3e-8, []  # small, so that few ReLUs change sides
    start = [p.detach().clone() for p in values[1:]]
    with torch.no_grad():
        for sign in (1, -1):
            for p, p0, d in zip(values[1:], start, directions[1:]):
                p.copy_(p0 + sign * step * d)
            sums.append((module(x + sign * step * directions[0]) * weight).sum().item())
        for p, p0 in zip(values[1:], start):
            p.copy_(p0)
    return by_autograd, (sums[0] - sums[1]) / (2 * step)
