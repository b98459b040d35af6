"""Places for an attention in a network that is built already, as one small forward pass shows them.

Where the branch of a residual block ends is not looked up in a table of families. A block is a module that adds its
input, or what one child makes of its input, to the result of a branch of several layers; the place is behind the module
whose output is that branch. So blocks of torchvision, timm, MMDetection and MMPretrain are found alike, and those of
networks that no list has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmccd.errors import suggest

BLOCKS = 'blocks'
_SIDES = (64, 256)  # of images that show the blocks
# Functions that add, by the names that torch.overrides sees.
_SUMS = ('add', 'add_', '__add__', '__iadd__', '__radd__')
# Modules that return what they get at test time; the layer before them is the better place.
_PASS_THROUGH = ('Identity', 'DropPath', 'StochasticDepth', 'Dropout', 'Dropout2d')


class Place(NamedTuple):
    """A place for an attention.

    Attributes:
        name (str): Of the module that it stands behind, as in ``model.named_modules()``.
        channels (int): Of that module's output.
    """

    name: str
    channels: int


def find_places(network: nn.Module, where: str | Sequence[str] = BLOCKS, sample: Tensor | None = None) -> list[Place]:
    """Where attentions can go, in the order in which the network runs them.

    Args and errors as of :func:`mmccd.models.attach.attach`.
    """
    seen = _seen(network, sample)
    if isinstance(where, str) and where == BLOCKS:
        if not seen.blocks:
            raise ValueError(
                f'where={BLOCKS!r}: {type(network).__name__} has no residual block with features (N, C, H, W); name '
                f'modules instead. {seen.candidates()}'
            )
        return [Place(name, channels) for name, channels in seen.blocks.items()]
    patterns = [where] if isinstance(where, str) else list(where)
    names = [name for name, _ in network.named_modules()]
    found: dict[str, int] = {}
    for pattern in patterns:
        matched = [name for name in names if name and fnmatchcase(name, pattern)]
        if not matched:
            hint = suggest(pattern, [n for n in names if n], n=3) or f'; {seen.candidates()}'
            raise ValueError(f'where: no module of {type(network).__name__} is called {pattern!r}{hint}')
        for name in matched:
            if name not in seen.channels:
                raise ValueError(
                    f'where: the output of {name} is no tensor of shape (N, C, H, W), or it does not run. '
                    f'{seen.candidates()}'
                )
            found[_last_step(network, name)] = seen.channels[name]
    return [Place(name, channels) for name, channels in found.items()]


def _seen(network: nn.Module, sample: Tensor | None) -> _Seen:
    """What a pass shows: of ``sample``, or of a small image, or of a larger one where that shrinks to nothing."""
    for side in _SIDES:
        try:
            with _watched(network) as seen:
                seen.run(network, _sample(network, side) if sample is None else sample)
            return seen
        except ValueError:
            if sample is not None or side == _SIDES[-1]:
                raise
    raise AssertionError('unreachable')


def _last_step(network: nn.Module, name: str) -> str:
    """The last module of a container, whose output is the container's own: a further child would be a step of it."""
    module = network.get_submodule(name)
    while isinstance(module, nn.Sequential) and len(module):
        step, module = list(module.named_children())[-1]
        name = f'{name}.{step}'
    return name


class _Call(NamedTuple):
    """A module that runs: its name, the ids of its input and what norms make of it, layers with weights before it."""

    name: str
    inputs: set[int]
    layers: int


class _Seen(TorchFunctionMode):
    """What a forward pass shows.

    Attributes:
        blocks (dict[str, int]): Modules at the ends of residual branches, with their channels.
        channels (dict[str, int]): Modules whose output is (N, C, H, W), with their channels.
    """

    def __init__(self, names: dict[nn.Module, str]) -> None:
        super().__init__()
        self.blocks: dict[str, int] = {}
        self.channels: dict[str, int] = {}
        self._names = names
        self._running: list[_Call] = []
        self._layers = 0
        self._alive: list[Tensor] = []  # so that no id is used twice
        # By the id of a tensor: the modules that have returned it, each with the caller whose input went in, if any.
        self._returned: dict[int, list[tuple[nn.Module, _Call | None, int]]] = {}

    def run(self, network: nn.Module, sample: Tensor) -> None:
        """One pass at test time; the network is left as it was."""
        training = {module: module.training for module in network.modules()}
        network.eval()
        try:
            with torch.no_grad(), self:
                network(sample)
        except (RuntimeError, ValueError, TypeError, IndexError) as e:
            raise ValueError(
                f'sample: {type(network).__name__} does not run on an input of shape {tuple(sample.shape)}: {e}'
            ) from e
        finally:
            for module, mode in training.items():
                module.training = mode

    def candidates(self) -> str:
        """A sentence that names modules with features."""
        names = [name for name in self.channels if name]
        return 'Modules with such features: ' + (', '.join(names[:12]) + (', ...' if names[12:] else '') or 'none')

    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Forward pre-hook of every module."""
        tensors = list(_tensors((args, kwargs)))
        self._alive += tensors  # not the lists that they are in, whose entries HRNet replaces
        self._running.append(_Call(self._names[module], {id(t) for t in tensors}, self._layers))
        if any(p.dim() > 1 for p in module.parameters(recurse=False)):
            self._layers += 1

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Forward hook of every module."""
        call = self._running.pop()
        self._alive += _tensors(output)
        if not isinstance(output, Tensor):
            return
        if output.dim() == 4:
            self.channels[call.name] = output.shape[1]
        caller = self._running[-1] if self._running and call.inputs & self._running[-1].inputs else None
        layers = self._layers - call.layers
        if caller is not None and not layers:  # a norm or an activation before the block's branch and its shortcut
            caller.inputs.add(id(output))
        self._returned.setdefault(id(output), []).append((module, caller, layers))

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, '__name__', '') in _SUMS and len(args) > 1 and self._running:
            a, b = args[:2]
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dim() == 4 and a.shape == b.shape:
                self._add(a, b)
        return func(*args, **(kwargs or {}))

    def _add(self, a: Tensor, b: Tensor) -> None:
        """A sum of two tensors of one shape, in the module that runs: the end of a block, if one is its shortcut."""
        block = self._running[-1]
        shortcuts = {id(t): self._shortcut_layers(t, block) for t in (a, b)}
        known = [t for t in (a, b) if shortcuts[id(t)] is not None]
        if not known:
            return
        shortcut = min(known, key=lambda t: shortcuts[id(t)] or 0)
        branch = b if shortcut is a else a
        place = self._place(branch)
        ran = self._layers - block.layers - (shortcuts[id(shortcut)] or 0)
        if place is not None and ran > 1:
            self.blocks[place] = branch.shape[1]

    def _shortcut_layers(self, t: Tensor, block: _Call) -> int | None:
        """Layers that a shortcut has, 0 if ``t`` is the block's input; None if ``t`` is no shortcut.

        What has several layers is a branch, too: in HRNet branches are added to each other.
        """
        if id(t) in block.inputs:
            return 0
        direct = [layers for _, caller, layers in self._returned.get(id(t), []) if caller is block]
        return direct[-1] if direct and direct[-1] <= 1 else None

    def _place(self, branch: Tensor) -> str | None:
        """Name of the module that the attention goes behind: the last to return the branch that can have a child."""
        modules = [module for module, _, _ in self._returned.get(id(branch), [])]
        # A container would run a further child as a step of its own.
        modules = [m for m in modules if not isinstance(m, (nn.Sequential, nn.ModuleList))]
        makers = [m for m in modules if type(m).__name__ not in _PASS_THROUGH] or modules
        return self._names[makers[-1]] if makers else None


@contextmanager
def _watched(network: nn.Module) -> Iterator[_Seen]:
    seen = _Seen({module: name for name, module in network.named_modules()})
    with ExitStack() as hooks:
        for module in network.modules():
            hooks.enter_context(module.register_forward_pre_hook(seen.enter, with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(seen.leave))
        yield seen


def _sample(network: nn.Module, side: int) -> Tensor:
    """A random image on the network's device, of its dtype."""
    first = next(network.parameters(), torch.empty(0))
    rng = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, side, side, generator=rng).to(first.device, first.dtype)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
