"""Parity of an exported model, in onnxruntime on the CPU, with PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from .networks import Network, Retina

LIMIT = 1e-4  # absolute up to 1, relative above
BOX_LIMIT = 1e-2  # pixels
# None is a multiple of 4, so that the bins of the poolings overlap.
SHAPES = ((61, 93), (75, 58), (99, 130))


class Deviation(NamedTuple):
    """How far an output is from PyTorch's, over all images of a size.

    Attributes:
        shape (tuple[int, int]): Height and width of the images.
        output (str): Its name.
        value (float): The largest deviation: of boxes in pixels, of all else |a - b| / max(1, |b|) with b PyTorch's.
            Infinite if only one of them has a box.
        limit (float): Upper limit of ``value``, exclusive.
        boxes (int): Number of boxes that both found; 0 for all other outputs.
    """

    shape: tuple[int, int]
    output: str
    value: float
    limit: float
    boxes: int = 0

    @property
    def ok(self) -> bool:
        return self.value < self.limit  # False for NaN


def noise_image(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """RGB image (H, W, 3), uint8, of noise at several scales, like natural images."""
    rng = np.random.default_rng(seed)
    height, width = shape
    total = np.zeros((height, width, 3), np.float32)
    for cell in (1, 4, 16, 64):
        small = rng.integers(0, 256, (-(-height // cell), -(-width // cell), 3), np.uint8)
        total += np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR), np.float32)
    return (total / 4).round().astype(np.uint8)


def parity_images(shapes: Iterable[tuple[int, int]], paths: Sequence[str] = ()) -> list[np.ndarray]:
    """RGB images (H, W, 3), uint8: those of ``paths`` resized to every one of ``shapes``, or noise without any."""
    if not paths:
        return [noise_image(shape) for shape in shapes]
    loaded = [Image.open(p).convert('RGB') for p in paths]
    return [np.asarray(p.resize((w, h), Image.Resampling.BILINEAR)) for h, w in shapes for p in loaded]


def compare(network: Network, content: bytes, images: Iterable[np.ndarray]) -> list[Deviation]:
    """Run images (H, W, 3), uint8, through PyTorch and onnxruntime; a row for each size and output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    rows: dict[tuple, Deviation] = {}
    for image in images:
        expected = network.expected(image)
        got = session.run(list(network.outputs), dict(image=image.transpose(2, 0, 1)[None].astype(np.float32)))
        got = dict(zip(network.outputs, got))
        found = (
            _compare_boxes(expected, got, network)
            if isinstance(network, Retina)
            else [(name, deviation(got[name], v), LIMIT, 0) for name, v in expected.items()]
        )
        for name, value, limit, boxes in found:
            key = (image.shape[:2], name)
            before = rows.get(key, Deviation(*key, 0.0, limit))
            rows[key] = Deviation(*key, float(np.maximum(value, before.value)), limit, before.boxes + boxes)
    return list(rows.values())


def deviation(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest |got - expected| / max(1, |expected|); infinite for other shapes."""
    if got.shape != expected.shape:
        return float('inf')
    return float((np.abs(got - expected) / np.maximum(1, np.abs(expected))).max(initial=0))


def _compare_boxes(expected: dict, got: dict, network: Retina) -> list[tuple[str, float, float, int]]:
    """Boxes one to one, by label, score and place: those of nearly the same score may come in another order."""
    pairs, open_, alone = [], set(range(len(got['scores']))), []
    for i, (box, score, label) in enumerate(zip(expected['boxes'], expected['scores'], expected['labels'])):
        near = [
            (float(np.abs(got['boxes'][j] - box).max()), j)
            for j in open_
            if got['labels'][j] == label and abs(got['scores'][j] - score) < LIMIT
        ]
        if near and min(near)[0] < BOX_LIMIT:
            pairs.append((i, min(near)[1]))
            open_.remove(min(near)[1])
        else:
            alone.append(float(score))
    alone += [float(got['scores'][j]) for j in open_]
    # Rounding decides on boxes at the threshold, and on the last ones if the maximum number is kept.
    edges = [network.score_thr]
    if len(expected['scores']) == network.max_per_img:
        edges.append(float(expected['scores'][-1]))
    missed = any(min(abs(s - e) for e in edges) >= LIMIT for s in alone)
    worst = float('inf') if missed else 0.0
    places = [np.abs(got['boxes'][j] - expected['boxes'][i]).max() for i, j in pairs]
    scores = [abs(got['scores'][j] - expected['scores'][i]) for i, j in pairs]
    return [('boxes', max([worst, *places]), BOX_LIMIT, len(pairs)), ('scores', max([worst, *scores]), LIMIT, 0)]


def markdown_table(rows: Sequence[Deviation]) -> str:
    """Outputs by sizes."""
    shapes = list(dict.fromkeys(r.shape for r in rows))
    lines = [
        '| output | ' + ' | '.join(f'{h} x {w}' for h, w in shapes) + ' | limit |',
        '|---|' + '---:|' * (len(shapes) + 1),
    ]
    for name in dict.fromkeys(r.output for r in rows):
        of_name = {r.shape: r for r in rows if r.output == name}
        unit = ' px' if name == 'boxes' else ''
        cells = [f'{r.value:.1e}{unit}' + ('' if r.ok else ' FAILED') for r in map(of_name.get, shapes)]
        lines.append(f'| {name} | {" | ".join(cells)} | {next(iter(of_name.values())).limit:.0e}{unit} |')
    counts = [r.boxes for r in rows if r.output == 'boxes']
    if counts:
        lines.append(f'| boxes compared | {" | ".join(map(str, counts))} | |')
    return '\n'.join(lines)
