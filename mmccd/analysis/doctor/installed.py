"""What is installed, found out without importing it unless said; the tests replace these functions."""

from __future__ import annotations

import importlib
import re
import sysconfig
from importlib import metadata, util
from pathlib import Path

from mmccd.env import OPTIONAL, REQUIRED


def version(distribution: str) -> str | None:
    """Version of an installed distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def requires(distribution: str) -> list[str]:
    """Requirements of an installed distribution, as its metadata has them."""
    try:
        return metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []


def can_be_found(module: str) -> bool:
    """Whether a module could be imported, judged by its files."""
    try:
        return util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is missing; it is partly loaded
        return False


def import_error(module: str) -> str | None:
    """Import a module: the last line of the error; None if there is none, or it is not installed."""
    if not can_be_found(module.partition('.')[0]):
        return None
    try:
        importlib.import_module(module)
    except Exception as e:  # broken packages raise anything
        return f'{type(e).__name__}: {str(e).strip().splitlines()[-1] if str(e).strip() else ""}'
    return None


def source(module: str) -> str:
    """Text of a package's ``__init__.py``, which is not run."""
    spec = util.find_spec(module) if can_be_found(module) else None
    return Path(spec.origin).read_text(encoding='utf-8') if spec and spec.origin else ''


def mentions(module: str, text: str) -> bool:
    """Whether a file of a package, none of which is run, has this text in it."""
    spec = util.find_spec(module) if can_be_found(module) else None
    folders = spec.submodule_search_locations if spec else None
    files = (path for folder in folders or () for path in Path(folder).rglob('*.py'))
    return any(text in path.read_text(encoding='utf-8', errors='replace') for path in files)


def python_headers() -> bool:
    """Whether C code can be compiled against this Python."""
    return Path(sysconfig.get_path('include'), 'Python.h').is_file()


def nvidia_driver() -> bool:
    """Whether this machine has an NVIDIA driver (Linux)."""
    return Path('/proc/driver/nvidia/version').exists()


def nvidia_driver_version() -> tuple[int, ...]:
    """Version of this machine's NVIDIA driver (Linux), (580, 95, 5) for example; () where it is not known."""
    try:
        text = Path('/proc/driver/nvidia/version').read_text(encoding='utf-8')
    except OSError:
        return ()
    found = re.search(r'\b(\d+\.\d+(?:\.\d+)?)\b', text)
    return release(found.group(1)) if found else ()


def release(version: str | None) -> tuple[int, ...]:
    """Leading numbers of a version, 2.11.0+cu130 as (2, 11, 0); () for None."""
    return tuple(int(n) for n in re.findall(r'\d+', re.match(r'[\d.]*', version or '').group()))


def providers(name: str) -> list[tuple[str, str]]:
    """``(distribution, version)`` of everything installed that provides the import ``name``."""
    found = [(d, version(d)) for d in {**REQUIRED, **OPTIONAL}[name][1]]
    return [(d, v) for d, v in found if v is not None]


def pinned(distribution: str, requirement: str) -> str | None:
    """Exact version of ``requirement`` that an installed distribution asks for."""
    for line in requires(distribution):
        match = re.match(rf'{requirement}\s*\(?==\s*([\w.+]+)', line)
        if match:
            return match.group(1)
    return None


def oldest(distribution: str, requirement: str) -> str | None:
    """Oldest version of ``requirement`` that an installed distribution asks for, where it asks for no exact one."""
    for line in requires(distribution):
        match = re.match(rf'{requirement}\s*\(?>=\s*([\w.+]+)', line)
        if match:
            return match.group(1)
    return None


def matching_torchvision(torch: tuple[int, ...]) -> str:
    """torchvision was released with torch, 0.15.0 with 2.0.0 and so on; 0.29.2 takes every torch from 2.14 on."""
    if torch[:1] != (2,):
        return 'torchvision'
    if torch[1] >= 14:
        return 'torchvision>=0.29.2'
    return f'torchvision==0.{torch[1] + 15}.{torch[2] if len(torch) > 2 else 0}'
