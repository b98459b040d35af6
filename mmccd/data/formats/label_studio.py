"""Label Studio's exports JSON and JSON-MIN: one file with all tasks. Coordinates are percent of the image's size.

A rotated box is turned clockwise about its upper left corner, in pixels.
"""

from __future__ import annotations

import os.path as osp
import re
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote, urlsplit

from mmccd.data.checks.coco import is_finite, is_number
from mmccd.data.classes import parse_json
from mmccd.data.image_files import is_image
from mmccd.errors import UserError

from .images import Images, names_in
from .labelled import WHOLE, Findings, Label, Labelled, LabelledImage
from .shapes import Box, around, ellipse, rotated

NO_BOX = ('keypoint', 'brush', 'bitmask', 'vector')
OTHER = ('choices', 'textarea', 'rating', 'relation', 'number', 'taxonomy', 'pairwise', 'labels')
RESULT_KEYS = ('x', 'points', 'original_width')  # of a region in JSON-MIN
_HASHED = re.compile(r'^[0-9a-f]{8}-')  # what Label Studio puts before the name of an uploaded file


def find_file(path: str) -> str | None:
    """The file of an export: ``path``, or the one in this folder; None if there is none."""
    if osp.isfile(path):
        return path if _looks_like_one(path) else None
    found = [osp.join(path, n) for n in names_in(path) if n.lower().endswith('.json')]
    found = [p for p in found if _looks_like_one(p)]
    if len(found) > 1:
        names = ', '.join(map(osp.basename, found))
        raise UserError(f'{path} has several exports of Label Studio, {names}: give one of them')
    return found[0] if found else None


def _looks_like_one(path: str) -> bool:
    try:
        with open(path, encoding='utf-8-sig') as f:
            beginning = f.read(1 << 16).lstrip()
    except (OSError, ValueError):
        return False
    keys = ('"annotations"', '"annotation_id"', '"original_width"')
    return beginning.startswith('[') and '"id"' in beginning and any(k in beginning for k in keys)


def read(path: str, findings: Findings) -> Labelled:
    """Read an export. Its images are in the same folder or below.

    Args:
        path (str): The JSON file, or its folder.
        findings (Findings): Gets what is wrong or odd.

    Raises:
        UserError: If there is none, or it cannot be read.
    """
    file = find_file(path)
    if file is None:
        raise UserError(f'{path} has no JSON file of Label Studio: a list of tasks')
    try:
        with open(file, 'rb') as f:
            tasks = parse_json(f.read())
    except (OSError, ValueError) as e:
        raise UserError(f'{file} is no JSON file: {e}') from e
    images, found = Images(osp.dirname(file) or '.', findings), []
    for i, task in enumerate(tasks):
        where = f'{file}, task {task.get("id", i) if isinstance(task, dict) else i}'
        if not isinstance(task, dict):
            findings.add('label-file', f'{where}: it is no object')
            continue
        for name, regions in _annotated(task, where, findings):
            sizes = [(r.get('original_width'), r.get('original_height')) for r in regions]
            stated = next((s for s in sizes if all(map(is_number, s))), (None, None))
            path_ = images.find(_known_name(name, images), where, [images.folder, osp.join(images.folder, 'images')])
            size = path_ and images.take(path_, where, stated)
            if size:
                found.append(LabelledImage(path_, size, _labels(regions, where, size, findings)))
    return Labelled(path, 'label-studio', {WHOLE: found}, None, findings)


def _annotated(task: dict, where: str, findings: Findings) -> Iterator[tuple[str, list[dict]]]:
    """The image of a task and its regions; nothing, and a finding, if it has not exactly one annotation."""
    if 'annotations' not in task and 'data' not in task:  # JSON-MIN: an entry for each annotation
        regions = [r for v in task.values() if isinstance(v, list) for r in v if isinstance(r, dict)]
        regions = [r for r in regions if any(k in r for k in RESULT_KEYS)]
        name = _image_name(task, where, findings)
        if name is not None and task.get('annotation_id') is None and not regions:
            findings.add('not-labelled', where)
        elif name is not None:
            yield name, [{**r, 'value': r, 'type': _type(r)} for r in regions]
        return
    data, annotations = task.get('data'), task.get('annotations')
    name = _image_name(data if isinstance(data, dict) else {}, where, findings)
    if name is None:
        return
    if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
        findings.add('label-file', f'{where}: annotations must be a list of objects')
        return
    kept = [a for a in annotations if not a.get('was_cancelled')]
    kept = [a for a in kept if a.get('ground_truth')] or kept
    if not kept:
        what = 'skipped' if annotations else 'predictions alone' if task.get('predictions') else 'no annotation'
        findings.add('not-labelled', f'{where}: {what}')
    elif len(kept) > 1:
        ids = ', '.join(str(a.get('id')) for a in kept)
        findings.add('image-double', f'{where}: annotations {ids} of one image; mark one as ground truth')
    elif not isinstance(kept[0].get('result'), list) or not all(isinstance(r, dict) for r in kept[0]['result']):
        findings.add('label-file', f'{where}: result must be a list of objects')
    else:
        yield name, kept[0]['result']


def _type(region: dict) -> str:
    return next((k for k in region if k.endswith('labels')), '')


def _image_name(data: dict, where: str, findings: Findings) -> str | None:
    names = {k: v for k, v in data.items() if isinstance(v, str) and is_image(_file_name(v))}
    if isinstance(data.get('image'), str):
        return data['image']
    if len(names) != 1:
        what = f'several images, {", ".join(names)}' if names else 'no image'
        findings.add('label-without-image', f'{where}: it has {what}')
        return None
    return next(iter(names.values()))


def _file_name(source: str) -> str:
    """The path in a URL or in what Label Studio has instead: ``/data/local-files/?d=a/b.jpg``."""
    try:
        parts = urlsplit(source.replace('\\', '/'))
    except ValueError:  # no URL
        return source
    inner = parse_qs(parts.query).get('d')
    return unquote(inner[0] if inner else parts.path if parts.scheme else source.split('?')[0])


def _known_name(source: str, images: Images) -> str:
    """The path of an image, without what Label Studio has put before its name where the file has not."""
    name = _file_name(source)
    folder, base = osp.split(name)
    plain = _HASHED.sub('', base)
    return osp.join(folder, plain) if base not in images.by_name() and plain in images.by_name() else name


def _labels(regions: list[dict], where: str, size: tuple[int, int], findings: Findings) -> list[Label]:
    # Labels may stand apart from their shape, under its id.
    apart: dict[str, list] = {}
    for region in regions:
        value = region.get('value')
        names = value.get('labels') if isinstance(value, dict) else None
        if region.get('type') == 'labels' and isinstance(names, list) and region.get('id') is not None:
            apart.setdefault(str(region['id']), []).extend(names)
    found = []
    for i, region in enumerate(regions):
        here, kind, value = f'{where}, result {i}', str(region.get('type') or ''), region.get('value')
        shape = kind.removesuffix('labels')
        if shape in OTHER or kind in OTHER or shape in NO_BOX:
            if kind != 'labels':
                findings.add('no-box', f'{here}: {kind}')
            continue
        if not isinstance(value, dict):
            findings.add('label', f'{here}: it has no value')
            continue
        names = value.get(kind) if shape != kind else None
        names = names or value.get('labels') or apart.get(str(region.get('id'))) or []
        if not isinstance(names, list) or not names or not all(isinstance(n, str) and n.strip() for n in names):
            findings.add('label-class', f'{here}: {kind or "a region"} without a label')
            continue
        if region.get('image_rotation') or value.get('image_rotation'):
            findings.add('label', f'{here}: drawn on a turned image (image_rotation); turn it back in Label Studio')
            continue
        try:
            box = _box(shape, value, size, here, findings)
        except ValueError as e:
            findings.add('label', f'{here}: {e}')
            continue
        if len(names) > 1:
            findings.add('several-classes', f'{here}: {", ".join(names)}')
        found += [Label(name.strip(), box, here) for name in dict.fromkeys(names)]
    return found


def _box(shape: str, value: dict, size: tuple[int, int], where: str, findings: Findings) -> Box:
    width, height = (side / 100 for side in size)

    def values(*keys: str) -> list[float]:
        found = [value.get(k) for k in keys]
        if not all(is_number(v) and is_finite(v) for v in found):
            raise ValueError(f'{", ".join(keys)} must be numbers, are {", ".join(map(repr, found))}')
        return found

    turned = value.get('rotation') or 0
    if not is_number(turned) or not is_finite(turned):
        raise ValueError(f'rotation must be a number, is {turned!r}')
    if shape == 'rectangle':
        x, y, w, h = values('x', 'y', 'width', 'height')
        box = x * width, y * height, w * width, h * height
        if not turned % 360:
            return box
        findings.add('enclosed', f'{where}: turned by {turned:g} degrees')
        return rotated(box, turned, box[:2])
    if shape == 'ellipse':
        cx, cy, rx, ry = values('x', 'y', 'radiusX', 'radiusY')
        box = ellipse(cx * width, cy * height, rx * width, ry * height, turned)
    elif shape == 'polygon':
        points = value.get('points')
        if not isinstance(points, list) or len(points) < 3:
            raise ValueError('a polygon must have three points or more')
        pairs = [p for p in points if isinstance(p, list) and len(p) == 2]
        if len(pairs) < len(points) or not all(is_number(v) and is_finite(v) for p in pairs for v in p):
            raise ValueError('points must be pairs of numbers')
        box = around((x * width, y * height) for x, y in points)
    else:
        raise ValueError(f'a {shape or "region"} is not known')
    findings.add('enclosed', f'{where}: {shape}')
    return box
