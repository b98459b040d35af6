"""Weights of one module put into another that computes the same under other names, by their shapes."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

ROLES = ('weight', 'bias', 'running_mean', 'running_var')
MAX_CANDIDATES = 1500
# Places of a bare tensor: (its module, its name in it).
Place = tuple[nn.Module, str]


class Unit(NamedTuple):
    """Tensors that belong together: those of a layer, or one tensor that is alone."""

    signature: tuple
    places: tuple[Place, ...]


def _shape(t: Tensor) -> tuple[int, ...]:
    """Without dimensions of size 1: a Linear, a Conv1d and a Conv2d of one pixel are alike."""
    return tuple(n for n in t.shape if n != 1)


def units(module: nn.Module, together: bool = True) -> list[Unit]:
    """Parameters and running statistics in order, those of a layer together or each on its own."""
    found = []
    for child in module.modules():
        own = {
            name: t
            for name, t in [*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)]
            if isinstance(t, nn.Parameter) or name in ROLES
        }
        if not own:
            continue
        if together and set(own) <= set(ROLES) and type(child).__module__.startswith('torch.'):
            signature = tuple((role, _shape(own[role])) for role in ROLES if role in own)
            found.append(Unit(signature, tuple((child, role) for role in ROLES if role in own)))
        else:
            kinds = (('running', _shape(t)) if n.startswith('running') else ('', _shape(t)) for n, t in own.items())
            found += [Unit((kind,), ((child, name),)) for kind, name in zip(kinds, own)]
    return found


def shapes_of(module: nn.Module) -> list[str]:
    """Shapes of the parameters, sorted, for a message."""
    return sorted(str(tuple(p.shape)) for p in module.parameters())


# What may be another way round between two implementations, beside the order of the layers.
TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    '': lambda t: t,
    'the two inputs of its convolution exchanged': lambda t: (
        t.flip(1) if t.dim() == 4 and t.shape[1] == 2 and t.shape[2] > 1 else t
    ),
    'height and width of its kernels exchanged': lambda t: (
        t.transpose(2, 3) if t.dim() == 4 and t.shape[2] == t.shape[3] > 1 else t
    ),
}


class Mapping(NamedTuple):
    """A way to map: pairs (place in the module, place in the reference), and what was turned around."""

    pairs: list[tuple[Place, Place]]
    turn: str

    def fill(self) -> None:
        """Copy the module's values into the reference."""
        with torch.no_grad():
            for (source, name), (target, other) in self.pairs:
                value = TURNS[self.turn](getattr(source, name).detach())
                into = getattr(target, other)
                into.copy_(value.reshape(into.shape))


def candidates(module: nn.Module, reference: nn.Module) -> Iterator[Mapping]:
    """All ways to map one onto the other, the order of registration first; none if the shapes do not fit."""
    for together in (True, False):
        ours, theirs = units(module, together), units(reference, together)
        groups, wanted = _grouped(ours), _grouped(theirs)
        if {k: len(v) for k, v in groups.items()} != {k: len(v) for k, v in wanted.items()}:
            continue
        count = 0
        choices = [itertools.permutations(group) for group in groups.values()]
        for chosen in itertools.islice(itertools.product(*map(list, _limited(choices))), MAX_CANDIDATES):
            pairs = []
            for key, group in zip(groups, chosen):
                for a, b in zip(group, wanted[key]):
                    pairs += list(zip(a.places, b.places))
            tensors = [getattr(m, n) for (m, n), _ in pairs]
            for turn, change in TURNS.items():
                if turn and all(change(t) is t for t in tensors):
                    continue
                count += 1
                if count > MAX_CANDIDATES:
                    return
                yield Mapping(pairs, turn)
        return


def _limited(choices: list[Iterator]) -> list[Iterator]:
    return [itertools.islice(choice, MAX_CANDIDATES) for choice in choices]


def _grouped(found: list[Unit]) -> dict[tuple, list[Unit]]:
    groups: dict[tuple, list[Unit]] = defaultdict(list)
    for unit in found:
        groups[unit.signature].append(unit)
    return dict(sorted(groups.items(), key=lambda item: repr(item[0])))
