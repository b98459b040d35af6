"""PretrainedBackbone: start a backbone from a checkpoint, all of it or not at all."""

from __future__ import annotations

import os.path as osp
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Size, Tensor, nn

from mmccd.checkpoints.read import load_local_checkpoint
from mmccd.env import is_local
from mmccd.registry import WEIGHT_INITIALIZERS

# Where a backbone's tensors stand in the checkpoints that one meets.
PREFIXES = ('', 'backbone.', 'module.', 'module.backbone.')
# Attentions that can start as the identity, and the component of their keys.
IDENTITY_PARTS = {'ccd': 'ccd', 'se': 'se_layer', 'cbam': 'cbam'}
# Top-level parts of a checkpoint that belong to a classifier or a detector, not to its backbone.
NOT_BACKBONE = ('fc', 'head', 'neck', 'bbox_head', 'rpn_head', 'roi_head', 'mask_head', 'data_preprocessor')


def producing_commands(checkpoint: str) -> str:
    """Text of the commands that make the ImageNet (or digits) checkpoint called ``checkpoint``, '' if unknown."""
    match = re.match(r'(\w+)_(in1k|digits)\.pth$', osp.basename(checkpoint))
    if not match:
        return ''
    name, dataset = match.groups()
    config = f'{name}_8xb32_in1k' if dataset == 'in1k' else f'{name}_digits'
    train = (
        f'tools/dist_train.sh configs/{config}.py 8'
        if dataset == 'in1k'
        else (f'python tools/train.py configs/{config}.py')
    )
    epoch = 'epoch_100' if dataset == 'in1k' else 'epoch_<last>'
    return (
        f'\nIt is the checkpoint of {config}. Produce it with:\n  {train}\n'
        f'  python tools/model_converters/publish_model.py work_dirs/{config}/{epoch}.pth {checkpoint}'
    )


def missing_checkpoint_message(checkpoint: str) -> str:
    """What to say about a local checkpoint that is not there."""
    text = f'init_cfg.checkpoint {checkpoint!r} does not exist (looked for {osp.abspath(checkpoint)}).'
    text += producing_commands(checkpoint)
    match = re.match(r'(ccd|se|cbam)_r(\d+)_in1k\.pth$', osp.basename(checkpoint))
    if match:
        attention, depth = match.groups()
        text += (
            '\nOr start from plain ResNet weights, with gates that start as the identity:\n'
            '  --cfg-options model.backbone.attention.identity_init=True '
            f'model.backbone.init_cfg.checkpoint=torchvision://resnet{depth} '
            f'model.backbone.init_cfg.allow_new={IDENTITY_PARTS[attention]}'
        )
    return text


def as_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """``allow_new`` and ``allow_unused`` as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names)


def allowed_missing(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Names in ``allow_missing`` of an ``init_cfg``, and in ``allow_new``, as it was called before."""
    return (*as_names(cfg.get('allow_missing') or ()), *as_names(cfg.get('allow_new') or ()))


def is_named(key: str, names: Sequence[str]) -> bool:
    """Whether ``key`` has one of ``names`` as one or more whole components: 'ccd' is in 'layer1.0.ccd.scale'."""
    return any(f'.{name}.' in f'.{key}.' for name in names)


def _group(key: str, known: Sequence[str]) -> str:
    """Name under which a tensor is counted: the entry of ``known`` that names it, else its layer or module."""
    for name in known:
        if is_named(key, (name,)):
            return name
    # layer1.0.ccd.scale -> ccd; layer1.0.conv1.weight -> layer1; fc.weight -> fc
    block = re.match(r'layer\d+\.\d+\.([a-z_]+)\.', key)
    if block and not re.match(r'(conv|bn|downsample)$', block.group(1)):
        return block.group(1)
    return key.split('.')[0]


def _count(keys: Sequence[str], known: Sequence[str] = ()) -> str:
    groups = Counter(_group(key, known) for key in keys)
    return ', '.join(f'{name}: {n}' for name, n in groups.items())


def _shown(keys: Sequence[str], limit: int = 8) -> str:
    rest = f' and {len(keys) - limit} more' if len(keys) > limit else ''
    return ', '.join(keys[:limit]) + rest


@dataclass
class Comparison:
    """A checkpoint against a backbone, by the backbone's keys.

    Attributes:
        tensors (dict[str, Tensor]): What both have.
        new (list[str]): What only the backbone has.
        unused (list[str]): What only the checkpoint has.
        shapes (dict): (shape in the checkpoint, shape in the backbone) where they differ.
    """

    tensors: dict[str, Tensor]
    new: list[str]
    unused: list[str]
    shapes: dict[str, tuple[Size, Size]]


@WEIGHT_INITIALIZERS.register_module()
class PretrainedBackbone:
    """Load a checkpoint into a backbone completely, or raise.

    The tensors may stand under ``backbone.``, ``module.``, both or no prefix, in a file with or without a
    ``state_dict`` entry. One line says how many were loaded, new and unused.

    Args:
        checkpoint (str): Path, relative to the current folder, or anything that mmengine resolves
            (``torchvision://resnet50``). Local files are unpickled with ``weights_only=True``: no code runs.
        allow_new (str | Sequence[str]): Parts of the backbone that the checkpoint need not have, by a component of
            their key, e.g. ``'ccd'``. They are trained in frozen stages too. Default: none.
        allow_unused (str | Sequence[str]): Parts of the checkpoint's backbone that this one need not have, e.g.
            ``'layer4'``. Heads and necks are never counted. Default: none.

    Raises:
        FileNotFoundError: If a local checkpoint is not there; the message has the commands that make it.
        ValueError: If nothing matches, if a tensor is missing or unused without being allowed, or if one has
            another shape. The backbone is as it was then.

    Example:
        >>> init_cfg = dict(type='mmccd.PretrainedBackbone', checkpoint='checkpoints/ccd_r50_in1k.pth')
    """

    def __init__(
        self, checkpoint: str, allow_new: str | Sequence[str] = (), allow_unused: str | Sequence[str] = ()
    ) -> None:
        if not isinstance(checkpoint, str) or not checkpoint:
            raise TypeError(f'checkpoint must be a path or a URL, got {checkpoint!r}')
        self.checkpoint = checkpoint
        self.allow_new = as_names(allow_new)
        self.allow_unused = as_names(allow_unused)

    def _state_dict(self) -> dict[str, Tensor]:
        if is_local(self.checkpoint):
            if not osp.isfile(self.checkpoint):
                raise FileNotFoundError(missing_checkpoint_message(self.checkpoint))
            loaded = load_local_checkpoint(self.checkpoint)
        else:
            loaded = CheckpointLoader.load_checkpoint(self.checkpoint, map_location='cpu')
        state = loaded.get('state_dict', loaded) if isinstance(loaded, dict) else loaded
        tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
        if not tensors:
            raise ValueError(f'{self.checkpoint} holds no state dict of tensors')
        return tensors

    def compare(self, module: nn.Module) -> Comparison:
        """Match the checkpoint's tensors with the module's, by name and shape; load nothing.

        Raises:
            FileNotFoundError, ValueError: If there is no checkpoint to read, or nothing in it matches.
        """
        source = self._state_dict()
        target = module.state_dict()
        matches = {p: sum(p + key in source for key in target) for p in PREFIXES}
        prefix = max(matches, key=matches.get)
        if matches[prefix] == 0:
            raise ValueError(
                f'nothing in {self.checkpoint} matches the backbone: it has {_shown(list(source), 4)}; '
                f'the backbone has {_shown(list(target), 4)}'
            )
        inner = {k[len(prefix) :]: v for k, v in source.items() if k.startswith(prefix)}
        common = [k for k in target if k in inner]
        return Comparison(
            tensors={k: inner[k] for k in common},
            # Files from before PyTorch 0.4.1 have no batch counters; nothing in a ResNet reads them.
            new=[k for k in target if k not in inner and not k.endswith('num_batches_tracked')],
            unused=[k for k in inner if k not in target],
            shapes={k: (inner[k].shape, target[k].shape) for k in common if inner[k].shape != target[k].shape},
        )

    def problems(self, found: Comparison) -> list[str]:
        """What forbids loading, a line each."""
        problems = []
        missing = [k for k in found.new if not is_named(k, self.allow_new)]
        if missing:
            problems.append(
                f'{len(missing)} tensors of the backbone are not in it ({_count(missing)}): '
                f'{_shown(missing)}. If they shall start anew, name them in allow_new'
            )
        left = [k for k in found.unused if k.split('.')[0] not in NOT_BACKBONE and not is_named(k, self.allow_unused)]
        if left:
            problems.append(
                f'{len(left)} of its tensors have no place in the backbone ({_count(left)}): '
                f'{_shown(left)}. If they shall be left out, name them in allow_unused'
            )
        if found.shapes:
            shapes = [f'{k} {tuple(a)} in the file, {tuple(b)} in the backbone' for k, (a, b) in found.shapes.items()]
            problems.append(f'{len(shapes)} tensors have another shape: {_shown(shapes, 4)}')
        return problems

    def check(self, module: nn.Module) -> Comparison:
        """:meth:`compare`, and raise ValueError if anything forbids loading."""
        found = self.compare(module)
        problems = self.problems(found)
        if problems:
            raise ValueError(
                f'{self.checkpoint} does not fit the backbone, nothing was loaded:\n  ' + '\n  '.join(problems)
            )
        return found

    def __call__(self, module: nn.Module) -> None:
        found = self.check(module)
        module.load_state_dict(found.tensors, strict=False)
        new = f' ({_count(found.new, self.allow_new)})' if found.new else ''
        unused = f' ({_count(found.unused)})' if found.unused else ''
        print_log(
            f'{self.checkpoint}: {len(found.tensors)} tensors loaded, {len(found.new)} new{new}, '
            f'{len(found.unused)} unused{unused}',
            logger='current',
        )
