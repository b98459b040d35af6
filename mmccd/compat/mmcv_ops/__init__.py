"""A stand-in for mmcv's compiled operators, where mmcv was installed without them.

Why: ``pip install onedl-mmcv`` compiles nothing unless its build can already see torch, and does
not say so; ``mmcv-lite`` never has operators. ``import mmcv.ops``, and with it ``import
mmdet.models``, then fails, though torchvision has compiled counterparts of the few operators that
most detectors run. :func:`install` puts a module over torchvision's in the place of ``mmcv._ext``.
Operators that mmcv did compile are never replaced, not even broken ones: mmcv's own
``ImportError`` tells what is wrong with those.

What equals what (signatures as in mmcv's ``ops/csrc/pytorch/pybind.cpp``):

===============================  ===================================================================
``nms``                          ``torchvision.ops.nms``; ``offset=0`` only
``roi_align_forward``            ``torch.ops.torchvision.roi_align``; ``pool_mode='avg'`` only
``roi_align_backward``           ``torch.ops.torchvision._roi_align_backward``; likewise
``sigmoid_focal_loss_forward``   plain PyTorch, as mmcv's ``sigmoid_focal_loss_cuda_kernel.cuh``
``sigmoid_focal_loss_backward``  likewise
``get_compiler_version``         a text for environment reports
``get_compiling_cuda_version``   likewise
any other                        exists, and raises ``RuntimeError`` when called
===============================  ===================================================================

Deviations from the compiled operators: boxes of equal score keep their order in NMS (stable sort);
scores may have another dtype than the boxes; RoIAlign takes inputs of any memory layout and boxes
of negative size; the focal loss also runs on CPU tensors, computes half precision in float32, and
refuses a class weight with background targets, for which the compiled kernel reads past the end of
the weights. Under ``torch.use_deterministic_algorithms(True)`` RoIAlign's backward on CUDA raises,
as torchvision's does, where mmcv's is silently not deterministic.

The environment variable ``MMCCD_MMCV_OPS`` switches it: ``auto`` (default), or ``off``, which
leaves mmcv alone. ``tests/compat/test_mmcv_ops.py`` compares with the compiled operators wherever
they exist.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable

# The operators import torch and torchvision when they run: finding out whether a stand-in is
# needed stays light, and `import mmccd` does not fail over a broken torchvision that nobody uses.
if TYPE_CHECKING:
    from torch import Tensor

__all__ = ['SUPPORTED', 'build_commands', 'in_use', 'install', 'make_stand_in']

ENV_VAR = 'MMCCD_MMCV_OPS'
MODES = ('auto', 'off')

_EXT = 'mmcv._ext'
# Distributions that provide the package `mmcv`: the one to build the operators from.
_DISTRIBUTIONS = {
    'onedl-mmcv': 'onedl-mmcv',
    'mmcv': 'mmcv',
    'mmcv-lite': 'mmcv',
}
_FLT_MIN = 2.0**-126  # C's FLT_MIN, which the kernel uses for every dtype
_FOCAL_CHUNK = 2**22  # elements at a time, 16 MiB a temporary: the kernel needs no memory at all

_logger = logging.getLogger('mmccd')
_logged = False  # in mmengine's log
_MESSAGE = (
    "mmcv has no compiled operators: nms and roi_align run on torchvision's, sigmoid_focal_loss on "
    f'plain PyTorch (mmccd.compat.mmcv_ops; {ENV_VAR}=off switches this off)'
)

# ---------------------------------------------------------------------------- finding, installing


def install(mode: str | None = None) -> str:
    """Put the stand-in in the place of ``mmcv._ext`` where mmcv has no compiled operators.

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
        >>> mmcv_ops.install() in ('compiled', 'stand-in', 'none', 'no-mmcv')
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
        sys.modules[_EXT] = make_stand_in()
        _logger.info(_MESSAGE)
        state = 'stand-in'
    return state


def in_use() -> str:
    """Which of mmcv's operators this process has.

    Returns:
        ``'compiled'``: mmcv's own, working or not; ``'stand-in'``: this module's; ``'none'``: mmcv
        has none, and nothing stands in for them, switched off or :func:`install` not called yet;
        ``'no-mmcv'``: mmcv is not installed.
    """
    loaded = sys.modules.get(_EXT)
    if loaded is not None:
        return 'stand-in' if isinstance(loaded, _StandIn) else 'compiled'
    mmcv = importlib.util.find_spec('mmcv')
    # Without an origin it is a mere folder of this name.
    if mmcv is None or mmcv.origin is None or mmcv.submodule_search_locations is None:
        return 'no-mmcv'
    # `importlib.util.find_spec('mmcv._ext')` would import mmcv, which takes seconds.
    ext = importlib.machinery.PathFinder.find_spec(_EXT, mmcv.submodule_search_locations)
    return 'none' if ext is None or ext.origin is None else 'compiled'


class _StandIn(ModuleType):
    """Module in which every operator exists: ``import mmcv.ops`` looks all of them up."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith('__') and name.endswith('__'):  # Python and its tools ask, not mmcv
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')

        def unsupported(*args: Any, **kwargs: Any) -> None:
            raise _unsupported(name)

        unsupported.__name__ = unsupported.__qualname__ = name
        return unsupported


class _Loader(importlib.abc.Loader):
    """Loader of the stand-in; mmcv's ``check_ops_exist`` asks for one."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StandIn(spec.name, doc=__doc__)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(_OPERATORS)


def make_stand_in() -> ModuleType:
    """Make the module that :func:`install` puts in the place of ``mmcv._ext``, without doing so."""
    spec = importlib.machinery.ModuleSpec(_EXT, _Loader(), origin=__file__)
    spec.has_location = True  # origin becomes __file__
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ----------------------------------------------------------------------------- errors and the log


def _mmcv_distribution() -> tuple[str, str] | None:
    """Name and version of the distribution that mmcv comes from, None where it has no metadata."""
    for name in _DISTRIBUTIONS:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def build_commands() -> str:
    """Commands that replace the installed mmcv by the same version with compiled operators.

    No option is spare: without ``--no-build-isolation`` the build does not see torch and leaves
    the operators out; without ``--no-cache-dir`` pip takes the wheel without operators that it
    once built, ``--no-binary`` or not. onedl-mmcv's metadata needs setuptools 80; torch, and the
    ``pkg_resources`` in mmcv's setup.py, need less than 82.

    Returns:
        One command a line.
    """
    name, version = _mmcv_distribution() or ('onedl-mmcv', None)
    source = _DISTRIBUTIONS[name]
    requirement = source if version is None else f'{source}=={version}'
    # Both own the folder `mmcv`, so removing the old one afterwards would break the new one.
    remove = '' if name == source else f'pip uninstall -y {name} && '
    variable = '' if source == 'onedl-mmcv' else 'MMCV_WITH_OPS=1 '
    return (
        'pip install "setuptools>=80,<82" wheel packaging\n'
        f'{remove}{variable}pip install --no-build-isolation --no-cache-dir --no-deps '
        f'--force-reinstall --no-binary {source} "{requirement}"'
    )


def _unsupported(operator: str, argument: str | None = None) -> RuntimeError:
    """The error for an operator that the stand-in lacks, or for a value of its argument."""
    what = f'mmcv operator {operator!r}' + ('' if argument is None else f' with {argument}')
    installed = ' '.join(_mmcv_distribution() or ('mmcv',))
    return RuntimeError(
        f'{what} is not available: {installed} was installed without its compiled operators, and '
        f"mmccd's stand-in, which has torchvision's in their place, does not cover this. To build "
        f'the real ones (needs a C++ compiler and some minutes; for a GPU also nvcc, and '
        f'FORCE_CUDA=1 in the environment where the build cannot see the GPU):\n'
        f'{build_commands()}'
    )


def _log_first_use() -> None:
    """Say in the running log that the stand-in is at work.

    The line of :func:`install` comes before any training log exists, on a logger that is silent
    unless somebody configured it, and importing mmengine for its sake would be too heavy. By the
    time an operator first runs, mmengine is loaded, has the log's file open and keeps all ranks
    but the first silent; the workers of a data loader run no operator.
    """
    global _logged  # no functools.cache: torch.compile looks through it, and says so each time
    mmengine_logging = sys.modules.get('mmengine.logging')
    if not _logged and mmengine_logging is not None:
        _logged = True
        mmengine_logging.print_log(_MESSAGE, logger='current', level=logging.INFO)


# --------------------------------- operators, called as the compiled ones: the caller owns outputs

_OPERATORS: dict[str, Callable] = {}


def _operator(function: Callable) -> Callable:
    """Register an operator; as with a compiled one, autograd does not look inside."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        import torch
        import torchvision  # noqa: F401, registers torch.ops.torchvision

        _log_first_use()
        with torch.no_grad():
            return function(*args, **kwargs)

    _OPERATORS[function.__name__] = run
    return run


def _c_float(value: float) -> float:
    """Round as mmcv's C++ does: an overlap of 0.3f is not above its 0.3, but is above Python's."""
    return ctypes.c_float(value).value


@_operator
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Which boxes (N, 4) with scores (N, ) non-maximum suppression keeps: indices, best first."""
    import torch
    import torchvision

    if offset != 0:
        raise _unsupported('nms', f'offset={offset}')
    # In mixed precision mmdet's boxes are float32 and its scores float16; torchvision wants one.
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    return torchvision.ops.nms(boxes.to(dtype), scores.to(dtype), _c_float(iou_threshold))


@_operator
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign of input (N, C, H, W) at rois (K, 5), written to output (K, C, height, width).

    The two argmax tensors belong to max pooling and stay untouched.
    """
    import torch

    _check_pool_mode('roi_align_forward', pool_mode)
    output.copy_(
        torch.ops.torchvision.roi_align(
            input, rois, _c_float(spatial_scale), aligned_height, aligned_width, sampling_ratio, aligned
        )
    )


@_operator
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of RoIAlign, added to grad_input (N, C, H, W) as the compiled kernel does."""
    import torch

    _check_pool_mode('roi_align_backward', pool_mode)
    grad_input.add_(
        torch.ops.torchvision._roi_align_backward(
            grad_output,
            rois,
            _c_float(spatial_scale),
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _check_pool_mode(operator: str, pool_mode: int) -> None:
    if pool_mode != 1:
        raise _unsupported(operator, f'pool_mode={pool_mode} (max)')


@_operator
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of logits (N, C) for labels target (N, ), written to output (N, C).

    With p = sigmoid(x) the element of the target's class is ``-alpha (1 - p)^gamma log p`` and any
    other ``-(1 - alpha) p^gamma log(1 - p)``, logarithms being taken of FLT_MIN at least. Label C
    is the background, for which all C classes are others. weight: empty, or (C, ), whose element
    at the target multiplies the whole row.
    """
    num_classes = input.size(1)
    if target.numel() and int(target.max()) > num_classes:
        raise ValueError(f'target must be at most the number of classes, {num_classes}, got {int(target.max())}')
    _focal_loss(input, target, weight, output, gamma, alpha, gradient=False)


@_operator
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Each element's derivative for its logit, written to grad_input (N, C)."""
    _focal_loss(input, target, weight, grad_input, gamma, alpha, gradient=True)


def _focal_loss(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float, gradient: bool
) -> None:
    """Focal loss or its derivative, some rows at a time.

    The kernel's two branches are one formula in u, the probability given to the truth, and
    v = 1 - u::

        loss = -w v^gamma log u                        w = alpha,     u = p      target's class
        grad = -+ w v^gamma (v - gamma u log u)        w = 1 - alpha, u = 1 - p  any other
    """
    import torch

    num_classes = input.size(1)
    row_weight = None
    if weight.numel():
        if bool(((target < 0) | (target >= num_classes)).any()):
            raise ValueError(
                f'target must be in 0..{num_classes - 1} where a weight is given: it '
                f'has an element for each class, none for the background'
            )
        row_weight = weight[target]  # (N, )
    gamma, alpha = _c_float(gamma), _c_float(alpha)
    classes = torch.arange(num_classes, device=target.device)
    rows = max(1, _FOCAL_CHUNK // max(1, num_classes))
    for start in range(0, input.size(0), rows):
        part = slice(start, start + rows)
        x = input[part]  # (n, C)
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        hit = target[part, None] == classes  # (n, C)
        p = x.sigmoid()
        q = 1 - p  # not 1 - v below: that would round twice
        u, v = torch.where(hit, p, q), torch.where(hit, q, p)
        w = torch.where(hit, x.new_full((), -alpha), x.new_full((), alpha - 1))
        value = u.clamp(min=_FLT_MIN).log_()
        if gradient:
            value = value.mul_(u).mul_(-gamma).add_(v)
            w = torch.where(hit, w, -w)
        value = value.mul_(v.pow_(gamma)).mul_(w)
        if row_weight is not None:
            value *= row_weight[part, None]
        output[part] = value


def get_compiler_version() -> str:
    """What mmcv's environment report prints in the place of a compiler's version."""
    import torchvision

    return f'none (mmccd stand-in over torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """What it prints in the place of CUDA's version."""
    return get_compiler_version()


_OPERATORS.update(get_compiler_version=get_compiler_version, get_compiling_cuda_version=get_compiling_cuda_version)

#: Names of the operators that the stand-in has.
SUPPORTED = tuple(_OPERATORS)
