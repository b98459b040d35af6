"""What a training logs with: packages of its backends that are not installed, and logs that are valid JSON."""

from __future__ import annotations

import re
from importlib import util
from typing import Any

from mmengine.config import Config
from mmengine.hooks import LoggerHook
from mmengine.registry import HOOKS, VISBACKENDS
from mmengine.visualization import LocalVisBackend

from mmccd.errors import UserError

# Backends of mmengine: what they import, and what pip installs it from.
_PACKAGES = {
    'WandbVisBackend': ('wandb', 'wandb'),
    'TensorboardVisBackend': ('tensorboard', 'tensorboard'),
    'MLflowVisBackend': ('mlflow', 'mlflow'),
    'ClearMLVisBackend': ('clearml', 'clearml'),
    'NeptuneVisBackend': ('neptune', 'neptune'),
    'DVCLiveVisBackend': ('dvclive', 'dvclive'),
    'AimVisBackend': ('aim', 'aim'),
}


def prepare_logs(cfg: Config) -> None:
    """Check the packages of ``visualizer.vis_backends``, and let logs have null where a number is NaN or infinite.

    Backends and hooks that are not exactly mmengine's stay as they are.

    Raises:
        UserError: If a package is not installed; the message is the line that installs it.
    """
    visualizer = cfg.get('visualizer') or {}
    for i, backend in enumerate(visualizer.get('vis_backends') or []):
        name = str(backend.get('type')).rpartition('.')[2]
        package, distribution = _PACKAGES.get(name, (None, ''))
        if package is not None and util.find_spec(package) is None:
            raise UserError(
                f'visualizer.vis_backends.{i} ({name}) needs a package that is not installed: pip install '
                f'{distribution}'
            )
        if _is(backend, VISBACKENDS, LocalVisBackend):
            backend.type = 'mmccd.LocalVisBackend'
    logger = (cfg.get('default_hooks') or {}).get('logger')
    if logger is not None and _is(logger, HOOKS, LoggerHook):
        logger.type = 'mmccd.LoggerHook'


def _is(item: dict, registry: Any, kind: type) -> bool:
    """Whether a config names exactly this class."""
    found = item.get('type')
    return (registry.get(found) if isinstance(found, str) else found) is kind


# Packages whose modules are called otherwise, by their modules.
_DISTRIBUTIONS = {
    'cv2': 'opencv-python',
    'PIL': 'pillow',
    'sklearn': 'scikit-learn',
    'skimage': 'scikit-image',
    'yaml': 'pyyaml',
    'pytorch_grad_cam': 'grad-cam',
    'imagecorruptions': 'imagecorruptions-imaug',
}
_NOT_INSTALLED = re.compile(r"([\w.-]+)[`'\"]? (?:is|are) not installed")


def missing_package(error: BaseException | None) -> str | None:
    """One line for what is raised where a package is not installed, or for what that caused; None for any other.

    OpenMMLab raises ImportError, or RuntimeError with a text that says so.
    """
    line = None
    while error is not None:
        text = ' '.join(str(error).split())
        if isinstance(error, (ImportError, RuntimeError)) and re.search('(pip|mim) install', text):
            return text
        found = _NOT_INSTALLED.search(text) if isinstance(error, RuntimeError) else None
        if found:
            line = _line(found[1])
        root = (getattr(error, 'name', None) or '').split('.')[0]
        if isinstance(error, ModuleNotFoundError) and root and util.find_spec(root) is None:
            line = _line(root)
        error = error.__cause__ or error.__context__
    return line


def _line(module: str) -> str:
    return f'the package {module} is needed here, and not installed: pip install {_DISTRIBUTIONS.get(module, module)}'
