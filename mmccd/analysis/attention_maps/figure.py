"""Figures of attention maps: spatial gates as colours over the image, channel gates as bars, one scale a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from mmccd.analysis.canvas import (
    ALPHA,
    CAPTION,
    COLORS,
    GAP,
    GREY,
    LEGEND,
    MARGIN,
    MIN_CELL,
    SIDE,
    WRAP,
    Canvas,
    distinct,
    draw_legend,
    side_height,
    wrapped,
)

from .gates import KINDS, Gate, SeenImage

# Inches.
PANEL = 1.5
BARS = 0.8
TITLE = 0.24
AXIS = 0.3  # numbers beside bars
MIN_COLUMNS, MAX_COLUMNS = 4, 8

BAR = '#4575b4'
MIN_SPREAD = 1e-3  # a gate that is the same everywhere varies by its rounding
CLIP = (1, 99)  # percentiles


@dataclass
class _Section:
    """Panels under one title: (caption, map (H, W) or channels (C,))."""

    title: str
    kind: str
    label: str
    panels: list[tuple[str, np.ndarray]]

    @property
    def scale(self) -> tuple[str, str]:
        """What shares its limits."""
        return self.kind, self.label


def draw_attention_maps(
    seen: SeenImage,
    title: str,
    lines: Sequence[str] = (),
    groups: Sequence[int | str] = ('mean',),
    limits: tuple[float, float] | None = None,
) -> bytes:
    """Draw all gates of an image: its attention maps.

    Args:
        seen (SeenImage): Image and gates.
        title (str): Name of the image.
        lines (Sequence[str]): More text, below the image. Default: none.
        groups (Sequence[int | str]): Maps of the spatial gates: indices, ``'mean'`` over all, or both. Default: the
            mean, with the blocks of a stage side by side.
        limits (tuple[float, float] | None): Ends of the colour scale. Default: None, the 1st and the 99th percentile
            over all maps of the figure. Bars go from 0 to the largest, or from the smallest if that is below 0.

    Returns:
        bytes: The figure as PNG.

    Raises:
        ValueError: If a layer has no map of one of these indices, or there are no maps for indices or ``limits``.
    """
    sections = _sections(seen.gates, groups)
    if limits is not None and not any(s.kind == 'spatial' for s in sections):
        raise ValueError(f'there are no maps to colour: {seen.gates[0].layer} gates channels alone')
    scales = {}
    for scale in dict.fromkeys(s.scale for s in sections):
        shown = [v for s in sections if s.scale == scale for _, v in s.panels]
        scales[scale] = _bar_limits(shown) if scale[0] == 'channel' else limits or _map_limits(shown)
    with matplotlib.style.context('default'):
        return _draw(seen, (title, *lines), sections, scales)


def _sections(gates: list[Gate], groups: Sequence[int | str]) -> list[_Section]:
    """Of means and of channels, the blocks of a stage side by side; else the maps of a layer."""
    only_mean = set(groups) == {'mean'}
    if not only_mean and all(g.kind == 'channel' for g in gates):
        raise ValueError(f'there are no groups to choose from: {gates[0].layer} gates channels alone')
    counts = {len(g.values) for g in gates if g.kind == 'spatial'}
    label_of_mean = '' if counts == {1} else f', mean of {counts.pop()} groups' if len(counts) == 1 else ', mean of all'
    sections = {}
    for gate in gates:
        key, title, label = (gate.stage, gate.layer, gate.kind), f'stage {gate.stage}', gate.label
        if gate.kind == 'channel':
            title += f': {len(gate.values)} channels'
            panels = [(f'block {gate.block}', gate.values)]
        else:
            _check_groups(gate, groups)
            size = '{} × {}'.format(*gate.values.shape[1:])  # noqa: RUF001
            mean = gate.values.mean(0)
            if only_mean:
                title, label = f'{title}: {size}', label + label_of_mean
                panels = [(f'block {gate.block}', mean)]
            else:
                key, title = (gate.name, gate.kind), f'{title}, block {gate.block}: {size}'
                panels = [('mean', mean) if i == 'mean' else (f'group {i}', gate.values[i]) for i in groups]
        sections.setdefault(key, _Section(title, gate.kind, label, [])).panels.extend(panels)
    return sorted(sections.values(), key=lambda s: KINDS.index(s.kind))


def _check_groups(gate: Gate, groups: Sequence[int | str]) -> None:
    for i in groups:
        if i != 'mean' and not 0 <= i < len(gate.values):
            known = f'groups 0 to {len(gate.values) - 1}' if len(gate.values) > 1 else 'one map, 0'
            raise ValueError(f'group {i} does not exist: {gate.name} ({gate.layer}) has {known}')


def _map_limits(maps: list[np.ndarray]) -> tuple[float, float]:
    """Percentiles over all maps, of which a small one counts as much as a large one."""
    levels = [np.percentile(m[np.isfinite(m)], np.arange(101)) for m in maps if np.isfinite(m).any()]
    low, high = np.percentile(levels, CLIP) if levels else (0, 1)
    missing = max(MIN_SPREAD - (high - low), 0) / 2
    return float(low - missing), float(high + missing)


def _bar_limits(bars: list[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate(bars)
    values = values[np.isfinite(values)]
    low, high = values.min(initial=0), values.max(initial=0)
    return float(low), float(high if high > low else low + 1)


def _panel_size(seen: SeenImage) -> tuple[float, float]:
    """Width and height of a panel with the image's aspect, at most PANEL wide and high."""
    h, w = seen.pixels.shape[:2]
    return PANEL * min(w / h, 1), PANEL * min(h / w, 1)


class _Grid:
    """Sizes of the panels, and sections in rows: as many side by side as fit into the widest one's columns."""

    def __init__(self, seen: SeenImage, sections: list[_Section]) -> None:
        self.panel = _panel_size(seen)
        self.has_bars = any(s.kind == 'channel' for s in sections)
        self.cell = PANEL if self.has_bars else max(self.panel[0], MIN_CELL)
        self.columns = min(max(MIN_COLUMNS, *(len(s.panels) for s in sections)), MAX_COLUMNS)
        self.rows: list[list[_Section]] = []
        used, kind = 0, None
        for section in sections:
            if section.kind != kind or used + len(section.panels) > self.columns:
                self.rows.append([])
                used = 0
            self.rows[-1].append(section)
            used += len(section.panels)
            kind = section.kind
        self.columns = max(min(sum(len(s.panels) for s in row), self.columns) for row in self.rows)

    def step(self, section: _Section) -> float:
        """Height of a line of panels."""
        return CAPTION + GAP + (self.panel[1] if section.kind == 'spatial' else min(self.panel[1], BARS))

    def height(self, row: list[_Section]) -> float:
        return TITLE + max(self.step(s) * -(-len(s.panels) // self.columns) for s in row)


def _draw(seen: SeenImage, lines: Sequence[str], sections: list[_Section], scales: dict) -> bytes:
    grid = _Grid(seen, sections)
    lines = wrapped(lines)
    for kind, label in scales:
        if kind == 'channel':
            lines += [(chunk, False) for chunk in textwrap.wrap(f'bars: {label}, channels sorted', WRAP)]
    maps = {label: limits for (kind, label), limits in scales.items() if kind == 'spatial'}
    image = [s / PANEL * SIDE for s in grid.panel]
    side = side_height(image[1], lines, len(maps))
    left = SIDE + 2 * MARGIN + GAP + (AXIS if grid.has_bars else 0)
    canvas = Canvas(
        left + grid.columns * (grid.cell + GAP) - GAP + MARGIN,
        2 * MARGIN + max(side, sum(map(grid.height, grid.rows)) - GAP),
    )

    axes = canvas.axes(MARGIN, MARGIN, *image)
    axes.imshow(seen.pixels)
    axes.set_axis_off()
    y = canvas.lines(MARGIN + image[1] + GAP, lines)
    for label, limits in maps.items():
        draw_legend(canvas, y + GAP, label, limits)
        y += LEGEND

    y = MARGIN
    for row in grid.rows:
        column = 0
        for section in row:
            x = left + column * (grid.cell + GAP)
            canvas.text(x, y + TITLE * 0.4, section.title, fontsize=8, weight='bold')
            for i, (caption, values) in enumerate(section.panels):
                _panel(
                    canvas,
                    grid,
                    seen,
                    section,
                    scales[section.scale],
                    caption,
                    values,
                    x + i % grid.columns * (grid.cell + GAP),
                    y + TITLE + i // grid.columns * grid.step(section),
                    column == 0 and i % grid.columns == 0,
                )
            column += len(section.panels)
        y += grid.height(row)
    return canvas.png()


def _panel(
    canvas: Canvas,
    grid: _Grid,
    seen: SeenImage,
    section: _Section,
    limits: tuple[float, float],
    caption: str,
    values: np.ndarray,
    x: float,
    y: float,
    first: bool,
) -> None:
    width = max(grid.panel[0], MIN_CELL) if section.kind == 'spatial' else grid.cell
    canvas.caption(x, y, width, caption, ' to '.join(distinct(values.min(), values.max())))
    if section.kind == 'spatial':
        _map(canvas.axes(x, y + CAPTION, *grid.panel), seen, values, limits)
    else:
        _bars(canvas.axes(x, y + CAPTION, grid.cell, grid.step(section) - CAPTION - GAP), values, limits, first)


def _map(axes: Axes, seen: SeenImage, values: np.ndarray, limits: tuple[float, float]) -> None:
    h, w = seen.pixels.shape[:2]
    # Dark images in lighter greys, for the colours' sake.
    axes.imshow(seen.pixels.mean(2), cmap='gray', vmin=-170, vmax=255, extent=(0, w, h, 0))
    # Nearest: the cells are all that the network has.
    axes.imshow(
        values,
        cmap=COLORS,
        norm=Normalize(*limits),
        alpha=ALPHA,
        interpolation='nearest',
        extent=(0, seen.padded[1], seen.padded[0], 0),
    )
    axes.set(xlim=(0, w), ylim=(h, 0))
    axes.set_axis_off()


def _bars(axes: Axes, values: np.ndarray, limits: tuple[float, float], numbers: bool) -> None:
    axes.stairs(np.sort(values)[::-1], fill=True, color=BAR)
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.set(xlim=(0, len(values)), ylim=limits, xticks=[])
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(labelsize=6, length=2, pad=1, labelleft=numbers)
    for side in ('top', 'right', 'bottom'):
        axes.spines[side].set_visible(False)
