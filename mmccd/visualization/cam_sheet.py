"""Contact sheets of class activation maps: a panel for each class or detection, its box and score drawn."""
from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import cv2
import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from .cam import Cam, Explanation, Finding
from .sheet import CAPTION, COLORS, DPI, GAP, GREY, LEGEND, LINE, MARGIN, SIDE, WRAP, Canvas, draw_legend

PANEL = 2.0  # inches, the longer side
MIN_CELL = 1.2
COLUMNS = 4
OPACITY = (0.15, 0.8)  # of no evidence, where the picture is to be seen, and of the most
NAME = 22  # letters of a class name that fit above a panel
EDGE = [patheffects.withStroke(linewidth=2, foreground='black')]  # light lines, to be seen on every colour


def draw_cam_sheet(explanation: Explanation, names: Sequence[str], title: str, lines: Sequence[str] = ()) -> bytes:
    """Draw the maps of a picture.

    Args:
        explanation (Explanation): Picture and maps, one at least.
        names (Sequence[str]): Names of the classes.
        title (str): Name of the picture.
        lines (Sequence[str]): What else is to be said, below the picture.

    Returns:
        bytes: The sheet as PNG.
    """
    with matplotlib.style.context('default'):
        return _draw(explanation, names, (title, *lines))


def evidence_colors() -> ListedColormap:
    """The colours of the gates' sheets, the more opaque the higher."""
    colors = matplotlib.colormaps[COLORS](np.linspace(0, 1, 256))
    colors[:, 3] = np.linspace(*OPACITY, 256)
    return ListedColormap(colors)


def _draw(explanation: Explanation, names: Sequence[str], lines: Sequence[str]) -> bytes:
    cams, size = explanation.cams, explanation.pixels.shape[:2]
    h, w = (PANEL * n / max(size) for n in size)
    cell = max(w, MIN_CELL)
    columns = min(len(cams), COLUMNS)
    lines = [(part, i == 0) for i, line in enumerate(lines) for part in textwrap.wrap(line, WRAP)]
    side = h * SIDE / PANEL + GAP + LINE * len(lines) + LEGEND
    step = CAPTION + GAP + h
    left = SIDE + 2 * MARGIN + GAP
    canvas = Canvas(left + columns * (cell + GAP) - GAP + MARGIN,
                    2 * MARGIN + max(side, step * -(-len(cams) // columns) - GAP))

    colors = evidence_colors()
    pixels = _reduced(explanation.pixels, size)
    _picture(canvas.axes(MARGIN, MARGIN, w * SIDE / PANEL, h * SIDE / PANEL), pixels, size,
             [f for cam in cams for f in cam.findings])
    y = MARGIN + h * SIDE / PANEL + GAP
    for text, first in lines:
        canvas.text(MARGIN, y + LINE / 2, text, **(dict(weight='bold') if first else dict(color=GREY)))
        y += LINE
    label = 'first principal component' if explanation.method == 'eigencam' else 'evidence'
    draw_legend(canvas, y + GAP, f'{label}, scaled in each panel', (0, 1), colors, None)

    grey = pixels.mean(2)
    for i, cam in enumerate(cams):
        x, y = left + i % columns * (cell + GAP), MARGIN + i // columns * step
        caption, note = _caption(cam, names)
        canvas.text(x, y + CAPTION * 0.4, caption, weight='bold')
        canvas.text(x + cell, y + CAPTION * 0.4, note, ha='right', color=GREY, fontsize=6)
        axes = canvas.axes(x, y + CAPTION, w, h)
        # As sheets of gates: dark pictures in lighter greys, for the colours' sake.
        _picture(axes, grey, size, cam.findings, cmap='gray', vmin=-100, vmax=255)
        axes.imshow(_reduced(cam.values, size), cmap=colors, vmin=0, vmax=1, interpolation='bilinear',
                    extent=(0, size[1], size[0], 0))
    out = io.BytesIO()
    canvas.figure.savefig(out, format='png', metadata=dict(Software=None))
    return out.getvalue()


def _caption(cam: Cam, names: Sequence[str]) -> tuple[str, str]:
    """What stands above a panel, left and right."""
    if len(cam.findings) > 1:
        return f'all {len(cam.findings)} detections', ''
    finding = cam.findings[0]
    name = names[finding.label]
    name = name if len(name) <= NAME else name[:NAME - 1] + '…'
    score = f'{finding.score:.3f}' if finding.score >= 0.001 else f'{finding.score:.1e}'
    return f'{name}  {score}', '' if cam.values.any() else 'nothing speaks for it'


def _reduced(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """At most as many pixels as the larger picture of a sheet has: averaged, which Matplotlib does not."""
    factor = PANEL * DPI / max(size)
    if factor >= 1:
        return image
    return cv2.resize(image, tuple(max(round(n * factor), 1) for n in size[::-1]), interpolation=cv2.INTER_AREA)


def _picture(axes: Axes, pixels: np.ndarray, size: tuple[int, int], findings: Sequence[Finding], **options) -> None:
    h, w = size
    axes.imshow(pixels, extent=(0, w, h, 0), **options)
    for finding in findings:
        if finding.box is not None:
            x1, y1, x2, y2 = finding.box
            axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color='white', linewidth=1, path_effects=EDGE,
                      solid_joinstyle='miter')
    axes.set(xlim=(0, w), ylim=(h, 0))
    axes.set_axis_off()
