"""Files and folders that tools write: what cannot be written is said before the work whose result it is."""

from __future__ import annotations

import os
import os.path as osp

from mmccd.errors import UserError


def check_folder(path: str, argument: str) -> None:
    """UserError unless a folder is there, or can be made there, and written into."""
    _check_place(path, f'{argument} {path}')


def check_file(path: str, argument: str) -> None:
    """UserError unless a file can be written at this path."""
    if osp.isdir(path):
        raise UserError(f'{argument} {path} is a folder: name a file')
    _check_place(osp.dirname(path) or '.', f'{argument} {path}')


def _check_place(folder: str, named: str) -> None:
    there = osp.abspath(folder)
    while not osp.lexists(there):
        there = osp.dirname(there)
    if not osp.isdir(there):
        raise UserError(f'{named}: {osp.relpath(there)} is no folder')
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f'{named}: {osp.relpath(there)} cannot be written into')


def make_folder_of(path: str) -> None:
    """Make the folder that a file is about to be written into."""
    os.makedirs(osp.dirname(path) or '.', exist_ok=True)
