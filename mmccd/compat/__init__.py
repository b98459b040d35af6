"""Compatibility with other packages: a replacement for mmcv's compiled operators, and MMDetection 0.6's boxes."""

from .mmcv_ops import in_use, install

__all__ = ['in_use', 'install']
