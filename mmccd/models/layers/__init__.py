"""One file per attention. All but SK are plugin layers in mmcv's sense; SK stands in for a 3x3 convolution."""

from .cbam import CBAM
from .ccd import CCD
from .eca import ECA
from .gc import GC
from .ge import GE
from .se import SE
from .sk import SK

__all__ = ['CBAM', 'CCD', 'ECA', 'GC', 'GE', 'SE', 'SK']
