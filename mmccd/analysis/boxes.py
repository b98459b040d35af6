"""Boxes over an image, by MMDetection's visualizer."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from mmdet.visualization import DetLocalVisualizer

from .fonts import drawable

YELLOW, WHITE = (255, 224, 0), (255, 255, 255)
BACKGROUND = dict(facecolor='black', alpha=0.8, pad=1, edgecolor='none')
PIXELS_A_POINT = 100 / 72  # of a figure of the visualizer
LETTER = 0.65  # width of a letter, as a share of its height


def draw_boxes(
    image: np.ndarray,
    boxes: Sequence[Sequence[float]] | np.ndarray,
    texts: Sequence[str] = (),
    color: tuple[int, int, int] = YELLOW,
    font_size: float = 11,
    line_width: float = 2,
) -> np.ndarray:
    """Draw boxes of one colour over an image.

    Args:
        image (np.ndarray): RGB, uint8, (H, W, 3); not changed.
        boxes (Sequence): (N, 4): x1, y1, x2, y2 in pixels.
        texts (Sequence[str]): A text for each box, above it, or inside where there is no room above. Default: none.
            All have the same size; ``add_datasample`` of the visualizer makes those of small boxes too small to read.
        color (tuple[int, int, int]): RGB. Default: yellow.
        font_size (float): In points, 72 of which are 100 pixels. Default: 11.
        line_width (float): In points. Default: 2.

    Returns:
        np.ndarray: RGB, uint8, (H, W, 3).
    """
    if not len(boxes):
        return image.copy()
    boxes = np.asarray(boxes, np.float32)
    visualizer = DetLocalVisualizer()
    visualizer.set_image(image)
    visualizer.draw_bboxes(torch.from_numpy(boxes), edge_colors=color, alpha=1.0, line_widths=line_width)
    if len(texts):
        texts, families = zip(*map(drawable, texts))
        height = font_size * PIXELS_A_POINT
        x = np.minimum(boxes[:, 0], image.shape[1] - LETTER * height * np.array([len(t) for t in texts])).clip(2)
        above = boxes[:, 1] >= 1.5 * height
        y = np.where(above, boxes[:, 1] - 4, boxes[:, 1] + 4)
        with matplotlib.rc_context({'text.parse_math': False}):  # a name with two dollar signs is no formula
            visualizer.draw_texts(
                list(texts),
                torch.from_numpy(np.stack([x, y], 1)),
                font_sizes=font_size,
                colors=color,
                vertical_alignments=['bottom' if a else 'top' for a in above],
                bboxes=BACKGROUND,
                font_families=list(families),  # each a list: the fonts for one text
            )
    return visualizer.get_image()
