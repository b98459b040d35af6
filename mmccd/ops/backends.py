"""Backends of CCD: what a backend is, which there are, and which one a call takes.

Adding one is a file with the functions of :class:`Backend` and a row of :data:`BACKENDS`; the tests cover every row.
Modules are imported when they are first asked for, so nothing here imports numba or Triton, or touches a device.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from .options import Options

Saved = tuple[Tensor, Tensor, Tensor]
# Of x, residual, scale, bias, weight and shift.
Gradients = tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None]


class RunningNorm(NamedTuple):
    """A batch norm with running statistics: (x - mean) / sqrt(variance + eps) * weight + bias.

    All but ``eps`` are (C,), of one floating dtype.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor
    eps: float

    def affine(self) -> tuple[Tensor, Tensor, Tensor]:
        """(weight, shift, 1 / deviation), to the bit what PyTorch's batch norm on the CPU computes with."""
        dtype = compute_dtype(self.weight.dtype)
        weight, bias, mean, variance = (t if t.dtype == dtype else t.to(dtype) for t in self[:4])
        inverse = torch.rsqrt(variance + self.eps)
        factor = inverse * weight
        return factor, torch.addcmul(bias, mean, factor, value=-1), inverse


class Inputs(NamedTuple):
    """The operator's tensors, on one device; checked already.

    Attributes:
        x (Tensor): (N, C, H, W), of any strides, N and C possibly 0, H and W at least 1.
        residual (Tensor | None): Of the shape of ``x``; its dtype and strides may differ.
        scale (Tensor): (groups,), of any floating dtype and strides, like all below.
        bias (Tensor): (groups,).
        weight (Tensor | None): (C,), together with ``shift``: x * weight + shift is what is gated then.
        shift (Tensor | None): (C,).
    """

    x: Tensor
    residual: Tensor | None
    scale: Tensor
    bias: Tensor
    weight: Tensor | None = None
    shift: Tensor | None = None


class Backend(Protocol):
    """What computes :func:`mmccd.ops.ccd`; a module with these functions is one.

    :func:`affine`, :func:`add_relu_` and their gradients are for backends without kernels that do it in the same pass;
    one that has them says so by ``fuses_affine = True``, and residual blocks hand their last norm to it. If it has
    ``reads_norms = True`` as well, its ``forward`` takes another argument, ``norm``, a :class:`RunningNorm` in the
    place of weight and shift, where no gradient is wanted.
    """

    def unavailable(self, x: Tensor, options: Options) -> str | None:
        """Why this cannot run on these tensors and options, for a message; None if it can. Allocates nothing."""

    def forward(self, inputs: Inputs, options: Options, keep: bool, overwrite: bool = False) -> tuple[Tensor, Saved]:
        """Gate x, after the affine where there is one; add and rectify where there is a residual.

        With ``overwrite``, which is never together with ``keep``, nobody reads x afterwards: y may lie in its
        memory.

        Returns:
            tuple: y, with the strides of ``torch.empty_like(x)``, and what backward needs: (context, d, stats), all in
            the computing dtype (:func:`compute_dtype`), without elements if not ``keep``:

            - context (N, C, S, S): mean of the poolings on the finest grid, S = max(scales);
            - d (N, G, H, W): the similarity before normalisation (of the cosine: after the division by the norms); (0,)
              from a backend whose backward computes it again;
            - stats (N, G, 2): z-score: mean and deviation of d; min-max: minimum and range; none: not read. The second
              number is exactly 0 where the map is flat: the decision is taken once, and backward reads it here.
        """

    def backward(
        self, grad_y: Tensor, y: Tensor | None, inputs: Inputs, saved: Saved, options: Options, need_x: bool
    ) -> Gradients:
        """Gradients of x, residual, scale, bias, weight and shift.

        ``grad_y`` has any strides. ``y`` is given where there was a residual, whose gradient then has the dtype and
        strides of ``y``; else it is None. Those of weight and shift are None where these are. With ``need_x=False``
        the gradient of x may be without elements, and those of weight and shift may be anything.
        """


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        module (str): Where the functions are, a dotted path.
        preferred_on (tuple[str, ...]): Device types whose tensors ``impl='auto'`` gives to it.
        self_test (bool): Whether ``'auto'`` tests it first; see :mod:`mmccd.ops.self_test` for what it has besides.
    """

    module: str
    preferred_on: tuple[str, ...] = ()
    self_test: bool = False


BACKENDS = {
    'cpu': Row('mmccd.ops.numba_backend.launch', preferred_on=('cpu',)),
    'torch': Row('mmccd.ops.torch_backend'),  # stock operators, everywhere: what 'auto' falls back to
    # So far it has run in Triton's interpreter alone.
    'triton': Row('mmccd.ops.triton_backend.launch', preferred_on=('cuda',), self_test=True),
}
# A name of the table in this environment variable is what impl='auto' stands for.
ENV_VAR = 'MMCCD_CCD_IMPL'
_reported: set[str] = set()
_logger = logging.getLogger(__name__)


def check_impl(impl: str) -> None:
    """Raise ValueError unless ``impl`` is ``'auto'`` or in the table."""
    if impl != 'auto' and impl not in BACKENDS:
        raise ValueError(f'impl must be one of {("auto", *BACKENDS)}, got {impl!r}')


def wanted_impl(impl: str) -> str:
    """``impl``, or in the place of ``'auto'`` what the environment variable :data:`ENV_VAR` holds.

    Raises:
        ValueError: If that is no name of the table.
    """
    if impl != 'auto':
        return impl
    impl = os.environ.get(ENV_VAR) or 'auto'
    if impl != 'auto' and impl not in BACKENDS:
        raise ValueError(f'the environment variable {ENV_VAR} must be one of {("auto", *BACKENDS)}, got {impl!r}')
    return impl


_load = cache(import_module)


def load(name: str) -> Backend:
    """The backend of a row of the table, imported."""
    return cast(Backend, _load(BACKENDS[name].module))


def choose(impl: str, x: Tensor, options: Options) -> Backend:
    """The backend that runs these tensors and options: a named one, or with ``'auto'`` that of :func:`automatic`.

    Raises:
        ValueError: If a named one cannot run, with the reason.
    """
    impl = wanted_impl(impl)
    if impl == 'auto':
        return _automatic(x, options)[1]
    backend = load(impl)
    reason = backend.unavailable(x, options)
    if reason is not None:
        raise ValueError(f'impl={impl!r} cannot run here: {reason}')
    return backend


def automatic(x: Tensor, options: Options) -> str:
    """Name of the backend that ``impl='auto'`` takes: of :data:`ENV_VAR`, or preferred on the device of ``x``.

    If the preferred one cannot run, it is stock operators, and a warning is logged, once in a process.
    """
    impl = wanted_impl('auto')
    return impl if impl != 'auto' else _automatic(x, options)[0]


@cache
def _self_tested(name: str) -> Backend:
    """A backend that is tested before it is taken, once in a process."""
    from .self_test import self_tested

    return self_tested(name, load(name), load('torch'))


def report_once(key: str, problem: str) -> None:
    """Log a warning that stock operators run, the first time with this key in a process."""
    if key not in _reported:
        _reported.add(key)
        _logger.warning("ccd: impl='auto' runs stock operators, since %s", problem)


def fuses_affine(x: Tensor, options: Options) -> bool:
    """Whether the backend that ``impl='auto'`` takes normalises in its own pass."""
    return getattr(load(automatic(x, options)), 'fuses_affine', False)


def _automatic(x: Tensor, options: Options) -> tuple[str, Backend]:
    for name, row in BACKENDS.items():
        if x.device.type in row.preferred_on:
            backend = _self_tested(name) if row.self_test else load(name)
            reason = backend.unavailable(x, options)
            if reason is None:
                return name, backend
            report_once(name, f'{name!r} cannot run: {reason}')
    return 'torch', load('torch')


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of sums: float32 for half precision, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def affine(x: Tensor, weight: Tensor | None, shift: Tensor | None) -> Tensor:
    """x * weight + shift, one number a channel, of the dtype of ``x``; ``x`` itself without them.

    Computed in the computing dtype and, where the processor can, rounded once, as PyTorch's own batch norm does.
    """
    if weight is None or shift is None:
        return x
    dtype = compute_dtype(x.dtype)
    factor, offset = (t.to(dtype).view(1, -1, 1, 1) for t in (weight, shift))
    return torch.addcmul(offset, x.to(dtype), factor).to(x.dtype)


def add_relu_(y: Tensor, residual: Tensor | None) -> Tensor:
    """relu(y + residual) in the memory of ``y``; ``y`` itself without a residual."""
    return y if residual is None else y.add_(residual).relu_()


def relu_gradient(grad_y: Tensor, y: Tensor) -> Tensor:
    """Gradient of what ``y`` is the relu of, with the strides of ``y``: ``grad_y`` where y is above 0, or NaN."""
    return torch.ops.aten.threshold_backward.grad_input(grad_y, y, 0, grad_input=torch.empty_like(y))


# Of grad_y (N, C, H, W), x, scale, bias, what was saved, options, need_x: the gradients of x, scale and bias.
CoreBackward = Callable[[Tensor, Tensor, Tensor, Tensor, Saved, Options, bool], tuple[Tensor, Tensor, Tensor]]


def with_affine_and_residual(core: CoreBackward) -> Callable[..., Gradients]:
    """:meth:`Backend.backward` of a backend that has :func:`affine` and :func:`add_relu_` around its forward.

    Args:
        core (Callable): The gradients of the gate alone, of at least one element.
    """

    @wraps(core)
    def backward(
        grad_y: Tensor, y: Tensor | None, inputs: Inputs, saved: Saved, options: Options, need_x: bool
    ) -> Gradients:
        """See :class:`mmccd.ops.backends.Backend`."""
        x, _, scale, bias, weight, shift = inputs
        grad_residual = None
        if y is not None:
            grad_y = grad_residual = relu_gradient(grad_y, y)
        if x.numel() == 0:
            no_weight, no_shift = (None if t is None else torch.zeros_like(t) for t in (weight, shift))
            grads = torch.empty_like(x), grad_residual, torch.zeros_like(scale), torch.zeros_like(bias)
            return *grads, no_weight, no_shift
        z = affine(x, weight, shift)
        need_z = need_x or z is not x
        grad_z, grad_scale, grad_bias = core(grad_y, z, scale, bias, saved, options, need_z)
        if weight is None or shift is None:
            return grad_z, grad_residual, grad_scale, grad_bias, None, None
        grad_z = grad_z.to(compute_dtype(x.dtype))
        grad_x = (grad_z * weight.to(grad_z.dtype).view(1, -1, 1, 1)).to(x.dtype)
        grad_weight = (grad_z.double() * x).sum((0, 2, 3)).to(weight.dtype)
        grad_shift = grad_z.sum((0, 2, 3), dtype=torch.float64).to(shift.dtype)
        return grad_x, grad_residual, grad_scale, grad_bias, grad_weight, grad_shift

    return backward
