"""A checkpoint against a model: all of it, or an error."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from mmccd.env import is_local
from mmccd.errors import UserError

from .read import check_checkpoint_file, load_local_checkpoint, load_remote_checkpoint


def _whole_state(path: str, loaded: Any, model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors in a checkpoint that was read from ``path``; others or fewer are an error."""
    state = loaded.get('state_dict', loaded) if isinstance(loaded, dict) else {}
    state = {re.sub(r'^module\.', '', k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    target = model.state_dict()
    problems = []
    for text, keys in (
        ('are missing in it', [k for k in target if k not in state]),
        ('have no place in the model', [k for k in state if k not in target]),
        ('have another shape', [k for k in target if k in state and state[k].shape != target[k].shape]),
    ):
        if keys:
            problems.append(f'{len(keys)} tensors {text}: {", ".join(keys[:6])}{" ..." if len(keys) > 6 else ""}')
    if problems:
        raise UserError(f'checkpoint {path} does not fit the config, nothing was done:\n  ' + '\n  '.join(problems))
    return state


def check_checkpoint_fits(path: str, model: nn.Module) -> None:
    """A local checkpoint has to hold exactly the model's tensors: a half-loaded model tests without a complaint."""
    if not is_local(path):
        return
    try:
        loaded = load_local_checkpoint(path)
    except ValueError as e:
        raise UserError(str(e)) from e
    _whole_state(path, loaded, model)


def load_whole_checkpoint(path: str, model: nn.Module) -> dict:
    """Load a checkpoint, a file or a URL, that holds exactly the model's tensors; returns all that it holds."""
    check_checkpoint_file(path, 'checkpoint')
    try:
        loaded = load_local_checkpoint(path) if is_local(path) else load_remote_checkpoint(path)
    except ValueError as e:
        raise UserError(str(e)) from e
    model.load_state_dict(_whole_state(path, loaded, model))
    return loaded
