"""Everything that a config can name: attention layers, the backbone that holds them, and its initialiser."""

from .attach import with_attention
from .backbones import AttentionResNet
from .layers import CBAM, CCD, ECA, GC, GE, SE, SK
from .pretrained import PretrainedBackbone

__all__ = ['CBAM', 'CCD', 'ECA', 'GC', 'GE', 'SE', 'SK', 'AttentionResNet', 'PretrainedBackbone', 'with_attention']
