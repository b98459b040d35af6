"""What mmccd does about other packages' installations: a stand-in for mmcv's compiled operators."""

from .mmcv_ops import in_use, install

__all__ = ['in_use', 'install']
