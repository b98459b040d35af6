"""Types of command-line arguments: numbers in a range, with a message that names it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def whole_number(minimum: int) -> Callable[[str], int]:
    """A type for ``add_argument``: a whole number of at least ``minimum``, which is not negative."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f'must be a whole number, at least {minimum}, got {text!r}')
        return int(text)

    return parse


def number(minimum: float, maximum: float = math.inf) -> Callable[[str], float]:
    """A type for ``add_argument``: a finite number from ``minimum`` to ``maximum``."""
    rule = f' from {minimum:g} to {maximum:g}' if math.isfinite(maximum) else f', at least {minimum:g}'

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (minimum <= value <= maximum and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f'must be a number{rule}, got {text!r}')
        return value

    return parse
