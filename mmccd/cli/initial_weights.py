"""Initial weights of a training: found, read and compared with the model before anything is done, whole or refused.

They come by ``load_from`` (the whole model), by ``init_cfg`` of any of its modules, or both. What may keep the values
that the model's own initialisation gives it is named in the config.
"""

from __future__ import annotations

import copy
import os.path as osp
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.model.weight_init import PretrainedInit
from torch import Tensor, nn

from mmccd.checkpoints.contents import tensors_of, without_prefix, without_wrappers
from mmccd.checkpoints.fit import Fit, compare, count, is_named, narrow_names, shown
from mmccd.checkpoints.handover import OpenedCheckpoint, hand_over
from mmccd.checkpoints.read import folder_message, read_checkpoint
from mmccd.data.classes import head_classes
from mmccd.env import is_first_on_machine, is_local
from mmccd.errors import UserError, suggest
from mmccd.models.build import build_model
from mmccd.models.pretrained import NOT_BACKBONE, PretrainedBackbone, as_names, missing_checkpoint_message

ALLOW = 'load_from_allow'
CLASSES = 'classes'  # in load_from_allow: the tensors whose shape follows from the number of classes
_NAMED = 6  # parts at most that a message proposes to allow
_LOADERS = {
    'load_checkpoint',
    '_load_checkpoint',
    'load_state_dict',
    'CheckpointLoader',
    '_load_checkpoint_with_prefix',
}


# -------------------------------------------------------------------------------------------------------- load_from


@dataclass
class LoadFrom:
    """A checkpoint that fits a model, or as much of it as the config asks for.

    Attributes:
        checkpoint (OpenedCheckpoint): To be handed over to the runner.
        summary (str): What is loaded from it and what is not, for the log.
    """

    checkpoint: OpenedCheckpoint
    summary: str


def check_load_from(cfg: Config, model: nn.Module) -> LoadFrom | None:
    """Read ``load_from`` and compare it with the model; None if the config names none, or resumes from it.

    Raises:
        UserError: If it cannot be read, or if a tensor is missing, unexpected or of another shape, and
            ``load_from_allow`` does not name it.
    """
    source = cfg.get('load_from')
    allowed = _names(cfg.get(ALLOW))
    if source is None or cfg.get('resume'):
        return None
    checkpoint = OpenedCheckpoint.read(source, 'load_from')
    found = checkpoint.fit(model)
    target = model.state_dict()
    _check_names(allowed, [*target, *found.unexpected])
    of_classes = class_tensors(cfg, target) if CLASSES in allowed or found.mismatched else set()
    left = _without_counters(found)
    refused = left.without(allowed, allowed, allowed)
    if CLASSES in allowed:
        refused = replace(refused, mismatched={k: v for k, v in refused.mismatched.items() if k not in of_classes})
    if not found.tensors:
        others = shown([*found.unexpected, *found.mismatched], 4)
        raise UserError(
            f'nothing in load_from {source} matches the model: it has {others}; '
            f'the model has {shown(list(target), 4)}{_backbone_remedy(checkpoint, model)}'
        )
    problems = refused.problems()
    if problems:
        problems = [f'  {line}' for line in problems]
        remedy = _remedy(refused, of_classes, found, target)
        if all(key.startswith('backbone.') for key in found.tensors) and not remedy.endswith(f'{ALLOW}={CLASSES}'):
            remedy += _backbone_remedy(checkpoint, model)
        raise UserError(
            '\n'.join([f'load_from {source} does not fit the model, nothing was loaded:', *problems, remedy])
        )
    checkpoint.use(found.tensors)
    return LoadFrom(checkpoint, _summary(source, left))


def _names(given: Any) -> tuple[str, ...]:
    names = as_names(given or ()) if isinstance(given or (), (str, list, tuple)) else ('',)
    if not all(isinstance(name, str) and name for name in names):
        raise UserError(f'{ALLOW} must be a name of a part of the model or a list of names, got {given!r}')
    return names


def _check_names(allowed: Sequence[str], keys: Sequence[str]) -> None:
    """A name that is nowhere is a slip: what it was meant for would be refused without a word about it."""
    parts = {part for key in keys for part in key.split('.')}
    for name in allowed:
        if name != CLASSES and not any(is_named(key, (name,)) for key in keys):
            raise UserError(
                f'{ALLOW}={name!r}: neither the model nor load_from has such a part{suggest(name, [*parts, CLASSES])}'
            )


def class_tensors(cfg: Config, target: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors whose shape depends on the number of classes: a model with one more has them otherwise."""
    other = copy.deepcopy(cfg)
    heads = list(head_classes(other.model))
    for key, classes in heads:
        *path, last = key.split('.')[1:]
        head = other.model
        for name in path:
            head = head[int(name)] if isinstance(head, (list, tuple)) else head[name]
        head[last] = classes + 1
    if not heads:
        return set()
    return {k for k, v in build_model(other).state_dict().items() if k in target and v.shape != target[k].shape}


def _without_counters(found: Fit) -> Fit:
    """Files from before PyTorch 0.4.1 have no batch counters; nothing reads them but a norm without a momentum."""
    return replace(found, missing=[k for k in found.missing if not k.endswith('num_batches_tracked')])


def _remedy(refused: Fit, of_classes: set[str], found: Fit, target: Mapping[str, Tensor]) -> str:
    """How to load in spite of what is refused."""
    keys = [*refused.missing, *refused.unexpected, *refused.mismatched]
    if of_classes.issuperset(keys):
        sizes = 'They follow from the number of classes'
        return f'{sizes}. To fine-tune on other classes, and initialise these {len(keys)} tensors: {ALLOW}={CLASSES}'
    names = narrow_names(keys, [k for k in [*target, *found.unexpected] if k not in set(keys)])
    if len(names) > _NAMED:
        return f'To load it all the same, name the parts that may differ: {ALLOW}=NAME,NAME (components of these keys)'
    return f'To load the rest all the same, and leave these at their initial values or out: {ALLOW}={",".join(names)}'


def _backbone_remedy(checkpoint: OpenedCheckpoint, model: nn.Module) -> str:
    """What to do with a file that has the backbone alone."""
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, nn.Module):
        return ''
    target = backbone.state_dict()
    try:
        state = without_prefix(tensors_of(checkpoint.content), target, 'backbone')
    except ValueError:
        return ''
    if not target or _without_counters(compare(state, target)).missing:
        return ''
    return (
        '\nIt has the whole backbone. To initialise that alone: load_from=None '
        f'model.backbone.init_cfg.type=mmccd.PretrainedBackbone model.backbone.init_cfg.checkpoint={checkpoint.source}'
    )


def _summary(source: str, found: Fit) -> str:
    kept = [*found.missing, *found.mismatched]
    text = f'load_from {source}: {len(found.tensors)} tensors are loaded'
    if kept:
        text += f', {len(kept)} keep their initial values ({count(kept)}): {shown(kept)}'
    if found.unexpected:
        text += f'; {len(found.unexpected)} of the file are left out ({count(found.unexpected)})'
    return text


# --------------------------------------------------------------------------------------------------------- init_cfg


def check_init_checkpoint(cfg: Config, model: nn.Module) -> None:
    """Local files of initial weights have to be there, and to fit, before anything else is done."""
    _check_inits(cfg, model, is_local)
    _check_teacher(cfg, model)


def _check_teacher(cfg: Config, model: nn.Module) -> None:
    """The teacher of MMDetection's distillation gets what fits of ``teacher_ckpt``: whole here, or refused."""
    source, teacher = (cfg.get('model') or {}).get('teacher_ckpt'), getattr(model, 'teacher_model', None)
    if source is None or not isinstance(teacher, nn.Module):
        return
    checkpoint = OpenedCheckpoint.read(source, 'model.teacher_ckpt')
    found = _without_counters(checkpoint.fit(teacher))
    problems = found.problems()
    if problems:
        lines = '\n  '.join(problems)
        raise UserError(f'model.teacher_ckpt {source} does not fit the teacher, nothing was loaded:\n  {lines}')
    checkpoint.use(found.tensors)
    checkpoint.hand_over()


def check_init_download(cfg: Config, model: nn.Module) -> None:
    """Checkpoints that a URL names have to be there, and to fit: the first process of a machine downloads them now."""
    if is_first_on_machine():
        _check_inits(cfg, model, lambda checkpoint: not is_local(checkpoint))


def _check_inits(cfg: Config, model: nn.Module, wanted: Any) -> None:
    given: dict[str, list[dict[str, Tensor]]] = {}
    for name, module, item in _inits(model):
        source = item.get('checkpoint')
        if not isinstance(source, str) or not source:
            raise UserError(f'{name}.init_cfg.checkpoint must be a path or a URL, got {source!r}')
        if not wanted(source):
            continue
        if is_local(source) and not osp.isfile(source):
            raise UserError(_missing_file(name, source) + _not_needed(cfg, name))
        try:
            if _kind(item).endswith('PretrainedBackbone'):
                PretrainedBackbone(**{k: v for k, v in item.items() if k != 'type'}).check(module)
            else:
                given.setdefault(source, []).append(_check_stock(name, module, item, source))
        except (ValueError, OSError) as e:
            place = 'init_cfg.checkpoint' if name == 'model.backbone' else f'{name}.init_cfg.checkpoint'
            raise UserError(f'{place}: {e}') from e
    for source, states in given.items():
        if any(states):  # what mmengine cannot read, or would not find under these names
            hand_over(source, dict(state_dict={k: v for state in states for k, v in state.items()}), len(states))


def named_checkpoints(backbone: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Entries of ``init_cfg`` that name a checkpoint, in the config of a backbone or of the one in WithAttention."""
    given = backbone.get('init_cfg') or (backbone.get('backbone') or {}).get('init_cfg') or []
    return [item for item in (given if isinstance(given, (list, tuple)) else [given]) if item.get('checkpoint')]


def _missing_file(name: str, source: str) -> str:
    if name == 'model.backbone':
        return missing_checkpoint_message(source)
    if osp.isdir(source):
        return f'{name}.init_cfg.checkpoint {folder_message(source)}'
    return f'{name}.init_cfg.checkpoint {source!r} does not exist (looked for {osp.abspath(source)})'


def _not_needed(cfg: Config, name: str) -> str:
    if cfg.get('load_from') is None:
        return ''
    return f'\nload_from has these weights, too: {name}.init_cfg=None leaves this file out'


def _inits(model: nn.Module) -> Iterator[tuple[str, nn.Module, dict]]:
    """(name, module, item) of every ``init_cfg`` that names a checkpoint."""
    for name, module in model.named_modules():
        init_cfg = getattr(module, 'init_cfg', None) or []
        for item in init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]:
            if isinstance(item, Mapping) and _kind(item).rpartition('.')[2] in ('Pretrained', 'PretrainedBackbone'):
                yield f'model.{name}'.rstrip('.'), module, dict(item)


def _kind(item: Mapping) -> str:
    kind = item.get('type')
    return 'Pretrained' if kind is PretrainedInit else kind.__name__ if isinstance(kind, type) else str(kind)


def _check_stock(name: str, module: nn.Module, item: dict, source: str) -> dict[str, Tensor]:
    """mmengine's ``Pretrained`` loads what fits: refuse what would leave a part out. Returns what it is to be given.

    Heads that the module does not have are no part of it, and neither are the biases of convolutions before a norm,
    which Caffe's files have. An attention that is the identity at first may be missing: the network is the file's.
    """
    content = read_checkpoint(source, mmap=True)
    state = without_wrappers(tensors_of(content, source))
    if _loads_by_itself(module):
        return {}
    prefix = (item.get('prefix') or '').rstrip('.')
    prefix = f'{prefix}.' if prefix else ''
    own = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    found = _without_counters(compare(own, module.state_dict()))
    if not found.tensors:
        raise ValueError(
            f'nothing in {source} matches {name}{f" under prefix {prefix!r}" if prefix else ""}: it has '
            f'{shown(list(state), 4)}; {name} has {shown(list(module.state_dict()), 4)}{_prefix_remedy(state, module)}'
        )
    identities = [n for n, m in module.named_modules() if getattr(m, 'identity_init', False)]
    problems = replace(
        found,
        missing=[k for k in found.missing if not k.startswith(tuple(f'{n}.' for n in identities))],
        unexpected=[
            k
            for k in found.unexpected
            if k.split('.')[0] not in NOT_BACKBONE and f'{k.removesuffix(".bias")}.weight' not in found.tensors
        ],
    ).problems()
    if problems:
        lines = [f'  {line}' for line in problems]
        raise ValueError(
            '\n'.join([f'{source} does not fit {name}, and Pretrained would load a part of it:', *lines])
            + "\nGive type='mmccd.PretrainedBackbone', with the names of what may be initialised instead in "
            'allow_missing, and of what may be left out in allow_unexpected' + _identity_remedy(module, found.missing)
        )
    if not _needs_help(content, state):
        return {}
    if not is_local(source):  # the processes that did not download it would read it by mmengine
        raise ValueError(f"{source} is of a kind that Pretrained cannot read: give type='mmccd.PretrainedBackbone'")
    return {prefix + k: v for k, v in own.items()}


def _identity_remedy(module: nn.Module, missing: Iterable[str]) -> str:
    """What to do where attentions alone are missing, and can be the identity at first; '' elsewhere."""
    able = tuple(f'{n}.' for n, m in module.named_modules() if hasattr(m, 'identity_init'))
    keys = list(missing)
    if not keys or not able or not all(key.startswith(able) for key in keys):
        return ''
    return '; or let the attention be the identity at first, with identity_init=True: then it may be missing'


def _needs_help(content: Any, state: Mapping[str, Tensor]) -> bool:
    """Whether mmengine would look for the tensors elsewhere, or cannot read the file."""
    entry = content.get('state_dict', content) if isinstance(content, Mapping) else {}
    names = {str(k).removeprefix('module.') for k in entry}
    return 'metadata' in content or not names.issuperset(state) or set(content) == {'state_dict'}


def _prefix_remedy(state: Mapping[str, Tensor], module: nn.Module) -> str:
    target = list(module.state_dict())
    ending = next((k for k in state if any(k.endswith(f'.{name}') for name in target)), None)
    if ending is None:
        return ''
    name = next(n for n in target if ending.endswith(f'.{n}'))
    return f"; with prefix='{ending[: -len(name)]}' it has"


def _loads_by_itself(module: nn.Module) -> bool:
    """Whether a class has its own way with ``init_cfg``: a Swin Transformer changes names, a ViT resizes a grid."""
    for cls in type(module).__mro__:
        own = vars(cls).get('init_weights')
        if cls is BaseModule or own is None:
            continue
        if _LOADERS.intersection(getattr(own, '__code__', _loads_by_itself.__code__).co_names):
            return True
    return not isinstance(module, BaseModule)
