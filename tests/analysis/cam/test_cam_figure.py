"""Figures of class activation maps: sizes, colours, boxes and windows that can be worked out by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from mmccd.analysis.cam import Cam, Explanation, Finding, draw_cams
from mmccd.analysis.cam.figure import OPACITY, evidence_colors, zoomed_window
from mmccd.analysis.canvas import DPI

LEFT, CELL = 2.0 + 2 * 0.15 + 0.12, 2.0 + 0.12  # inches: where panels begin, and from one to the next
TOP = 0.15 + 0.17


def draw(*cams, method='gradcam', zoom=None, size=(100, 200)):
    explanation = Explanation(np.full((*size, 3), 255, np.uint8), method, ['x'], list(cams), 1.0)
    figure = draw_cams(explanation, ['a' * 50], 'p.png', zoom=zoom)
    return np.asarray(Image.open(io.BytesIO(figure)).convert('RGB'))


def found(*box, score=0.5):
    return Finding(0, score, np.array(box, float) if box else None, None)


def halves():
    """0 at the left, 1 at the right."""
    values = np.zeros((100, 200), np.float32)
    values[:, 100:] = 1
    return values


def color(value):
    *rgb, alpha = evidence_colors()(value)
    assert alpha == pytest.approx(OPACITY[0] + value * (OPACITY[1] - OPACITY[0]), abs=0.01)
    return 255 * (alpha * np.array(rgb) + 1 - alpha)  # over a white image


def test_size_and_colours():
    figure = draw(*[Cam(halves(), [found()])] * 5)
    # Panels of 1 inch; two lines of them, of four at most; beside them image, name and legend.
    height, width = 0.3 + 2 * (0.17 + 1 + 0.12) - 0.12, LEFT + 4 * CELL + 0.03
    assert figure.shape[:2] == pytest.approx((height * DPI, width * DPI), abs=1)
    y = round((TOP + 0.5) * DPI)
    for x, value in ((0.5, 0.0), (1.5, 1.0), (CELL + 0.5, 0.0)):
        assert figure[y, round((LEFT + x) * DPI)] == pytest.approx(color(value), abs=2)


def test_boxes_are_where_they_should_be():
    """White lines with black edges, around x from 50 to 150 of 200, y from 25 to 75 of 100."""
    figure = draw(Cam(np.zeros((100, 200), np.float32), [found(50, 25, 150, 75)])).astype(int)
    row = figure[round((TOP + 0.5) * DPI), round(LEFT * DPI) :].sum(1)
    dark = np.flatnonzero(row[: 2 * DPI] < 250)
    assert dark[0] == pytest.approx(0.5 * DPI, abs=3)
    assert dark[-1] == pytest.approx(1.5 * DPI, abs=3)
    assert (row[: 2 * DPI][dark[0] + 6 : dark[-1] - 6] > 250).all()


def test_zoom():
    assert zoomed_window(np.array([90, 45, 110, 50]), (100, 200), 2) == (80, 38, 120, 58)
    assert zoomed_window(np.array([0, 0, 20, 5]), (100, 200), 2) == (0, 0, 40, 20)  # inside the image
    assert zoomed_window(np.array([20, 0, 160, 5]), (100, 200), 2) == (0, 0, 200, 100)
    assert zoomed_window(np.array([50, 50, 50, 50]), (100, 200), 2) == (42, 42, 58, 58)
    figure = draw(Cam(halves(), [found(95, 20, 115, 30)]), zoom=2)  # x from 85 to 125: 1 begins at 15/40
    y = round((TOP + 0.9) * DPI)
    for x, value in ((0.6, 0.0), (0.9, 1.0)):
        assert figure[y, round((LEFT + x) * DPI)] == pytest.approx(color(value), abs=2)


@pytest.mark.parametrize('size', [(3, 400), (400, 3), (1, 1)])
def test_odd_shapes(size):
    values = np.random.default_rng(0).random(size, np.float32)
    for zoom in (None, 1.5):
        draw(
            Cam(values, [found(0, 0, 2, 1)] * 2), Cam(values * 0, [found(0, 0, 1, 1, score=1e-9)]), size=size, zoom=zoom
        )
