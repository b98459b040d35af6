"""Figures of class activation maps: a panel for each class or detection, with its box and score."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from mmccd.analysis.canvas import (
    CAPTION,
    COLORS,
    DPI,
    GAP,
    MARGIN,
    MIN_CELL,
    SIDE,
    Canvas,
    draw_legend,
    side_height,
    wrapped,
)

from .results import Cam, Explanation, Finding

PANEL = 2.0  # inches, the longer side
COLUMNS = 4
MIN_WINDOW = 16  # pixels
OPACITY = (0.15, 0.8)  # of the lowest evidence, where the image stays visible, and of the highest
NAME = 22  # letters of a class name that fit above a panel
EDGE = [patheffects.withStroke(linewidth=2, foreground='black')]  # light lines, visible on every colour


def draw_cams(
    explanation: Explanation, names: Sequence[str], title: str, lines: Sequence[str] = (), zoom: float | None = None
) -> bytes:
    """Draw the maps of an image.

    Args:
        explanation (Explanation): Image and maps, at least one.
        names (Sequence[str]): Names of the classes.
        title (str): Name of the image.
        lines (Sequence[str]): More text, below the image. Default: none.
        zoom (float | None): A panel shows the surroundings of its detection, at least ``zoom`` times as wide and high
            as the box, in the shape of the image. Default: None, the whole image.

    Returns:
        bytes: The figure as PNG.
    """
    with matplotlib.style.context('default'):
        return _draw(explanation, names, (title, *lines), zoom)


def evidence_colors() -> ListedColormap:
    """The colours of attention maps, the more opaque the higher."""
    colors = matplotlib.colormaps[COLORS](np.linspace(0, 1, 256))
    colors[:, 3] = np.linspace(*OPACITY, 256)
    return ListedColormap(colors)


def _draw(explanation: Explanation, names: Sequence[str], lines: Sequence[str], zoom: float | None) -> bytes:
    cams, pixels, colors = explanation.cams, explanation.pixels, evidence_colors()
    size = pixels.shape[:2]
    h, w = (PANEL * n / max(size) for n in size)
    cell = max(w, MIN_CELL)
    columns = min(len(cams), COLUMNS)
    lines = wrapped(lines)
    side = side_height(h * SIDE / PANEL, lines, 1)
    step = CAPTION + GAP + h
    left = SIDE + 2 * MARGIN + GAP
    canvas = Canvas(
        left + columns * (cell + GAP) - GAP + MARGIN, 2 * MARGIN + max(side, step * -(-len(cams) // columns) - GAP)
    )

    axes = canvas.axes(MARGIN, MARGIN, w * SIDE / PANEL, h * SIDE / PANEL)
    whole = (0, 0, size[1], size[0])
    _image(axes, pixels, whole)
    _boxes(axes, [f for cam in cams for f in cam.findings])
    y = canvas.lines(MARGIN + h * SIDE / PANEL + GAP, lines)
    label = 'first component, scaled' if explanation.method == 'eigencam' else 'evidence, scaled in each panel'
    draw_legend(canvas, y + GAP, label, (0, 1), colors, None)

    for i, cam in enumerate(cams):
        x, y = left + i % columns * (cell + GAP), MARGIN + i // columns * step
        caption, note = _caption(cam, names, explanation.method)
        canvas.caption(x, y, cell, caption, note, weight='bold')
        axes = canvas.axes(x, y + CAPTION, w, h)
        window = whole if zoom is None else zoomed_window(cam.findings[0].box, size, zoom)
        # As in attention maps: dark images in lighter greys, for the colours' sake.
        _image(axes, pixels, window, grey=True, cmap='gray', vmin=-100, vmax=255)
        _image(axes, cam.values, window, cmap=colors, vmin=0, vmax=1, interpolation='bilinear')
        _boxes(axes, cam.findings)
    return canvas.png()


def zoomed_window(box: np.ndarray, size: tuple[int, int], zoom: float) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2) of the region of an image (H, W) around a box, in the image's shape, inside it."""
    size = np.array(size[::-1])
    low, high = box.reshape(2, 2)
    # A whole number of pixels, at least MIN_WINDOW.
    window = np.ceil(size * min(zoom * ((high - low) / size).max(), 1)).clip(np.minimum(MIN_WINDOW, size), size)
    corner = ((low + high - window) / 2).round().clip(0, size - window)
    return tuple(np.concatenate([corner, corner + window]).astype(int).tolist())


def _caption(cam: Cam, names: Sequence[str], method: str) -> tuple[str, str]:
    """The text above a panel, left and right."""
    first = cam.findings[0]
    if method == 'eigencam':
        return 'any class' if first.box is None else f'all {len(cam.findings)} detections', ''
    name = names[first.label]
    name = name if len(name) <= NAME else name[: NAME - 1] + '…'
    score = f'{first.score:.3f}' if first.score >= 0.001 else f'{first.score:.1e}'
    return f'{name}  {score}', '' if cam.values.any() else 'no evidence'


def _image(axes: Axes, image: np.ndarray, window: tuple[int, int, int, int], grey: bool = False, **options) -> None:
    """Part of an image or a map, averaged to at most the pixels of the panel, which Matplotlib does not."""
    x1, y1, x2, y2 = window
    image = image[y1:y2, x1:x2]
    factor = PANEL * DPI / max(image.shape[:2])
    if factor < 1:
        new = tuple(max(round(n * factor), 1) for n in image.shape[1::-1])
        image = cv2.resize(image, new, interpolation=cv2.INTER_AREA)
    axes.imshow(image.mean(2) if grey else image, extent=(x1, x2, y2, y1), **options)
    axes.set(xlim=(x1, x2), ylim=(y2, y1))
    axes.set_axis_off()


def _boxes(axes: Axes, findings: Sequence[Finding]) -> None:
    """Boxes as lines of the same width in every panel; mmdet's visualizer draws into the image, which is zoomed."""
    for finding in findings:
        if finding.box is not None:
            x1, y1, x2, y2 = finding.box
            axes.plot(
                [x1, x2, x2, x1, x1],
                [y1, y1, y2, y2, y1],
                color='white',
                linewidth=1,
                path_effects=EDGE,
                solid_joinstyle='miter',
                scalex=False,
                scaley=False,
            )
