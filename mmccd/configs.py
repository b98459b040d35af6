"""Config files: those that come with mmccd, reading one with its options, and walking its datasets.

Imports nothing heavy: a list of names should not take seconds.
"""

from __future__ import annotations

import fnmatch
import inspect
import os
import os.path as osp
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from .env import is_first_on_machine, warn_renamed
from .errors import UserError, suggest

# Files in a wheel, links to the checkout's folders in a checkout: the place where mim searches, too.
CONFIGS = Path(__file__).parent / '.mim' / 'configs'
_OWN = 'mmccd::'
_RENAMED_PART = ('_24e_', '_2x_')  # Cascade R-CNN's schedule; the old files stay, and read the new ones


def list_configs(pattern: str = '*') -> list[str]:
    """Names of the configs that come with mmccd, sorted.

    Args:
        pattern (str): Shell pattern for the whole name: ``*``, ``?``, ``[...]``. Default: all.

    Example:
        >>> import mmccd
        >>> mmccd.list_configs('c*_r18_digits')
        ['cbam_r18_digits', 'ccd_r18_digits']
    """
    names = fnmatch.filter((path.stem for path in CONFIGS.glob('*.py')), pattern)
    return sorted(name for name in names if not is_old_name(name))


def is_old_name(name: str) -> bool:
    """Whether a config that comes with mmccd was called so before, and may be still."""
    return _RENAMED_PART[0] in name and (CONFIGS / f'{name}.py').is_file()


# What configs of earlier versions, and the dumps of them beside their checkpoints, call code by: (then, now).
RENAMED = {
    'mmccd.utils.fsdp.': 'mmccd.engine.strategies.',
}
# Top-level keys that mmengine's runners and tools/test.py read beside the arguments of Runner.
_OTHER_KEYS = {
    'sync_bn',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'strategy',
    'compile',
    'tta_model',
    'tta_pipeline',
}


def load_config(path: str, options: dict | None = None) -> Config:
    """Read a config file and merge ``--cfg-options`` into it.

    Names of code that has moved since the file was written are replaced (:data:`RENAMED`).

    Args:
        path (str): The file.
        options (dict, optional): ``{'key.sub': value}``. Default: none.

    Raises:
        UserError: If there is no such file, it cannot be read, or the options do not fit it.
    """
    if not osp.isfile(path):
        folder = osp.dirname(path) or '.'
        names = [n for n in os.listdir(folder) if n.endswith('.py')] if osp.isdir(folder) else []
        near = suggest(osp.basename(path), names, n=3, prefix=osp.join(osp.dirname(path), ''))
        raise UserError(f'config {path!r} does not exist{near}')
    folder, stem = osp.dirname(osp.realpath(path)), osp.splitext(osp.basename(path))[0]
    if is_old_name(stem) and folder == osp.realpath(CONFIGS):
        warn_renamed(stem, stem.replace(*_RENAMED_PART))
    try:
        with _own_bases():
            cfg = Config.fromfile(path)
    except (SyntaxError, FileNotFoundError) as e:  # the latter: a base
        raise UserError(f'config {path!r} cannot be read: {e}') from e
    _rename(cfg._cfg_dict)
    _check_option_keys(cfg, options or {})
    try:
        cfg.merge_from_dict(options or {})
    except (TypeError, KeyError, ValueError, IndexError) as e:
        raise UserError(f'--cfg-options does not fit {path}: {e.args[0]}') from e
    for change in _fit_loaders(cfg):
        if is_first_on_machine():
            print(f'note: {change}', file=sys.stderr)
    return cfg


@contextmanager
def _own_bases() -> Iterator[None]:
    """``_base_ = 'mmccd::NAME.py'``, as mmengine has it for a fixed list of packages, while a config is read.

    Unlike there, what is read stays in its own default scope.
    """
    original = Config._get_cfg_path

    def get_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if not cfg_path.startswith(_OWN):
            return original(cfg_path, filename)
        name = cfg_path.removeprefix(_OWN)
        path = CONFIGS / (name if name.endswith('.py') else f'{name}.py')
        if not path.is_file():
            names = [f'{n}.py' for n in list_configs()]
            raise UserError(
                f'config {filename!r}: _base_ {cfg_path!r} is none of the configs that come with mmccd'
                f'{suggest(path.name, names, prefix=_OWN)}'
            )
        return str(path), None

    Config._get_cfg_path = staticmethod(get_path)  # configs are read by static methods: there is no other way in
    try:
        yield
    finally:
        Config._get_cfg_path = staticmethod(original)


def _fit_loaders(cfg: Config) -> Iterator[str]:
    """Take out of loaders without worker processes what PyTorch refuses there, and say what."""
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(key)
        if not isinstance(loader, dict) or loader.get('num_workers', 0) != 0:
            continue
        odd = [
            name for name in ('persistent_workers', 'prefetch_factor', 'multiprocessing_context') if loader.get(name)
        ]
        for name in odd:
            loader.pop(name)
        if odd:
            yield f'{key}.num_workers is 0: left out {", ".join(odd)}, which PyTorch refuses without workers'


def _rename(value: Any) -> Any:
    """Replace names of moved code in all texts of a config, in place."""
    if isinstance(value, str):
        for then, now in RENAMED.items():
            value = now + value[len(then) :] if value.startswith(then) else value
    elif isinstance(value, dict):
        for key, item in dict.items(value):  # a ConfigDict's own would import what it names
            renamed = _rename(item)
            if renamed is not item:
                value[key] = renamed
    elif isinstance(value, list):
        value[:] = [_rename(item) for item in value]
    elif type(value) is tuple:
        value = tuple(_rename(item) for item in value)
    return value


def keys_read() -> set[str]:
    """Top-level keys of a config that something reads; all others are variables of the config files."""
    from mmengine.runner import Runner  # takes seconds

    return set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'} | _OTHER_KEYS


def _check_option_keys(cfg: Config, options: dict) -> None:
    """Refuse options that nothing would read: mmengine accepts any top-level key without a word."""
    read = keys_read()
    for option in options:
        key = option.split('.')[0]
        if key in read:
            continue
        if key not in cfg:
            near = suggest(key, sorted(read | set(cfg)))
            raise UserError(f'--cfg-options {option}: the config has no key {key!r}, and nothing would read it{near}')
        if is_first_on_machine():
            print(
                f'warning: --cfg-options {option}: {key!r} is a variable of the config files, used when they were '
                'read; changing it changes nothing that was made from it (set the entries themselves, e.g. '
                'train_dataloader.dataset.data_root)',
                file=sys.stderr,
            )


def datasets_of(cfg: ConfigDict, key: str) -> Iterator[tuple[str, ConfigDict]]:
    """(key, config) of every dataset below ``cfg``, wrappers unpacked."""
    for inner in ('dataset', 'datasets'):
        below = cfg.get(inner)
        if isinstance(below, dict):
            yield from datasets_of(below, f'{key}.{inner}')
        elif isinstance(below, (list, tuple)):
            for i, item in enumerate(below):
                yield from datasets_of(item, f'{key}.{inner}.{i}')
    if 'dataset' not in cfg and 'datasets' not in cfg:
        yield key, cfg
