"""Everything that a config can name: attention layers, the backbone that holds them, and its initialiser."""

from . import weights as weights  # registers authors:// and hf://
from .attach import with_attention
from .backbones import AttentionResNet
from .layers import (
    BAM,
    CBAM,
    CCD,
    ECA,
    FCA,
    GC,
    GE,
    LSK,
    NAM,
    SE,
    SGE,
    SK,
    CoordAttention,
    EMAttention,
    ShuffleAttention,
    SimAM,
    TripletAttention,
)
from .pretrained import PretrainedBackbone

__all__ = [
    'BAM',
    'CBAM',
    'CCD',
    'ECA',
    'FCA',
    'GC',
    'GE',
    'LSK',
    'NAM',
    'SE',
    'SGE',
    'SK',
    'AttentionResNet',
    'CoordAttention',
    'EMAttention',
    'PretrainedBackbone',
    'ShuffleAttention',
    'SimAM',
    'TripletAttention',
    'with_attention',
]
