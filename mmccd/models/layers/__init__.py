"""One file per attention. All but SK are plugin layers in mmcv's sense; SK stands in for a 3x3 convolution."""

import importlib
import pkgutil

from .base import AttentionLayer, attention_types
from .cbam import CBAM
from .ccd import CCD
from .eca import ECA
from .gc import GC
from .ge import GE
from .se import SE
from .sk import SK

# Every file of this folder registers its attention: a new one is known to configs, and to the tests, without a line
# here. Names for `from mmccd.models import ...` are written out, here and in the folder above.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')

__all__ = ['CBAM', 'CCD', 'ECA', 'GC', 'GE', 'SE', 'SK', 'AttentionLayer', 'attention_types']
