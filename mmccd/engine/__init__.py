"""What extends mmengine's runner: hooks."""

from .hooks import *  # noqa: F403  by their __all__
from .hooks import __all__ as __all__
