"""mmengine's logs as JSON that every parser reads: null for numbers that there are not, such as APs without an example.

Python writes ``NaN`` and ``Infinity``, which JSON does not have.
"""

from __future__ import annotations

from collections import OrderedDict

from mmengine.hooks import LoggerHook as MMEngineLoggerHook
from mmengine.visualization import LocalVisBackend as MMEngineLocalVisBackend

from mmccd.checkpoints.files import finite_or_null
from mmccd.registry import HOOKS, VISBACKENDS


@VISBACKENDS.register_module()
class LocalVisBackend(MMEngineLocalVisBackend):
    """mmengine's, with the same arguments; its ``scalars.json`` is valid JSON in each line."""

    def _dump(self, value_dict: dict, file_path: str, file_format: str) -> None:
        super()._dump(finite_or_null(value_dict), file_path, file_format)


@HOOKS.register_module()
class LoggerHook(MMEngineLoggerHook):
    """mmengine's, with the same arguments; its file of a test's metrics is valid JSON."""

    @staticmethod
    def _process_tags(tags: dict) -> OrderedDict:
        return OrderedDict(finite_or_null(MMEngineLoggerHook._process_tags(tags)))
