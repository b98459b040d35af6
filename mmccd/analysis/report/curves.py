"""Curves as inline SVG: readable without a script; ``page.js`` adds the values under a pointer or the arrow keys."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 30  # LEFT is a minimum: more for long numbers
LETTER, GAP = 7, 6  # at most a digit of .tick in page.css is as wide; between number and axis
MAX_POINTS = 300
COLOURS = 8  # --run-0 to --run-7 of page.css
DASHES = ('', '7 3', '2 3', '9 3 2 3')


def line_style(run: int) -> tuple[int, str]:
    """Colour and ``stroke-dasharray`` of a line: neighbours also differ without colours, and 32 runs with them."""
    return run % COLOURS, DASHES[(run + run // COLOURS) % len(DASHES)]


@dataclass
class Curve:
    """Points of a run, by x. ``run``: its index."""

    run: int
    name: str
    points: list[tuple[float, float]]


@dataclass
class Plot:
    """One quantity of several runs."""

    title: str
    x_label: str
    curves: list[Curve]
    whole: bool = True  # whether x counts something
    limits: tuple[float, float] | None = None  # of y; None: those of the values

    def svg(self) -> Markup:
        """The drawing."""
        curves = [Curve(c.run, c.name, thin(c.points)) for c in self.curves]
        xs = [x for c in curves for x, _ in c.points]
        x_ticks = ticks(min(xs), max(xs), 5, whole=self.whole)
        y_ticks = ticks(*(self.limits or _limits([y for c in curves for _, y in c.points])), 4)
        x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
        y_low, y_high = y_ticks[0], y_ticks[-1]
        y_labels = labels(y_ticks)
        left = max(LEFT, GAP + LETTER * max(map(len, y_labels)))

        def place(x: float, y: float) -> tuple[float, float]:
            return (
                round(left + (x - x_low) / (x_high - x_low) * (WIDTH - left - RIGHT), 1),
                round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1),
            )

        parts, data = [], []
        for y, label in zip(y_ticks, y_labels):
            py = place(x_low, y)[1]
            parts.append(
                Markup(
                    '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="tick" x="{}" y="{}" '
                    'text-anchor="end">{}</text>'
                ).format(left, WIDTH - RIGHT, py, py, left - GAP, py + 4, label)
            )
        for x in (t for t in x_ticks if x_low <= t <= x_high):
            px = place(x, y_low)[0]
            parts.append(
                Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                    px, HEIGHT - BOTTOM + 15, short(x)
                )
            )
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
                WIDTH - RIGHT, HEIGHT - 4, self.x_label
            )
        )
        for c in curves:
            placed = [place(*p) for p in c.points]
            colour, dash = line_style(c.run)
            style = Markup(' stroke-dasharray="{}"').format(dash) if dash else ''
            parts.append(
                Markup('<polyline class="curve run-{}"{} points="{}"/>').format(
                    colour, style, ' '.join(f'{x},{y}' for x, y in placed)
                )
            )
            if len(placed) <= 12:
                parts += [
                    Markup('<circle class="dot run-{}" cx="{}" cy="{}" r="3"/>').format(colour, *p) for p in placed
                ]
            data.append(
                dict(run=colour, name=c.name, at=[[*p, short(x), short(y)] for p, (x, y) in zip(placed, c.points)])
            )
        last = '; '.join(f'{c.name}: from {short(c.points[0][1])} to {short(c.points[-1][1])}' for c in curves)
        return Markup(
            '<svg class="plot" viewBox="0 0 {} {}" role="img" tabindex="0" aria-label="{}" data-curves="{}" '
            'data-x="{}">{}<line class="cursor" y1="{}" y2="{}" hidden=""/></svg>'
        ).format(
            WIDTH,
            HEIGHT,
            f'{self.title} by {self.x_label}. {last}',
            json.dumps(data),
            self.x_label,
            Markup('').join(parts),
            TOP,
            HEIGHT - BOTTOM,
        )


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``MAX_POINTS``, as means of neighbours; the first and the last stay."""
    if len(points) <= MAX_POINTS:
        return list(points)
    inner, n = points[1:-1], MAX_POINTS - 2
    edges = [len(inner) * i // n for i in range(n + 1)]
    means = [tuple(sum(v) / (b - a) for v in zip(*inner[a:b])) for a, b in zip(edges, edges[1:])]
    return [points[0], *means, points[-1]]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """From 0 where the values come near it."""
    low, high = min(values), max(values)
    if 0 < low < 0.4 * high:
        low = 0.0
    return low, high if high > low else low + (abs(low) or 1)


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """Round numbers from below ``low`` to above ``high``, about ``count`` steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def labels(values: Sequence[float]) -> list[str]:
    """Short texts of numbers, different for different numbers."""
    for more in range(12):
        texts = [short(v, more) for v in values]
        if len(set(texts)) == len(values):
            break
    return texts


def short(value: float, more: int = 0) -> str:
    """A short text of a number: 12,000; 0.805; 1.2e-05; with ``more`` digits."""
    if value == int(value) and abs(value) < 1e7:
        return f'{int(value):,}'
    if 1e-3 <= abs(value) < 1e6:
        return f'{value:.{4 + more}g}'
    return f'{value:.{2 + more}g}'
