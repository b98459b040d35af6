"""A config of MMDetection or MMPretrain as the base of a config for own data: ``--base mmdet::NAME``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from mmccd.configs import config_names, package_folder
from mmccd.errors import UserError, suggest
from mmccd.models.stock import attended_backbone

from .config_text import Raw

PACKAGES = ('mmdet', 'mmpretrain')
IMPORTS = "custom_imports = dict(imports=['mmccd'], allow_failed_imports=False)"


def is_stock(base: str) -> bool:
    """Whether a base is named as in ``_base_ = 'mmdet::...'``."""
    return base.partition('::')[0] in PACKAGES and '::' in base


def stock_path(base: str) -> Path:
    """The file of a base.

    Raises:
        UserError: If the package is not installed, or has no such config; the message has the nearest names.
    """
    package, _, name = base.partition('::')
    folder = package_folder(package)
    if folder is None:
        raise UserError(f'--base {base}: {package} is not installed')
    path = folder / (name if name.endswith('.py') else f'{name}.py')
    if not path.is_file():
        near = suggest(path.relative_to(folder).as_posix(), config_names(package), n=3, prefix=f'{package}::')
        raise UserError(f'--base {base}: {package} has no such config{near}')
    return path


def stock_text(base: str) -> str:
    """What the written config has as its base: the expression, and the import that follows from it."""
    return f'{base if base.endswith(".py") else f"{base}.py"!r}\n{IMPORTS}'


def read_stock(base: str, attention: str | None = None) -> Config:
    """The config of a base, as a config that is made from it reads it, with an attention in its backbone.

    Args:
        base (str): ``'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'``.
        attention (str | None): Name in the registry. Default: None leaves the backbone as it is.

    Raises:
        UserError: If there is no such config or attention, or the model has no backbone of its own.
    """
    stock_path(base)
    cfg = Config.fromstring(f'_base_ = {stock_text(base)}\n', '.py')
    backbone = (cfg.get('model') or {}).get('backbone')
    if backbone is None:
        raise UserError(f'--base {base}: its model has no backbone of its own')
    if attention is not None:
        try:
            cfg.model.backbone = ConfigDict(attended_backbone(backbone, attention, cfg.default_scope))
        except ValueError as e:
            raise UserError(f'--base {base}: {e}') from e
    return cfg


def backbone_change(base: str, cfg: Config) -> dict[str, Any]:
    """What a config made from the base has to change in the backbone to have that of ``cfg``, by the same base."""
    stock, wanted = dict(read_stock(base).model.backbone), dict(cfg.model.backbone)
    if wanted.get('type') == 'mmccd.WithAttention' and stock.get('type') != 'mmccd.WithAttention':
        return dict(_delete_=True, **{**wanted, 'backbone': Raw('_base_.model.backbone')})
    if any(key not in wanted for key in stock if key != '_scope_'):  # an argument has another name
        return dict(_delete_=True, **wanted)
    change = {key: value for key, value in wanted.items() if key not in stock or stock[key] != value}
    if 'init_cfg' in change and 'init_cfg' in stock:
        change['init_cfg'] = dict(_delete_=True, **change['init_cfg'])
    return change
