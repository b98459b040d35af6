"""Padding that changes nothing, where the backbone ignores it."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmccd.models.backbones import AttentionResNet
from mmccd.models.padding_in_detector import ignore_padding_in
from mmccd.registry import HOOKS


@HOOKS.register_module()
class IgnorePaddingHook(Hook):
    """Calls :func:`mmccd.models.ignore_padding_in` on the model, before its training or test.

    Does nothing unless the backbone is an AttentionResNet with ``ignore_padding=True``; a warning names one that is
    no network's ``backbone``, whose neck and heads are not known.
    """

    def before_run(self, runner: Runner) -> None:
        # Also inside of what wraps a model: several processes, test-time augmentation, teacher and student.
        modules = dict(runner.model.named_modules())
        treated = [module.backbone for module in modules.values() if ignore_padding_in(module)]
        for name, module in modules.items():
            ignores = isinstance(module, AttentionResNet) and module.ignore_padding
            if ignores and not any(module is backbone for backbone in treated):
                runner.logger.warning(
                    f'{name or "the model"} ignores padding, and what comes behind it does not, since it is not the '
                    '`backbone` of a network'
                )
