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
from importlib import util
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.utils import get_object_from_string

from .env import is_first_on_machine, warn_renamed
from .errors import UserError, suggest


def _find_configs(package: Path) -> Path:
    """Files in a wheel, a link to the checkout's folder in a checkout: the place where mim searches, too.

    Where git made no link of it (Windows), the checkout's folder itself.
    """
    linked = package / '.mim' / 'configs'
    return linked if linked.is_dir() else package.parent / 'configs'


CONFIGS = _find_configs(Path(__file__).parent)
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
# Top-level keys that mmengine's runners and the tools read beside the arguments of Runner.
_OTHER_KEYS = {
    'sync_bn',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'strategy',
    'compile',
    'load_from_allow',
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
    if '::' in path and not osp.exists(path):
        path = _packaged(path)
    if osp.isdir(path):
        raise UserError(f'config {path!r} is a folder')
    if not osp.isfile(path):
        raise UserError(f'config {path!r} does not exist{_nearest_file(path)}')
    folder, stem = osp.dirname(osp.realpath(path)), config_name(path)
    if is_old_name(stem) and folder == osp.realpath(CONFIGS):
        warn_renamed(stem, stem.replace(*_RENAMED_PART))
    try:
        cfg = Config.fromfile(path)
    except UserError:
        raise
    except (SyntaxError, FileNotFoundError) as e:  # the latter: a base
        missing = getattr(e, 'filename', None) if isinstance(e, FileNotFoundError) else None
        near = _nearest_file(missing, but=path) if missing else ''
        raise UserError(f'config {path!r} cannot be read: {e}{near}') from e
    except Exception as e:  # a config is code, and what it names is imported: anything
        raise UserError(f'config {path!r} cannot be read: {_reason(path, e)}') from e
    cfg = with_names(cfg)
    _rename(cfg._cfg_dict)
    options = {key: _like_before(cfg, key, value) for key, value in (options or {}).items()}
    _check_option_keys(cfg, options)
    try:
        cfg.merge_from_dict(options)
    except (TypeError, KeyError, ValueError, IndexError) as e:
        raise UserError(f'--cfg-options does not fit {path}: {e.args[0]}') from e
    for change in _fit_loaders(cfg):
        if is_first_on_machine():
            print(f'note: {change}', file=sys.stderr)
    return cfg


def config_name(path: str) -> str:
    """What a config is called, and its work folder: the name of its file, also of one that is in a package.

    Example:
        >>> config_name('configs/ccd_r18_digits.py'), config_name('mmccd::ccd_r18_digits.py')
        ('ccd_r18_digits', 'ccd_r18_digits')
    """
    return osp.splitext(osp.basename(path.rpartition('::')[2]))[0]


def _nearest_file(path: str, but: str = '') -> str:
    """End of a message: the configs whose names are nearest to that of a file that is not there."""
    folder = osp.dirname(path) or '.'
    names = [n for n in os.listdir(folder) if n.endswith('.py')] if osp.isdir(folder) else []
    names = [n for n in names if not but or osp.abspath(osp.join(folder, n)) != osp.abspath(but)]
    return suggest(osp.basename(path), names, n=3, prefix=osp.join(osp.dirname(path), ''))


def _packaged(name: str) -> str:
    """The file that ``package::NAME.py`` names."""
    try:
        return Config._get_cfg_path(name, '')[0]
    except UserError:
        raise
    except Exception as e:  # mmengine's, of several kinds
        raise UserError(f'config {name!r} cannot be found: {e}') from e


def _reason(path: str, error: Exception) -> str:
    """What the code of a config raised, and in which line."""
    text = (str(error).splitlines() or [''])[0]
    cause = error.__cause__
    if isinstance(error, ImportError) and cause is not None:  # mmengine's lists all of sys.path
        text = str(cause)
    found, frame = '', error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == osp.abspath(path):
            found = f' (line {frame.tb_lineno})'
        frame = frame.tb_next
    return f'{type(error).__name__}: {text}{found}'


def package_folder(package: str) -> Path | None:
    """Folder of the configs that come with another package; None if it is not installed."""
    spec = util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) / '.mim' / 'configs' if places else None


def config_names(package: str) -> list[str]:
    """Names of the configs that come with another package, as ``_base_`` takes them."""
    folder = package_folder(package)
    return [] if folder is None else [path.relative_to(folder).as_posix() for path in folder.rglob('*.py')]


def _install_own_bases() -> None:
    """``_base_ = 'mmccd::NAME.py'``, as mmengine has it for a fixed list of packages, for every config that is read.

    Unlike there, what is read stays in its own default scope.
    """
    original = Config._get_cfg_path
    if getattr(original, 'knows_mmccd', False):
        return

    def get_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        where = f'config {filename!r}: _base_ {cfg_path!r}' if filename else f'config {cfg_path!r}'
        if not cfg_path.startswith(_OWN):
            try:
                return original(cfg_path, filename)
            except FileNotFoundError as e:
                package, _, name = cfg_path.partition('::')
                near = suggest(name, config_names(package), n=3, prefix=f'{package}::') if name else ''
                if not near:
                    raise
                raise UserError(f'{where} cannot be found: {package} has no such config{near}') from e
        name = cfg_path[len(_OWN) :]
        path = CONFIGS / (name if name.endswith('.py') else f'{name}.py')
        if not path.is_file():
            names = [p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob('*.py') if not is_old_name(p.stem)]
            near = suggest(path.relative_to(CONFIGS).as_posix(), names, prefix=_OWN)
            raise UserError(f'{where} is none of the configs that come with mmccd{near}')
        return str(path), None

    get_path.knows_mmccd = True  # type: ignore[attr-defined]
    Config._get_cfg_path = staticmethod(get_path)  # configs are read by static methods: there is no other way in


_install_own_bases()

# Options that are tuples, or one number, in the transforms that read them.
_SIZES = ('scale', 'scales', 'img_scale', 'crop_size', 'pad_size', 'size', 'ratio_range', 'scale_factor')


def _like_before(cfg: Config, key: str, value: Any) -> Any:
    """The value of an option, a tuple where the config has one: ``scale=128,128`` is a list on the command line."""
    before: Any = cfg._cfg_dict
    for name in key.split('.'):
        try:
            before = before[int(name) if isinstance(before, (list, tuple)) else name]
        except (KeyError, IndexError, ValueError, TypeError):
            before = None
            break
    is_size = key.rpartition('.')[2] in _SIZES and '.' in key
    if is_size and isinstance(value, str) and not isinstance(before, str):
        raise UserError(f'--cfg-options {key}: must be a number, or numbers as 128,128; got {value!r}')
    if not isinstance(value, list) or not (is_size or 'pipeline' in key):
        return value
    if isinstance(before, list) and all(isinstance(item, tuple) for item in before):
        return [tuple(item) if isinstance(item, list) else item for item in value]
    numbers = all(isinstance(item, (int, float)) for item in value)
    return (
        tuple(value) if isinstance(before, tuple) or (is_size and numbers and not isinstance(before, list)) else value
    )


def with_names(cfg: Config) -> Config:
    """The same config with the registered name of every type, whatever it names it by.

    Configs of the new style name classes (``type=RetinaNet`` after an import), dumps of them whole paths
    (``'mmdet.models.detectors.retinanet.RetinaNet'``), and they have no default scope; the one of the model becomes it.

    Args:
        cfg (Config): Is not changed.
    """
    given = cfg._to_lazy_dict()
    if not _has_classes(given):
        return cfg
    model = given.get('model')
    kind = _resolve(model.get('type')) if isinstance(model, dict) else None
    scope = given.get('default_scope') or (kind.__module__.split('.')[0] if hasattr(kind, '__module__') else None)
    resolved = _resolved(given)  # this imports them, and with that registers them
    changed = _named(resolved, _registered_names(), scope)
    if scope in ('mmdet', 'mmpretrain'):
        changed['default_scope'] = scope
    return Config(changed, cfg_text=cfg.text, filename=cfg.filename)


def _has_classes(value: Any) -> bool:
    if isinstance(value, dict):
        return _is_class(value.get('type')) or any(map(_has_classes, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_classes, value))


def _is_class(kind: Any) -> bool:
    """Whether a ``type`` is something else than the name of an entry in a registry."""
    if isinstance(kind, str):
        return kind.count('.') > 1
    return kind is not None and (callable(kind) or hasattr(kind, 'build'))


def _resolve(kind: Any) -> Any:
    """The class or function that a ``type`` names; what cannot be imported stays as it is."""
    if isinstance(kind, str) and _is_class(kind):
        return get_object_from_string(kind) or kind
    return kind.build() if not isinstance(kind, type) and hasattr(kind, 'build') else kind


def _resolved(value: Any) -> Any:
    """The same with the classes and functions themselves as types, where these are no names."""
    if isinstance(value, dict):
        changed = {k: _resolved(v) for k, v in value.items()}
        if _is_class(value.get('type')):
            changed['type'] = _resolve(value['type'])
        return changed
    return type(value)(map(_resolved, value)) if isinstance(value, (list, tuple)) else value


def _registered_names() -> dict[Any, list[tuple[str, str]]]:
    """(scope, name) of all that is registered, by the object; those called as it is in the code come first."""
    from mmengine import registry  # takes a second

    found: dict[Any, list[tuple[str, str]]] = {}
    todo = [root for root in vars(registry).values() if isinstance(root, registry.Registry)]
    while todo:
        here = todo.pop()
        todo += here.children.values()
        for name, item in here.module_dict.items():
            places = found.setdefault(item, [])
            places.insert(0 if name == getattr(item, '__name__', '') else len(places), (here.scope, name))
    return found


def _named(value: Any, names: dict[Any, list[tuple[str, str]]], scope: str | None) -> Any:
    if isinstance(value, dict):
        changed = {k: _named(v, names, scope) for k, v in value.items()}
        if _is_class(value.get('type')) and not isinstance(value['type'], str):
            changed['type'] = _name_of(value['type'], names, scope)
        return changed
    if isinstance(value, (list, tuple)):
        return type(value)(_named(item, names, scope) for item in value)
    return value


def _name_of(item: Any, names: dict[Any, list[tuple[str, str]]], scope: str | None) -> Any:
    """The name by which a registry finds a class or function in this scope."""
    places = names.get(item)
    if not places:  # not registered: mmengine finds it by its path
        return f'{item.__module__}.{item.__qualname__}' if hasattr(item, '__qualname__') else item
    where, name = next((place for place in places if place[0] == scope), places[0])
    hidden = where == 'mmengine' and any((scope, name) in other for key, other in names.items() if key is not item)
    return name if where == scope or (where == 'mmengine' and not hidden) else f'{where}.{name}'


_OF_WORKERS = ('persistent_workers', 'prefetch_factor', 'multiprocessing_context', 'timeout')


def _fit_loaders(cfg: Config) -> Iterator[str]:
    """Put options of loaders where PyTorch takes them, take out what it refuses beside others, and say what."""
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(key)
        if not isinstance(loader, dict):
            continue
        odd = [name for name in _OF_WORKERS if loader.get(name) and loader.get('num_workers', 0) == 0]
        for name in odd:
            loader.pop(name)
        if odd:
            yield f'{key}.num_workers is 0: left out {", ".join(odd)}, which PyTorch refuses without workers'
        for option, place in (('shuffle', 'sampler'), ('drop_last', 'batch_sampler')):
            if option in loader and isinstance(loader.get(place), dict):
                loader[place][option] = loader.pop(option)
                yield f'{key}.{option} is {key}.{place}.{option}, since PyTorch refuses it beside a {place}'


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
