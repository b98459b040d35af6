"""Values as the Python code of a config file, in lines of 120."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any


class Raw(str):
    """An expression that is written into the config as it is."""


def code(value: Any, indent: int = 0, used: int = 0) -> str:
    """A value as configs are written: ``dict(a=1)``, in lines of 120, ``used`` characters before it on the first."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, float):
        return f'{value:.6g}'
    if isinstance(value, dict):
        (start, end), items = ('dict(', ')'), [(f'{k}=', v) for k, v in value.items()]
    elif isinstance(value, list):
        (start, end), items = '[]', [('', v) for v in value]
    else:
        return repr(value)
    flat = start + ', '.join(name + code(v, -1000) for name, v in items) + end
    if indent + used + len(flat) <= 116:  # brackets and a comma may follow
        return flat
    lines, inner = [start], indent + 4
    for name, v in items:
        text = name + code(v, inner, len(name))
        if '\n' in text or '\n' in lines[-1] or len(lines) == 1 or len(lines[-1]) + len(text) > 115:
            lines.append(' ' * inner + text + ',')
        else:
            lines[-1] += f' {text},'
    return '\n'.join(lines)[:-1] + end


def assign(name: str, value: Any) -> str:
    """``name = value`` in code."""
    return f'{name} = {code(value, used=len(name) + 3)}'


_ABSENT = object()


def over(base: Any, change: Any) -> Any:
    """``change`` with ``_delete_=True`` where mmengine would not merge it with what the base has, or merge too much.

    That is a dict over None, a number or a list, and a type over another type, whose arguments would stay.

    Example:
        >>> over(dict(a=None, b=dict(x=1)), dict(a=dict(y=2), b=dict(y=2)))
        {'a': {'_delete_': True, 'y': 2}, 'b': {'y': 2}}
    """
    if not isinstance(change, dict) or base is _ABSENT or '_delete_' in change:
        return change
    if not isinstance(base, dict) or ('type' in change and base.get('type', change['type']) != change['type']):
        return dict(_delete_=True, **change)
    return {key: over(base.get(key, _ABSENT), value) for key, value in change.items()}


def names(classes: Sequence[str]) -> str:
    """``classes = ('a', 'b')`` in lines of 120; names are never broken."""
    lines = ['classes = (']
    for text in [f'{c!r}, ' for c in classes]:
        if len(lines[-1] + text) > 120:
            lines.append(' ' * 11)
        lines[-1] += text
    lines[-1] = (lines[-1].rstrip() if len(classes) == 1 else lines[-1][:-2]) + ')'
    return '\n'.join(line.rstrip() for line in lines)


def comment(text: str) -> str:
    """A comment in lines of 120."""
    return textwrap.fill(
        text, 120, initial_indent='# ', subsequent_indent='# ', break_long_words=False, break_on_hyphens=False
    )


def nested(keys: Sequence[str], value: dict) -> dict:
    """``{k1: {k2: value}}``."""
    for key in reversed(keys):
        value = {key: value}
    return value


def merged(*parts: dict) -> dict:
    """Nested dicts in one; later values win."""
    out: dict = {}
    for part in parts:
        for key, value in part.items():
            out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out
