"""Hooks of mmengine's runner."""
from .broken_pictures import BrokenPicturesHook

__all__ = ['BrokenPicturesHook']
