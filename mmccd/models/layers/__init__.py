"""One file per attention. All but SK are plugin layers in mmcv's sense; SK stands in for a 3x3 convolution."""

import importlib
import pkgutil

from .bam import BAM
from .base import AttentionLayer, attention_types
from .cbam import CBAM
from .ccd import CCD
from .coord_attention import CoordAttention
from .eca import ECA
from .ema import EMAttention
from .fca import FCA
from .gc import GC
from .ge import GE
from .lsk import LSK
from .nam import NAM
from .se import SE
from .sge import SGE
from .shuffle_attention import ShuffleAttention
from .simam import SimAM
from .sk import SK
from .triplet import TripletAttention

# Every file of this folder registers its attention: a new one is known to configs, and to the tests, without a line
# here. Names for `from mmccd.models import ...` are written out, here and in the folder above.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')

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
    'AttentionLayer',
    'CoordAttention',
    'EMAttention',
    'ShuffleAttention',
    'SimAM',
    'TripletAttention',
    'attention_types',
]
