"""What figures of images with maps over them share: a canvas measured in inches, a legend, the column at the left."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from .fonts import drawable

# Inches.
SIDE = 2.0  # image and legend, at the left
MIN_CELL = 1.2  # captions need that
MARGIN, GAP = 0.15, 0.12
CAPTION, LINE, LEGEND = 0.17, 0.15, 0.55
WRAP = 32  # letters of a line beside the panels
DPI = 150

COLORS = 'RdYlBu_r'  # readers with any colour vision can tell its ends apart, also mixed with grey
ALPHA = 0.65
GREY, DARK = '0.45', '0.1'
MAX_DIGITS = 5  # more do not fit beside a caption


class Canvas:
    """A figure whose axes and texts are placed in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor='white')

    def axes(self, x: float, y: float, w: float, h: float) -> Axes:
        return self.figure.add_axes((x / self.width, 1 - (y + h) / self.height, w / self.width, h / self.height))

    def text(self, x: float, y: float, text: str, **options) -> None:
        text, families = drawable(text)
        options = {'fontsize': 7, 'color': DARK, 'va': 'center', 'parse_math': False, 'family': families, **options}
        self.figure.text(x / self.width, 1 - y / self.height, text, **options)

    def lines(self, y: float, lines: Sequence[tuple[str, bool]]) -> float:
        """Lines of :func:`wrapped` in the column at the left, from ``y`` down; returns where they end."""
        for text, first in lines:
            self.text(MARGIN, y + LINE / 2, text, **(dict(weight='bold') if first else dict(color=GREY)))
            y += LINE
        return y

    def caption(self, x: float, y: float, width: float, text: str, note: str, **options) -> None:
        """The text over a panel: ``text`` at its left, a smaller ``note`` at its right."""
        self.text(x, y + CAPTION * 0.4, text, **options)
        self.text(x + width, y + CAPTION * 0.4, note, ha='right', color=GREY, fontsize=6)

    def png(self) -> bytes:
        out = io.BytesIO()
        self.figure.savefig(out, format='png', metadata=dict(Software=None))
        return out.getvalue()


def wrapped(lines: Sequence[str]) -> list[tuple[str, bool]]:
    """Lines broken to the width of the column at the left, and whether each is of the first one, the title."""
    return [(chunk, i == 0) for i, line in enumerate(lines) for chunk in textwrap.wrap(line, WRAP)]


def side_height(image: float, lines: Sequence, legends: int) -> float:
    """Height of the column at the left: an image, lines of text below it, and legends."""
    return image + GAP + LINE * len(lines) + LEGEND * legends


def distinct(*values: float) -> list[str]:
    """Numbers with three significant digits, or up to ``MAX_DIGITS`` if fewer do not distinguish them."""
    for digits in range(3, MAX_DIGITS + 1):
        texts = [f'{v:#.{digits}g}' for v in values]
        if len(set(texts)) == len(values):
            return texts
    return [f'{v:#.3g}' for v in values]  # the same but for rounding


def draw_legend(
    canvas: Canvas,
    y: float,
    label: str,
    limits: tuple[float, float],
    colors: str | Colormap = COLORS,
    alpha: float | None = ALPHA,
) -> None:
    """The colour scale, in the column at the left."""
    axes = canvas.axes(MARGIN, y, SIDE, 0.12)
    axes.set_facecolor('0.7')  # as in the maps, mixed with grey
    bar = canvas.figure.colorbar(
        ScalarMappable(Normalize(*limits), colors), cax=axes, orientation='horizontal', alpha=alpha
    )
    bar.outline.set_visible(False)
    ticks = np.linspace(*limits, 3)
    bar.set_ticks(ticks, labels=distinct(*ticks))
    bar.ax.tick_params(labelsize=6, length=2, pad=1)
    for text, side in zip(bar.ax.get_xticklabels()[::2], ('left', 'right')):
        text.set_horizontalalignment(side)
    bar.set_label(label, fontsize=7, labelpad=2)
