"""AttentionResNet: one ResNet for classification and detection, with an attention in every residual block.

Extends mmdet's ``ResNet``, so every argument of that works here, and the keys are torchvision's and mmdet's plus the
attention's. Added: ``attention``; plugins in BasicBlock (ResNet-18 and -34); a layer in place of the 3x3 convolution.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence

import torch.utils.checkpoint
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from mmengine.logging import print_log
from torch import Tensor, nn

from mmccd.registry import MODELS

from ..layers.base import AttentionLayer, check_int
from ..pretrained import PretrainedBackbone, as_names, is_named

REPLACE_CONV = 'replace_conv3x3'


class _BlockWithAttention:
    """What both residual blocks share: plugins behind any convolution, and a layer in place of the 3x3 one."""

    positions: tuple[str, ...]
    fused: str | None = None  # name of the layer that adds the shortcut and applies the ReLU, too

    def _split_plugins(self, plugins: Sequence[dict] | None) -> tuple[list[dict], list[dict]]:
        """(plugins behind convolutions, replacements of the 3x3 convolution)."""
        plugins = list(plugins or ())
        for plugin in plugins:
            if plugin['position'] not in (*self.positions, REPLACE_CONV):
                raise ValueError(
                    f'position must be one of {self.positions} in a {type(self).__bases__[1].__name__}, '
                    f'got {plugin["position"]!r}'
                )
        return (
            [p for p in plugins if p['position'] != REPLACE_CONV],
            [p for p in plugins if p['position'] == REPLACE_CONV],
        )

    def _replace_conv(self, name: str, norm_name: str, replacements: list[dict]) -> None:
        """Put the replacement in place of convolution ``name``, with its norm and ReLU, or leave all as it is."""
        self.replaced = None
        if not replacements:
            return
        if len(replacements) > 1:
            raise ValueError(f'only one layer can replace a convolution, got {len(replacements)}')
        conv = getattr(self, name)
        layer = MODELS.build(
            dict(
                in_channels=conv.in_channels,
                out_channels=conv.out_channels,
                stride=conv.stride[0],
                dilation=conv.dilation[0],
                **replacements[0]['cfg'],
            )
        )
        setattr(self, name, layer)
        delattr(self, norm_name)
        self.replaced = name

    def _conv_norm_relu(self, x: Tensor, i: int) -> Tensor:
        """Convolution i with its norm and ReLU, then the plugins behind it."""
        name = f'conv{i}'
        x = getattr(self, name)(x)
        if self.replaced != name:
            x = self.relu(getattr(self, getattr(self, f'norm{i}_name'))(x))
        return self._plugins(x, i)

    def _plugins(self, x: Tensor, i: int) -> Tensor:
        return self.forward_plugin(x, getattr(self, f'after_conv{i}_plugin_names')) if self.with_plugins else x

    def fuse(self) -> None:
        """Let the last layer add the shortcut and apply the ReLU as well, if it is one that can."""
        names = getattr(self, f'after_conv{len(self.positions)}_plugin_names', ())
        if self.with_plugins and names and getattr(getattr(self, names[-1]), 'takes_residual', False):
            self.fused = names[-1]

    def _sum(self, x: Tensor) -> Tensor:
        """Both branches and their sum; before the last ReLU unless a layer applies that."""
        last = len(self.positions)
        out = x
        for i in range(1, last):
            out = self._conv_norm_relu(out, i)
        out = getattr(self, f'conv{last}')(out)
        out = getattr(self, getattr(self, f'norm{last}_name'))(out)
        if self.fused is None:
            out = self._plugins(out, last)
            out += x if self.downsample is None else self.downsample(x)
            return out
        out = self.forward_plugin(out, getattr(self, f'after_conv{last}_plugin_names')[:-1])
        return getattr(self, self.fused)(out, x if self.downsample is None else self.downsample(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            out = torch.utils.checkpoint.checkpoint(self._sum, x, use_reentrant=False)
        else:
            out = self._sum(x)
        return self.relu(out) if self.fused is None else out


class AttentionBasicBlock(_BlockWithAttention, BasicBlock):
    """mmdet's BasicBlock with plugins (``after_conv1``, ``after_conv2``)."""

    positions = ('after_conv1', 'after_conv2')
    make_block_plugins = Bottleneck.make_block_plugins
    forward_plugin = Bottleneck.forward_plugin

    def __init__(self, inplanes: int, planes: int, *args, plugins: Sequence[dict] | None = None, **kwargs) -> None:
        plugins, replacements = self._split_plugins(plugins)
        if kwargs.get('dcn') is not None:
            raise ValueError('dcn needs Bottleneck blocks (depth 50, 101 or 152)')
        super().__init__(inplanes, planes, *args, **kwargs)
        self.with_plugins = bool(plugins)
        for position in self.positions:
            names = self.make_block_plugins(planes, [p['cfg'] for p in plugins if p['position'] == position])
            setattr(self, f'{position}_plugin_names', names)
        # The first 3x3 convolution: the one with the stride, a norm and a ReLU.
        self._replace_conv('conv1', self.norm1_name, replacements)


class AttentionBottleneck(_BlockWithAttention, Bottleneck):
    """mmdet's Bottleneck; plugins at ``after_conv1``, ``after_conv2``, ``after_conv3``."""

    positions = ('after_conv1', 'after_conv2', 'after_conv3')

    def __init__(self, inplanes: int, planes: int, *args, plugins: Sequence[dict] | None = None, **kwargs) -> None:
        plugins, replacements = self._split_plugins(plugins)
        super().__init__(inplanes, planes, *args, plugins=plugins or None, **kwargs)
        if replacements and self.with_dcn:
            raise ValueError('dcn and a layer in place of the 3x3 convolution exclude each other')
        self._replace_conv('conv2', self.norm2_name, replacements)


_BLOCKS = {BasicBlock: AttentionBasicBlock, Bottleneck: AttentionBottleneck}


def _resolve_attention(name: str | type) -> type:
    """Class of an attention; ValueError with what is possible if there is none."""
    layer = name if isinstance(name, type) else MODELS.get(name) if isinstance(name, str) else None
    if layer is not None:
        return layer
    known = sorted(f'mmccd.{n}' for n, c in MODELS.module_dict.items() if issubclass(c, AttentionLayer))
    short = {n.rsplit('.', 1)[-1].lower(): n for n in known}
    close = [short[n] for n in difflib.get_close_matches(str(name).rsplit('.', 1)[-1].lower(), short, n=1)]
    hint = f'; did you mean {close[0]!r}?' if close else ''
    raise ValueError(
        f'attention type must be one of {", ".join(known)} or another registered plugin layer, got {name!r}{hint}'
    )


def _check_layer_options(name: str, cfg: dict, layer: type) -> None:
    """Raise TypeError for an option that the layer does not have; a registry would say so less clearly, and later."""
    known = inspect.signature(layer).parameters
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    for option in cfg:
        if option not in ('type', 'postfix', *known):
            close = difflib.get_close_matches(option, known, n=1)
            hint = f'; did you mean {close[0]!r}?' if close else f', which has {", ".join(known)}'
            raise TypeError(f'{name} has an option {option!r} that {layer.__name__} does not know{hint}')


def _check_stages(
    num_stages: int = 4,
    strides: Sequence[int] = (1, 2, 2, 2),
    dilations: Sequence[int] = (1, 1, 1, 1),
    out_indices: Sequence[int] = (0, 1, 2, 3),
    frozen_stages: int = -1,
    **others,
) -> None:
    """What mmdet's ResNet asserts without a word, or does not look at."""
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


def _is_pretrained_backbone(cfg: dict) -> bool:
    return cfg.get('type') in ('mmccd.PretrainedBackbone', 'PretrainedBackbone', PretrainedBackbone)


@MODELS.register_module()
class AttentionResNet(ResNet):
    """ResNet with an attention in every residual block of the chosen stages.

    Args:
        depth (int): 18, 34 (BasicBlock), 50, 101 or 152 (Bottleneck).
        attention (dict | None): ``type`` names the attention: ``'mmccd.CCD'``, ``SE``, ``GE``, ``CBAM``, ``ECA``,
            ``GC`` or any other plugin layer goes after the last norm of the block, before the addition;
            ``'mmccd.SK'`` takes the place of the 3x3 convolution. ``stages`` (Sequence[bool], one a stage) chooses
            stages, default: all. All other entries are the layer's own options. Default: None, plain ResNet.
        plugins (list[dict] | None): As mmdet's: ``dict(cfg=..., position=..., stages=...)``; BasicBlocks take
            ``after_conv1`` and ``after_conv2``, Bottlenecks ``after_conv3`` too. Default: None.
        fuse (bool): Let a CCD layer at the end of a block add the shortcut and apply the ReLU in the same pass, where
            its implementation can (compiled loops on the CPU). Same numbers, same keys. Default: True.
        **kwargs: Everything else that :class:`mmdet.models.ResNet` takes, with its defaults. Mind two of them for
            classification: ``norm_eval=True`` freezes the norms' statistics, and ``zero_init_residual=True``.

    Raises:
        TypeError, ValueError: If the attention, one of its options, a stage or a position does not exist.
        KeyError: If the depth does not exist.

    Example:
        >>> import torch
        >>> from mmccd.models import AttentionResNet
        >>> net = AttentionResNet(18, attention=dict(type='mmccd.CCD')).eval()
        >>> [tuple(out.shape) for out in net(torch.rand(1, 3, 64, 64))]
        [(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4), (1, 512, 2, 2)]
    """

    def __init__(
        self,
        depth: int,
        *args,
        attention: dict | None = None,
        plugins: list[dict] | None = None,
        fuse: bool = True,
        **kwargs,
    ) -> None:
        if depth not in self.arch_settings:
            raise KeyError(f'depth must be one of {tuple(self.arch_settings)}, got {depth!r}')
        positions = _BLOCKS[self.arch_settings[depth][0]].positions
        plugins = [dict(p) for p in plugins or ()]
        for plugin in plugins:
            if not isinstance(plugin.get('cfg'), dict) or 'type' not in plugin['cfg']:
                raise TypeError(f"every plugin must have a dict 'cfg' with the key 'type', got {plugin!r}")
            if plugin.get('position') not in positions:
                raise ValueError(
                    f'position of a plugin must be one of {positions} at depth {depth}, got {plugin.get("position")!r}'
                )
            _resolve_attention(plugin['cfg']['type'])
        if attention is not None:
            plugins.append(self._attention_plugin(attention, positions[-1], kwargs))
        num_stages = kwargs.get('num_stages', 4)
        _check_stages(**kwargs)
        for plugin in plugins:
            stages = plugin.get('stages')
            if stages is not None and (isinstance(stages, str) or not isinstance(stages, Sequence)):
                raise TypeError(f'stages must be a sequence of bools, one a stage, got {stages!r}')
            if stages is not None and len(stages) != num_stages:
                raise ValueError(f'stages must have one entry for each of the {num_stages} stages, got {stages}')
        self._check_names(plugins, num_stages)
        super().__init__(depth, *args, plugins=plugins or None, **kwargs)
        self.attention = attention
        if fuse:
            for block in self.modules():
                if isinstance(block, _BlockWithAttention):
                    block.fuse()

    @staticmethod
    def _check_names(plugins: list[dict], num_stages: int) -> None:
        """Raise ValueError if two plugins of a block would have one name in it, and in checkpoints."""
        taken = set()
        for plugin in plugins:
            layer = _resolve_attention(plugin['cfg']['type'])
            name = getattr(layer, '_abbr_', layer.__name__) + str(plugin['cfg'].get('postfix', ''))
            stages = plugin.get('stages')
            names = {(i, name) for i in range(num_stages) if stages is None or stages[i]}
            if plugin['position'] != REPLACE_CONV and names & taken:
                raise ValueError(f"plugins and attention have {name!r} twice in a block: give one a 'postfix'")
            taken |= names

    @staticmethod
    def _attention_plugin(attention: dict, last_position: str, backbone: dict) -> dict:
        if not isinstance(attention, dict) or 'type' not in attention:
            raise TypeError(f"attention must be a dict with the key 'type', got {attention!r}")
        cfg = dict(attention)
        stages = cfg.pop('stages', None)
        layer = cfg['type'] = _resolve_attention(cfg['type'])
        _check_layer_options('attention', cfg, layer)
        if not getattr(layer, 'replaces_conv', False):
            return dict(cfg=cfg, stages=stages, position=last_position)
        for key in ('conv_cfg', 'norm_cfg'):  # convolutions and norms like those around them
            if key in backbone:
                cfg.setdefault(key, backbone[key])
        return dict(cfg=cfg, stages=stages, position=REPLACE_CONV)

    def make_res_layer(self, **kwargs) -> nn.Module:
        """Pack the blocks of a stage, mmdet's blocks replaced by the ones here."""
        kwargs['block'] = _BLOCKS[kwargs['block']]
        return super().make_res_layer(**kwargs)

    def _freeze_stages(self) -> None:
        """Freeze as mmdet does, but for what starts anew: frozen, it would stay at its start for ever."""
        super()._freeze_stages()
        for _, p in self._new_in_frozen_stages():
            p.requires_grad = True

    def _new_in_frozen_stages(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters of the frozen stages that ``allow_new`` names.

        By the config alone, not by what the checkpoint turns out to have: DistributedDataParallel takes the list of
        what is trained before any checkpoint is read.
        """
        names = [n for cfg in self._pretrained_cfgs() for n in as_names(cfg.get('allow_new', ()))]
        frozen = tuple(f'layer{i}.' for i in range(1, self.frozen_stages + 1))
        return [(k, p) for k, p in self.named_parameters() if k.startswith(frozen) and is_named(k, names)]

    def _pretrained_cfgs(self) -> list[dict]:
        given = [] if self.init_cfg is None else self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg]
        return [cfg for cfg in given if _is_pretrained_backbone(cfg)]

    def train(self, mode: bool = True) -> AttentionResNet:
        """As mmdet's, with PyTorch's return value, so that ``net.eval()`` can be chained."""
        super().train(mode)
        return self

    def init_weights(self) -> None:
        """As every BaseModule, but a checkpoint comes last, after the layers' own start."""
        given, checkpoints = self.init_cfg, self._pretrained_cfgs()
        if not checkpoints or self.is_init:
            super().init_weights()
            return
        others = [cfg for cfg in given if not _is_pretrained_backbone(cfg)] if isinstance(given, list) else []
        # What the checkpoint does not have starts as in a ResNet without a checkpoint.
        self.init_cfg = others or [
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
        ]
        try:
            super().init_weights()
        finally:
            self.init_cfg = given
        for cfg in checkpoints:
            PretrainedBackbone(**{k: v for k, v in cfg.items() if k not in ('type', '_scope_')})(self)
        trained = [k for k, _ in self._new_in_frozen_stages()]
        if trained:
            print_log(
                f'frozen_stages={self.frozen_stages}: {len(trained)} tensors that start anew are trained nevertheless '
                f'({", ".join(trained[:4])}{", ..." if len(trained) > 4 else ""})',
                logger='current',
            )
