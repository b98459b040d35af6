"""A replacement for mmcv's compiled operators, where mmcv was installed without them.

Why: ``pip install onedl-mmcv`` compiles nothing unless its build can already see torch, and does
not say so; ``mmcv-lite`` never has operators. ``import mmcv.ops``, and with it ``import
mmdet.models``, then fails, though torchvision has compiled counterparts of the few operators that
most detectors run. :func:`install` puts a module over torchvision's in the place of ``mmcv._ext``.
Operators that mmcv did compile are never replaced, not even broken ones: mmcv's own
``ImportError`` then names the problem.

Operators and what computes them (signatures as in mmcv's ``ops/csrc/pytorch/pybind.cpp``):

==============================================  ==================================================================
``nms``                                         ``torchvision.ops.nms``; ``offset=0`` only
``softnms``, ``nms_match``                      numpy, on the CPU as mmcv's
``nms_rotated``, ``box_iou_rotated``            PyTorch
``line_nms_forward``                            PyTorch
``roi_align_*``                                 ``torch.ops.torchvision``'s; ``pool_mode='avg'`` only
``roi_pool_*``, ``deform_roi_pool_*``           PyTorch
``deform_conv_*``, ``modulated_deform_conv_*``  ``torch.ops.torchvision``'s
``ms_deform_attn_*``                            ``torch.nn.functional.grid_sample``
``carafe_*``, ``carafe_naive_*``                PyTorch
``masked_im2col_forward``, ``masked_col2im_*``  PyTorch
``sigmoid_focal_loss_*``                        PyTorch
``softmax_focal_loss_*``                        PyTorch
``sync_bn_*``                                   PyTorch
``get_compiler_version``                        a text for environment reports
``get_compiling_cuda_version``                  likewise
any other                                       exists, and raises ``RuntimeError`` when called
==============================================  ==================================================================

These are all that MMDetection's models and configs run. Each runs on the CPU and on GPUs, also where mmcv has a kernel
for one of them alone, and computes half precision in float32.

Deviations from the compiled operators: boxes of equal score keep their order in NMS (stable sort); scores may have
another dtype than the boxes; RoIAlign takes inputs of any memory layout, and on the CPU boxes that are no boxes; the
sigmoid focal loss refuses a class weight with background targets, and the softmax focal loss background targets, for
which the compiled kernels read past the end. Under
``torch.use_deterministic_algorithms(True)`` the backward of RoIAlign and of deformable convolutions on CUDA raises, as
torchvision's does, where mmcv's is silently not deterministic.

The environment variable ``MMCCD_MMCV_OPS`` switches it: ``auto`` (default), or ``off``, which
leaves mmcv alone. ``tests/compat`` compares with numbers of the compiled operators, and with themselves wherever they
exist.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from . import (  # noqa: F401  they register themselves
    carafe,
    deform_conv,
    focal_loss,
    masked_conv,
    ms_deform_attn,
    nms,
    roi_align,
    roi_pool,
    rotated,
    sync_bn,
    versions,
)
from .operators import ENV_VAR, MESSAGE, OPERATORS, build_commands, unsupported

__all__ = ['ENV_VAR', 'MODES', 'SUPPORTED', 'build_commands', 'in_use', 'install', 'make_replacement']

MODES = ('auto', 'off')
SUPPORTED = tuple(OPERATORS)  # names of the operators that the replacement has

_EXT = 'mmcv._ext'
_logger = logging.getLogger('mmccd')


def install(mode: str | None = None) -> str:
    """Put the replacement in the place of ``mmcv._ext`` where mmcv has no compiled operators.

    To be called before ``mmcv.ops`` or ``mmdet.models`` is imported; a second call does nothing.
    Imports neither mmcv, torch nor torchvision.

    Args:
        mode: ``'auto'``, or ``'off'`` to install nothing. Default: the environment variable
            ``MMCCD_MMCV_OPS``, or ``'auto'`` where that is not set.

    Returns:
        What is in use from now on, see :func:`in_use`.

    Raises:
        ValueError: for any other mode.

    Example:
        >>> from mmccd.compat import mmcv_ops
        >>> mmcv_ops.install() in ('compiled', 'replacement', 'none', 'no-mmcv')
        True
    """
    name = 'mode'
    if mode is None:
        name = f'the environment variable {ENV_VAR}'
        mode = os.environ.get(ENV_VAR, 'auto')
    if mode not in MODES:
        raise ValueError(f'{name} must be one of {", ".join(map(repr, MODES))}, got {mode!r}')

    state = in_use()
    if state == 'none' and mode == 'auto':
        sys.modules[_EXT] = make_replacement()
        _logger.info(MESSAGE)
        state = 'replacement'
    return state


def in_use() -> str:
    """Which of mmcv's operators this process has.

    Returns:
        ``'compiled'``: mmcv's own, working or not; ``'replacement'``: this module's; ``'none'``: mmcv
        has none, and they are not replaced: switched off, or :func:`install` not called yet;
        ``'no-mmcv'``: mmcv is not installed.
    """
    loaded = sys.modules.get(_EXT)
    if loaded is not None:
        return 'replacement' if isinstance(loaded, _Replacement) else 'compiled'
    mmcv = importlib.util.find_spec('mmcv')
    # Without an origin it is a mere folder of this name.
    if mmcv is None or mmcv.origin is None or mmcv.submodule_search_locations is None:
        return 'no-mmcv'
    # `importlib.util.find_spec('mmcv._ext')` would import mmcv, which takes seconds.
    ext = importlib.machinery.PathFinder.find_spec(_EXT, mmcv.submodule_search_locations)
    return 'none' if ext is None or ext.origin is None else 'compiled'


class _Replacement(ModuleType):
    """Module in which every operator exists, since ``import mmcv.ops`` needs all of them."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith('__') and name.endswith('__'):  # Python and its tools ask, not mmcv
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise unsupported(name)

        refuse.__name__ = refuse.__qualname__ = name
        return refuse


class _Loader(importlib.abc.Loader):
    """Loader of the replacement; mmcv's ``check_ops_exist`` asks for one."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Replacement(spec.name, doc=__doc__)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(OPERATORS)


def make_replacement() -> ModuleType:
    """Make the module that :func:`install` puts in the place of ``mmcv._ext``, without doing so."""
    spec = importlib.machinery.ModuleSpec(_EXT, _Loader(), origin=__file__)
    spec.has_location = True  # origin becomes __file__
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
