"""PretrainedBackbone: initialise a backbone from a checkpoint, all of it or not at all."""

from __future__ import annotations

import logging
import os.path as osp
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmdet.models.backbones import ResNet
from mmengine.logging import print_log
from torch import Tensor, nn

from mmccd.checkpoints.architecture import other_than_resnet
from mmccd.checkpoints.fit import Fit, compare, count, renamed, shown, tensors_of, without_prefix
from mmccd.checkpoints.read import folder_message, read_checkpoint
from mmccd.env import is_local, warn_renamed
from mmccd.registry import WEIGHT_INITIALIZERS

from .resnet_variants import named_variant, published_weights

__all__ = ['PretrainedBackbone', 'allowed_missing', 'missing_checkpoint_message']

# Attentions that can be the identity at first, and the component of their keys.
IDENTITY_PARTS = {'ccd': 'ccd', 'se': 'se_layer', 'cbam': 'cbam'}
# Top-level parts of a checkpoint that belong to a classifier or a detector, not to its backbone.
NOT_BACKBONE = ('fc', 'head', 'neck', 'bbox_head', 'rpn_head', 'roi_head', 'mask_head', 'data_preprocessor')


def producing_commands(checkpoint: str) -> str:
    """Text of the commands that make the classifier called ``checkpoint``, '' if its dataset has no config here."""
    match = re.match(r'([\w-]+)_(in1k|digits|fashion|solar)\.pth$', osp.basename(checkpoint))
    if not match:
        return ''
    name, dataset = match.groups()
    config = f'{name}_8xb32_in1k' if dataset == 'in1k' else f'{name}_{dataset}'
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
    if osp.isdir(checkpoint):
        return f'init_cfg.checkpoint {folder_message(checkpoint)}'
    text = f'init_cfg.checkpoint {checkpoint!r} does not exist (looked for {osp.abspath(checkpoint)}).'
    text += producing_commands(checkpoint)
    match = re.match(r'(ccd|se|cbam)_([a-z0-9-]+)_in1k\.pth$', osp.basename(checkpoint))
    source = match and published_weights(named_variant(match[2]))
    if match and source:
        text += (
            '\nOr initialise it with plain ResNet weights, and the gates as the identity:\n'
            '  --cfg-options model.backbone.attention.identity_init=True '
            f'model.backbone.init_cfg.checkpoint={source} '
            f'model.backbone.init_cfg.allow_missing={IDENTITY_PARTS[match[1]]}'
        )
    return text


def as_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """``allow_missing`` and ``allow_unexpected`` as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names)


def allowed_missing(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Names in ``allow_missing`` of an ``init_cfg``, and in ``allow_new``, as it was called before."""
    return (*as_names(cfg.get('allow_missing') or ()), *as_names(cfg.get('allow_new') or ()))


def log_warning(text: str) -> None:
    """Into mmengine's log."""
    print_log(text, logger='current', level=logging.WARNING)


@WEIGHT_INITIALIZERS.register_module()
class PretrainedBackbone:
    """Load a checkpoint into a backbone completely, or raise.

    The tensors may stand under any prefix, in whichever entry of a file of ``torch.save`` or safetensors; of several
    parts, ``backbone`` is read. One line says how many were loaded, missing and unexpected.

    Args:
        checkpoint (str): Path, relative to the current folder, or anything that mmengine resolves
            (``torchvision://resnet50``). It is read with ``weights_only=True``: no code runs.
        allow_missing (str | Sequence[str]): Parts of the backbone that the checkpoint need not have, by a component of
            their key, e.g. ``'ccd'``. They are trained in frozen stages too. Default: none.
        allow_unexpected (str | Sequence[str]): Parts of the checkpoint's backbone that this one need not have, e.g.
            ``'layer4'``. Heads and necks are never counted. Default: none.
        allow_new (str | Sequence[str]): Former name of ``allow_missing``.
        allow_unused (str | Sequence[str]): Former name of ``allow_unexpected``.

    Raises:
        FileNotFoundError: If a local checkpoint is not there; the message has the commands that make it.
        ValueError: If nothing matches, if a tensor is missing or unexpected without being allowed, or if one has
            another shape. The backbone is as it was then.

    Example:
        >>> init_cfg = dict(type='mmccd.PretrainedBackbone', checkpoint='checkpoints/ccd_r50_in1k.pth')
    """

    def __init__(
        self,
        checkpoint: str,
        allow_missing: str | Sequence[str] = (),
        allow_unexpected: str | Sequence[str] = (),
        *,
        allow_new: str | Sequence[str] = (),
        allow_unused: str | Sequence[str] = (),
    ) -> None:
        if not isinstance(checkpoint, str) or not checkpoint:
            raise TypeError(f'checkpoint must be a path or a URL, got {checkpoint!r}')
        for former, name, value in (
            ('allow_new', 'allow_missing', allow_new),
            ('allow_unused', 'allow_unexpected', allow_unused),
        ):
            if value:
                warn_renamed(f'{former} of PretrainedBackbone', name, log_warning)
        self.checkpoint = checkpoint
        self.allow_missing = (*as_names(allow_missing), *as_names(allow_new))
        self.allow_unexpected = (*as_names(allow_unexpected), *as_names(allow_unused))

    def _tensors(self, module: nn.Module) -> dict[str, Tensor]:
        if is_local(self.checkpoint) and not osp.isfile(self.checkpoint):
            raise FileNotFoundError(missing_checkpoint_message(self.checkpoint))
        content = read_checkpoint(self.checkpoint, mmap=True)
        other = other_than_resnet(content, self.checkpoint) if isinstance(module, ResNet) else None
        if other is not None:
            raise ValueError(f'{self.checkpoint} names its network: {other}')
        return tensors_of(content, self.checkpoint)

    def compare(self, module: nn.Module) -> Fit:
        """Match the checkpoint's tensors with the module's, by name and shape; load nothing.

        Raises:
            FileNotFoundError, ValueError: If there is no checkpoint to read, or nothing in it matches.
        """
        source, target = self._tensors(module), module.state_dict()
        found = compare(renamed(without_prefix(source, target, part='backbone'), module), target)
        if len(found.missing) == len(target):
            raise ValueError(
                f'nothing in {self.checkpoint} matches the backbone: it has {shown(list(source), 4)}; '
                f'the backbone has {shown(list(target), 4)}'
            )
        # Files from before PyTorch 0.4.1 have no batch counters; nothing in a ResNet reads them.
        return replace(found, missing=[k for k in found.missing if not k.endswith('num_batches_tracked')])

    def _refused(self, found: Fit) -> Fit:
        refused = found.without(self.allow_missing, self.allow_unexpected)
        return replace(refused, unexpected=[k for k in refused.unexpected if k.split('.')[0] not in NOT_BACKBONE])

    def problems(self, found: Fit) -> list[str]:
        """What forbids loading, a line each."""
        return self._refused(found).problems()

    def hints(self, found: Fit) -> list[str]:
        """What would allow loading in spite of missing or unexpected keys, a line each."""
        refused = self._refused(found)
        hints = []
        if refused.missing:
            hints.append('To initialise them instead, name them in allow_missing.')
        if refused.unexpected:
            hints.append('To leave the unexpected ones out, name them in allow_unexpected.')
        return hints

    def check(self, module: nn.Module) -> Fit:
        """:meth:`compare`, and raise ValueError if anything forbids loading."""
        found = self.compare(module)
        problems = self.problems(found)
        if problems:
            raise ValueError(
                f'{self.checkpoint} does not fit the backbone, nothing was loaded:\n  '
                + '\n  '.join([*problems, *self.hints(found)])
            )
        return found

    def __call__(self, module: nn.Module) -> None:
        found = self.check(module)
        module.load_state_dict(found.tensors, strict=False)
        missing = f' ({count(found.missing, self.allow_missing)})' if found.missing else ''
        unexpected = f' ({count(found.unexpected)})' if found.unexpected else ''
        print_log(
            f'{self.checkpoint}: {len(found.tensors)} tensors loaded, {len(found.missing)} missing{missing}, '
            f'{len(found.unexpected)} unexpected{unexpected}',
            logger='current',
        )
