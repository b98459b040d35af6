"""The tensors of one model in what was saved: the entry that has them, and the prefix of their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

# Entries of a file that programs put a model's tensors into: mmengine and Lightning, timm and Detectron2, PyTorch's
# tutorials, DeepSpeed. An average over the training goes under a name of its own, and counts where it is alone:
# mmengine swaps the two when it saves.
STATES = ('state_dict', 'model', 'model_state_dict', 'model_state', 'module', 'net', 'network', 'weights', 'params')
AVERAGES = ('ema_state_dict', 'state_dict_ema', 'model_ema', 'ema_model', 'ema')
# What DistributedDataParallel, Lightning and averages put before all names, and what is inside names.
WRAPPERS = ('module', 'model', 'net', 'network', 'ema_model', 'model_ema', 'ema')
_INSIDE = re.compile(r'(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.')
_COUNTERS = ('n_averaged', 'steps')  # of AveragedModel, beside module.*


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def entry_of(checkpoint: Any, source: str = 'it') -> Mapping[str, Any]:
    """The mapping that has a model's tensors, of what was read from ``source``: one of its entries, or all of it.

    Raises:
        ValueError: If there is none, or several and no name that says which.

    Example:
        >>> import torch
        >>> list(entry_of({'model': {'a': torch.zeros(1)}, 'epoch': 3}))
        ['a']
    """
    if isinstance(checkpoint, Mapping):
        for name in STATES:
            inner = checkpoint.get(name)
            if not isinstance(inner, Mapping):
                continue
            if _has_tensors(inner):
                return inner
            if any(_has_tensors(inner.get(n)) for n in STATES):
                return entry_of(inner, source)
        if _has_tensors(checkpoint):
            return checkpoint
        named = [name for name in AVERAGES if _has_tensors(checkpoint.get(name))]
        others = [name for name, value in checkpoint.items() if _has_tensors(value)]
        for found in (named, others):
            if len(found) == 1:
                return checkpoint[found[0]]
        if others:
            raise ValueError(
                f'{source} has no state dict of tensors that is the only one: it has {", ".join(map(str, others))}; '
                "save the model's alone, torch.save({'state_dict': ...}, path)"
            )
    raise ValueError(f'{source} has no state dict of tensors{_what_there_is(checkpoint)}')


def _what_there_is(checkpoint: Any) -> str:
    if isinstance(checkpoint, Mapping) and checkpoint:
        return f': it has {", ".join(str(k) for k in list(checkpoint)[:8])}'
    return ''


def tensors_of(checkpoint: Any, source: str = 'it') -> dict[str, Tensor]:
    """The tensors of what was read from ``source`` (:func:`entry_of`), by names without what wrappers add inside them.

    Raises:
        ValueError: As :func:`entry_of`.
    """
    state = {str(k): v for k, v in entry_of(checkpoint, source).items() if isinstance(v, Tensor)}
    if any(_INSIDE.search(key) for key in state):
        state = {_INSIDE.sub('', key): value for key, value in state.items()}
    counters = [name for name in _COUNTERS if name in state]
    if counters and all(key.startswith('module.') for key in state if key not in counters):
        for name in counters:
            del state[name]
    return state


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the wrappers' names (``WRAPPERS``) that all of theirs begin with, where no model is known."""
    state = dict(state)
    while state:
        first = {key.split('.', 1)[0] for key in state}
        if len(first) > 1 or first.isdisjoint(WRAPPERS) or any('.' not in key for key in state):
            break
        state = {key.split('.', 1)[1]: value for key, value in state.items()}
    return state


def _endings(key: str) -> Iterator[str]:
    """'a.b.c', 'b.c' and 'c' of 'a.b.c'."""
    yield key
    while '.' in key:
        key = key.split('.', 1)[1]
        yield key


def without_prefix(state: Mapping[str, Tensor], target: Iterable[str], part: str = '') -> dict[str, Tensor]:
    """Tensors by the names that a model has: without the prefix that it has in the checkpoint.

    That is what wrapped it (``module.``, Lightning's ``model.``), the name of the part that is wanted, or both. Of
    several prefixes, the one with which most of the model's tensors are found is removed.

    Args:
        state (Mapping[str, Tensor]): The checkpoint's tensors.
        target (Iterable[str]): The model's names.
        part (str): Name of the model in what was saved, e.g. ``'backbone'``; tensors of other parts are then left
            out. Default: none, the model is all of it.

    Raises:
        ValueError: If the part is there several times, under names that do not say which is wanted.
    """
    names = set(target)
    counts: Counter[str] = Counter()
    for key in state:
        for ending in _endings(key):
            if ending in names:
                counts[key[: len(key) - len(ending)]] += 1
    if not counts:
        return dict(state)
    most = max(counts.values())
    best = sorted((p for p, n in counts.items() if n == most), key=lambda p: (_is_part(p, part), len(p)))
    prefix = best[0]
    whole = not part or all(name in WRAPPERS for name in prefix.split('.')[:-1])
    if not whole and len(best) > 1 and not _is_named(prefix, part):
        raise ValueError(f'it has these tensors under {" and under ".join(sorted(best))}: save those that are meant')
    return {
        key[len(prefix) :] if key.startswith(prefix) else key: value
        for key, value in state.items()
        if whole or key.startswith(prefix)
    }


def _is_named(prefix: str, part: str) -> bool:
    return bool(part) and f'.{prefix}'.endswith(f'.{part}.')


def _is_part(prefix: str, part: str) -> bool:
    """Sorts the wanted part, and wrappers alone, before what has another name."""
    inner = prefix.split('.')[:-1]
    return not (_is_named(prefix, part) or all(name in WRAPPERS for name in inner))
