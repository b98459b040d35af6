"""An attention in the backbone of a stock config, of MMDetection, MMPretrain or MMSegmentation.

ResNet, ResNetV1c, ResNetV1d and ResNeXt become :class:`mmccd.models.AttentionResNet`, which has their arguments and the
names of their tensors; what is another class, one derived from these too, becomes ``mmccd.WithAttention`` around it.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope

from mmccd.registry import MODELS

from .places import BLOCKS, find_places

_GROUPS = 64  # CCD's default
_PREFIXES = (None, 'backbone', 'backbone.')  # of a backbone in a checkpoint, which PretrainedBackbone finds by itself

# Where a backbone has its arguments otherwise than AttentionResNet, by its name.
_KINDS: dict[str, dict[str, Any]] = {
    'ResNet': {},
    'ResNetV1c': dict(deep_stem=True),
    'ResNetV1d': dict(deep_stem=True, avg_down=True),
    'ResNeXt': {},
}
_FAMILIES = ('mmdet.models.backbones.', 'mmpretrain.models.backbones.')  # mmseg's dilates otherwise
_RENAMED = dict(width_per_group='base_width')  # MMPretrain's ResNeXt
# Arguments whose defaults are others in mmdet, and so in AttentionResNet.
_DEFAULTS = ('out_indices', 'norm_eval', 'zero_init_residual', 'frozen_stages')


def attended_backbone(
    backbone: Mapping[str, Any],
    attention: str | Mapping[str, Any] = 'mmccd.CCD',
    scope: str = 'mmdet',
    where: str | Sequence[str] = BLOCKS,
) -> dict[str, Any]:
    """Config of a backbone with an attention that starts as the identity, out of that of one without.

    A checkpoint in ``init_cfg`` stays; where :class:`mmccd.models.PretrainedBackbone` reads it, the attention may be
    missing there. An attention whose default ``groups`` do not divide the channels of all places gets fewer.

    Args:
        backbone (Mapping): Config of the backbone. It is not changed.
        attention (str | Mapping): Name in the registry, or a config. Default: ``'mmccd.CCD'``.
        scope (str): In which ``type`` is looked up. Default: ``'mmdet'``.
        where (str | Sequence[str]): As of :func:`mmccd.attach`, for backbones that are no ResNet. Default: blocks.

    Raises:
        ValueError: If there is no such backbone or attention.

    Example:
        >>> attended_backbone(dict(type='ResNet', depth=50))['attention']
        {'type': 'mmccd.CCD', 'identity_init': True}
    """
    layer: dict[str, Any] = dict(attention) if isinstance(attention, Mapping) else dict(type=attention)
    kind = MODELS.get(layer['type']) if isinstance(layer['type'], str) else layer['type']
    if kind is None:
        raise ValueError(f'attention: there is no {layer["type"]!r} in the registry')
    known = inspect.signature(kind).parameters
    identity = 'identity_init' in known
    built = _class(backbone, scope)
    name = built.__name__
    if name not in _KINDS or not built.__module__.startswith(_FAMILIES) or where != BLOCKS:
        if 'groups' in known and 'groups' not in layer:
            groups = fitting_groups(backbone, scope, where)
            layer.update({} if groups == _GROUPS else dict(groups=groups))
        return dict(
            type='mmccd.WithAttention',
            backbone=dict(backbone),
            attention=layer,
            **({} if where == BLOCKS else dict(where=where)),
            **({} if identity else dict(identity_init=False)),
        )
    if identity:
        layer.setdefault('identity_init', True)
    changed = {_RENAMED.get(k, k): v for k, v in backbone.items()}
    changed.pop('_scope_', None)
    for key, parameter in _parameters(built).items():
        key = _RENAMED.get(key, key)
        if key in (*_DEFAULTS, 'groups', 'base_width') and parameter.default is not parameter.empty:
            changed.setdefault(key, parameter.default)
    if changed.get('groups') == 1:
        changed.pop('base_width', None)
    changed.update(_KINDS[name], type='mmccd.AttentionResNet', attention=layer)
    init = changed.get('init_cfg')
    if isinstance(init, Mapping) and init.get('type') == 'Pretrained' and init.get('prefix') in _PREFIXES:
        changed['init_cfg'] = dict(
            type='mmccd.PretrainedBackbone', checkpoint=init['checkpoint'], allow_missing=str(kind._abbr_)
        )
    return changed


def fitting_groups(backbone: Mapping[str, Any], scope: str = 'mmdet', where: str | Sequence[str] = BLOCKS) -> int:
    """The largest number of groups, up to 64, that divides the channels of all places in a backbone of a config.

    Raises:
        ValueError: If there is no such place.
    """
    plain = {k: v for k, v in copy.deepcopy(dict(backbone)).items() if k != 'init_cfg'}
    with DefaultScope.overwrite_default_scope(scope):
        places = find_places(ROOT.build(plain), where)
    common = math.gcd(*(channels for _, channels in places))
    return max(groups for groups in range(1, _GROUPS + 1) if common % groups == 0)


def _class(backbone: Mapping[str, Any], scope: str) -> type:
    """Class of a backbone, by ``type``."""
    kind = backbone.get('type')
    if isinstance(kind, type):
        return kind
    built = None
    if isinstance(kind, str):
        built = ROOT.get(kind if '.' in kind else f'{backbone.get("_scope_") or scope}.{kind}')
    if built is None:
        raise ValueError(f'backbone: there is no {kind!r} in the registry of {scope}')
    return built


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Arguments of a class's constructor and, where it passes on what it does not know, of its bases'."""
    found: dict[str, inspect.Parameter] = {}
    for each in kind.__mro__:
        if '__init__' not in each.__dict__:
            continue
        parameters = inspect.signature(each.__dict__['__init__']).parameters
        for name, parameter in parameters.items():
            found.setdefault(name, parameter)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return found
