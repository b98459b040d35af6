"""A backend that ``impl='auto'`` takes only once it has shown that it is right here, on this card and these versions.

At the first call of a process with a dtype and a kind of kernels, two small problems are computed and compared with the
definition. Nothing is timed, so that what is chosen does not change from run to run; ranks may choose differently, for
a choice has no part in what they exchange.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from .backends import Backend, Gradients, Inputs, Saved, report_once
from .library import is_eager, without_autocast
from .options import Options
from .reference import ccd_reference

# Sizes that are tried: of each kind, the first and the last.
SIZES = ((7, 7), (14, 14), (28, 28), (56, 56), (13, 21), (25, 42), (50, 84), (100, 168))
# Largest error, as a share of the largest number: wrong results are off by far more, right ones by far less.
TOLERANCE = {torch.float16: 0.02, torch.bfloat16: 0.1, torch.float32: 1e-3, torch.float64: 1e-6}


class Tested(Backend, Protocol):
    """What a backend has besides, to be tested."""

    def kind(self, x: Tensor, options: Options) -> str:
        """Name of the kernels that these tensors and options take."""

    def errors(self) -> tuple[type[Exception], ...]:
        """What is raised where a kernel cannot be compiled, or takes more than the card has."""


def fault(backend: Backend, x: Tensor, device: torch.device, options: Options) -> str | None:
    """What is wrong with a backend's results or gradients on a device, in words; None if nothing is.

    Args:
        x (Tensor): Of the shape, dtype and memory layout that are tried; its numbers and device are not looked at.

    Raises:
        Exception: Whatever the backend raises.
    """
    rng = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device='cpu', dtype=torch.float64)

    channels = x.shape[1]
    here: Any = dict(device=device, dtype=x.dtype)
    if x.stride(1) == 1:
        here['memory_format'] = torch.channels_last
    z, grad_y = (numbers(*x.shape).to(**here) for _ in range(2))
    # Far from the corner of the ReLU, where a rounding would decide.
    residual = (20 * numbers(*x.shape).sign()).to(**here)
    scale, bias = (numbers(options.groups).float().to(device) for _ in range(2))
    weight, shift = (numbers(channels).float().to(device) for _ in range(2))
    y, saved = backend.forward(Inputs(z, residual, scale, bias, weight, shift), options, True)
    got = y, *backend.backward(grad_y, y, Inputs(z, None, scale, bias, weight, shift), saved, options, True)

    with torch.inference_mode(False), torch.enable_grad():
        tensors = z, residual, scale, bias, weight, shift
        exact = [t.detach().to('cpu', torch.float64).requires_grad_() for t in tensors]
        factor, offset = (t.view(1, -1, 1, 1) for t in exact[4:])
        gated = ccd_reference(exact[0] * factor + offset, exact[2], exact[3], *options)
        wanted = torch.relu(gated + exact[1])
        expected = wanted.detach(), *torch.autograd.grad(wanted, exact, grad_y.to('cpu', torch.float64))
    names = 'y', *(f'the gradient of {name}' for name in Inputs._fields)
    for name, a, b in zip(names, got, expected):
        if a is None:
            return f'{name} is missing'
        error, size = (a.to('cpu', torch.float64) - b).abs().max().item(), b.abs().max().item()
        if not error <= TOLERANCE[x.dtype] * size:  # or NaN
            return f'{name} is off by {error:.1e}, of {size:.1e} at most, for {tuple(x.shape)} in {x.dtype}'
    return None


class SelfTested:
    """A backend, and another one where it fails.

    Args:
        name (str): Of the backend, for messages.
        backend (Tested): What is tested.
        fallback (Backend): What runs in its place.
    """

    def __init__(self, name: str, backend: Tested, fallback: Backend) -> None:
        self.name, self.backend, self.fallback = name, backend, fallback
        self.fuses_affine = getattr(backend, 'fuses_affine', False)
        self._lock = Lock()
        self._faults: dict[tuple[torch.dtype, str], str | None] = {}
        # What has been found good, and what failed at a call.
        self._good: set[tuple] = set()
        self._failed: set[tuple] = set()

    def unavailable(self, x: Tensor, options: Options) -> str | None:
        """Why the backend cannot run, or what its self-test found. Tests at the first call of each kind."""
        key = x.shape, x.stride(), x.dtype, x.device.type, options
        if key in self._good:
            return None
        reason = self.backend.unavailable(x, options)
        # Where something listens, the operator asks again, with plain tensors.
        if reason is not None or not is_eager(x) or x.numel() == 0:
            return reason
        reason = self._fault(x, options)
        if reason is None:
            if len(self._good) >= 4096:
                self._good.clear()
            self._good.add(key)
        return reason

    def _fault(self, x: Tensor, options: Options) -> str | None:
        kind = self.backend.kind(x, options)
        with self._lock:
            if (x.dtype, kind) not in self._faults:
                if x.is_cuda and torch.cuda.is_current_stream_capturing():
                    return 'its self-test cannot be captured in a CUDA graph: call it once before'
                self._faults[x.dtype, kind] = self._test(x, options, kind)
            return self._faults[x.dtype, kind]

    def _test(self, x: Tensor, options: Options, kind: str) -> str | None:
        per_group, groups = max(1, x.shape[1] // options.groups), min(2, options.groups)
        options = options._replace(groups=groups)
        memory_format = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
        shapes = [(1, groups * per_group, *size) for size in SIZES]
        all_sizes = [torch.empty(s, dtype=x.dtype, device='meta', memory_format=memory_format) for s in shapes]
        of_kind = [t for t in all_sizes if self.backend.kind(t, options) == kind] or [x[:1, : groups * per_group]]
        try:
            for like in of_kind[:1] + of_kind[1:][-1:]:
                with without_autocast(x):
                    reason = fault(self.backend, like, x.device, options)
                if reason is not None:
                    return f'its self-test of {kind} maps failed: {reason}'
        except Exception as e:  # whatever it is, the caller asked for a result and not for this backend
            return f'its self-test of {kind} maps raised {type(e).__name__}: {e}'
        return None

    def forward(self, inputs: Inputs, options: Options, keep: bool, overwrite: bool = False) -> tuple[Tensor, Saved]:
        """See :class:`mmccd.ops.backends.Backend`."""
        if not self._failed or self._call(inputs.x, options) not in self._failed:
            try:
                return self.backend.forward(inputs, options, keep, overwrite)
            except self.backend.errors() as e:
                self._fall_back(inputs.x, options, e)
        return self.fallback.forward(inputs, options, keep, overwrite)

    def backward(
        self, grad_y: Tensor, y: Tensor | None, inputs: Inputs, saved: Saved, options: Options, need_x: bool
    ) -> Gradients:
        """See :class:`mmccd.ops.backends.Backend`."""
        if not self._failed or self._call(inputs.x, options) not in self._failed:
            try:
                return self.backend.backward(grad_y, y, inputs, saved, options, need_x)
            except self.backend.errors() as e:
                self._fall_back(inputs.x, options, e)
        # The other one may have run forward, and not kept what this one reads.
        saved = self.fallback.forward(inputs, options, True)[1]
        return self.fallback.backward(grad_y, y, inputs, saved, options, need_x)

    @staticmethod
    def _call(x: Tensor, options: Options) -> tuple:
        return x.shape[1:], x.dtype, options

    def _fall_back(self, x: Tensor, options: Options, error: Exception) -> None:
        self._failed.add(self._call(x, options))
        report_once(f'{self.name} at a call', f'{self.name!r} failed at {tuple(x.shape)}: {error}')


def self_tested(name: str, backend: Backend, fallback: Backend) -> SelfTested:
    """A backend of the table, which has what :class:`Tested` asks for, behind the test."""
    return SelfTested(name, cast(Tested, backend), fallback)
