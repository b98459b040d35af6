"""What the tools that visualize a model on images share: their arguments, and the names and writing of their files."""

from __future__ import annotations

import argparse
import io
import os.path as osp
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from mmccd.checkpoints.files import write_atomically
from mmccd.configs import config_name

from .arguments import add_cfg_options
from .outputs import check_folder, make_folder_of
from .parser import tool_parser


def image_parser(description: str, epilog: str, out_files: str, out_dir: str) -> argparse.ArgumentParser:
    """A parser with the image or folder, the config and the checkpoint, and the options that all such tools have.

    Args:
        description (str): The tool's docstring.
        epilog (str): Its examples.
        out_files (str): Names of the figures, e.g. ``'<name>_gates'``.
        out_dir (str): Name of their folder in the work folder.
    """
    parser = tool_parser(description, epilog)
    parser.add_argument('img', metavar='IMG|DIR', help='an image, or a folder: all images in it and below')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--out-dir', help=f'folder for {out_files}.png; default: work_dirs/<config name>/{out_dir}')
    parser.add_argument('--raw', action='store_true', help=f'also write the arrays: {out_files}.npz')
    parser.add_argument('--device', help="'cpu', 'cuda', 'cuda:1', ...; default: a GPU if there is one")
    add_cfg_options(parser)
    return parser


def output_folder(args: argparse.Namespace, name: str) -> str:
    """``--out-dir``, or the folder ``name`` in the work folder of the config; UserError if it cannot be one."""
    folder = args.out_dir or osp.join('work_dirs', config_name(args.config), name)
    check_folder(folder, '--out-dir')
    return folder


def output_names(images: Sequence[str], path: str) -> list[str]:
    """Paths of ``list_images(path)`` below that folder; without suffix, unless two would then be the same."""
    folder = path if osp.isdir(path) else osp.dirname(path) or '.'
    names = [osp.relpath(p, folder) for p in images]
    stems = [osp.splitext(n)[0] for n in names]
    taken = Counter([*stems, *set(names)])  # a.jpg.png without its suffix is another one's whole name
    return [s if taken[s] == 1 else n for n, s in zip(names, stems)]


def write_figure(stem: str, figure: bytes, arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Write ``<stem>.png`` and, of arrays, ``<stem>.npz``, and print their paths."""
    files = {f'{stem}.png': figure}
    if arrays is not None:
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        files[f'{stem}.npz'] = content.getvalue()
    make_folder_of(stem)
    for path, content in files.items():
        write_atomically(path, content)
        print(path)
