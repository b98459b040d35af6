"""One config of MMDetection, tried: built with an attention, a loss, its gradients, predictions."""

from __future__ import annotations

import copy
import importlib
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import import_modules_from_strings
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmccd.models.layers import AttentionLayer
from mmccd.models.places import BLOCKS
from mmccd.models.stock import attended_backbone

from .batch import branches, made_batch
from .configs import PLACES, SIDE, SIDES

FOLDER = Path(mmdet.__file__).parent / '.mim' / 'configs'


@dataclass
class Trial:
    """What happened to a config, with the attention or without it.

    Attributes:
        step (str): The last one: ``'build'``, ``'loss'``, ``'backward'``, ``'predict'``, or ``'done'``.
        reason (str): Why it ended there; empty if it is done.
        backbone (str): Its class in the stock config, with its depth.
        by (str): ``'AttentionResNet'``, ``'WithAttention'`` or, without the attention, ``''``.
        groups (int | None): Of the attention, if it has groups.
        places (int): Attention layers.
        trained (int): Those of them that are trained, each with a gradient in all of its parameters.
        added (int): Parameters that they have.
        loss (float | None): Sum of the losses.
        seconds (float): All in all.
    """

    step: str = 'build'
    reason: str = ''
    backbone: str = ''
    by: str = ''
    groups: int | None = None
    places: int = 0
    trained: int = 0
    added: int = 0
    loss: float | None = None
    seconds: float = 0.0


@dataclass
class Result:
    """A config's row in the matrix.

    Attributes:
        config (str): Its name.
        trial (Trial): With the attention.
        control (Trial | None): Without, where that one failed.
    """

    config: str
    trial: Trial
    control: Trial | None = field(default=None)

    @property
    def outcome(self) -> str:
        """``'passes'``; ``'fails alike'`` without the attention; ``'fails'`` for a reason of ours."""
        if self.trial.step == 'done':
            return 'passes'
        control = self.control
        alike = control is not None and (control.step, control.reason) == (self.trial.step, self.trial.reason)
        return 'fails alike' if alike else 'fails'

    def to_dict(self) -> dict[str, Any]:
        return dict(config=self.config, outcome=self.outcome, **asdict(self.trial), control=_dict(self.control))


def _dict(trial: Trial | None) -> dict[str, Any] | None:
    return None if trial is None else asdict(trial)


class Failure(Exception):
    """Something that did not raise, but is wrong."""


def try_config(name: str, attention: str | None = 'mmccd.CCD') -> Trial:
    """Try a config; an exception of any kind is its reason.

    Args:
        name (str): Of a config of MMDetection, without ``.py``.
        attention (str | None): Name in the registry; None tries it as it is.
    """
    trial, start = Trial(), time.monotonic()
    folder = os.getcwd()
    torch.manual_seed(0)
    hub = MessageHub.get_current_instance()
    for key, value in dict(iter=1, epoch=0, max_iters=1000, max_epochs=12).items():  # what a runner says to losses
        hub.update_info(key, value)
    try:
        os.chdir(config_file(name).parents[2])  # a config that reads another one names it from there
        _try(name, attention, trial)
        trial.step = 'done'
    except Exception as e:
        trial.reason = _first_line(e)
    finally:
        os.chdir(folder)
    trial.seconds = round(time.monotonic() - start, 1)
    return trial


def config_file(name: str) -> Path:
    """The file of a config of MMDetection, or of the package that stands before ``::``."""
    package, _, rest = name.rpartition('::')
    folder = FOLDER if not package else _configs_of(package)
    return folder / f'{rest}.py'


def _configs_of(package: str) -> Path:
    return Path(importlib.import_module(package).__file__ or '').parent / '.mim' / 'configs'


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or ['']
    # A registry puts the class's own error behind the class.
    return f'{type(error).__name__}: {lines[0]}'.replace(str(FOLDER.parent), '.mim')[:300]


def _try(name: str, attention: str | None, trial: Trial) -> None:
    cfg = Config.fromfile(config_file(name))
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build(cfg, attention, trial)
        layers = [m for m in model.modules() if isinstance(m, AttentionLayer)] if attention else []
        trial.groups = getattr(layers[0], 'groups', None) if layers else None
        trial.places, trial.added = len(layers), sum(p.numel() for m in layers for p in m.parameters())

        trial.step = 'loss'
        batch = made_batch(cfg, SIDES.get(name, SIDE))
        semi = type(model.data_preprocessor).__name__ == 'MultiBranchDataPreprocessor'
        model.train()
        inputs = model.data_preprocessor(branches(batch) if semi else copy.deepcopy(batch), training=True)
        loss, _ = model.parse_losses(model(**inputs, mode='loss'))
        trial.loss = round(loss.item(), 4)
        if not math.isfinite(trial.loss):
            raise Failure('the loss is NaN or infinite')

        trial.step = 'backward'
        loss.backward()
        trial.trained = _check_gradients(model, layers)

        trial.step = 'predict'
        model.eval()
        one = {key: value[:1] for key, value in batch.items()}  # as MMDetection tests; some operators take no more
        with torch.no_grad():
            found = model(**model.data_preprocessor(one, training=False), mode='predict')
        _check_predictions(found, 1)


def build(cfg: Config, attention: str | None, trial: Trial) -> nn.Module:
    """Build and initialise the model; backbone and heads keep PyTorch's initial weights where a file has others."""
    model = copy.deepcopy(cfg.model)
    _prepare(model, cfg.get('load_from') or model.get('pretrained'))
    holder = model.detector if 'backbone' not in model and 'detector' in model else model
    stock = holder.backbone
    trial.backbone = _named(stock)
    if attention is not None:
        places = PLACES.get(str(stock.type).rpartition('.')[2], BLOCKS)
        holder.backbone = attended = attended_backbone(stock, attention, cfg.default_scope, places)
        trial.by = attended['type'].removeprefix('mmccd.')
    built = MODELS.build(model)
    # Weights of a file, which is not here. What is frozen depends on the config that names it, which is kept.
    files = {module: module.init_cfg for module in built.modules() if _is_file(getattr(module, 'init_cfg', None))}
    for module in files:
        module.init_cfg = None
        if isinstance(getattr(module, 'pretrained', None), str):  # DetectoRS keeps the name there
            module.pretrained = None
    built.init_weights()
    for module in built.modules():
        if type(module).__name__ == 'TridentConv':  # allocated, and left to the file
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if isinstance(module, (_BatchNorm, nn.GroupNorm)) and module.weight is not None and not module.weight.any():
            nn.init.ones_(module.weight)  # the end of a residual branch: zero from scratch, and in no file
    for module, init_cfg in files.items():
        module.init_cfg = init_cfg
    return built


def _named(stock: Mapping[str, Any]) -> str:
    kind = str(stock['type']).rpartition('.')[2]
    return f'{kind}-{stock["depth"]}' if 'depth' in stock else kind


def _prepare(model: ConfigDict, load_from: str | None) -> None:
    """Leave out weights in files, changes of the size of images, and thresholds that random weights do not reach."""
    backbones = [part.backbone for part in (model, model.get('detector') or {}) if 'backbone' in part]
    kept = [copy.deepcopy(b.get('init_cfg')) for b in backbones]
    _forget_files(model)
    for backbone, init_cfg in zip(backbones, kept):
        if init_cfg is None and load_from:
            init_cfg = dict(type='Pretrained', checkpoint=load_from)
        if init_cfg is not None:  # with a file, a backbone does not initialise its residual branches as zero
            backbone.init_cfg = init_cfg
    _set(model, 'teacher_ckpt', None)
    _set(model, 'pretrained', None)
    for kind in ('SyncBN', 'MMSyncBN'):  # on the CPU, as mmdet's init_detector has it
        _set_type(model, kind, 'BN')
    preprocessor = model.get('data_preprocessor') or {}
    preprocessor.pop('batch_augments', None)
    if preprocessor.get('size') is not None:  # MMSegmentation's pads to it
        preprocessor.size = (SIDE, SIDE)
    _set(model.get('test_cfg'), 'score_thr', 0.0)
    _set(model, 'drop_path_rate', 0.0)  # a block that is dropped has no gradient
    for key, most in dict(nms_pre=200, num=64).items():  # samples
        _limit(model, key, most)
    for cfg in (model.get('train_cfg') or {}, model.get('test_cfg') or {}):
        for key in ('rpn', 'rpn_proposal'):
            _limit(cfg.get(key), 'max_per_img', 50)


def _is_file(init_cfg: Any) -> bool:
    each = init_cfg if isinstance(init_cfg, list) else [init_cfg]
    return any(isinstance(i, Mapping) and ('Pretrained' in str(i.get('type')) or 'checkpoint' in i) for i in each)


def _forget_files(value: Any) -> None:
    if isinstance(value, dict):
        if _is_file(value.get('init_cfg')):
            value.pop('init_cfg')
        for item in value.values():
            _forget_files(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _forget_files(item)


def _set(value: Any, key: str, new: Any) -> None:
    if isinstance(value, dict):
        if key in value:
            value[key] = False if value[key] is True else new  # timm's pretrained is a bool
        for item in value.values():
            _set(item, key, new)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _set(item, key, new)


def _limit(value: Any, key: str, most: int) -> None:
    if isinstance(value, dict):
        if isinstance(value.get(key), int):
            value[key] = min(value[key], most)
        for item in value.values():
            _limit(item, key, most)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _limit(item, key, most)


def _set_type(value: Any, old: str, new: str) -> None:
    if isinstance(value, dict):
        if value.get('type') == old:
            value['type'] = new
        for item in value.values():
            _set_type(item, old, new)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _set_type(item, old, new)


def _check_gradients(model: nn.Module, layers: list[AttentionLayer]) -> int:
    """Number of the trained attention layers; Failure if one of their parameters has no gradient, or one of NaN."""
    names = {module: name for name, module in model.named_modules()}
    trained = [m for m in layers if any(p.requires_grad for p in m.parameters())]
    for layer in trained:
        for name, p in layer.named_parameters():
            if not p.requires_grad:
                continue
            if p.grad is None or not p.grad.any():
                raise Failure(f'{names[layer]}.{name} has no gradient')
            if not p.grad.isfinite().all():
                raise Failure(f'the gradient of {names[layer]}.{name} is NaN or infinite')
    if layers and not trained:
        raise Failure('no attention is trained')
    return len(trained)


def _check_predictions(found: Any, images: int) -> None:
    if len(found) != images:
        raise Failure(f'{len(found)} predictions for {images} images')
    for sample in found:
        instances = sample.get('pred_instances')
        if instances is None and not any(f'pred_{kind}_seg' in sample for kind in ('panoptic', 'sem')):
            raise Failure('no prediction')
        boxes = None if instances is None else instances.get('bboxes')
        if isinstance(boxes, Tensor) and not boxes.isfinite().all():
            raise Failure('a predicted box is NaN or infinite')
