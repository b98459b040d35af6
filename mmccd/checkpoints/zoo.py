"""Weights that were trained here: small networks, in half precision, with a card each that says how they were made.

They lie in ``zoo/`` of a checkout. A wheel has their cards alone: there, a file counts that was put into PyTorch's
folder of downloads. Either is compared with its card before it is read. ``tools/model_converters/make_zoo.py`` makes
both.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmccd.errors import UserError, suggest

from .read import read_checkpoint

SCHEME = 'zoo://'
ENDING = '.safetensors'
MAKER = 'tools/model_converters/make_zoo.py'


def zoo_folder() -> Path:
    """Where cards and, in a checkout, files are: a link in the package as that of the configs, or what it points to."""
    package = Path(__file__).parents[1]
    linked = package / '.mim' / 'zoo'
    return linked.resolve() if linked.is_dir() else package.parent / 'zoo'


@dataclass(frozen=True)
class Card:
    """What is recorded of a file of the zoo.

    Attributes:
        name (str): Of file and config.
        size (int): Of the file, in bytes.
        sha256 (str): Of the file.
        parameters (int): Of the model.
        classes (tuple[str, ...]): In the order of the labels.
        metric (str): What the score is.
        score (float): Of this file, on the validation split: a share of 1.
        content (dict): All of the card.
    """

    name: str
    size: int
    sha256: str
    parameters: int
    classes: tuple[str, ...]
    metric: str
    score: float
    content: dict[str, Any]


def list_zoo() -> list[str]:
    """Names of the weights that were trained here, sorted.

    Example:
        >>> 'ccd_r18-w32_fashion' in list_zoo()
        True
    """
    return sorted(path.stem for path in zoo_folder().glob('*.json'))


def find_card(name: str) -> Card:
    """The card of a name, with or without ``zoo://``; UserError if there is none, or it cannot be read."""
    short = name.removeprefix(SCHEME)
    names = list_zoo()
    if short not in names:
        known = f'; it has {", ".join(names)}' if names else f': there is no card in {zoo_folder()}'
        raise UserError(f'the zoo has no weights called {short!r}{suggest(short, names) or known}')
    path = zoo_folder() / f'{short}.json'
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        return Card(
            name=short,
            size=int(content['size']),
            sha256=str(content['sha256']),
            parameters=int(content['parameters']),
            classes=tuple(content['classes']),
            metric=str(content['metric']),
            score=float(content['score']),
            content=content,
        )
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f'{path} is no card of the zoo: {type(e).__name__} {e}') from e


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def zoo_file(name: str) -> Path:
    """The file of a name, compared with its card.

    Args:
        name (str): With or without ``zoo://``.

    Raises:
        UserError: If there is no such name, the file is not here (with where it is), or another file is.
    """
    card = find_card(name)
    places = (zoo_folder(), Path(torch.hub.get_dir()) / 'checkpoints')
    paths = [folder / f'{card.name}{ENDING}' for folder in places]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        raise UserError(
            f'{SCHEME}{card.name}: {paths[0].name} ({card.size / 1e6:.1f} MB) is in the folder zoo/ of a checkout of '
            f'mmccd, not in a wheel: copy it to {places[1]}, or make it in a checkout: python {MAKER} {card.name}'
        )
    found = sha256_of(path)
    if found != card.sha256:
        raise UserError(
            f'{path} is not the file of its card, cut short or damaged? Its SHA-256 is {found}, and not {card.sha256}: '
            f'take it from a checkout again, or make it: python {MAKER} {card.name}'
        )
    return path


def read_zoo(name: str, map_location: str = 'cpu') -> dict[str, Any]:
    """The tensors of a name, as ``state_dict``, and its classes, as ``meta``; UserError as :func:`zoo_file`."""
    content = read_checkpoint(zoo_file(name), map_location)
    card = find_card(name)
    return dict(state_dict=content['state_dict'], meta=dict(arch=card.name, dataset_meta=dict(classes=card.classes)))
