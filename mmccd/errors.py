"""What mmccd raises where a command or a config has to be changed, and the names that its messages suggest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something in the command or the config that its author has to change; the message names it.

    Attributes:
        everywhere (bool): Whether all processes of a run raise it alike, so that one message a machine will do.
    """

    everywhere = True


def suggest(name: str, names: Iterable[str], n: int = 1, cutoff: float = 0.5, prefix: str = '') -> str:
    """End of a message: '; did you mean ...?' with the nearest of ``names``, '' if none is near.

    Args:
        name (str): What was asked for.
        names (Iterable[str]): What there is.
        n (int): Number of names at most. Default: 1.
        cutoff (float): Similarity from which a name is near, 0 to 1. Default: 0.5.
        prefix (str): What the message puts before each name, e.g. a folder. Default: nothing.

    Example:
        >>> suggest('mmccd.CDC', ['mmccd.CCD', 'mmccd.SE'])
        "; did you mean 'mmccd.CCD'?"
    """
    known = {each.lower(): each for each in names}  # capitals are what people get wrong first
    near = [known[each] for each in difflib.get_close_matches(name.lower(), known, n=n, cutoff=cutoff)]
    return f'; did you mean {" or ".join(repr(prefix + x) for x in near)}?' if near else ''
