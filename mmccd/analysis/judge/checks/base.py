"""What checks are made of: their table, differences between tensors, and calls that report what was raised."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..results import Finding
from ..subject import Subject, one_line

# Called with the input that is at work, so that a process that hangs or ends can be told where it was.
Case = Callable[[str], None]


class Check(NamedTuple):
    """A check: its name, what it asks, and the function that answers."""

    name: str
    question: str
    run: Callable[[Subject, Case], Finding]


ENTERED: dict[str, Check] = {}


def check(name: str, question: str) -> Callable[[Callable[[Subject, Case], Finding]], Callable]:
    """Enter a function into the table of checks."""

    def enter(run: Callable[[Subject, Case], Finding]) -> Callable:
        ENTERED[name] = Check(name, question, run)
        return run

    return enter


def attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call returns, and '' or the exception that it raised, in one line."""
    try:
        return call(), ''
    except (Exception, SystemExit) as e:  # of a foreign module: whatever it raises is what is reported
        return None, one_line(e)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest number of ``b``; infinite where only one is finite."""
    a, b = a.detach().double(), b.detach().double()
    if a.shape != b.shape:
        return float('inf')
    if not a.numel():
        return 0.0
    if not (a.isfinite().all() and b.isfinite().all()):
        same = torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
        return 0.0 if same else float('inf')
    scale = b.abs().amax().item()
    gap = (a - b).abs().amax().item()
    return gap / scale if scale > 0 else gap


def with_gradient(module: nn.Module, x: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of the input, which the module may change in place without an exception."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    module.zero_grad(set_to_none=True)
    y = module(leaf * 1)
    upstream = torch.ones_like(y) if upstream is None else upstream
    if y.requires_grad:
        y.backward(upstream)
    return y.detach(), torch.zeros_like(x) if leaf.grad is None else leaf.grad


def trouble(values: dict[str, Tensor]) -> str:
    """Which of some tensors are NaN or infinite: 'NaN in the output', or ''."""
    for name, value in values.items():
        if value.isnan().any():
            return f'NaN in {name}'
        if not value.isfinite().all():
            return f'infinite values in {name}'
    return ''


def shape_of(size: Iterable[int]) -> str:
    """``1 x 9``."""
    return ' x '.join(str(n) for n in size)


def number(value: float) -> str:
    """A figure in a few digits."""
    return f'{value:.3g}'


def is_out_of_memory(text: str) -> bool:
    """Whether an exception says that memory ran out."""
    return 'allocate memory' in text or 'out of memory' in text or text.startswith('MemoryError')


def is_missing_kernel(text: str) -> bool:
    """Whether an exception says that this device lacks an operator for a dtype."""
    return 'not implemented for' in text or ('NotImplementedError' in text and 'dtype' in text)
