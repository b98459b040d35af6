"""AttentionResNet: one ResNet for classification and detection, with an attention in every residual block.

Extends mmdet's ``ResNet``, so every argument of that works here, and the keys are torchvision's and mmdet's plus the
attention's. Added: ``attention``; plugins in BasicBlock (ResNet-18 and -34); a layer in place of the 3x3 convolution;
``drop_path_rate`` as in MMPretrain's ``ResNet``; ``groups`` and ``base_width`` of mmdet's ``ResNeXt``;
``ignore_padding``. Checkpoints of MMPretrain's ResNetV1c and ResNetV1d load, too, which have other names in the stem
and where nothing is averaged.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from mmengine.logging import print_log
from torch import Tensor, nn

from mmccd.checkpoints.fit import is_named, shown
from mmccd.errors import UserError
from mmccd.registry import MODELS

from ..layers.base import TRAIN_THEM, AttentionLayer
from ..padding import ValidArea, apply_norm, checked_area, read_area, zero_outside
from ..pretrained import PretrainedBackbone, allowed_missing
from ..resnet_variants import checked_groups, names_of_mmpretrain
from .blocks import AttentionBasicBlock, AttentionBottleneck, AttentionGroupedBottleneck
from .plugins import Plugin, check_stages, parse_plugins

MAX_DIVISOR = 128  # the largest pad_size_divisor in use
_BLOCKS = {BasicBlock: AttentionBasicBlock, Bottleneck: AttentionBottleneck}


@MODELS.register_module()
class AttentionResNet(ResNet):
    """ResNet with an attention in every residual block of the chosen stages.

    Args:
        depth (int): 18, 34 (BasicBlock), 50, 101 or 152 (Bottleneck).
        attention (dict | None): ``type`` names the attention: ``'mmccd.CCD'``, ``SE``, ``GE``, ``CBAM``, ``ECA``,
            ``GC`` or any other plugin layer goes after the last norm of the block, before the addition;
            ``'mmccd.SK'`` takes the place of the 3x3 convolution. ``stages`` (Sequence[bool], one a stage) chooses
            stages, default: all. All other entries are the layer's own options; ``conv_cfg`` and ``norm_cfg`` are
            the backbone's, where the layer takes them and the entries do not have them. Default: None, plain ResNet.
        plugins (list[dict] | None): As mmdet's: ``dict(cfg=..., position=..., stages=...)``; BasicBlocks take
            ``after_conv1`` and ``after_conv2``, Bottlenecks ``after_conv3`` too. Default: None.
        fuse (bool): Let a CCD layer at the end of a block add the shortcut and apply the ReLU in the same pass, and
            before that the block's last norm if it uses running statistics, where its implementation can (compiled
            loops on the CPU). Same numbers, same keys. Default: True.
        drop_path_rate (float): Stochastic depth: share of samples, from 0 to below 1, whose last block drops its
            residual branch in training; 0 in the first block, linear between. A block that drops is not fused.
            Default: 0.
        groups (int): Groups of the 3x3 convolutions, as in ResNeXt; needs depth 50, 101 or 152. Default: 1.
        base_width (int | None): With groups, channels of a group in the first stage; each further stage has twice as
            many. Default: None, 4 as in ResNeXt-50 (32x4d).
        ignore_padding (bool): Give every image of a padded batch the features that it has alone: convolutions see
            zeros outside of it, and statistics over space are those of the image alone. Its size comes with the call
            or is read off the input (:meth:`forward`). No ONNX export with it. Default: False, as in the papers.
        pad_value (float): What images are padded with, after normalisation; for sizes that are read. Default: 0.
        **kwargs: Everything else that :class:`mmdet.models.ResNet` takes, with its defaults: ``deep_stem=True`` is
            ResNet-C, ``avg_down=True`` beside it ResNet-D. Mind two of them for classification: ``norm_eval=True``
            freezes the norms' statistics, and ``zero_init_residual=True``.

    Raises:
        TypeError, ValueError: If the attention, one of its options, a stage or a position does not exist, or a number
            breaks a rule above.
        KeyError: If the depth does not exist.

    Example:
        >>> import torch
        >>> from mmccd.models import AttentionResNet
        >>> net = AttentionResNet(18, attention=dict(type='mmccd.CCD')).eval()
        >>> [tuple(out.shape) for out in net(torch.rand(1, 3, 64, 64))]
        [(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4), (1, 512, 2, 2)]
    """

    init_cfg: dict | list[dict] | None
    groups: int
    base_width: int | None
    ignore_padding: bool
    pad_value: float

    def __init__(
        self,
        depth: int,
        *args: Any,
        attention: Mapping[str, Any] | None = None,
        plugins: Sequence[Mapping[str, Any]] | None = None,
        fuse: bool = True,
        drop_path_rate: float = 0.0,
        groups: int = 1,
        base_width: int | None = None,
        ignore_padding: bool = False,
        pad_value: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if depth not in self.arch_settings:
            raise KeyError(f'depth must be one of {tuple(self.arch_settings)}, got {depth!r}')
        check_stages(**kwargs)
        if not isinstance(ignore_padding, bool):
            raise TypeError(f'ignore_padding must be a bool, got {ignore_padding!r}')
        if isinstance(pad_value, bool) or not isinstance(pad_value, Real):
            raise TypeError(f'pad_value must be a number, got {pad_value!r}')
        self.groups, self.base_width = checked_groups(depth, groups, base_width)
        parsed = parse_plugins(attention, plugins, depth, kwargs.get('num_stages', 4), backbone=kwargs)
        rates = drop_path_rates(drop_path_rate, sum(self.arch_settings[depth][1]))
        super().__init__(depth, *args, plugins=parsed, **kwargs)
        self.attention = attention
        self.drop_path_rate = drop_path_rate
        self.ignore_padding, self.pad_value = ignore_padding, pad_value
        self.areas: list[ValidArea] = []
        self._check_padding_modes()
        blocks = [block for stage in self.res_layers for block in getattr(self, stage)]
        for block, rate in zip(blocks, rates):
            block.set_end(rate, fuse)
        for layer in self.modules():
            if isinstance(layer, AttentionLayer):
                layer.names_frozen = False  # one line for all of them, below

    def make_stage_plugins(self, plugins: Sequence[Plugin], stage_idx: int) -> list[Plugin]:
        """Plugins of one stage."""
        return [plugin for plugin in plugins if plugin.stages[stage_idx]]

    def make_res_layer(self, **kwargs: Any) -> nn.Module:
        """Pack the blocks of a stage, mmdet's blocks replaced by the ones here."""
        if self.groups == 1:
            return super().make_res_layer(**{**kwargs, 'block': _BLOCKS[kwargs['block']]})
        grouped = dict(groups=self.groups, base_width=self.base_width, base_channels=self.base_channels)
        return super().make_res_layer(**{**kwargs, **grouped, 'block': AttentionGroupedBottleneck})

    def forward(self, x: Tensor, image_sizes: Sequence[Sequence[int]] | None = None) -> tuple[Tensor, ...]:
        """Feature maps of the stages in ``out_indices``.

        Args:
            x (Tensor): Images, (N, in_channels, H, W).
            image_sizes (Sequence[Sequence[int]] | None): With ``ignore_padding``, height and width in pixels of every
                image, in the upper left corner of what is padded. Default: None, what is left without the last rows
                and columns that are ``pad_value`` in all channels. That is right if no image ends in such lines,
                which the usual mean values exclude: no 8-bit pixel is exactly 0 after normalisation. If some
                image must have been cut, a warning says so.

        Returns:
            tuple[Tensor]: (N, C, h, w) each. With ``ignore_padding``, zero outside of the images, and the attribute
            ``areas`` says where they are on each map; it is empty if no image has padding.

        Raises:
            TypeError, ValueError: If ``image_sizes`` are none, or are given without ``ignore_padding``.
            UserError: If ``ignore_padding`` meets a tracer, an exporter or a compiler.
        """
        if not self.ignore_padding:
            if image_sizes is not None:
                raise ValueError(f'image_sizes need ignore_padding=True, got {image_sizes!r}')
            return super().forward(x)
        if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or torch.compiler.is_compiling():
            raise UserError(
                'ignore_padding=True depends on the sizes of the images, which a traced, exported or compiled graph '
                'does not have: build the network with ignore_padding=False (in a config, '
                'model.backbone.ignore_padding=False), whose tensors are the same'
            )
        area = self._read_area(x) if image_sizes is None else checked_area(x, image_sizes)
        self.areas = []
        if area.is_whole:
            return super().forward(x)
        # Where torch.compile takes parts of a network, not this one: Inductor of PyTorch 2.11 fails on its gradients.
        is_compiler_loaded = 'torch._dynamo' in sys.modules
        forward = torch.compiler.disable(self._forward_within) if is_compiler_loaded else self._forward_within
        return forward(x, area)

    def _forward_within(self, x: Tensor, area: ValidArea) -> tuple[Tensor, ...]:
        """:meth:`forward` of images in ``area``. After each norm, and so before each convolution, padding is zero."""
        x = zero_outside(x.clone(), area)
        x, area = self._stem_within(x, area)
        outs = []
        for i, name in enumerate(self.res_layers):
            stage = getattr(self, name)
            try:
                for block in stage:
                    block.area = area
                    area = area.strided(block.stride)
                x = stage(x)
            finally:
                for block in stage:
                    block.area = None
            if i in self.out_indices:
                outs.append(x)
                self.areas.append(area)
        return tuple(outs)

    def _stem_within(self, x: Tensor, area: ValidArea) -> tuple[Tensor, ValidArea]:
        layers = list(self.stem) if self.deep_stem else [self.conv1, self.norm1, self.relu]
        for conv, norm, relu in zip(layers[::3], layers[1::3], layers[2::3]):
            x = conv(x)
            area = area.strided(conv.stride[0])
            x = relu(apply_norm(norm, x, area, norm))
        area = area.strided(self.maxpool.stride)
        # Inside, nothing is below the padding's zeros; outside, the first maximum may reach back into the image.
        return zero_outside(self.maxpool(x), area), area

    def _read_area(self, x: Tensor) -> ValidArea:
        """Sizes that are read off the input; a warning, once, where an image must have been cut."""
        area = read_area(x, self.pad_value)
        missing = [full - max(sizes) for full, sizes in zip(area.map_size, zip(*area.sizes))]
        if max(missing) >= MAX_DIVISOR and not self._has_warned:
            self._has_warned = True
            print_log(
                f'ignore_padding: the largest image ends {missing[0]} rows and {missing[1]} columns before the '
                f'end of a batch of {area.map_size[0]} x {area.map_size[1]} pixels, more than padding to a multiple '
                f'of {MAX_DIVISOR} explains. Either the images are padded to a fixed size, or one ends in pixels of '
                f'pad_value={self.pad_value}, which are taken for padding: give the sizes (image_sizes, or '
                'mmccd.IgnorePaddingHook in the config)',
                logger='current',
                level=logging.WARNING,
            )
        return area

    _has_warned = False

    def _check_padding_modes(self) -> None:
        """Raise ValueError where padding is ignored and a convolution does not see zeros beyond the border."""
        for name, m in self.named_modules() if self.ignore_padding else ():
            if getattr(m, 'padding_mode', 'zeros') != 'zeros':
                raise ValueError(f"ignore_padding needs convolutions with padding_mode='zeros', got {m} as {name}")

    def renamed_keys(self, keys: Iterable[str]) -> dict[str, str]:
        """Names here of keys that a checkpoint of MMPretrain's ResNets has otherwise, by those keys."""
        return names_of_mmpretrain(self, keys)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        ours = [key[len(prefix) :] for key in state_dict if key.startswith(prefix)]
        moved = {prefix + new: state_dict.pop(prefix + old) for old, new in self.renamed_keys(ours).items()}
        state_dict.update(moved)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> AttentionResNet:
        """As mmdet's, with PyTorch's return value, so that ``net.eval()`` can be chained."""
        super().train(mode)
        return self

    _is_built = False  # until the constructor has frozen stages

    def _freeze_stages(self) -> None:
        """Freeze as mmdet does, but for what a checkpoint may miss: frozen, it would keep its initial weights.

        By the config alone, not by what the checkpoint turns out to have: DistributedDataParallel takes the list of
        what is trained before any checkpoint is read.
        """
        # Later, by train() and eval(), what does not require a gradient was frozen from outside: a teacher's, say.
        trained = [p for _, p in self._allowed_missing() if p.requires_grad or not self._is_built]
        super()._freeze_stages()
        self._is_built = True
        for p in trained:
            p.requires_grad = True

    def _allowed_missing(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters that ``allow_missing`` of :class:`PretrainedBackbone` names."""
        names = [name for cfg in self._init_cfgs() if _is_pretrained_backbone(cfg) for name in allowed_missing(cfg)]
        return [(k, p) for k, p in self.named_parameters() if is_named(k, names)]

    def _in_frozen_stages(self, key: str) -> bool:
        return key.startswith(tuple(f'layer{i}.' for i in range(1, self.frozen_stages + 1)))

    def _init_cfgs(self) -> list[dict]:
        given = self.init_cfg or []
        return given if isinstance(given, list) else [given]

    def init_weights(self) -> None:
        """As every BaseModule, but a :class:`PretrainedBackbone` comes last, after the layers' own initial weights."""
        if self.is_init:
            super().init_weights()  # says so, and does nothing
            return
        given = self.init_cfg
        checkpoints = [cfg for cfg in self._init_cfgs() if _is_pretrained_backbone(cfg)]
        if not checkpoints:
            self._init_and_name_frozen()
            return
        # What the checkpoint does not have is initialised as in a ResNet without a checkpoint.
        self.init_cfg = [cfg for cfg in self._init_cfgs() if not _is_pretrained_backbone(cfg)] or [
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
        ]
        try:
            super().init_weights()
        finally:
            self.init_cfg = given
        for cfg in checkpoints:
            PretrainedBackbone(**{k: v for k, v in cfg.items() if k not in ('type', '_scope_')})(self)
        trained = [k for k, _ in self._allowed_missing() if self._in_frozen_stages(k)]
        if trained:
            print_log(
                f'frozen_stages={self.frozen_stages}: {len(trained)} tensors that the checkpoint may miss are trained '
                f'nevertheless ({shown(trained, 4)})',
                logger='current',
            )

    def _init_and_name_frozen(self) -> None:
        """Initialise; say what mmengine's ``Pretrained`` did not find for a frozen stage."""
        missing: list[str] = []
        handle = self.register_load_state_dict_post_hook(lambda _, keys: missing.extend(keys.missing_keys))
        try:
            super().init_weights()
        finally:
            handle.remove()
        parameters = {k for k, _ in self.named_parameters()}
        frozen = [k for k in dict.fromkeys(missing) if k in parameters and self._in_frozen_stages(k)]
        if frozen:
            print_log(
                f'frozen_stages={self.frozen_stages}: {len(frozen)} tensors that the checkpoint does not have are '
                f'frozen and keep their initial weights ({shown(frozen, 4)}). {TRAIN_THEM}',
                logger='current',
                level=logging.WARNING,
            )


def drop_path_rates(rate: float, blocks: int) -> list[float]:
    """Rates of stochastic depth, one a block: from 0 to ``rate``, linear, in MMPretrain's float32.

    Raises:
        TypeError, ValueError: If ``rate`` is not a number from 0 to below 1.
    """
    if isinstance(rate, bool) or not isinstance(rate, Real):
        raise TypeError(f'drop_path_rate must be a number, got {rate!r}')
    if not 0 <= rate < 1:
        raise ValueError(f'drop_path_rate must be from 0 to below 1, got {rate}')
    return torch.linspace(0, float(rate), blocks, device='cpu').tolist()


def _is_pretrained_backbone(cfg: Mapping[str, Any]) -> bool:
    return cfg.get('type') in ('mmccd.PretrainedBackbone', 'PretrainedBackbone', PretrainedBackbone)
