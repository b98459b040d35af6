"""LabelMe: a JSON file for each image, beside it. Coordinates are pixels from the outer corner of the first one.

Shapes of a label with one ``group_id`` are parts of one object, as in LabelMe's own conversion to COCO.
"""

from __future__ import annotations

import math
import os.path as osp
from typing import Any

from mmccd.data.checks.coco import is_finite, is_number
from mmccd.data.classes import parse_json

from .images import Images, image_of, walk
from .labelled import Findings, Label, Labelled, LabelledImage, split_of
from .shapes import Box, around, from_corners

NO_BOX = ('point', 'points', 'line', 'linestrip')
POLYGONS = ('polygon', 'rotation', 'oriented_rectangle', 'quadrilateral', 'cuboid')  # of LabelMe, X-AnyLabeling


def read(path: str, findings: Findings) -> Labelled:
    """Read the JSON files in a folder and below it; folders named as splits are splits.

    Args:
        path (str): The folder, or one JSON file.
        findings (Findings): Gets what is wrong or odd.
    """
    root = path if osp.isdir(path) else osp.dirname(path) or '.'
    images = Images(root, findings)
    splits: dict[str, list[LabelledImage]] = {}
    for file in walk(path) if osp.isdir(path) else [path]:
        if file.lower().endswith('.json'):
            image = _read_file(file, images, findings)
            if image is not None:
                splits.setdefault(split_of(osp.relpath(file, root)), []).append(image)
    if osp.isdir(path):
        used = {osp.realpath(p) for p in images.used}
        for paths in images.by_name().values():
            for p in paths:
                if osp.realpath(p) not in used:
                    findings.add('not-labelled', p)
    return Labelled(path, 'labelme', splits, None, findings)


def _read_file(file: str, images: Images, findings: Findings) -> LabelledImage | None:
    try:
        with open(file, 'rb') as f:
            content = parse_json(f.read())
    except (OSError, ValueError) as e:
        findings.add('label-file', f'{file}: {e}')
        return None
    if not isinstance(content, dict) or not isinstance(content.get('shapes'), list):
        findings.add('label-file', f'{file} has no list of shapes')
        return None
    name = content.get('imagePath')
    found = image_of(osp.splitext(file)[0])
    if isinstance(name, str) and name:
        named = osp.normpath(osp.join(osp.dirname(file), name.replace('\\', '/')))
        if osp.isfile(named) or found is None:
            found = images.find(name, file, [osp.dirname(file)])
            if found is None and content.get('imageData'):
                findings.add('taken', f'{file} holds the image itself: save it beside the file')
    elif found is None:
        findings.add('label-without-image', f'{file}: it has no imagePath, and there is no image of its name')
    if found is None:
        return None
    size = images.take(found, file, tuple(v if is_number(v) else None for v in _size(content)))
    if size is None:
        return None
    return LabelledImage(found, size, _labels(content['shapes'], file, findings))


def _size(content: dict) -> tuple[Any, Any]:
    return content.get('imageWidth'), content.get('imageHeight')


def _labels(shapes: list, file: str, findings: Findings) -> list[Label]:
    found: dict[Any, Label] = {}
    for i, shape in enumerate(shapes):
        where = f'{file}, shapes[{i}]'
        name = shape.get('label') if isinstance(shape, dict) else None
        if not isinstance(name, (str, int)) or isinstance(name, bool) or not str(name).strip():
            findings.add('label-class', f'{where}: label must be the name of a class, is {name!r}')
            continue
        box = _box(shape, where, findings)
        if box is None:
            continue
        label = Label(str(name).strip(), box, where)
        group = shape.get('group_id')
        key = i if group is None else (label.name, str(group))
        if key in found:
            findings.add('joined', f'{where}: {label.name!r} of group {group}')
            boxes = found[key].box, box
            corners = [(x, y) for x, y, _, _ in boxes] + [(x + w, y + h) for x, y, w, h in boxes]
            label = Label(label.name, around(corners), found[key].where)
        found[key] = label
    return list(found.values())


def _box(shape: dict, where: str, findings: Findings) -> Box | None:
    kind, points = shape.get('shape_type') or 'polygon', shape.get('points')  # polygon: of files before LabelMe 3
    if not isinstance(kind, str):
        findings.add('label', f'{where}: shape_type must be a text, is {kind!r}')
        return None
    if kind in NO_BOX:
        findings.add('no-box', f'{where}: {kind}')
        return None
    try:
        points = [(x, y) for x, y in points]
    except (TypeError, ValueError):
        points = []
    if not points or not all(is_number(v) and is_finite(v) for point in points for v in point):
        findings.add('label', f'{where}: points must be pairs of numbers')
        return None
    needed = {'circle': (2, 2), 'rectangle': (2, 4), 'mask': (2, 2)}.get(kind, (3, math.inf))
    if kind not in ('circle', 'rectangle', 'mask', *POLYGONS):
        findings.add('label', f'{where}: shape_type {kind!r} is not known')
    elif not needed[0] <= len(points) <= needed[1] or (kind == 'rectangle' and len(points) == 3):
        findings.add('label', f'{where}: {kind} of {len(points)} points')
    elif kind == 'rectangle':
        box = around(points)
        if len(points) == 4 and len({x for x, _ in points} | {y for _, y in points}) > 4:
            findings.add('enclosed', f'{where}: {kind} that is not upright')
        return box
    elif kind == 'mask':  # whose points are its first and its last pixel
        x, y, w, h = from_corners(*points[0], *points[1])
        return x, y, w + 1, h + 1
    else:
        findings.add('enclosed', f'{where}: {kind}')
        if kind == 'circle':
            (cx, cy), rim = points
            radius = math.dist((cx, cy), rim)
            return cx - radius, cy - radius, 2 * radius, 2 * radius
        return around(points)
    return None
