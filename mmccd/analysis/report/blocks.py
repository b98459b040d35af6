"""What a section of the page consists of: tables, plots, galleries of images, and problems."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .curves import Plot
from .tables import Table


@dataclass
class Panel:
    """An image with a caption: a stored one with boxes over it, or one of its own."""

    title: str
    text: str = ''
    note: str = ''
    image: str = ''
    uri: str = ''
    width: int = 0
    height: int = 0
    letters: float = 0
    boxes: list[dict] = field(default_factory=list)
    colour: int | None = None
    right: bool | None = None


@dataclass
class Item:
    """Panels of one image."""

    title: str
    panels: list[Panel]


@dataclass
class Gallery:
    """Items under a title. ``kind``: ``'rows'``, ``'cards'`` or ``'figures'``."""

    title: str
    items: list[Item]
    kind: str = 'rows'
    intro: str = ''
    legend: tuple = ()


@dataclass
class Section:
    """A section of the page. ``problems``: why something is missing from it."""

    id: str
    title: str
    intro: str = ''
    problems: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    details: list[dict] = field(default_factory=list)

    def attempt(self, what: str, work: Callable[[], Any]) -> Any:
        """Do something that may fail: then the section gives the reason, and the rest of the page is made."""
        try:
            return work()
        except Exception as e:  # anything that a model, a dataset or a file raises
            reason = str(e).strip() or 'no message'
            kind = '' if isinstance(e, (ValueError, OSError)) else f'{type(e).__name__}: '
            self.problems.append(f'{what}: {kind}{reason}')
            print(f'warning: {self.title}: {what}: {kind}{reason}', file=sys.stderr)
            return None
