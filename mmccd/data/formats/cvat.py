"""CVAT for images 1.1: one XML file with all images. Coordinates are pixels from the outer corner of the first one."""

from __future__ import annotations

import os.path as osp
from xml.etree import ElementTree

from mmccd.data.image_files import is_image
from mmccd.errors import UserError

from .images import Images, image_of, names_in
from .labelled import Findings, Label, Labelled, LabelledImage, check_class_names, split_name, split_of
from .shapes import Box, around, ellipse, from_corners, rotated, to_number
from .xml import first_tag, read_xml

NO_BOX = ('polyline', 'points', 'tag', 'cuboid', 'skeleton')


def find_file(path: str) -> str | None:
    """The XML file of CVAT: ``path``, or the one in this folder; None if there is none."""
    if osp.isfile(path):
        return path if first_tag(path) == 'annotations' else None
    found = [n for n in names_in(path) if n.lower().endswith('.xml')]
    found = [p for p in (osp.join(path, n) for n in found) if first_tag(p) == 'annotations']
    if len(found) > 1:
        raise UserError(f'{path} has several exports of CVAT, {", ".join(map(osp.basename, found))}: give one of them')
    return found[0] if found else None


def read(path: str, findings: Findings) -> Labelled:
    """Read an export. Its images are in the same folder or below; subsets named as splits are splits.

    Args:
        path (str): The XML file, or its folder.
        findings (Findings): Gets what is wrong or odd.

    Raises:
        UserError: If it is an export of another kind.
    """
    file = find_file(path)
    if file is None:
        raise UserError(f'{path} has no XML file of CVAT, which begins with <annotations>')
    try:
        root = read_xml(file)
    except (OSError, ValueError) as e:
        raise UserError(f'{file} is no XML file: {e}') from e
    if root.find('track') is not None:
        raise UserError(f"{file} is an export 'CVAT for video 1.1': export 'CVAT for images 1.1'")
    labels = [e for e in root.iterfind('meta//labels/label') if e.find('parent') is None]
    names = dict.fromkeys((e.findtext('name') or '').strip() for e in labels)  # tasks of a project repeat them
    names = check_class_names(names, file)
    folder = osp.dirname(file) or '.'
    images = Images(folder, findings)
    splits: dict[str, list[LabelledImage]] = {}
    for entry in root.iterfind('image'):
        where = f'{file}, image {entry.get("id")} {entry.get("name")}'
        subset = entry.get('subset')
        split = split_of(entry.get('name') or '')
        if subset and subset.lower() != 'default':
            split = split_name(subset) or subset
        path_ = _image_path(entry, images, folder, where)
        size = path_ and images.take(path_, where, (to_number(entry.get('width')), to_number(entry.get('height'))))
        if size:
            boxes = [_label(e, f'{where}, entry {i} ({e.tag})', names, findings) for i, e in enumerate(entry, 1)]
            splits.setdefault(split, []).append(LabelledImage(path_, size, [b for b in boxes if b is not None]))
    return Labelled(path, 'cvat', splits, names or None, findings)


def _image_path(entry: ElementTree.Element, images: Images, folder: str, where: str) -> str | None:
    name = entry.get('name')
    if not name:
        images.findings.add('label-file', f'{where}: it has no name')
        return None
    folders = [osp.join(folder, 'images', entry.get('subset') or 'default'), osp.join(folder, 'images'), folder]
    if not is_image(name):  # of a video, saved as images
        found = next(filter(None, (image_of(osp.join(d, name)) for d in folders)), None)
        if found is not None:
            return osp.normpath(found)
    return images.find(name, where, folders)


def _label(e: ElementTree.Element, where: str, names: tuple[str, ...], findings: Findings) -> Label | None:
    if e.tag in NO_BOX:
        findings.add('no-box', where)
        return None
    name = (e.get('label') or '').strip()
    if not name or (names and name not in names):
        findings.add('label-class', f'{where}: label {name!r}' + (f', not of {", ".join(names[:10])}' if names else ''))
        return None
    try:
        box = _box(e, where, findings)
    except ValueError as error:
        findings.add('label', f'{where}: {error}')
        return None
    return None if box is None else Label(name, box, where)


def _box(e: ElementTree.Element, where: str, findings: Findings) -> Box | None:
    def values(*keys: str) -> list[float]:
        found = [to_number(e.get(k)) for k in keys]
        if None in found:
            raise ValueError(f'{", ".join(keys)} must be numbers, are {", ".join(repr(e.get(k)) for k in keys)}')
        return found

    turned = to_number(e.get('rotation')) or 0.0
    if e.tag == 'box':
        x1, y1, x2, y2 = values('xtl', 'ytl', 'xbr', 'ybr')
        if x1 > x2 or y1 > y2:
            raise ValueError(f'xtl, ytl, xbr, ybr {[x1, y1, x2, y2]}: the first corner is not above the second')
        box = from_corners(x1, y1, x2, y2)
        if not turned % 180:
            return box
        findings.add('enclosed', f'{where}: turned by {turned:g} degrees')
        return rotated(box, turned, ((x1 + x2) / 2, (y1 + y2) / 2))
    if e.tag == 'mask':
        return tuple(values('left', 'top', 'width', 'height'))
    if e.tag == 'ellipse':
        box = ellipse(*values('cx', 'cy', 'rx', 'ry'), turned)
        findings.add('enclosed', where)
        return box
    if e.tag == 'polygon':
        points = [[to_number(v) for v in point.split(',')] for point in (e.get('points') or '').split(';')]
        if len(points) < 3 or any(len(p) != 2 or None in p for p in points):
            raise ValueError(f'points must be three pairs or more, are {e.get("points")!r:.80}')
        findings.add('enclosed', where)
        return around(points)
    raise ValueError(f'<{e.tag}> is not known')
