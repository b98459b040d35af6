"""mmccd: Cascaded Context Dependency and its peers as a plugin for MMDetection and MMPretrain.

``import mmccd`` is all that a config or a script needs: it checks what is installed, puts the replacement for mmcv's
compiled operators in place where they are missing (:mod:`mmccd.compat`), and from then on ``type='mmccd.CCD'`` and
the other names resolve in every OpenMMLab scope. It has to come before ``mmdet.models`` is imported.

The other public functions are imported when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .compat import mmcv_ops
from .env import check_requirements
from .errors import UserError
from .version import __version__

if TYPE_CHECKING:
    from .analysis.judge import check_attention
    from .apis import allow_mmengine_checkpoints, config_path, get_config, init_model
    from .configs import list_configs
    from .models.attach import attach, detach
    from .models.weights import get_weights

check_requirements()
mmcv_ops.install()

__all__ = [
    'UserError',
    '__version__',
    'allow_mmengine_checkpoints',
    'attach',
    'check_attention',
    'config_path',
    'detach',
    'get_config',
    'get_weights',
    'init_model',
    'list_configs',
]
_HOMES = {
    'allow_mmengine_checkpoints': 'mmccd.apis',
    'attach': 'mmccd.models.attach',
    'check_attention': 'mmccd.analysis.judge',
    'detach': 'mmccd.models.attach',
    'config_path': 'mmccd.apis',
    'get_config': 'mmccd.apis',
    'get_weights': 'mmccd.models.weights',
    'init_model': 'mmccd.apis',
    'list_configs': 'mmccd.configs',
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
