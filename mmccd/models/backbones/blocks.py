"""Residual blocks with layers behind any convolution, in place of the 3x3 one, and stochastic depth.

They are mmdet's blocks, with the same names of tensors. Added: parsed plugins (:class:`Plugin`), in BasicBlock too; a
last layer that applies the last norm, adds the shortcut and applies the ReLU in its own pass; ``drop_path_rate`` as in
MMPretrain's ResNet; images without their padding, if the backbone says where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.utils.checkpoint
from mmcv.cnn.bricks import DropPath
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmdet.models.backbones.resnext import Bottleneck as GroupedBottleneck
from torch import Tensor, nn

from ..padding import ValidArea, apply_norm, attend, per_size
from .folded_norm import affine_of_norm
from .plugins import POSITIONS, REPLACE_CONV, Plugin


class _BlockWithPlugins(nn.Module):
    """What both residual blocks share.

    Attributes:
        positions (tuple[str, ...]): Places behind the block's convolutions, which are as many.
        conv3x3 (int): Number of the convolution that a layer can take the place of, with its norm and ReLU.
        plugin_names (dict[str, list[str]]): Names of the layers at each position.
        replaced (int | None): Number of the convolution whose place a layer has.
        fused (str | None): Name of the layer that adds the shortcut and applies the ReLU, too.
        strides (tuple[int, ...]): Of the convolutions.
        area (ValidArea | None): Where the images are in the next input, set before each call; None: everywhere.
    """

    positions: tuple[str, ...]
    conv3x3: int
    downsample: nn.Sequential | None
    relu: nn.Module
    training: bool
    with_cp: bool
    area: ValidArea | None = None

    def add_plugins(self, plugins: Sequence[Plugin]) -> None:
        """Build the layers and put them in their places."""
        self.replaced: int | None = None
        self.fused: str | None = None
        self.drop_path: nn.Module = nn.Identity()
        self.plugin_names: dict[str, list[str]] = {}
        convs = [getattr(self, f'conv{i}') for i in range(1, len(self.positions) + 1)]
        self.strides: tuple[int, ...] = tuple(int(nn.modules.utils._pair(conv.stride)[0]) for conv in convs)
        for i, position in enumerate(self.positions, 1):
            here = [plugin for plugin in plugins if plugin.position == position]
            for plugin in here:
                self.add_module(plugin.name, plugin.build(in_channels=getattr(self, f'conv{i}').out_channels))
            self.plugin_names[position] = [plugin.name for plugin in here]
        for plugin in plugins:
            if plugin.position == REPLACE_CONV:
                self._replace_conv(plugin)

    def _replace_conv(self, plugin: Plugin) -> None:
        conv = getattr(self, f'conv{self.conv3x3}')
        layer = plugin.build(
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            stride=conv.stride[0],
            dilation=conv.dilation[0],
        )
        setattr(self, f'conv{self.conv3x3}', layer)
        delattr(self, getattr(self, f'norm{self.conv3x3}_name'))
        self.replaced = self.conv3x3

    def set_end(self, drop_path_rate: float, fuse: bool) -> None:
        """What happens to the residual branch at its end: dropped for some samples, or added by its last layer."""
        if drop_path_rate > 1e-5:  # MMPretrain's bound
            self.drop_path = DropPath(drop_path_rate).train(self.training)  # not in a frozen stage
        names = self.plugin_names[self.positions[-1]]
        takes_residual = bool(names) and getattr(getattr(self, names[-1]), 'takes_residual', False)
        # A branch that may be dropped is dropped before the sum, which a fused layer hides.
        self.fused = names[-1] if fuse and takes_residual and isinstance(self.drop_path, nn.Identity) else None

    def _conv(self, x: Tensor, i: int, area: ValidArea | None) -> Tensor:
        """Convolution i, or what has taken its place and its norm's."""
        conv = getattr(self, f'conv{i}')
        if area is None or self.replaced != i:
            return conv(x)
        return attend(conv, area, x, stride=self.strides[i - 1])

    def _norm(self, x: Tensor, i: int, area: ValidArea | None) -> Tensor:
        """The norm behind convolution i, if there is one."""
        if self.replaced == i:
            return x
        norm = getattr(self, getattr(self, f'norm{i}_name'))
        return norm(x) if area is None else apply_norm(norm, x, area, norm)

    def _plugins(self, x: Tensor, names: Sequence[str], area: ValidArea | None) -> Tensor:
        for name in names:
            layer = getattr(self, name)
            x = layer(x) if area is None else attend(layer, area, x)
        return x

    def _shortcut(self, x: Tensor, area: ValidArea | None) -> Tensor:
        if self.downsample is None:
            return x
        if area is None:
            return self.downsample(x)
        *pools, conv, norm = self.downsample
        stride = max(self.strides)
        for pool in pools:  # one: a mean that leaves out what is beyond the border
            x = per_size(pool, area, x, stride=stride)
        return apply_norm(norm, conv(x), area.strided(stride), norm)

    def _sum(self, x: Tensor, area: ValidArea | None = None) -> Tensor:
        """Both branches and their sum; before the last ReLU unless a layer applies that."""
        out, inner = x, area
        for i, position in enumerate(self.positions[:-1], 1):
            out = self._conv(out, i, inner)
            inner = inner and inner.strided(self.strides[i - 1])
            out = self._norm(out, i, inner)
            out = out if self.replaced == i else self.relu(out)
            out = self._plugins(out, self.plugin_names[position], inner)
        if self.fused is not None:
            return self._fused_end(out, x, getattr(self, self.fused), area, inner)
        last = len(self.positions)
        out = self._norm(self._conv(out, last, inner), last, inner)
        out = self.drop_path(self._plugins(out, self.plugin_names[self.positions[-1]], inner))
        out += self._shortcut(x, area)
        return out

    def _fused_end(
        self, out: Tensor, x: Tensor, layer: nn.Module, area: ValidArea | None, inner: ValidArea | None
    ) -> Tensor:
        """From the last convolution to the last ReLU; a norm right before the layer may run in its pass."""
        last = len(self.positions)
        conv, norm = getattr(self, f'conv{last}'), getattr(self, getattr(self, f'norm{last}_name'))
        before = self.plugin_names[self.positions[-1]][:-1]
        out = conv(out)
        affine = {} if before else affine_of_norm(conv, norm, layer, out)
        if not affine:
            out = self._plugins(self._norm(out, last, inner), before, inner)
        shortcut = self._shortcut(x, area)
        return layer(out, shortcut, **affine) if inner is None else attend(layer, inner, out, shortcut, **affine)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        area = self.area
        if self.with_cp and x.requires_grad:
            out = torch.utils.checkpoint.checkpoint(self._sum, x, area, use_reentrant=False)
        else:
            out = self._sum(x, area)
        return self.relu(out) if self.fused is None else out


class AttentionBasicBlock(_BlockWithPlugins, BasicBlock):
    """mmdet's BasicBlock (ResNet-18 and -34). A replacement stands for its first convolution, which has the stride."""

    positions = POSITIONS[:2]
    conv3x3 = 1

    def __init__(self, *args: Any, plugins: Sequence[Plugin] = (), **kwargs: Any) -> None:
        if kwargs.get('dcn') is not None:
            raise ValueError('dcn needs Bottleneck blocks (depth 50, 101 or 152)')
        super().__init__(*args, **kwargs)
        self.add_plugins(plugins)


class AttentionBottleneck(_BlockWithPlugins, Bottleneck):
    """mmdet's Bottleneck (ResNet-50, -101 and -152)."""

    positions = POSITIONS
    conv3x3 = 2

    def __init__(self, *args: Any, plugins: Sequence[Plugin] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.with_dcn and any(plugin.position == REPLACE_CONV for plugin in plugins):
            raise ValueError('dcn and a layer in place of the 3x3 convolution exclude each other')
        self.add_plugins(plugins)


class AttentionGroupedBottleneck(AttentionBottleneck, GroupedBottleneck):
    """mmdet's Bottleneck of ResNeXt: the 3x3 convolution has ``groups``, and with the first one its own width."""

    def __init__(self, *args: Any, plugins: Sequence[Plugin] = (), **kwargs: Any) -> None:
        if any(plugin.position == REPLACE_CONV for plugin in plugins):
            raise ValueError('groups and a layer in place of the 3x3 convolution exclude each other')
        super().__init__(*args, plugins=plugins, **kwargs)
