"""What acts on a running training."""
from .hooks import BrokenPicturesHook

__all__ = ['BrokenPicturesHook']
