"""The plan of the attention bench: a YAML file that declares data, networks, seeds and recipes before a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from mmccd.errors import UserError, suggest

EXPECTATIONS = ('same', 'worse')  # of a planted control


@dataclass(frozen=True)
class Arm:
    """One network that is compared.

    Attributes:
        name (str): Its name in tables.
        prefix (str): What takes the place of ``{arm}`` in the config's name.
        attention (dict, optional): ``model.backbone.attention`` instead of the config's own.
        expect (str, optional): For a planted control: how it has to come out, ``'same'`` or ``'worse'``.
    """

    name: str
    prefix: str = ''
    attention: Mapping[str, Any] | None = None
    expect: str | None = None


@dataclass(frozen=True)
class Data:
    """A dataset with its recipe.

    Attributes:
        name (str): Its name in tables.
        config (str): Config file, with ``{arm}`` where the arm's prefix stands.
        manifest (str): What the converter left beside the data; its ``sha256`` is that of all files.
        make (str): The command that makes the data.
        metric (str): Name of the evaluator's metric that is compared.
        options (dict): ``--cfg-options`` of all trainings.
        train_every (int): Train on every n-th image, another n-th with every seed. Default: 1, on all.
        test_every (int): Test on every n-th image. Default: 1.
        corrupted_every (int): Test on corrupted copies of every n-th image; 0: none. Default: 0.
        backbones (str, optional): Dataset whose classifier of the same arm and seed initialises the backbone; it has
            no backbones itself.
    """

    name: str
    config: str
    manifest: str
    make: str
    metric: str
    options: Mapping[str, Any] = field(default_factory=dict)
    train_every: int = 1
    test_every: int = 1
    corrupted_every: int = 0
    backbones: str | None = None


@dataclass(frozen=True)
class Table:
    """A comparison: all arms with the same seeds on one dataset, differences to the first arm."""

    name: str
    data: Data
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What a plan file declares.

    Attributes:
        tables (tuple[Table, ...]): In the order in which they are run.
        arms (dict[str, Arm]): By name.
        data (dict[str, Data]): By name.
        threads (int): OpenMP's threads of a piece, which its last bits depend on.
    """

    tables: tuple[Table, ...]
    arms: Mapping[str, Arm]
    data: Mapping[str, Data]
    threads: int = 1

    def pieces(self, tables: Sequence[Table] | None = None) -> list[tuple[Data, Arm, int]]:
        """``(data, arm, seed)`` of every training, each once: table by table, in each a whole seed first."""
        found = {
            (t.data.name, a.name, seed): (t.data, a, seed)
            for t in (self.tables if tables is None else tables)
            for seed in t.seeds
            for a in t.arms
        }
        return list(found.values())


def read_plan(path: str) -> Plan:
    """Read and check a plan.

    Raises:
        UserError: If the file cannot be read, or an entry is missing, unknown, of another type or names nothing.
    """
    try:
        with open(path, encoding='utf-8') as f:
            content = yaml.safe_load(f)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise UserError(f'plan {path}: {" ".join(str(e).split())}') from e
    try:
        return _plan(content)
    except UserError as e:
        raise UserError(f'plan {path}: {e}') from e


def _plan(content: Any) -> Plan:
    top = _entries(
        'the plan', content, dict(threads=int, data=dict, arms=dict, tables=dict), ('data', 'arms', 'tables')
    )
    if top.get('threads', 1) < 1:
        raise UserError(f'threads must be at least 1, got {top["threads"]}')
    data = {str(name): _data(str(name), entry) for name, entry in top['data'].items()}
    for d in data.values():
        if d.backbones is not None:
            _known(f'data.{d.name}.backbones', d.backbones, data)
            if data[d.backbones].backbones is not None:
                raise UserError(f'data.{d.name}.backbones must name data without backbones, got {d.backbones!r}')
    arms = {str(name): _arm(str(name), entry) for name, entry in top['arms'].items()}
    tables = tuple(_table(str(name), entry, data, arms) for name, entry in top['tables'].items())
    return Plan(tables, arms, data, top.get('threads', 1))


def _data(name: str, entry: Any) -> Data:
    types = dict(config=str, manifest=str, make=str, metric=str, options=dict, backbones=str)
    types |= dict.fromkeys(('train_every', 'test_every', 'corrupted_every'), int)
    found = _entries(f'data.{name}', entry, types, ('config', 'manifest', 'make', 'metric'))
    for key, minimum in (('train_every', 1), ('test_every', 1), ('corrupted_every', 0)):
        if found.get(key, 1) < minimum:
            raise UserError(f'data.{name}.{key} must be at least {minimum}, got {found[key]}')
    if '{arm}' not in found['config']:
        raise UserError(
            f'data.{name}.config must have {{arm}} where the name of an attention stands, got {found["config"]!r}'
        )
    return Data(name, **found)


def _arm(name: str, entry: Any) -> Arm:
    found = _entries(f'arms.{name}', entry or {}, dict(prefix=str, attention=dict, expect=str))
    if found.get('expect', EXPECTATIONS[0]) not in EXPECTATIONS:
        raise UserError(f'arms.{name}.expect must be one of {", ".join(EXPECTATIONS)}, got {found["expect"]!r}')
    if 'attention' in found and 'type' not in found['attention']:
        raise UserError(f'arms.{name}.attention needs a type, got {found["attention"]}')
    return Arm(name, **found)


def _table(name: str, entry: Any, data: Mapping[str, Data], arms: Mapping[str, Arm]) -> Table:
    found = _entries(f'tables.{name}', entry, dict(data=str, arms=list, seeds=int), ('data', 'arms', 'seeds'))
    _known(f'tables.{name}.data', found['data'], data)
    names = [str(a) for a in found['arms']]
    for arm in names:
        _known(f'tables.{name}.arms', arm, arms)
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f'tables.{name}.arms must be two or more, each once, got {", ".join(names) or "none"}')
    if found['seeds'] < 2:
        raise UserError(f'tables.{name}.seeds must be at least 2, for a deviation, got {found["seeds"]}')
    return Table(name, data[found['data']], tuple(arms[a] for a in names), tuple(range(found['seeds'])))


def _entries(where: str, entry: Any, types: Mapping[str, type], required: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise UserError(f'{where} must be a mapping, got {entry!r}')
    for key, value in entry.items():
        if key not in types:
            raise UserError(f'{where} has no entry {key!r}{suggest(str(key), types)}')
        if not isinstance(value, types[key]) or isinstance(value, bool):
            raise UserError(f'{where}.{key} must be of type {types[key].__name__}, got {value!r}')
    for key in required:
        if key not in entry:
            raise UserError(f'{where} needs an entry {key!r}')
    return dict(entry)


def _known(where: str, name: str, names: Mapping[str, Any]) -> None:
    if name not in names:
        raise UserError(f'{where}: {name!r} is not declared{suggest(name, names)}')
