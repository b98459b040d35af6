"""Parity of an exported model, in onnxruntime on the CPU, with PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmccd.data.decode import decode_file

from .detectors import Detector
from .networks import Network
from .runtimes import Run, onnxruntime_run

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
        limit (float | None): Upper limit of ``value``, exclusive; None if there is none.
        boxes (int): Number of boxes that both found; 0 for all other outputs.
        of (int): Number of PyTorch's boxes, in rows without a limit; else 0.
    """

    shape: tuple[int, int]
    output: str
    value: float
    limit: float | None
    boxes: int = 0
    of: int = 0

    @property
    def ok(self) -> bool:
        return self.limit is None or self.value < self.limit  # False for NaN


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
    loaded = [Image.fromarray(decode_file(p)) for p in paths]
    return [np.asarray(p.resize((w, h), Image.Resampling.BILINEAR)) for h, w in shapes for p in loaded]


def compare(
    network: Network, content: bytes, images: Iterable[np.ndarray], also: Mapping[str, Run] | None = None
) -> list[Deviation]:
    """Run images (H, W, 3), uint8, through PyTorch and onnxruntime; a row for each size and output.

    Args:
        network (Network): What was exported.
        content (bytes): The ONNX file.
        images (Iterable[np.ndarray]): RGB images.
        also (Mapping[str, Run], optional): Other runtimes by name (:mod:`mmccd.deployment.runtimes`). Their rows have
            no limit. Default: none.

    Returns:
        list[Deviation]: Those of onnxruntime first.
    """
    run = onnxruntime_run(content, network.outputs)
    rows: dict[tuple, Deviation] = {}

    def add(shape: tuple[int, int], name: str, value: float, limit: float | None, boxes: int = 0, of: int = 0) -> None:
        before = rows.get((shape, name), Deviation(shape, name, 0.0, limit))
        worst = float(np.maximum(value, before.value))
        rows[shape, name] = Deviation(shape, name, worst, limit, before.boxes + boxes, before.of + of)

    for image in images:
        shape, expected, got = image.shape[:2], network.expected(image), run(image)
        if isinstance(network, Detector):
            for row in _compare_boxes(expected, got, network):
                add(shape, *row)
        else:
            for name, value in expected.items():
                add(shape, name, deviation(got[name], value), LIMIT)
        for runtime, other in (also or {}).items():
            got = other(image)
            if isinstance(network, Detector):
                for name, *values in _similar_boxes(expected, got):
                    add(shape, f'{name}, {runtime}', values[0], None, *values[1:])
            else:
                for name, value in expected.items():
                    add(shape, f'{name}, {runtime}', deviation(got[name], value), None)
    return sorted(rows.values(), key=lambda r: r.limit is None)


def deviation(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest |got - expected| / max(1, |expected|); infinite for other shapes."""
    if got.shape != expected.shape:
        return float('inf')
    return float((np.abs(got - expected) / np.maximum(1, np.abs(expected))).max(initial=0))


def _compare_boxes(expected: dict, got: dict, network: Detector) -> list[tuple[str, float, float, int]]:
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


def _similar_boxes(expected: dict, got: dict) -> list[tuple]:
    """Boxes of the same label that overlap by half, best first: their largest deviations, and how many there are."""
    open_, places, scores = set(range(len(got['scores']))), [], []
    for box, score, label in zip(expected['boxes'], expected['scores'], expected['labels']):
        overlaps = [(_iou(got['boxes'][j], box), j) for j in open_ if got['labels'][j] == label]
        best, j = max(overlaps, default=(0.0, -1))
        if best >= 0.5:
            open_.remove(j)
            places.append(float(np.abs(got['boxes'][j] - box).max()))
            scores.append(float(abs(got['scores'][j] - score)))
    n = len(expected['scores'])
    return [('boxes', max(places, default=0.0), len(places), n), ('scores', max(scores, default=0.0))]


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    common = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    return float(common / max(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common, 1e-9))


def markdown_table(rows: Sequence[Deviation]) -> str:
    """Outputs by sizes."""
    shapes = list(dict.fromkeys(r.shape for r in rows))
    lines = [
        '| output | ' + ' | '.join(f'{h} x {w}' for h, w in shapes) + ' | limit |',
        '|---|' + '---:|' * (len(shapes) + 1),
    ]
    counts = []
    for name in dict.fromkeys(r.output for r in rows):
        of_name = {r.shape: r for r in rows if r.output == name}
        is_boxes = name.split(', ')[0] == 'boxes'
        unit = ' px' if is_boxes else ''
        cells = [f'{r.value:.1e}{unit}' + ('' if r.ok else ' FAILED') for r in map(of_name.get, shapes)]
        limit = next(iter(of_name.values())).limit
        lines.append(f'| {name} | {" | ".join(cells)} | {"" if limit is None else f"{limit:.0e}{unit}"} |')
        if is_boxes:
            found = [f'{r.boxes}' + (f' of {r.of}' if limit is None else '') for r in map(of_name.get, shapes)]
            counts.append(f'| {name.replace("boxes", "boxes compared", 1)} | {" | ".join(found)} | |')
    return '\n'.join(lines + counts)
