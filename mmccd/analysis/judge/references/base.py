"""What the definitions share: functions that a mutant replaces, and the list of what is often got wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mutant(NamedTuple):
    """A mistake: how to say it, options of the definition that make it, and what is done to its result."""

    text: str
    options: dict[str, Any]
    result: Callable[[Tensor, Tensor], Tensor] = lambda x, y: y


class Reference(nn.Module):
    """A definition from (N, C, H, W) to the same.

    Attributes:
        paper (str): Where it is from.
        formula (str): Its number of parameters, in words of its options.
        variants (tuple[dict, ...]): Options under which it is the paper's, where the paper leaves them open.
        searched (dict[str, tuple]): Options that explain another number of parameters, with values to try.
        mutants (tuple[Mutant, ...]): Mistakes of this one, beside :data:`COMMON`.
    """

    paper = ''
    formula = ''
    variants: tuple[dict[str, Any], ...] = ({},)
    searched: dict[str, tuple] = {}
    mutants: tuple[Mutant, ...] = ()

    def __init__(
        self, squash: Callable = torch.sigmoid, average: Callable | None = None, maximum: Callable | None = None
    ):
        super().__init__()
        self.squash = squash
        self.average = average or mean
        self.maximum = maximum or greatest


def mean(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Mean over some dimensions, which are kept."""
    return x.mean(dims, keepdim=True)


def greatest(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Maximum over some dimensions, which are kept."""
    return x.amax(dims, keepdim=True)


def _sum(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.sum(dims, keepdim=True)


def _deviation(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.std(dims, keepdim=True)


COMMON = (
    Mutant('adds its input once more (x + x * gate)', {}, lambda x, y: x + y),
    Mutant('is its gate, not multiplied by the input', {}, lambda x, y: y / x),
    Mutant('multiplies by its gate twice', {}, lambda x, y: y * y / x),
    Mutant('has a gate that is twice as large', {}, lambda x, y: 2 * y),
    Mutant('has a gate that is one minus the right one', {}, lambda x, y: x - y),
    Mutant('returns its input', {}, lambda x, y: x),
    Mutant('has no sigmoid', dict(squash=lambda t: t)),
    Mutant('has a hard sigmoid in place of the sigmoid', dict(squash=F.hardsigmoid)),
    Mutant('has the sigmoid twice', dict(squash=lambda t: t.sigmoid().sigmoid())),
    Mutant('has a tanh in place of the sigmoid', dict(squash=torch.tanh)),
    Mutant('has a ReLU in place of the sigmoid', dict(squash=torch.relu)),
    Mutant('has a softmax over channels in place of the sigmoid', dict(squash=lambda t: t.softmax(1))),
    Mutant('has the maximum in place of the average', dict(average=greatest)),
    Mutant('has the average in place of the maximum', dict(maximum=mean)),
    Mutant('has average and maximum exchanged', dict(average=greatest, maximum=mean)),
    Mutant('has sums in place of averages', dict(average=_sum)),
    Mutant('has the deviation in place of the average', dict(average=_deviation)),
)
