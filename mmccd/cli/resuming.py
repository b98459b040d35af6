"""What ``--resume`` can continue: a checkpoint whose state the config's model, optimizer and schedules can take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from torch import nn

from mmccd.checkpoints.handover import OpenedCheckpoint
from mmccd.env import is_first_of_all
from mmccd.errors import UserError

from .checks import optimizer_of
from .initial_weights import ALLOW, CLASSES, class_tensors

# Options of PyTorch's optimizers that older versions do not have, and that do not change results.
_OPTIONAL = {'foreach', 'maximize', 'capturable', 'differentiable', 'fused', 'decoupled_weight_decay'}
_KINDS = {'betas': 'Adam or a relative of it', 'momentum': 'SGD'}  # by an option that is theirs


def check_resumed(cfg: Config, model: nn.Module, checkpoint: OpenedCheckpoint) -> None:
    """Compare a checkpoint with what the config would continue it with, and put its tensors under the model's names.

    Raises:
        UserError: One message that says what has changed and what to do.
    """
    source, content = checkpoint.source, checkpoint.content
    problem = _other_model(cfg, model, checkpoint) or _incomplete(content)
    if problem is None and cfg.get('runner_type') != 'FlexibleRunner':  # which has other entries
        problem = _other_optimizer(cfg, model, content) or _other_schedule(cfg, content) or _other_average(cfg, content)
    if problem is not None:
        raise UserError(f'checkpoint {source} {problem}')
    checkpoint.check_fits(model)
    content['meta'].pop('config', None)  # of old versions: mmengine would run it, as a config
    for unit, key, done in (('epochs', 'max_epochs', 'epoch'), ('iterations', 'max_iters', 'iter')):
        whole, there = (cfg.get('train_cfg') or {}).get(key), content['meta'][done]
        if whole and there >= whole and is_first_of_all():
            print(
                f'--resume: {source} has {there} of {whole} {unit}, nothing is left to train; for more, set '
                f'train_cfg.{key}'
            )


def _another(allow: str = '') -> str:
    """How to start another training from the weights."""
    allow = f' {ALLOW}={allow}' if allow else ''
    return f'start another training from its weights, without --resume: --cfg-options load_from=PATH{allow}'


def _incomplete(content: Any) -> str | None:
    """Weights alone: mmengine would continue with a fresh optimizer, or fail."""
    meta = content.get('meta') if isinstance(content, Mapping) else None
    if isinstance(meta, Mapping) and 'epoch' in meta and 'iter' in meta and 'message_hub' in content:
        if 'optimizer' in content or 'optim_wrapper' in content:
            return None
        lacks = 'no optimizer, as the best and published ones'
    else:
        lacks = 'nothing of a training but weights'
    return f'has {lacks}: it cannot be resumed from. Name an epoch_N.pth, or {_another()}'


def _other_model(cfg: Config, model: nn.Module, checkpoint: OpenedCheckpoint) -> str | None:
    found = checkpoint.fit(model)
    problems = found.problems()
    if not problems:
        return None
    classes = not found.missing and not found.unexpected
    classes = classes and class_tensors(cfg, model.state_dict()).issuperset(found.mismatched)
    lines = '\n  '.join(problems)
    why = ' (another number of classes)' if classes else ''
    return f'does not fit the config{why}, nothing was done:\n  {lines}\nTo {_another(CLASSES if classes else "")}'


def _recipe(content: Mapping) -> Mapping[str, str]:
    """What mmccd's checkpoints note of the config; empty in mmengine's."""
    return (content.get('resume') or {}).get('course') or {}


def _other_optimizer(cfg: Config, model: nn.Module, content: Mapping) -> str | None:
    state = content.get('optimizer')
    if not isinstance(state, Mapping):
        return f"was saved with runner_type='FlexibleRunner': set it back, or {_another()}"
    old = state.get('param_groups')
    wrapper = optimizer_of(cfg, model)
    if isinstance(wrapper, OptimWrapper) != (old is not None):
        then, now = ('several optimizers', 'one') if old is None else ('one optimizer', 'several')
        return f'has {then}, and the config {now}: set optim_wrapper back, or {_another()}'
    if old is None:
        return None
    new = wrapper.optimizer.state_dict()['param_groups']
    name = type(wrapper.optimizer).__name__
    before = _recipe(content).get('optim_wrapper.optimizer.type', '').strip('\'"').rpartition('.')[2]
    if not before:
        found = re.search(r"\boptimizer=dict\([^()]*?\btype='([\w.]+)'", str(content['meta'].get('cfg', '')))
        before = found[1].rpartition('.')[2] if found else ''
    lacks = set(new[0]) - set(old[0]) - _OPTIONAL
    if (before and before != name) or lacks:
        before = before or next((kind for option, kind in _KINDS.items() if option in old[0]), 'another optimizer')
        return (
            f'has the state of {before}, and the config has optim_wrapper.optimizer.type={name!r}: set it back, or '
            f'{_another()}'
        )
    sizes = [[len(group['params']) for group in groups] for groups in (old, new)]
    if sizes[0] != sizes[1]:
        then, now = (f'{len(s)} parameter group{"s" if len(s) > 1 else ""} with {sum(s)} tensors' for s in sizes)
        return (
            f'has an optimizer of {then}, and the config makes {now}: set optim_wrapper.paramwise_cfg (and what is '
            f'frozen) back, or {_another()}'
        )
    return None


def _other_schedule(cfg: Config, content: Mapping) -> str | None:
    """mmengine gives each scheduler the whole state of the one in its place, whatever it is, or begins it again."""
    given, states = cfg.get('param_scheduler'), content.get('param_schedulers')
    new = given if isinstance(given, (list, tuple)) else [given] if given else []
    if isinstance(states, Mapping) or (isinstance(given, Mapping) and 'type' not in given):
        return None  # of several optimizers
    names = [_short(each.get('type')) for each in new]
    if not states and not new:
        return None
    if not states:
        return (
            f'has no state of a schedule, and the config has {", ".join(names)}, which would begin again: set '
            f'param_scheduler=None to keep the learning rate of the checkpoint, or {_another()}'
        )
    course = _recipe(content)
    if 'param_scheduler.type' in course:
        old = [_short(course['param_scheduler.type'])]
    else:
        old = [_short(course[f'param_scheduler.{i}.type']) for i in range(len(states)) if _typed(course, i)]
    if len(states) == len(new) and (old == names or len(old) != len(states)):
        return None
    then = ', '.join(old) if len(old) == len(states) else f'{len(states)} schedules'
    now = ', '.join(names) or 'none'
    return f'has the schedule {then}, and the config has {now}: set param_scheduler back, or {_another()}'


def _typed(course: Mapping[str, str], i: int) -> bool:
    return f'param_scheduler.{i}.type' in course


def _short(kind: Any) -> str:
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    return name.strip('\'"').rpartition('.')[2]


def _other_average(cfg: Config, content: Mapping) -> str | None:
    """In a checkpoint of an EMA, the weights that were trained are not those of ``state_dict``: mmengine swaps them."""
    hooks = cfg.get('custom_hooks') or []
    if 'ema_state_dict' not in content or any('EMAHook' in _short(hook.get('type')) for hook in hooks):
        return None
    return (
        'has an average of the weights (EMAHook), and the config has none: set custom_hooks back, or '
        f'{_another()}, which starts from the average'
    )
