"""Make ``data/fashion``: photographs of clothes, to classify and to detect.

The photographs are those of Fashion-MNIST: 70,000 of 28 x 28 grey pixels, ten classes that are easily confused (shirt,
T-shirt, pullover, coat, dress). Debian distributes them as the package ``dataset-fashion-mnist``, which is downloaded
once (31 MB) and read without being installed; ``--source`` names the package, or a folder with the four IDX files of
the original distribution, wherever they come from. Their content is checked by its SHA-256. The result::

    cls/{train,val}/<class>/NNNNN.png           one photograph each; NNNNN is its index, from 60000 on in val
    det/{train,val}/NNNNNN.png                  scenes with 1 to 5 garments, more of them in train
    det/annotations/instances_{train,val}.json  COCO boxes; category ids 1..10 in the order of Fashion-MNIST's labels
    LICENSE, ATTRIBUTION.txt                    of the photographs: Expat (MIT)
    fashion.json                                manifest: version, parameters, counts, SHA-256

``train`` holds the training photographs of Fashion-MNIST, ``val`` its test photographs: none is in both, nor is a
region of a background. Annotations have one key more than COCO's, ``photograph``: its index. The same version and
parameters give the same bytes with the same versions of NumPy and Pillow.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import lzma
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import binary_fill_holes, label

from mmccd.cli import scenes
from mmccd.cli.made_data import CocoFile, DataFolder, add_options, check_options, run_converter
from mmccd.cli.parser import tool_parser
from mmccd.errors import UserError

TOOL = 'make_fashion'
VERSION = '1.0'  # goes up whenever the same parameters would give other files
MANIFEST = 'fashion.json'
PACKAGE = 'dataset-fashion-mnist'
UPSTREAM = 'https://github.com/zalandoresearch/fashion-mnist'
CLASSES = ('t-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle-boot')
# Of the files without gzip: SHA-256.
FILES = {
    'train-images-idx3-ubyte': 'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888',
    'train-labels-idx1-ubyte': 'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9',
    't10k-images-idx3-ubyte': '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b',
    't10k-labels-idx1-ubyte': '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34',
}
PREFIXES = dict(train='train', val='t10k')
RANGES = dict(train=(0, 60_000), val=(60_000, 70_000))  # indices
MAX_OBJECTS = 5
SIZES = (32, 72)  # px, the longer side of a garment
BLACK, SPECK = 16, 8  # of 255, what may be background; in pixels, the smallest part of a garment
DARKEST = 0.35  # factor of a garment's colour where its photograph is black
OPTIONS = {
    'train-images': (60_000, 10, 60_000, 'photographs to train on, as many of each class'),
    'val-images': (10_000, 10, 10_000, 'photographs to validate on, as many of each class'),
    'train-scenes': (3000, 1, 999_999, 'scenes to train on'),
    'val-scenes': (300, 1, 999_999, 'scenes to validate on'),
    'size': (128, 80, scenes.TEXTURE_SIZE - scenes.TEXTURE_SPLIT, 'side of a scene in px'),
    'seed': (0, 0, 2**32 - 1, 'seed of every choice'),
}
LICENSE = """\
The MIT License (MIT), also called Expat

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
ATTRIBUTION = f"""\
The photographs are Fashion-MNIST's ({UPSTREAM}). Its authors ask to cite:

  Xiao, H., Rasul, K., Vollgraf, R., 2017. Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
  Algorithms. arXiv:1708.07747

The backgrounds of the scenes are the photographs brick, grass and gravel (CC0) of scikit-image.
"""


def download_package(folder: Path) -> Path:
    """Debian's package in ``folder``, by apt-get; nothing is installed, and no rights are needed."""
    found = sorted(folder.glob(f'{PACKAGE}_*.deb'))
    if not found and shutil.which('apt-get'):
        print(f'$ apt-get download {PACKAGE}', flush=True)
        subprocess.run(['apt-get', 'download', PACKAGE], cwd=folder)
        found = sorted(folder.glob(f'{PACKAGE}_*.deb'))
    if not found:
        raise UserError(
            f'{PACKAGE} could not be downloaded by apt-get: fetch this Debian package, or the four files of '
            f'{UPSTREAM}, and name the package or their folder with --source'
        )
    return found[-1]


def members_of_package(path: Path) -> dict[str, bytes]:
    """The IDX files in a Debian package, an ``ar`` archive with a tar archive in it, by their names without ``.gz``."""
    content = path.read_bytes()
    if not content.startswith(b'!<arch>\n'):
        raise UserError(f'{path} is no Debian package')
    at, members, files = 8, {}, {}
    try:
        while at + 60 <= len(content):  # headers of 60 bytes: a name of 16, the size at 48; content at even offsets
            name, size = content[at : at + 16].decode().strip(' /'), int(content[at + 48 : at + 58])
            members[name] = content[at + 60 : at + 60 + size]
            at += 60 + size + size % 2
        data = next((members[name] for name in members if name.startswith('data.tar')), b'')
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                name = Path(member.name).name.removesuffix('.gz')
                if name in FILES and member.isfile():
                    files[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, lzma.LZMAError, OSError, EOFError, ValueError) as e:
        reason = str(e).partition('\n')[0]  # tarfile's lists what each compression has to say
        raise UserError(f'{path} cannot be read as a Debian package, was it cut short?: {reason}') from e
    return files


def read_files(source: Path) -> dict[str, bytes]:
    """The four IDX files, without gzip, by their names; UserError if one is missing or another file."""
    if source.is_dir():
        files = {p.name.removesuffix('.gz'): p.read_bytes() for p in sorted(source.iterdir()) if p.is_file()}
    elif source.is_file():
        files = members_of_package(source)
    else:
        raise UserError(f'--source: {source} does not exist')
    result = {}
    for name, expected in FILES.items():
        if name not in files:
            raise UserError(f'{source} has no {name} or {name}.gz')
        content = files[name]
        if content.startswith(b'\x1f\x8b'):
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError) as e:
                raise UserError(f'{name} in {source} cannot be read: {e}') from e
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise UserError(f'{name} in {source} is another file: SHA-256 {found}, not {expected}')
        result[name] = content
    return result


def load(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """Photographs, (70000, 28, 28) uint8, those to train on first, and labels, (70000,)."""
    files = read_files(source)
    images = [np.frombuffer(files[f'{p}-images-idx3-ubyte'], np.uint8, offset=16) for p in PREFIXES.values()]
    labels = [np.frombuffer(files[f'{p}-labels-idx1-ubyte'], np.uint8, offset=8) for p in PREFIXES.values()]
    return np.concatenate(images).reshape(-1, 28, 28), np.concatenate(labels).astype(int)


def split_photographs(labels: np.ndarray, parameters: dict[str, Any]) -> dict[str, np.ndarray]:
    """Indices of each split: the first ones of each class, as many of each, in Fashion-MNIST's own order."""
    splits = {}
    for split, (first, last) in RANGES.items():
        own = np.arange(first, last)
        each = parameters[f'{split}_images'] // len(CLASSES)
        chosen = [own[labels[first:last] == number][:each] for number in range(len(CLASSES))]
        splits[split] = np.sort(np.concatenate(chosen))
    return splits


def outline_of(image: np.ndarray) -> np.ndarray:
    """Mask, (28, 28), of a garment: without holes, and without specks of the photograph's background."""
    mask = binary_fill_holes(image > BLACK)
    parts, _ = label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    kept = binary_fill_holes(sizes[parts] >= max(SPECK, sizes.max() // 20))
    return kept if kept.any() else image > 0


def cut_out(image: np.ndarray, longer_side: int) -> tuple[np.ndarray, np.ndarray]:
    """A garment's alpha, its outline without holes, and its shading, both cut to what is seen."""
    outline = outline_of(image).astype(np.uint8) * 255
    left, top, right, bottom = scenes.bounds(outline > 0)
    alpha = np.clip((scenes.resized(outline[top:bottom, left:right], longer_side) / 255 - 0.25) / 0.5, 0, 1)
    shading = DARKEST + (1 - DARKEST) * scenes.resized(image[top:bottom, left:right], longer_side) / 255
    left, top, right, bottom = scenes.bounds(alpha > scenes.INK)
    return alpha[top:bottom, left:right], shading[top:bottom, left:right]


def composer(images: np.ndarray) -> scenes.Composer:
    """Makes scenes of up to five of the photographs ``images``, tinted."""
    return scenes.Composer(lambda index, longer_side: cut_out(images[index], longer_side), SIZES, MAX_OBJECTS)


def build(folder: DataFolder, parameters: dict[str, Any], source: Path | None) -> dict[str, Any]:
    """Write the whole dataset into a new folder; returns its manifest."""
    root = folder.path
    root.parent.mkdir(parents=True, exist_ok=True)
    scenes.load_textures('train')  # so that a missing package shows before anything is written
    images, labels = load(source or download_package(root.parent))
    root.mkdir()
    folder.write_manifest(parameters=parameters)
    (root / 'LICENSE').write_text(LICENSE)
    (root / 'ATTRIBUTION.txt').write_text(ATTRIBUTION)
    counts: dict[str, dict] = {'cls': {}, 'det': {}}
    for split, indices in split_photographs(labels, parameters).items():
        counts['cls'][split] = scenes.write_folders(root / 'cls' / split, images, CLASSES, labels, indices)
        coco = CocoFile(f'{TOOL} {VERSION}, {split}', CLASSES, ['MIT, see LICENSE and ATTRIBUTION.txt'])
        counts['det'][split] = scenes.write_scenes(
            root / 'det', split, composer(images), indices, labels, coco, parameters, 'photograph'
        )
    return folder.complete(parameters=parameters, counts=counts)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; argparse ends the program with status 2 on a bad option."""
    script = 'python tools/dataset_converters/make_fashion.py'
    parser = tool_parser(
        __doc__,
        f'examples:\n  {script}\n  {script} --train-images 10000 --out data/fashion10k\n'
        f'  {script} --source dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb',
    )
    add_options(parser, 'data/fashion', OPTIONS)
    parser.add_argument(
        '--source',
        type=Path,
        help='the Debian package, or a folder with the four IDX files; default: apt-get downloads the package beside '
        '--out, unless it is there',
    )
    args = parser.parse_args(argv)
    check_options(parser, args, OPTIONS)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parameters = vars(parse_args(argv))
    out, overwrite, source = (parameters.pop(k) for k in ('out', 'overwrite', 'source'))
    folder = DataFolder(Path(out).resolve(), TOOL, VERSION, MANIFEST)
    return run_converter(
        TOOL, lambda: folder.make(parameters, overwrite, lambda f, p: build(f, p, source)), 'scikit-image'
    )


if __name__ == '__main__':
    sys.exit(main())
