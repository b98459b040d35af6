"""Pascal VOC: an XML file for each image, and lists of images in ``ImageSets/Main``, or folders of splits, or neither.

VOC counts pixels from 1, and a box includes its last one: ``xmin 1, xmax 4`` is the four pixels that COCO writes as
``x 0, width 4`` (VOC2012 development kit, section 4). Many labelling tools write VOC files with corners that count from
0 instead, where ``xmax - xmin`` is the width. Where a box begins at 0, all files of the dataset are taken for those.
"""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator
from xml.etree import ElementTree

from mmccd.errors import UserError

from .images import Images, image_of, lines_of, walk
from .labelled import WHOLE, Findings, Label, Labelled, LabelledImage, split_of
from .shapes import around, to_number
from .xml import read_xml

COORDINATES = ('auto', 'inclusive', 'corners')
MASKS = {'SegmentationClass', 'SegmentationObject'}  # folders of images that are labels themselves
LISTS = {'train': 'train', 'val': 'val', 'test': 'test', 'trainval': 'train', 'default': WHOLE}


def read(path: str, findings: Findings, difficult: str = 'ignore', coordinates: str = 'auto') -> Labelled:
    """Read a dataset.

    Args:
        path (str): Its folder, or one above.
        findings (Findings): Gets what is wrong or odd.
        difficult (str): ``'ignore'``: training and evaluation ignore objects that are marked so, as VOC's own
            evaluation does; ``'keep'``: they are like all others. Default: ``'ignore'``.
        coordinates (str): ``'inclusive'`` for VOC's definition, ``'corners'`` for boxes that count from 0. Default:
            ``'auto'``, the latter where any box begins at 0.

    Raises:
        UserError: If there is more than one dataset.
    """
    root = _root(path)
    reader = _Reader(root, findings, difficult)
    splits = {
        split: [image for where, name in entries for image in reader.image(where, name)]
        for split, entries in _files(root, findings).items()
    }
    reader.find_unlabelled()
    from_zero = coordinates == 'corners'
    if coordinates == 'auto' and reader.begins_at_0:
        from_zero = True
        what = f'{reader.begins_at_0} begins at 0: not as VOC counts, from 1. Boxes are taken for corners that count '
        findings.add('taken', f'{what}from 0 (--voc-coordinates)')
    for images in splits.values():
        for image in images:
            image.labels = [reader.placed(label, from_zero) for label in image.labels]
    return Labelled(path, 'voc', splits, None, findings)


def _root(path: str) -> str:
    """The folder with ``Annotations`` or the XML files: ``path``, or the one such folder of a development kit."""
    if not osp.isdir(osp.join(path, 'Annotations')):
        kits = {osp.dirname(osp.dirname(p)) for p in walk(path) if osp.basename(osp.dirname(p)) == 'Annotations'}
        if len(kits) > 1:
            raise UserError(f'{path} has several datasets, {", ".join(sorted(kits))}: give one of them')
        return kits.pop() if kits else path
    return path


def _files(root: str, findings: Findings) -> dict[str, list[tuple[str, str]]]:
    """(file, name in the list) of each split's XML files."""
    annotations = osp.join(root, 'Annotations')
    every = [p for p in walk(annotations if osp.isdir(annotations) else root) if p.lower().endswith('.xml')]
    folder = osp.join(root, 'ImageSets', 'Main')
    lists = {name: osp.join(folder, f'{name}.txt') for name in LISTS if osp.isfile(osp.join(folder, f'{name}.txt'))}
    if {'train', 'val'} <= set(lists) and lists.pop('trainval', None):
        findings.add('taken', f'{folder}: trainval is train and val together, and is left out')
    splits: dict[str, list[tuple[str, str]]] = {}
    if not lists:
        for file in every:
            splits.setdefault(split_of(osp.relpath(file, root)), []).append((file, ''))
        return splits
    listed: set[str] = set()
    for name, path in lists.items():
        entries: dict[str, str] = {}
        for i, line in enumerate(lines_of(path, findings), 1):
            if not line.strip():
                continue
            names = line.strip(), line.split()[0]  # the whole line, or what stands before a 1 or -1
            files = {osp.normpath(osp.join(annotations, f'{n}.xml')): n for n in names}
            file = next(filter(osp.isfile, files), None)
            if file is None:
                findings.add('image-without-label-file', f'{path}:{i}: {list(files)[-1]} does not exist')
            elif file in entries:
                findings.add('image-double', f'{path}:{i}: {files[file]} is in the list twice')
            else:
                entries[file] = files[file]
        splits.setdefault(LISTS[name], []).extend(entries.items())
        listed |= set(entries)
    for file in every:
        if file not in listed:
            findings.add('not-listed', file)
    return splits


class _Reader:
    def __init__(self, root: str, findings: Findings, difficult: str) -> None:
        self.root, self.findings, self.difficult = root, findings, difficult
        self.images = Images(root, findings)
        self.begins_at_0 = ''  # the first object that does

    def image(self, file: str, listed: str) -> Iterator[LabelledImage]:
        """The image of an XML file with its labels, whose boxes are still xmin, ymin, xmax, ymax; nothing if it has
        none."""
        try:
            root = read_xml(file)
        except (OSError, ValueError) as e:
            self.findings.add('label-file', f'{file}: {e}')
            return
        if root.tag != 'annotation':
            self.findings.add('label-file', f'{file}: begins with <{root.tag}> instead of <annotation>')
            return
        path = self._image_path(file, listed, (root.findtext('filename') or '').strip())
        if path is None:
            return
        stated = tuple(to_number(root.findtext(f'size/{side}')) for side in ('width', 'height'))
        size = self.images.take(path, file, stated, again=True)
        if size is None:
            return
        labels = [self._label(o, f'{file}, object {i}') for i, o in enumerate(root.findall('object'), 1)]
        yield LabelledImage(path, size, [label for label in labels if label is not None])

    def _image_path(self, file: str, listed: str, filename: str) -> str | None:
        """The image that has the XML file's name, or that it names; a finding if these are two."""
        folders = [osp.dirname(file), *(osp.join(self.root, d) for d in ('JPEGImages', 'images', '.'))]
        stem = listed or osp.splitext(osp.basename(file))[0]
        alike = next(filter(None, (image_of(osp.join(d, stem)) for d in folders)), None)
        named = next(filter(osp.isfile, (osp.join(d, filename) for d in folders)), None) if filename else None
        if alike and named and osp.realpath(alike) != osp.realpath(named):
            self.findings.add('image-double', f'{file}: is it of {named}, which it names, or of {alike}?')
            return None
        found = alike or named
        if found is not None:
            return osp.normpath(found)
        same = self.images.by_stem().get(osp.basename(stem), ())
        if len(same) == 1:
            return same[0]
        return self.images.find(filename or f'{stem}.jpg', file)

    def _label(self, entry: ElementTree.Element, where: str) -> Label | None:
        name = (entry.findtext('name') or '').strip()
        if not name:
            self.findings.add('label-class', f'{where}: it has no name')
            return None
        values = [to_number(entry.findtext(f'bndbox/{k}')) for k in ('xmin', 'ymin', 'xmax', 'ymax')]
        if entry.find('bndbox') is None and entry.find('polygon') is not None:
            points = [to_number(v.text) for v in entry.find('polygon')]
            if len(points) < 6 or len(points) % 2 or None in points:
                self.findings.add('label', f'{where}: polygon must be x1, y1 to at least x3, y3')
                return None
            x, y, w, h = around(zip(points[::2], points[1::2]))
            values = [x, y, x + w, y + h]
            self.findings.add('enclosed', f'{where}: polygon of {len(points) // 2} points')
        if None in values:
            self.findings.add('label', f'{where}: bndbox must have xmin, ymin, xmax and ymax, all numbers')
            return None
        if values[0] > values[2] or values[1] > values[3]:
            self.findings.add('label', f'{where}: xmin, ymin, xmax, ymax {values}: the minimum is above the maximum')
            return None
        if min(values[:2]) < 1 and not self.begins_at_0:
            self.begins_at_0 = where
        ignored = (entry.findtext('difficult') or '').strip() == '1'
        if ignored:
            self.findings.add('difficult' if self.difficult == 'ignore' else 'difficult-kept', where)
        return Label(name, tuple(values), where, ignored and self.difficult == 'ignore')

    @staticmethod
    def placed(label: Label, from_zero: bool) -> Label:
        """With its box as COCO has it."""
        x1, y1, x2, y2 = label.box
        one = 0 if from_zero else 1
        return Label(label.name, (x1 - one, y1 - one, x2 - x1 + one, y2 - y1 + one), label.where, label.ignored)

    def find_unlabelled(self) -> None:
        """Images without an XML file."""
        used = {osp.realpath(p) for p in self.images.used}
        for paths in self.images.by_name().values():
            for path in paths:
                if osp.realpath(path) not in used and not MASKS & {*path.split(osp.sep)}:
                    self.findings.add('not-labelled', path)
