"""Boxes over an image: where lines and texts are."""

import numpy as np
import pytest

from mmccd.analysis.boxes import WHITE, YELLOW, draw_boxes


def near(pixels, color):
    return (abs(pixels.astype(int) - color) < 40).all(-1)


@pytest.mark.parametrize('color', [YELLOW, WHITE])
def test_frame(color):
    image = np.full((100, 120, 3), 50, np.uint8)
    drawn = draw_boxes(image, [(20, 30, 90, 80)], color=color)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert (image == 50).all()
    for row, column in ((30, 50), (80, 50), (60, 20), (60, 90)):
        assert near(drawn, color)[row - 1 : row + 1, column - 1 : column + 1].all()
    outside = np.ones((100, 120), bool)
    outside[27:83, 17:93] = False
    assert (drawn[outside] == 50).all()
    assert (drawn[34:76, 24:86] == 50).all()


def test_texts_lie_above_their_boxes_or_inside_and_in_the_image():
    image = np.full((200, 200, 3), 50, np.uint8)
    drawn = draw_boxes(image, [(20, 100, 90, 180), (150, 5, 199, 60)], ['cat: 0.50', 'dog: 0.50'], font_size=11)
    changed = (drawn != 50).any(-1)
    assert changed[80:96, 20:80].any() and not changed[108:172, 28:82].any()
    assert changed[8:24, 100:146].any()  # wider than the box, and shifted to the left
    assert not changed[40:52, 156:192].any()
    assert near(drawn, YELLOW)[80:96, 20:80].any()


def test_nothing_to_draw():
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    assert np.array_equal(draw_boxes(image, []), image)
