"""Which format a folder or file of labels has, by what lies in it."""

from __future__ import annotations

import os
import os.path as osp
from itertools import islice

from mmccd.data.image_files import is_left_behind
from mmccd.errors import UserError

from . import cvat, label_studio, yolo
from .xml import first_tag

NAMES = {
    'yolo': 'YOLO (data.yaml, obj.data or classes.txt)',
    'voc': 'Pascal VOC (an XML file for each image)',
    'labelme': 'LabelMe (a JSON file for each image)',
    'cvat': 'CVAT for images 1.1 (an XML file with all images)',
    'label-studio': 'Label Studio (JSON or JSON-MIN: a list of tasks)',
}
LOOKED_AT = 300  # files of a folder; which format it has is seen in the first ones


def recognise(path: str) -> str | None:
    """Name of the format of a folder or file; None if it is none of ``NAMES``. Takes no time with large folders.

    Raises:
        UserError: If it may be several.
    """
    files = [path] if osp.isfile(path) else _files(path)
    found = []
    if yolo.find_layout(path):
        found.append('yolo')
    if any(first_tag(f) == 'annotation' for f in islice((f for f in files if f.lower().endswith('.xml')), 3)):
        found.append('voc')
    if cvat.find_file(path):
        found.append('cvat')
    if label_studio.find_file(path):
        found.append('label-studio')
    if any(_has_shapes(f) for f in islice((f for f in files if f.lower().endswith('.json')), 3)):
        found.append('labelme')
    if len(found) > 1:
        raise UserError(f'{path} may be {" or ".join(found)}: say which with --format of to_coco.py')
    return found[0] if found else None


def why_not(path: str) -> str:
    """What a path that is no known format lacks, for messages."""
    if osp.isdir(path) and osp.isdir(osp.join(path, 'labels')):
        what = 'its labels look like YOLO, without data.yaml or classes.txt the classes have no names'
        above = yolo.find_layout(osp.dirname(osp.abspath(path)))
        return what + (f': give the folder with {above}' if above else '')
    if any(_is_coco(f) for f in ([path] if osp.isfile(path) else _files(path)) if f.lower().endswith('.json')):
        return 'it holds COCO annotations: tools take those as they are, DIR JSON'
    return f'none of {", ".join(NAMES.values())} is in it'


def _files(folder: str) -> list[str]:
    """Files in a folder and two levels below it, the first of each."""
    found, folders = [], [(folder, 0)]
    for path, level in folders:
        for entry in sorted(islice(os.scandir(path), 5000 if not level else LOOKED_AT), key=lambda e: e.name):
            if is_left_behind(entry.name):
                continue
            if entry.is_file():
                found.append(entry.path)
            elif entry.is_dir() and level < 2 and len(folders) < LOOKED_AT:
                folders.append((entry.path, level + 1))
    return found


def _beginning(path: str) -> str:
    try:
        with open(path, encoding='utf-8-sig', errors='replace') as f:
            return f.read(1 << 16).lstrip()
    except OSError:
        return ''


def _has_shapes(path: str) -> bool:
    beginning = _beginning(path)
    return beginning.startswith('{') and '"shapes"' in beginning


def _is_coco(path: str) -> bool:
    beginning = _beginning(path)
    keys = ('"images"', '"annotations"', '"categories"')
    return beginning.startswith('{') and '"shapes"' not in beginning and any(k in beginning for k in keys)
