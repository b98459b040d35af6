"""Weights by name: those trained here, those of the authors, downloaded and converted, and those of Hugging Face's hub.

``zoo://ccd_r18-w32_fashion``, ``authors://ccd_r50_in1k`` and ``hf://owner/name/file.safetensors`` stand wherever a
checkpoint may: they are schemes of mmengine's loader, registered here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

from mmccd.checkpoints.authors import SCHEME, AuthorsModel, download, find_model
from mmccd.checkpoints.files import remove_with_checksum, verify_checksum
from mmccd.checkpoints.read import locked, read_checkpoint
from mmccd.checkpoints.zoo import SCHEME as ZOO
from mmccd.checkpoints.zoo import read_zoo, zoo_file
from mmccd.errors import UserError

from .conversion import convert_file

HUB = 'hf://'


def get_weights(
    name: str,
    out: str | os.PathLike = 'checkpoints',
    mirror: str | None = None,
    original: str | os.PathLike | None = None,
    keep_original: bool = False,
) -> Path:
    """Weights of the authors: downloaded, converted, compared with what they should be, and written with a checksum.

    Args:
        name (str): E.g. ``'ccd_r50_in1k'``; ``tools/model_converters/get_weights.py --list`` shows all. What was
            trained here needs its scheme, ``'zoo://ccd_r18-w32_fashion'``, and no other argument: the file is in the
            checkout.
        out (str | PathLike): Folder of the result, ``<name>.pth``. Default: ``'checkpoints'``.
        mirror (str, optional): URL of a folder that has the file under its id. Default: None, Google Drive.
        original (str | PathLike, optional): The file, where it was downloaded by hand. Default: None.
        keep_original (bool): Whether the downloaded file stays, as ``<name>.original``. Default: False.

    Returns:
        Path: The checkpoint. One that is there already is compared with its checksum, and not downloaded again; one of
        ``zoo://`` stays where it is.

    Raises:
        UserError: If there is no such model, the file cannot be downloaded (with what to do), or is another model's.

    Example:
        >>> import mmccd
        >>> path = mmccd.get_weights('ccd_r50_in1k')  # doctest: +SKIP
        >>> model = mmccd.init_model('ccd_r50_8xb32_in1k', path)  # doctest: +SKIP
    """
    if name.startswith(ZOO):
        return zoo_file(name)
    model = find_model(name)
    folder = Path(out)
    target = folder / f'{model.name}.pth'
    folder.mkdir(parents=True, exist_ok=True)
    with locked(str(folder / f'.{model.name}.lock')):
        if target.is_file():
            try:
                verify_checksum(str(target))
            except ValueError as e:
                raise UserError(f'{e}; or remove {target}, and it is made again') from e
            return target
        source = download(model, folder, mirror) if original is None else Path(original)
        _convert(model, source, target)
        if original is None and not keep_original:
            source.unlink()
    return target


def _convert(model: AuthorsModel, source: Path, target: Path) -> None:
    converted = convert_file(str(source), str(target), arch=model.arch)
    if converted.parameters != model.parameters:
        remove_with_checksum(str(target))
        raise UserError(
            f'{source} is another model: {converted.parameters:,} parameters, and {model.name} has '
            f'{model.parameters:,}. It is kept; remove it to download it again'
        )


# mmengine logs what stands behind load_from_ in a loader's name.
@CheckpointLoader.register_scheme(prefixes=SCHEME, force=True)
def load_from_authors(filename: str, map_location: str | None = None) -> Any:
    """``authors://<name>``: in the folder of PyTorch's own downloads, once."""
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    print_log(f'{filename}: weights of the authors, in {folder}', logger='current')
    return read_checkpoint(get_weights(filename, folder), map_location or 'cpu')


@CheckpointLoader.register_scheme(prefixes=ZOO, force=True)
def load_from_zoo(filename: str, map_location: str | None = None) -> Any:
    """``zoo://<name>``: of the checkout's ``zoo/``."""
    return read_zoo(filename, map_location or 'cpu')


@CheckpointLoader.register_scheme(prefixes=HUB, force=True)
def load_from_hub(filename: str, map_location: str | None = None) -> Any:
    """``hf://<owner>/<repository>/<path of the file>[@<revision>]``."""
    path, _, revision = filename.removeprefix(HUB).partition('@')
    parts = path.split('/', 2)
    if len(parts) < 3 or not all(parts):
        raise UserError(f'{filename} must be {HUB}<owner>/<repository>/<file>[@<revision>]')
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as e:
        raise UserError(f'{filename} needs the package huggingface_hub: pip install huggingface_hub') from e
    file = hf_hub_download('/'.join(parts[:2]), parts[2], revision=revision or None)
    return read_checkpoint(file, map_location or 'cpu')
