"""Attention in any network: added behind modules of a model that is built already, and taken out again.

The model's own modules keep their places and names: an attention is one more child of the module that it stands behind
(:mod:`mmccd.models.places`), run by a forward hook of that module.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS as ROOT
from torch import Tensor, nn

from mmccd.registry import MODELS

from .places import BLOCKS, Place, find_places


def attach(
    model: nn.Module,
    attention: str | dict,
    where: str | Sequence[str] = BLOCKS,
    identity_init: bool = True,
    sample: Tensor | None = None,
    **options: Any,
) -> nn.Module:
    """Put an attention into a network that is built already.

    The network's own parameters keep their names, so that its checkpoints still fit: only the attention's are missing
    in them. Of a detector or a classifier of OpenMMLab, the ``backbone`` gets the attention.

    Args:
        model (nn.Module): The network, on any device. It is changed in place.
        attention (str | dict): Name in the registry, e.g. ``'mmccd.CCD'``, or a config with more options.
        where (str | Sequence[str]): ``'blocks'``: at the end of the branch of every residual block. Else names of
            modules, or patterns of them (``'layer?.*.bn2'``). Default: ``'blocks'``.
        identity_init (bool): Start as the identity, so that the network's outputs are at first exactly those it had.
            Default: True.
        sample (Tensor, optional): An input of the network, (N, C, H, W), that shows the blocks and the channels.
            Default: an image of 64 x 64 with random pixels.
        **options: Further options of the attention, e.g. ``groups=32``.

    Returns:
        nn.Module: ``model``. What was added is logged as a table.

    Raises:
        ValueError: If there is no such place, an attention does not fit one of them, it cannot start as the identity,
            or the network ignores padding, which the attention would see; nothing is changed then.

    Example:
        >>> import torchvision
        >>> import mmccd
        >>> model = mmccd.attach(torchvision.models.resnet18(), 'mmccd.CCD')
        >>> [name for name, module in model.named_modules() if name.endswith('ccd')][:2]
        ['layer1.0.bn2.ccd', 'layer1.1.bn2.ccd']
    """
    cfg = dict(attention) if isinstance(attention, dict) else dict(type=attention)
    cfg.update(options)
    backbone = getattr(model, 'backbone', None)
    network = backbone if isinstance(backbone, nn.Module) else model
    if any(getattr(module, 'ignore_padding', False) is True for module in network.modules()):
        raise ValueError(
            f'attach() cannot keep padding from {cfg["type"]}, and {type(network).__name__} has ignore_padding=True: '
            'build an AttentionResNet with attention=..., or with ignore_padding=False'
        )
    places = find_places(network, where, sample)
    layers = _build_layers(cfg, places, identity_init, network)
    guard = _Guard()
    rows = []
    for (name, channels), layer in zip(places, layers):
        module = network.get_submodule(name)
        child = str(layer._abbr_)
        module.add_module(child, layer.train(module.training))
        module.register_forward_hook(_Attended(child))
        parent, _, key = name.rpartition('.')
        guard.places.append((network.get_submodule(parent), key, child, name))
        rows.append((f'{name}.{child}', channels, sum(p.numel() for p in layer.parameters())))
    network.register_forward_pre_hook(guard)
    print_log(_table(cfg['type'], rows), logger='current')
    return model


def detach(model: nn.Module) -> nn.Module:
    """Take out what :func:`attach` has put into a network, which is changed in place and returned.

    Raises:
        ValueError: If there is nothing to take out.

    Example:
        >>> import torchvision
        >>> import mmccd
        >>> model = mmccd.attach(torchvision.models.resnet18(), 'mmccd.CCD')
        >>> any('ccd' in name for name in mmccd.detach(model).state_dict())
        False
    """
    taken = 0
    for module in list(model.modules()):
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, _Attended):
                del module._forward_hooks[key], module._modules[hook.child]
                taken += 1
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, _Guard):
                del module._forward_pre_hooks[key]
    if not taken:
        raise ValueError(f'{type(model).__name__} has no attention that attach() has put into it')
    return model


@MODELS.register_module(name='WithAttention')
def with_attention(
    backbone: dict, attention: dict, where: str | Sequence[str] = BLOCKS, identity_init: bool = True
) -> nn.Module:
    """Backbone of a config, of any scope, with an attention in it: ``type='mmccd.WithAttention'``.

    What is built is the backbone itself, so that names in checkpoints are those it has without attention.

    Args:
        backbone (dict): Config of the backbone.
        attention (dict): Config of the attention, e.g. ``dict(type='mmccd.CCD')``.
        where (str | Sequence[str]), identity_init (bool): As of :func:`attach`.
    """
    return attach(ROOT.build(backbone), attention, where, identity_init)


# --------------------------------------------------------------------------------------------- what runs the attention


class _Attended:
    """Forward hook that runs a child on the module's output."""

    def __init__(self, child: str) -> None:
        self.child = child

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return getattr(module, self.child)(output)


class _Guard:
    """Forward hook of the network: an attention that was lost with the module it stood behind is an error.

    Attributes:
        places (list): (parent, name in the parent, child, whole name) of every module with an attention.
    """

    def __init__(self) -> None:
        self.places: list[tuple[nn.Module, str, str, str]] = []

    def __call__(self, module: nn.Module, args: tuple) -> None:
        for parent, key, child, name in self.places:
            behind = getattr(parent, key) if key else parent
            if not hasattr(behind, child):
                raise RuntimeError(
                    f'the attention {name}.{child} is gone: the module {name} was replaced after attach(), as '
                    'fuse_conv_bn does; detach() it first, or leave that module as it is'
                )


# ------------------------------------------------------------------------------------------------------------- layers


def _build_layers(cfg: dict, places: list[Place], identity_init: bool, network: nn.Module) -> list[nn.Module]:
    """One layer a place, all or none."""
    kind = ROOT.get(cfg['type']) if isinstance(cfg['type'], str) else cfg['type']
    if kind is None:
        raise ValueError(f'attention: there is no {cfg["type"]!r} in the registry')
    if getattr(kind, 'replaces_conv', False):
        raise ValueError(f'attention: {cfg["type"]} takes the place of a convolution, and cannot stand behind a module')
    if identity_init and 'identity_init' in inspect.signature(kind).parameters:
        cfg = dict(cfg, identity_init=True)
    first = next(network.parameters(), torch.empty(0))
    layers, errors = [], {}
    for name, channels in places:
        if hasattr(network.get_submodule(name), kind._abbr_):
            raise ValueError(f'where: {name} has a {kind._abbr_} already')
        try:
            layer = ROOT.build(dict(cfg, in_channels=channels))
        except (TypeError, ValueError) as e:
            errors[name] = e
            continue
        if cfg.get('init_cfg'):  # else the constructor has set the initial weights
            layer.init_weights()
        layers.append(layer.to(first.device, first.dtype))
    if errors:
        fitting = [name for name, _ in places if name not in errors]
        name, error = next(iter(errors.items()))
        raise ValueError(
            f'attention: {cfg["type"]} does not fit behind {len(errors)} of {len(places)} modules, e.g. {name} '
            f'({dict(places)[name]} channels): {error}. It fits behind: {", ".join(fitting) or "none"}'
        )
    if identity_init:
        for (name, channels), layer in zip(places, layers):
            x = torch.rand(1, channels, 8, 8).to(first.device, first.dtype)
            with torch.no_grad():
                starts = x.is_meta or torch.equal(layer.eval()(x), x)
            if not starts:
                raise ValueError(
                    f'identity_init=True: {cfg["type"]} does not start as the identity (behind {name}); pass '
                    'identity_init=False to attach it as it is'
                )
    return layers


def _table(kind: Any, rows: list[tuple[str, int, int]]) -> str:
    wide = max(len(name) for name, _, _ in rows)
    lines = [f'{kind if isinstance(kind, str) else kind.__name__} attached in {len(rows)} places:']
    lines += [
        f'  {name:{wide}}  {channels:5} channels  {parameters:9,} parameters' for name, channels, parameters in rows
    ]
    lines.append(f'  {"all":{wide}}  {"":14}  {sum(row[2] for row in rows):9,} parameters')
    return '\n'.join(lines)
