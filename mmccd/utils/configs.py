"""Where the configs that come with mmccd are. Imports nothing heavy: a list of names should not take seconds."""
from __future__ import annotations

import fnmatch
from pathlib import Path

# Files in a wheel, links to the checkout's folders in a checkout: the place where mim looks, too.
CONFIGS = Path(__file__).parents[1] / '.mim' / 'configs'


def list_configs(pattern: str = '*') -> list[str]:
    """Names of the configs that come with mmccd, sorted.

    Args:
        pattern (str): Shell pattern for the whole name: ``*``, ``?``, ``[...]``. Default: all.

    Example:
        >>> import mmccd
        >>> mmccd.list_configs('retinanet_*_digits')
        ['retinanet_ccd_r18_fpn_digits', 'retinanet_r18_fpn_digits']
    """
    return sorted(fnmatch.filter((path.stem for path in CONFIGS.glob('*.py')), pattern))
