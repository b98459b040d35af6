"""A checkpoint against a model: the one strict report, in PyTorch's words."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Size, Tensor, nn

from mmccd.errors import UserError

from .contents import tensors_of, without_prefix
from .read import check_checkpoint_file, read_checkpoint


def is_named(key: str, names: Iterable[str]) -> bool:
    """Whether ``key`` has one of ``names`` as one or more whole components: 'ccd' is in 'layer1.0.ccd.scale'."""
    return any(f'.{name}.' in f'.{key}.' for name in names)


def shown(items: Sequence[str], limit: int = 8) -> str:
    """The first items of a list, and how many more there are."""
    rest = f' and {len(items) - limit} more' if len(items) > limit else ''
    return ', '.join(items[:limit]) + rest


def count(keys: Iterable[str], known: Sequence[str] = ()) -> str:
    """How many tensors of each kind: 'ccd: 16, layer3: 2'.

    Args:
        keys (Iterable[str]): Their names.
        known (Sequence[str]): Names of parts (:func:`is_named`) that are a kind of their own. Default: none, then it
            is the attention, the layer or the module.
    """
    groups = Counter(_group(key, known) for key in keys)
    return ', '.join(f'{name}: {n}' for name, n in groups.items())


def _group(key: str, known: Sequence[str]) -> str:
    for name in known:
        if is_named(key, (name,)):
            return name
    key = key[len('backbone.') :] if key.startswith('backbone.') else key
    # layer1.0.ccd.scale -> ccd; layer1.0.conv1.weight -> layer1; fc.weight -> fc
    block = re.match(r'layer\d+\.\d+\.([a-z_]+)\.', key)
    if block and not re.match(r'(conv|bn|downsample)$', block.group(1)):
        return block.group(1)
    return key.split('.')[0]


@dataclass(frozen=True)
class Fit:
    """A checkpoint against a model, by the model's names.

    Attributes:
        tensors (dict[str, Tensor]): What both have, in one shape.
        missing (list[str]): What only the model has.
        unexpected (list[str]): What only the checkpoint has.
        mismatched (dict[str, tuple[Size, Size]]): (shape in the checkpoint, shape in the model) where they differ.
    """

    tensors: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, tuple[Size, Size]]

    def without(
        self, missing: Iterable[str] = (), unexpected: Iterable[str] = (), mismatched: Iterable[str] = ()
    ) -> Fit:
        """The same, but for keys that are allowed by name (:func:`is_named`) to be missing, unexpected, mismatched."""
        missing, unexpected, mismatched = tuple(missing), tuple(unexpected), tuple(mismatched)
        return replace(
            self,
            missing=[k for k in self.missing if not is_named(k, missing)],
            unexpected=[k for k in self.unexpected if not is_named(k, unexpected)],
            mismatched={k: v for k, v in self.mismatched.items() if not is_named(k, mismatched)},
        )

    def problems(self) -> list[str]:
        """What keeps the checkpoint from being loaded whole, a line each; none if it fits."""
        lines = [
            f'{len(keys)} {word} key{"s" if len(keys) > 1 else ""} ({count(keys)}): {shown(keys)}'
            for word, keys in (('missing', self.missing), ('unexpected', self.unexpected))
            if keys
        ]
        if self.mismatched:
            shapes = [_mismatch(key, *pair) for key, pair in self.mismatched.items()]
            lines.append(f'size mismatch of {len(shapes)} tensor{"s" if len(shapes) > 1 else ""}: {shown(shapes)}')
        return lines


def _mismatch(key: str, found: Size, wanted: Size) -> str:
    text = f'{key} {tuple(found)} in the checkpoint, {tuple(wanted)} in the model'
    if key.endswith(('.ccd.scale', '.ccd.bias')) and len(found) == len(wanted) == 1:
        text += f' (groups={found[0]} and groups={wanted[0]})'
    return text


def compare(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Fit:
    """Match tensors by name and shape; neither is changed, and the target's may be on the meta device.

    Example:
        >>> import torch
        >>> compare({'a': torch.zeros(2), 'b': torch.zeros(1)}, {'a': torch.zeros(3)}).problems()
        ['1 unexpected key (b: 1): b', 'size mismatch of 1 tensor: a (2,) in the checkpoint, (3,) in the model']
    """
    common = [k for k in target if k in state]
    return Fit(
        tensors={k: state[k] for k in common if state[k].shape == target[k].shape},
        missing=[k for k in target if k not in state],
        unexpected=[k for k in state if k not in target],
        mismatched={k: (state[k].shape, target[k].shape) for k in common if state[k].shape != target[k].shape},
    )


def renamed(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors by the names that a model has, where a part of it knows others: its ``renamed_keys(keys)``."""
    names = {}
    for part, module in model.named_modules():
        if hasattr(module, 'renamed_keys'):
            prefix = f'{part}.' if part else ''
            keys = [key[len(prefix) :] for key in state if key.startswith(prefix)]
            names.update({prefix + old: prefix + new for old, new in module.renamed_keys(keys).items()})
    return {names.get(key, key): value for key, value in state.items()}


def narrow_names(keys: Sequence[str], others: Iterable[str]) -> list[str]:
    """The shortest names of parts that :func:`is_named` finds in all of ``keys``, and in none of ``others``.

    Example:
        >>> narrow_names(['head.fc.weight', 'head.fc.bias'], ['backbone.fc1.weight'])
        ['fc']
    """
    others = [f'.{key}.' for key in others]
    names: list[str] = []
    for key in keys:
        if is_named(key, names):
            continue
        parts = key.split('.')
        module = parts[:-1] or parts
        tails = ['.'.join(module[i:]) for i in range(len(module) - 1, -1, -1)]
        names.append(next((t for t in tails if not any(f'.{t}.' in other for other in others)), key))
    return names


def fit_of(checkpoint: Any, model: nn.Module, source: str) -> Fit:
    """A checkpoint that was read from ``source`` against a model; UserError if it has no tensors."""
    try:
        state = tensors_of(checkpoint, source)
        target = model.state_dict()
        return compare(renamed(without_prefix(state, target), model), target)
    except ValueError as e:
        raise UserError(str(e)) from e


def fitting_state(checkpoint: Any, model: nn.Module, source: str) -> dict[str, Tensor]:
    """The model's tensors out of a checkpoint that was read from ``source``; UserError if it has others or fewer."""
    found = fit_of(checkpoint, model, source)
    problems = found.problems()
    if problems:
        raise UserError(f'checkpoint {source} does not fit the config, nothing was done:\n  ' + '\n  '.join(problems))
    return found.tensors


def load_whole_checkpoint(source: str | os.PathLike, model: nn.Module) -> dict[str, Any]:
    """Load a checkpoint, a file or a URL, that has exactly the model's tensors.

    Returns:
        dict: Its ``meta`` entry, empty if there is none.

    Raises:
        UserError: If it does not exist, cannot be read, or does not fit. The model is as it was then.
    """
    source = os.fspath(source)
    check_checkpoint_file(source, 'checkpoint')
    try:
        checkpoint = read_checkpoint(source, mmap=True)
    except ValueError as e:
        raise UserError(str(e)) from e
    model.load_state_dict(fitting_state(checkpoint, model, source))
    return meta_of(checkpoint)


def meta_of(checkpoint: Any) -> dict[str, Any]:
    """The ``meta`` entry of a checkpoint; empty if it has none."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    return meta if isinstance(meta, dict) else {}
