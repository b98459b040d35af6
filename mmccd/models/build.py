"""Building a model out of a config, with one clear error for what its author has to change."""

from __future__ import annotations

import copy
import re

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmccd.errors import UserError

_ARGUMENTS = r'unexpected keyword argument|missing \d+ required .* argument|not supported between instances of'


def build_model(cfg: Config, device: str = 'meta') -> nn.Module:
    """Build the model of a config; ``init_cfg`` is not followed, and no teacher's weights are loaded.

    The runner builds its own, after it has set the seed; this one is for checks, and for inference.

    Args:
        cfg (Config): The config, which is not changed.
        device (str): Device of the tensors. Default: ``'meta'``, where they have names and shapes but no memory.

    Raises:
        UserError: For what mmccd finds wrong with the model, and for options that its classes do not know.

    Example:
        >>> import mmccd
        >>> model = build_model(mmccd.get_config('ccd_r18_digits'))
        >>> model.head.fc.weight.shape
        torch.Size([10, 512])
    """
    model = dict(copy.deepcopy(cfg.model), _scope_=cfg.get('default_scope'))
    if model.get('teacher_ckpt') is not None:  # MMDetection's distillation loads it on the way
        model['teacher_ckpt'] = None
    try:
        with torch.device(device):
            return MODELS.build(model)
    except RuntimeError as e:
        if device != 'meta' or 'meta tensors' not in str(e):
            raise
        return build_model(cfg, 'cpu').to('meta')  # MMPretrain's networks take numbers out of tensors on the way
    except FileNotFoundError as e:  # the config of a teacher
        raise UserError(f'the model of the config cannot be built: {e.filename} does not exist') from e
    except (TypeError, ValueError, KeyError) as e:
        own = _raised_in_mmccd(e)
        if own is None and isinstance(e, TypeError) and re.search(_ARGUMENTS, str(e)):
            own = e  # whichever class it is, the config misspells an option, or lacks one
        if own is None:
            raise
        raise UserError(f'the model of the config cannot be built: {own.args[0]}') from e


def _raised_in_mmccd(error: BaseException | None) -> BaseException | None:
    """The exception behind ``error`` that came out of mmccd's own code; None for all others."""
    while error is not None:
        end = error.__traceback__
        while end is not None and end.tb_next is not None:
            end = end.tb_next
        if end is not None and end.tb_frame.f_globals.get('__name__', '').startswith('mmccd.'):
            return error
        error = error.__context__  # some versions of mmengine's registries raise their own in place of it
    return None
