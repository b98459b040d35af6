"""Everything that a config can name: attention layers, the backbone that holds them, and its initialiser."""

from . import layers
from . import weights as weights  # registers authors:// and hf://
from .attach import with_attention
from .backbones import AttentionResNet
from .layers import *  # noqa: F403  by their __all__
from .padding_in_detector import ignore_padding_in
from .pretrained import PretrainedBackbone

__all__ = ['AttentionResNet', 'PretrainedBackbone', 'ignore_padding_in', 'with_attention']
__all__ += layers.__all__
