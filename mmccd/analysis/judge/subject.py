"""The module under judgement: found by its name, built with its channels, given features and weights."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmccd.errors import UserError, suggest

# What constructors call the channels of their input and output, the map's size and its kernel.
CHANNELS = [
    'in_channels',
    'channels',
    'channel',
    'num_channels',
    'n_channels',
    'in_channel',
    'inchannels',
    'in_ch',
    'in_chs',
    'ch',
    'in_dim',
    'dim',
    'input_dim',
    'embed_dim',
    'd_model',
    'gate_channels',
    'gate_channel',
    'in_planes',
    'inplanes',
    'in_plane',
    'planes',
    'inp',
    'c',
    'c1',
    'C',
    'nin',
    'in_features',
    'num_features',
    'n_feats',
    'features',
    'input_channels',
    'nc',
    'dims',
    'input_size_channels',
]
OUTPUTS = [
    'out_channels',
    'out_channel',
    'outchannels',
    'out_ch',
    'out_chs',
    'oup',
    'c2',
    'out_dim',
    'output_dim',
    'out_planes',
    'outplanes',
    'nout',
    'out_features',
    'output_channels',
]
SIZES = [
    'size',
    'feat_size',
    'resolution',
    'input_resolution',
    'feature_size',
    'fmap_size',
    'map_size',
    'spatial_size',
    'spatial_dim',
    'input_size',
    'image_size',
    'window_size',
]
HEIGHTS, WIDTHS = ('h', 'height', 'H'), ('w', 'width', 'W')
KERNELS = ('kernel_size', 'k_size', 'kernel', 'ks', 'k')


class BuildError(Exception):
    """The module cannot be imported or built; the text says why."""


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``['groups=4', 'act=relu']`` as keyword arguments: Python literals, else text.

    Raises:
        UserError: If one is no ``name=value``.

    Example:
        >>> parse_options(['groups=4', 'bias=false', 'act=relu', 'size=(7, 7)'])
        {'groups': 4, 'bias': False, 'act': 'relu', 'size': (7, 7)}
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition('=')
        if not sign or not name.isidentifier():
            raise UserError(f'options must be name=value, got {pair!r}')
        named = {'true': True, 'false': False, 'none': None}
        try:
            options[name] = named[value.lower()] if value.lower() in named else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def find(spec: str) -> Any:
    """What ``package.module:Class`` names.

    Raises:
        UserError: If the text has another form.
        BuildError: If it cannot be imported.
    """
    module_name, sign, attribute = spec.partition(':')
    if not sign or not module_name or not attribute:
        raise UserError(f"MODULE must be package.module:Class, e.g. 'mmccd.models:CCD', got {spec!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as e:  # what a foreign module does when it is imported is its own
        raise BuildError(f'cannot be imported: {one_line(e)}') from e
    for part in attribute.split('.'):
        if not hasattr(found, part):
            raise BuildError(f'{module_name} has no {attribute}{suggest(part, dir(found))}')
        found = getattr(found, part)
    return found


def one_line(error: BaseException, length: int = 160) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__
    return text if len(text) <= length else f'{text[: length - 3]}...'


class Subject:
    """A module that can be built any number of times, each time with the same weights.

    Args:
        module: A module, a class of modules, a function that makes one from a number of channels, or
            ``'package.module:Class'``.
        channels (int): Channels of the features.
        size (tuple[int, int]): Height and width of the features.
        options (dict): Arguments of the class or the function.
        like (str | None), like_options (dict): The definition to compare with.

    Attributes:
        dtype (torch.dtype): What most checks compute in: float64 where the module can.
    """

    def __init__(
        self,
        module: Any,
        channels: int,
        size: tuple[int, int],
        options: dict[str, Any],
        like: str | None = None,
        like_options: dict[str, Any] | None = None,
    ) -> None:
        self.source = module
        self.channels = channels
        self.size = size
        self.options = options
        self.like = like
        self.like_options = like_options or {}
        self.dtype = torch.float64
        self.name = module if isinstance(module, str) else name_of(module)
        self._instance: nn.Module | None = None
        self._make: Callable[[], nn.Module] | None = None

    def prepare(self) -> None:
        """Find the module and build it once. Raises BuildError."""
        source = find(self.source) if isinstance(self.source, str) else self.source
        if isinstance(source, nn.Module):
            if self.options:
                raise BuildError(f'options are for a class, and {self.name} is built already')
            self._instance = source
        elif callable(source):
            arguments = arguments_of(source, self.channels, self.size, self.options)
            self._make = lambda: source(*arguments[0], **arguments[1])
        else:
            raise BuildError(f'{self.name} is a {type(source).__name__}, no class of modules')
        try:
            built = self.build()
        except (Exception, SystemExit) as e:
            raise BuildError(f'cannot be built: {one_line(e)}') from e
        if not isinstance(built, nn.Module):
            raise BuildError(f'{self.name} makes a {type(built).__name__}, no nn.Module')

    def build(self, seed: int = 0) -> nn.Module:
        """As it is built, in evaluation mode."""
        torch.manual_seed(seed)
        if self._make is not None:
            return self._make().eval()
        assert self._instance is not None
        return copy.deepcopy(self._instance).eval()

    def lively(self, seed: int = 0, dtype: torch.dtype | None = None) -> nn.Module:
        """With weights and running statistics as after some training, so that nothing is hidden by a zero."""
        module = self.build(seed).to(torch.float32)
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for p in module.parameters():
                if not p.is_floating_point():
                    continue
                inputs = p.numel() // p.shape[0] if p.dim() > 1 and p.shape[0] > 1 else p.numel() if p.dim() > 1 else 25
                p.data = p.detach() + torch.randn(p.shape, generator=generator).to(p) * (0.5 / math.sqrt(inputs))
            for name, buffer in module.named_buffers():
                if name.endswith('running_mean'):
                    buffer += torch.randn(buffer.shape, generator=generator).to(buffer) * 0.1
                elif name.endswith('running_var'):
                    buffer *= (torch.rand(buffer.shape, generator=generator) + 0.5).to(buffer)
        return module.to(self.dtype if dtype is None else dtype)

    def features(
        self, n: int = 2, size: tuple[int, int] | None = None, seed: int = 0, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Features (n, channels, H, W): noise around a mean of each sample and channel."""
        generator = torch.Generator().manual_seed(seed)
        height, width = self.size if size is None else size
        mean = torch.randn((n, self.channels, 1, 1), generator=generator)
        noise = torch.randn((n, self.channels, height, width), generator=generator)
        return (noise + mean).to(self.dtype if dtype is None else dtype)

    @property
    def tolerance(self) -> float:
        """Relative difference up to which two ways to compute the same agree."""
        return 1e-8 if self.dtype == torch.float64 else 1e-4


def name_of(module: Any) -> str:
    """A name for a module or what makes it."""
    kind = type(module) if isinstance(module, nn.Module) else module
    return f'{getattr(kind, "__module__", "?")}:{getattr(kind, "__qualname__", repr(kind))}'


def arguments_of(
    make: Callable, channels: int, size: tuple[int, int], options: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments for a constructor, from its signature.

    Raises:
        BuildError: If it needs something whose name says nothing, or does not take an option.
    """
    if isinstance(make, type) and make.__init__ is nn.Module.__init__:  # type: ignore[misc]
        return [], dict(options)
    try:
        parameters = list(inspect.signature(make).parameters.values())
    except (TypeError, ValueError):
        return [channels], dict(options)
    kinds = inspect.Parameter
    names = [p.name for p in parameters]
    free = any(p.kind == kinds.VAR_KEYWORD for p in parameters)
    unknown = [name for name in options if name not in names]
    if unknown and not free:
        raise BuildError(f'does not take {unknown[0]!r}{suggest(unknown[0], names)}')
    positional: list[Any] = []
    named: dict[str, Any] = dict(options)
    filled = any(name in CHANNELS for name in options)
    rest = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    for p in rest:
        if p.name in named:
            continue
        required = p.default is kinds.empty
        value = _value_of(p.name, channels, size)
        if not required:
            # What stands there already fits, unless it says how many channels there are.
            default_number = p.default is None or (isinstance(p.default, int) and not isinstance(p.default, bool))
            if (p.name in CHANNELS and not filled and default_number) or (
                p.name in OUTPUTS and isinstance(p.default, int)
            ):
                named[p.name] = channels
                filled = True
            continue
        if value is None and not filled:
            value = channels  # the first that a layer needs is its channels, whatever the name
        if value is None:
            raise BuildError(f'needs {p.name!r}: pass --options {p.name}=...')
        filled = filled or p.name in CHANNELS or value == channels
        if p.kind == kinds.POSITIONAL_ONLY:
            positional.append(value)
        else:
            named[p.name] = value
    if not rest and any(p.kind == kinds.VAR_POSITIONAL for p in parameters):
        positional.append(channels)
    return positional, named


def _value_of(name: str, channels: int, size: tuple[int, int]) -> Any:
    if name in CHANNELS or name in OUTPUTS:
        return channels
    if name in HEIGHTS:
        return size[0]
    if name in WIDTHS:
        return size[1]
    if name in SIZES:
        return size
    return 3 if name in KERNELS else None
