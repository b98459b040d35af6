"""A checkpoint that is read once: checked first, and then handed to mmengine's runner, which would read it again."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmccd.errors import UserError

from .fit import Fit, fit_of, fitting_state
from .read import check_checkpoint_file, read_checkpoint


class OpenedCheckpoint:
    """What was read from a checkpoint, until it is handed over.

    Args:
        source (str): Path or URL, as the runner will name it.
        content (Any): What was read; its tensors may be mapped.

    Example:
        >>> checkpoint = OpenedCheckpoint.read('epoch_12.pth', 'checkpoint')  # doctest: +SKIP
        >>> checkpoint.check_fits(model)  # doctest: +SKIP
        >>> checkpoint.hand_over()  # doctest: +SKIP
        >>> runner.load_checkpoint('epoch_12.pth')  # reads nothing  # doctest: +SKIP
    """

    def __init__(self, source: str, content: Any) -> None:
        self.source = source
        self._content = content

    @classmethod
    def read(cls, source: str, argument: str) -> OpenedCheckpoint:
        """Read a file or a URL; of several processes, one downloads.

        Args:
            source (str): Path or URL.
            argument (str): Option that named it, for messages.

        Raises:
            UserError: If there is no such file, or it cannot be read.
        """
        check_checkpoint_file(source, argument)
        try:
            return cls(source, read_checkpoint(source, mmap=True))
        except ValueError as e:
            raise UserError(str(e)) from e

    @property
    def content(self) -> Any:
        """What was read; None once it is handed over."""
        return self._content

    def fit(self, model: nn.Module) -> Fit:
        """Its tensors against a model's."""
        return fit_of(self._content, model, self.source)

    def check_fits(self, model: nn.Module) -> None:
        """UserError unless it has exactly the model's tensors: testing a half-loaded model would give no error.

        From then on it has them under the model's names, whatever program saved it.
        """
        self.use(fitting_state(self._content, model, self.source))

    def use(self, state: Mapping[str, Tensor]) -> None:
        """Put tensors by the model's names where mmengine looks for them."""
        whole = isinstance(self._content, dict) and isinstance(self._content.get('state_dict'), Mapping)
        others = {k: v for k, v in self._content.items() if k != 'state_dict'} if whole else {}
        self._content = {**others, 'state_dict': dict(state)}

    def hand_over(self) -> None:
        """Let mmengine's next loading of this source take what was read; nothing of it stays here or there."""
        if self._content is not None:
            hand_over(self.source, self._content)
        self._content = None


def hand_over(source: str, content: Any, times: int = 1) -> None:
    """Let mmengine's next loadings of a source, as many as ``times``, take ``content`` instead of reading."""
    # mmengine tries its loaders in reverse alphabetical order: a whole name comes before its prefixes.
    CheckpointLoader.register_scheme(re.escape(source) + r'\Z', _Given(content, times), force=True)


class _Given:
    """A loader of mmengine's for one name: what it was given, then, if asked more often, what is read.

    Tensors are on the CPU whatever ``map_location`` says: the runner copies them where they belong. All but those of
    the model are copied here, since an optimizer may keep what it is given: a file that stayed mapped would take its
    place on the disk after it is removed.
    """

    __name__ = 'load_from_local'  # mmengine logs the part after 'load_from_'

    def __init__(self, content: Any, times: int = 1) -> None:
        self._content = content
        self._times = times

    def __call__(self, source: str, map_location: Any = None, **kwargs: Any) -> Any:
        content = self._content
        self._times -= 1
        if self._times <= 0:
            self._content = None
        if content is None:
            return read_checkpoint(source, map_location or 'cpu')
        if not isinstance(content, dict):
            return content
        return {key: value if key == 'state_dict' else copy.deepcopy(value) for key, value in content.items()}
