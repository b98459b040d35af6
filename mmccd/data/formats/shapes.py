"""Enclosing boxes of shapes, (x, y, width, height) in the unit of their coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterable

Box = tuple[float, float, float, float]


def from_corners(x1: float, y1: float, x2: float, y2: float) -> Box:
    """A box by two opposite corners, in either order."""
    return min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)


def around(points: Iterable[tuple[float, float]]) -> Box:
    """Around points."""
    xs, ys = zip(*points)
    return from_corners(min(xs), min(ys), max(xs), max(ys))


def rotated(box: Box, degrees: float, pivot: tuple[float, float]) -> Box:
    """Around a box that is turned clockwise, as one sees it, about a point."""
    x, y, w, h = box
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    px, py = pivot
    corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
    return around((px + (a - px) * cos - (b - py) * sin, py + (a - px) * sin + (b - py) * cos) for a, b in corners)


def ellipse(cx: float, cy: float, rx: float, ry: float, degrees: float = 0.0) -> Box:
    """Around an ellipse that is turned about its centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half_width, half_height = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
    return cx - half_width, cy - half_height, 2 * half_width, 2 * half_height


def tidy(box: Box) -> Box:
    """Rounded to 1/10,000 of a pixel: what is left of the arithmetic goes, whole numbers stay whole."""
    x, y, w, h = (round(v, 4) for v in box)
    return tuple(int(v) if float(v).is_integer() else v for v in (x, y, w, h))


def to_number(text: str | None) -> float | None:
    """The number that a text is; None for anything else, and for what is not finite."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else value
