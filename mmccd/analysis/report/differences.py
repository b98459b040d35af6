"""Differences between configs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from mmccd.configs import keys_read

MISSING = object()
# Where a run was made, not what it was.
_PLACES = {'work_dir', 'load_from', 'resume', 'launcher', 'visualizer', 'vis_backends', 'log_level', 'experiment_name'}


def config_differences(configs: Sequence[Config]) -> list[tuple[str, list[Any]]]:
    """(key, value in each config, ``MISSING`` where it has none) wherever they are not all equal.

    Only keys that a runner reads: variables of config files are left out, and so are paths of the runs.
    """
    keys = sorted({k for cfg in configs for k in cfg} & keys_read() - _PLACES)
    found = {k: v for key in keys for k, v in _differences([cfg.get(key, MISSING) for cfg in configs], key)}
    # Most test entries repeat those of val.
    return [(k, v) for k, v in found.items() if not (k.startswith('test_') and found.get(f'val_{k[5:]}') == v)]


def _differences(values: list[Any], key: str) -> Iterator[tuple[str, list[Any]]]:
    first = values[0]
    if all(v is not MISSING and v == first for v in values):
        return
    if all(isinstance(v, Mapping) for v in values):
        for k in sorted({k for v in values for k in v}, key=str):
            yield from _differences([v.get(k, MISSING) for v in values], f'{key}.{k}')
    elif all(isinstance(v, (list, tuple)) and len(v) == len(first) for v in values) and any(
        isinstance(item, Mapping) for v in values for item in v
    ):
        for i, items in enumerate(zip(*values)):
            yield from _differences(list(items), f'{key}.{i}')
    else:
        yield key, values


def show(value: Any) -> str:
    """A value as a config file writes it."""
    if value is MISSING:
        return 'not set'
    if isinstance(value, Mapping):
        return f'dict({", ".join(f"{k}={show(v)}" for k, v in value.items())})'
    if isinstance(value, list):
        return f'[{", ".join(map(show, value))}]'
    if isinstance(value, tuple):
        return f'({", ".join(map(show, value))}{"," if len(value) == 1 else ""})'
    return repr(value)
