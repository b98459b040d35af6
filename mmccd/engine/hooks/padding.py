"""Padding that changes nothing, where the backbone ignores it."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmccd.models.padding_in_detector import ignore_padding_in
from mmccd.registry import HOOKS


@HOOKS.register_module()
class IgnorePaddingHook(Hook):
    """Calls :func:`mmccd.models.ignore_padding_in` on the model, before its training or test.

    Does nothing unless the backbone is an AttentionResNet with ``ignore_padding=True``.
    """

    def before_run(self, runner: Runner) -> None:
        # Also inside of what wraps a model: several processes, test-time augmentation, teacher and student.
        for module in list(runner.model.modules()):
            ignore_padding_in(module)
