"""What the attention layers have in common: checks of arguments, statistics in float32, norms, own initial weights."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Any

import torch
import torch.fx
from mmengine.logging import print_log
from mmengine.model import BaseModule, initialize
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmccd.ops.backends import compute_dtype
from mmccd.registry import MODELS

# What to do about new layers in frozen stages.
TRAIN_THEM = (
    "To train them, use type='mmccd.AttentionResNet' with init_cfg=dict(type='mmccd.PretrainedBackbone', "
    'checkpoint=..., allow_missing=[names of the layers])'
)


def check_int(name: str, value: int, minimum: int = 1) -> None:
    """Raise TypeError or ValueError unless ``value`` is an int of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f'{name} must be an int, got {value!r}')
    if value < minimum:
        raise ValueError(f'{name} must be at least {minimum}, got {value}')


def check_ratio(ratio: int, channels: int, name: str = 'in_channels') -> None:
    """Raise TypeError or ValueError unless both are ints and a channel is left; ``name`` is that of ``channels``."""
    check_int(name, channels)
    check_int('ratio', ratio)
    if ratio > channels:
        raise ValueError(f'ratio must be at most {name}={channels}, got {ratio}')


def check_odd(name: str, value: int) -> None:
    """Raise TypeError or ValueError unless ``value`` is an odd int of at least 1."""
    check_int(name, value)
    if value % 2 == 0:
        raise ValueError(f'{name} must be odd, got {value}')


def fit_norm_cfg(norm_cfg: dict | None, channels: int, **batch_norm: Any) -> dict:
    """The network's ``norm_cfg`` for a norm inside an attention, which may have few channels, even one.

    GroupNorm keeps its number of groups where that leaves each group two channels or more, else it takes one group:
    a group of one pooled channel would be normalised to zero.

    Args:
        norm_cfg (dict | None): As mmcv's ``build_norm_layer`` takes it. None: BatchNorm.
        channels (int): Channels of the norm.
        **batch_norm: Options of a BatchNorm that differ from PyTorch's in this attention, used unless ``norm_cfg``
            has them.

    Example:
        >>> fit_norm_cfg(None, 1, momentum=0.01)
        {'momentum': 0.01, 'type': 'BN'}
        >>> fit_norm_cfg(dict(type='GN', num_groups=32), 4)
        {'type': 'GN', 'num_groups': 1}
    """
    cfg: dict[str, Any] = dict(type='BN') if norm_cfg is None else dict(norm_cfg)
    if 'num_groups' in cfg and (channels % cfg['num_groups'] or channels == cfg['num_groups']):
        cfg['num_groups'] = 1
    norm = cfg['type'] if isinstance(cfg['type'], type) else MODELS.get(cfg['type'])
    return {**batch_norm, **cfg} if isinstance(norm, type) and issubclass(norm, _BatchNorm) else cfg


def check_can_vanish(norm: nn.Module, norm_cfg: dict | None) -> None:
    """Raise ValueError unless a norm has a weight, which ``identity_init`` sets to 0."""
    if getattr(norm, 'weight', None) is None:
        raise ValueError(f'identity_init needs a norm with a weight, got norm_cfg={norm_cfg}')


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Dtype of what is summed up over ``x``: float32 for half precision, whose sums overflow, else its own."""
    return compute_dtype(x.dtype)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Where a gate is computed: its small layers see sums of large features, which overflow in autocast's float16."""
    return nullcontext() if x.device.type == 'meta' else torch.autocast(x.device.type, enabled=False)


def set_to_zero(*layers: nn.Module) -> None:
    """Set all parameters of these layers to 0."""
    for layer in layers:
        for p in layer.parameters():
            nn.init.zeros_(p)


def centred(x: Tensor) -> Tensor:
    """``x`` less its mean over the last two dimensions; twice, since the mean of large features has a rounding error.

    Example:
        >>> centred(torch.full((1, 1, 3, 3), 60000.1)).abs().max() < 1e-6
        tensor(True)
    """
    x = x - x.mean((-2, -1), keepdim=True)
    return x - x.mean((-2, -1), keepdim=True)


def instance_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """What ``norm``, whose groups are single channels, makes of ``x``, (..., C, H, W); right for one pixel, too."""
    x = centred(x)
    x = x / (x.square().mean((-2, -1), keepdim=True) + norm.eps).sqrt()
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]


def _check_channels(x: Tensor, in_channels: int, name: str) -> None:
    if torch.jit.is_tracing():  # shapes are tensors then
        return
    if x.dim() != 4:
        raise ValueError(f'the input of {name} must have shape (N, C, H, W), got {tuple(x.shape)}')
    if x.shape[1] != in_channels:
        raise ValueError(
            f'in_channels of {name} is {in_channels}, and its input has {x.shape[1]} channels: got shape '
            f'{tuple(x.shape)}'
        )


torch.fx.wrap('_check_channels')  # a node of a graph that torch.fx traces, where shapes are not known


class GlobalAvgPool(nn.AdaptiveAvgPool2d):
    """Mean over space, (N, C, H, W) to (N, C, 1, 1), in float32 for half precision."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x: Tensor) -> Tensor:
        dtype = statistics_dtype(x)
        return super().forward(x) if dtype == x.dtype else x.mean((2, 3), keepdim=True, dtype=dtype)


class AttentionLayer(BaseModule):
    """Base of the layers whose initial weights are part of their definition.

    A backbone's ``init_cfg`` (Kaiming for every Conv2d) runs before its children's ``init_weights``, so that what
    :meth:`reset_parameters` sets here stays, unless the layer was given an ``init_cfg`` of its own.

    A layer with a method ``gates(x)`` has attention maps (:mod:`mmccd.analysis.attention_maps`): a dict of
    ``'spatial'`` (N, maps, H, W), ``'channel'`` (N, C) or both, what the layer does to ``x`` of shape (N, C, H, W).

    A constructor that has ``conv_cfg`` or ``norm_cfg`` gets those of the backbone, unless the config has them.

    Attributes:
        in_channels (int): Channels of the input.
        gate_labels (dict[str, str]): What the numbers of ``gates`` are, for legends. Left as it is here: factors that
            the features are multiplied by.
        replaces_conv (bool): Whether the layer takes the place of a block's 3x3 convolution, with its norm and ReLU.
        takes_residual (bool): Whether ``layer(x, residual)`` is relu(layer(x) + residual), in one pass.
        names_frozen (bool): Whether the layer logs a warning if it is frozen and a checkpoint does not have it; a
            backbone that logs one for all of them switches it off.
    """

    in_channels: int
    gate_labels = dict(spatial='gate', channel='gate')
    replaces_conv = False
    takes_residual = False
    names_frozen = True

    def check_channels(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is (N, in_channels, H, W); a layer that sets that calls this first.

        Without it, PyTorch complains of a convolution's weight, or, where no weight depends on the channels, nobody:
        one image without its N would be pooled over other dimensions.
        """
        _check_channels(x, self.in_channels, type(self).__name__)

    def takes_affine(self, x: Tensor) -> bool:
        """Whether ``layer(x, residual, weight, shift, overwrite, norm)`` normalises ``x`` in its own pass."""
        return False

    def reset_parameters(self) -> None:
        """Set the initial weights. Called at the end of ``init_weights``."""

    def reset_inner_layers(self) -> None:
        """Give every layer inside PyTorch's initial weights."""
        for layer in self.modules():
            if layer is not self and hasattr(layer, 'reset_parameters'):
                layer.reset_parameters()

    def init_weights(self) -> None:
        first = not self.is_init
        super().init_weights()
        if not first:
            return
        if self.init_cfg:
            initialize(self, self.init_cfg)  # again: children like ConvModule have overwritten it
        else:
            self.reset_parameters()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """As every module; in a frozen stage of any backbone, a layer that is not in the checkpoint is named."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        parameters = dict(self.named_parameters())
        trained = any(p.requires_grad for p in parameters.values())
        if self.names_frozen and parameters and not trained and not any(prefix + k in state_dict for k in parameters):
            print_log(
                f'{prefix}{{{", ".join(parameters)}}} are frozen, and the checkpoint does not have them: they keep '
                f'their initial weights. {TRAIN_THEM}',
                logger='current',
                level=logging.WARNING,
            )


def _is_attention(registered: Any) -> bool:
    return isinstance(registered, type) and issubclass(registered, AttentionLayer)


def attention_types() -> dict[str, type[AttentionLayer]]:
    """Every attention that a config can name, by its name in the registry without ``mmccd.``, sorted.

    Example:
        >>> import mmccd.models
        >>> 'CCD' in attention_types()
        True
    """
    return {name: cls for name, cls in sorted(MODELS.module_dict.items()) if _is_attention(cls)}
