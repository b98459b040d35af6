"""What a config says about the layers in a backbone's blocks: checked, and parsed once into :class:`Plugin`.

``attention`` and ``plugins`` are dicts of a config; everything behind :func:`parse_plugins` works with classes, places
and names. What is wrong raises TypeError or ValueError here, before anything is built, with argument, rule and value.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmcv.cnn.bricks.plugin import infer_abbr
from torch import nn

from mmccd.errors import suggest
from mmccd.registry import MODELS

from ..layers.base import AttentionLayer, attention_types, check_int

POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3')
REPLACE_CONV = 'replace_conv3x3'
FROM_BACKBONE = ('conv_cfg', 'norm_cfg')  # what the attentions here take over from the backbone around them


@dataclass(frozen=True)
class Plugin:
    """A layer, and its place in the residual blocks of some stages.

    Attributes:
        layer (type[nn.Module]): Its class.
        options (Mapping[str, Any]): Arguments of the constructor beside those that :meth:`build` is given.
        position (str): ``'after_conv1'``, ... or ``'replace_conv3x3'``.
        stages (tuple[bool, ...]): One a stage: whether its blocks have the layer.
        name (str): Of the layer in a block, and in checkpoints. A replacement has that of the convolution instead.
    """

    layer: type[nn.Module]
    options: Mapping[str, Any]
    position: str
    stages: tuple[bool, ...]
    name: str

    def build(self, **place: int) -> nn.Module:
        """The layer, with what its place decides: ``in_channels``, and whatever else a convolution there has."""
        return self.layer(**place, **self.options)


def parse_plugins(
    attention: Mapping[str, Any] | None,
    plugins: Sequence[Mapping[str, Any]] | None,
    depth: int = 50,
    num_stages: int = 4,
    backbone: Mapping[str, Any] | None = None,
) -> tuple[Plugin, ...]:
    """All layers that a backbone's blocks get, in their order: ``plugins`` as listed, ``attention`` last.

    Args:
        attention (Mapping | None): ``type``, ``stages`` and options of one layer.
        plugins (Sequence[Mapping] | None): mmdet's: ``cfg`` (``type``, ``postfix`` and options), ``position``,
            ``stages``.
        depth (int): Of the backbone. Blocks have two convolutions at 18 and 34, else three. Default: 50.
        num_stages (int): Stages of the backbone. Default: 4.
        backbone (Mapping | None): Arguments of the backbone. Attentions of mmccd get its ``conv_cfg`` and
            ``norm_cfg``, where their constructors have them and the config does not set them. Default: None.

    Raises:
        TypeError, ValueError: If a type, an option, a position or the stages of a layer do not exist, or if two
            layers of a block have one name.

    Example:
        >>> found, = parse_plugins(dict(type='mmccd.SE', ratio=8), None)
        >>> found.name, found.position, found.options, found.stages
        ('se_layer', 'after_conv3', {'ratio': 8}, (True, True, True, True))
    """
    positions = POSITIONS[:2] if depth in (18, 34) else POSITIONS
    inherited = {k: v for k, v in (backbone or {}).items() if k in FROM_BACKBONE}
    parsed = []
    for plugin in plugins or ():
        cfg = _checked_cfg(plugin, positions, depth)
        parsed.append(_place(_layer_type(cfg['type']), cfg, plugin['position'], plugin.get('stages'), num_stages))
    if attention is not None:
        if not isinstance(attention, Mapping) or 'type' not in attention:
            raise TypeError(f"attention must be a dict with the key 'type', got {attention!r}")
        cfg = {k: v for k, v in attention.items() if k != 'stages'}
        layer = _layer_type(cfg['type'])
        position = REPLACE_CONV if getattr(layer, 'replaces_conv', False) else positions[-1]
        parsed.append(_place(layer, cfg, position, attention.get('stages'), num_stages))
    _check_names(parsed, num_stages)
    return tuple(_inherit(plugin, inherited) for plugin in parsed)


def _checked_cfg(plugin: Mapping[str, Any], positions: tuple[str, ...], depth: int) -> Mapping[str, Any]:
    """The ``cfg`` of an entry of ``plugins``, with a position that there is."""
    cfg = plugin.get('cfg') if isinstance(plugin, Mapping) else None
    if not isinstance(cfg, Mapping) or 'type' not in cfg:
        raise TypeError(f"every plugin must have a dict 'cfg' with the key 'type', got {plugin!r}")
    keys = ('cfg', 'position', 'stages')
    for key in plugin:
        if key not in keys:
            raise TypeError(f'a plugin of plugins must have no keys but {keys}, got {key!r}{suggest(str(key), keys)}')
    if plugin.get('position') not in positions:
        raise ValueError(
            f'position of a plugin must be one of {positions} at depth {depth}, got {plugin.get("position")!r}'
        )
    return cfg


def _place(
    layer: type[nn.Module], cfg: Mapping[str, Any], position: str, stages: Sequence[bool] | None, num_stages: int
) -> Plugin:
    """The plugin, its options compared with the constructor's: a registry would say so less clearly, and later."""
    options = {k: v for k, v in cfg.items() if k not in ('type', 'postfix')}
    known = inspect.signature(layer).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        for option in options:
            if option not in known:
                hint = suggest(str(option), known, cutoff=0.6) or f', which has {", ".join(known)}'
                raise TypeError(f'attention has an option {option!r} that {layer.__name__} does not know{hint}')
    name = infer_abbr(layer) + str(cfg.get('postfix', ''))
    return Plugin(layer, options, position, _parse_stages(stages, num_stages), name)


def _inherit(plugin: Plugin, inherited: Mapping[str, Any]) -> Plugin:
    """With the backbone's convolutions and norms, if it is a layer that takes them."""
    if not (issubclass(plugin.layer, AttentionLayer) or plugin.position == REPLACE_CONV):
        return plugin  # mmcv's ContextBlock and the like: as in mmdet's ResNet
    known = inspect.signature(plugin.layer).parameters
    return replace(plugin, options={**{k: v for k, v in inherited.items() if k in known}, **plugin.options})


def _parse_stages(stages: Sequence[bool] | None, num_stages: int) -> tuple[bool, ...]:
    if stages is None:
        return (True,) * num_stages
    if isinstance(stages, str) or not isinstance(stages, Sequence):
        raise TypeError(f'stages must be a sequence of bools, one a stage, got {stages!r}')
    if len(stages) != num_stages:
        raise ValueError(f'stages must have one entry for each of the {num_stages} stages, got {stages}')
    if any(stage not in (True, False) for stage in stages):
        raise TypeError(f'stages must be a sequence of bools, one a stage, got {stages!r}')
    return tuple(bool(stage) for stage in stages)


def _layer_type(name: str | type) -> type[nn.Module]:
    """Class of a layer by its name in the registry; ValueError with what is possible if there is none."""
    layer = name if isinstance(name, type) else MODELS.get(name) if isinstance(name, str) else None
    if layer is not None:
        return layer
    known = [f'mmccd.{each}' for each in attention_types()]
    # By the whole name, with a high bar: the prefix alone makes all of them half alike.
    hint = suggest(f'mmccd.{name.rpartition(".")[2]}', known, cutoff=0.8) if isinstance(name, str) else ''
    raise ValueError(
        f'attention type must be one of {", ".join(known)} or another registered plugin layer, got {name!r}{hint}'
    )


def _check_names(plugins: Sequence[Plugin], num_stages: int) -> None:
    """Raise ValueError if two layers of a block would have one name in it, and in checkpoints."""
    for stage in range(num_stages):
        names = [p.name for p in plugins if p.stages[stage] and p.position != REPLACE_CONV]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"plugins and attention have {name!r} twice in a block: give one a 'postfix'")


def check_stages(
    num_stages: int = 4,
    strides: Sequence[int] = (1, 2, 2, 2),
    dilations: Sequence[int] = (1, 1, 1, 1),
    out_indices: Sequence[int] = (0, 1, 2, 3),
    frozen_stages: int = -1,
    **others: Any,
) -> None:
    """Raise TypeError or ValueError for stages of a ResNet that mmdet's asserts without a word, or does not look at."""
    check_int('num_stages', num_stages)
    if num_stages > 4:
        raise ValueError(f'num_stages must be at most 4, got {num_stages}')
    for name, value in (('strides', strides), ('dilations', dilations), ('out_indices', out_indices)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError(f'{name} must be a sequence of ints, got {value!r}')
        for number in value:
            check_int(name, number, minimum=int(name != 'out_indices'))
    for name, value in (('strides', strides), ('dilations', dilations)):
        if len(value) != num_stages:
            raise ValueError(f'{name} must have one entry for each of the {num_stages} stages, got {value}')
    if not out_indices or max(out_indices) >= num_stages:
        raise ValueError(f'out_indices must name stages from 0 to {num_stages - 1}, got {out_indices}')
    check_int('frozen_stages', frozen_stages, minimum=-1)
    if frozen_stages > num_stages:
        raise ValueError(f'frozen_stages must be at most num_stages={num_stages}, got {frozen_stages}')
