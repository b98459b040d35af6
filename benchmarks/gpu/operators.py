"""The operator: GPU time, host time, memory and errors of every provider, at every shape, dtype and layout.

``reference`` is the textbook composition of stock operators, ``compiled`` the same under torch.compile, ``copy`` is
``x.clone()``, which no gate can beat.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from bench_op import kept_bytes, peak_bytes, provider
from common import write

from gpu.clock import gpu_times, host_time, inputs_for_cold_cache
from gpu.knobs import way
from gpu.task import Case, Task, cases, first_line, note
from mmccd.ops import ccd_reference

PROVIDERS = ('copy', 'triton', 'torch', 'reference', 'compiled', 'SE')
COMPILED_DTYPES = ('float16', 'float32')  # of 'compiled', a second or two of PyTorch's Python each
CHECKED = ('triton', 'torch')
FORWARD, BOTH = 'forward', 'forward+backward'
Calls = dict[tuple[str, str], Callable[[int], object]]


def run(task: Task) -> None:
    """Measure case by case; writes ``op.csv`` after each."""
    torch.manual_seed(0)
    rows: list[dict] = []
    longest, planned = 0.0, list(cases(task.dry))
    for i, case in enumerate(planned):
        if task.left < 1.2 * longest:
            left_out = planned[i:]
            note(f'not measured, no time left: {len(left_out)} of {len(planned)} cases, {left_out[0]} and later ones')
            break
        begin = time.perf_counter()
        rows += measure(case, task)
        write(rows, task.out / 'op.csv')
        longest = max(longest, time.perf_counter() - begin)
    if not rows:
        note('nothing was measured')


def measure(case: Case, task: Task) -> list[dict]:
    """Rows of one case."""
    device, count = task.device, inputs_for_cold_cache(case.bytes, task.device)
    names = [name for name in PROVIDERS if name != 'compiled' or case.dtype in COMPILED_DTYPES]
    made = {name: provider(name, case.shape[1], device, _dtype(case), case.groups) for name in names}
    xs = [case.tensor(device).requires_grad_() for _ in range(count)]
    grad_ys = [case.tensor(device) for _ in range(count)]
    calls: Calls = {}
    failed: dict[str, str] = {}
    for name, (function, parameters) in made.items():
        mine = calls_of(name, function, parameters, xs, grad_ys)
        try:
            for call in mine.values():
                call(0)  # compiles
            calls.update(mine)
        except Exception as e:  # whatever one provider has, the others are measured
            failed[name] = first_line(e)
            note(f'{case}: {name} failed: {failed[name]}')
    timed = {} if task.dry else gpu_times(calls, device)
    hosts = {} if task.dry else host_times(case, device, list(failed))
    rows = []
    for name, mode in calls:
        row = _row(case, name, mode)
        if timed:
            p20, p50, p80, clock = timed[name, mode]
            row.update(gpu_us=p50, gpu_us_p20=p20, gpu_us_p80=p80, gpu_clock=clock, host_us=hosts.get((name, mode), ''))
        if mode == BOTH:
            function, parameters = made[name]
            if name != 'compiled':  # which the hooks that look on would have compiled again
                row['kept_of_x'] = round(kept_bytes(function, parameters, xs[0]) / case.bytes, 3)
            row['peak_bytes'] = peak_bytes(function, grad_ys[0], xs[0])
            if name in CHECKED:
                row['error_of_allowed'] = round(error_of_allowed(case, *made[name]), 3)
        rows.append({**row, **task.where()})
    rows += [{**_row(case, name, BOTH), **task.where(), 'failed': why} for name, why in failed.items()]
    _print(case, rows)
    return rows


def _dtype(case: Case) -> torch.dtype:
    return getattr(torch, case.dtype)


def calls_of(name: str, function: Callable, parameters: list, xs: list, grad_ys: list) -> Calls:
    """The functions that are timed: they take the number of a call, which chooses the input."""

    def forward(i: int) -> object:
        with torch.no_grad():
            return function(xs[i % len(xs)])

    def both(i: int) -> object:
        x = xs[i % len(xs)]
        return torch.autograd.grad(function(x), (x, *parameters), grad_ys[i % len(xs)])

    return {(name, FORWARD): forward} if name == 'copy' else {(name, FORWARD): forward, (name, BOTH): both}


def host_times(case: Case, device: torch.device, failed: list[str]) -> dict[tuple[str, str], float]:
    """Host time in microseconds.

    Not of ``compiled``, which would be compiled again for the small input; nor in bfloat16, where Python does what it
    does in float16.
    """
    if case.dtype == 'bfloat16':
        return {}
    small = case.small()
    x, grad_y = small.tensor(device).requires_grad_(), small.tensor(device)
    result = {}
    for name in PROVIDERS:
        if name != 'compiled' and name not in failed:
            function, parameters = provider(name, small.shape[1], device, _dtype(case), small.groups)
            for key, call in calls_of(name, function, parameters, [x], [grad_y]).items():
                result[key] = host_time(call, device)
    return result


def error_of_allowed(case: Case, function: Callable, parameters: list[torch.Tensor]) -> float:
    """Largest error of y and of x's gradient, of what is allowed: twice the textbook's and two units of the last place.

    Against float64, on two samples, which know nothing of the others.
    """
    scale, bias = parameters
    device = scale.device
    x, grad_y = (case.tensor(device, 2) for _ in range(2))

    def both(f: Callable, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        z = x.to(dtype).detach().requires_grad_()
        y = f(z)
        return y.detach().double(), torch.autograd.grad(y, z, grad_y.to(dtype))[0].double()

    def textbook(z: torch.Tensor) -> torch.Tensor:
        return ccd_reference(z, scale, bias, *case.options)

    worst = 0.0
    eps = torch.finfo(x.dtype).eps
    for got, usual, exact in zip(both(function, x.dtype), both(textbook, x.dtype), both(textbook, torch.float64)):
        allowed = 2 * (usual - exact).abs().max() + 2 * eps * exact.abs().max()
        error = ((got - exact).abs().max() / allowed).item()
        worst = max(worst, error if error == error else float('inf'))
    return worst


def _row(case: Case, name: str, mode: str) -> dict:
    """One measurement, without its numbers."""
    empty = ('gpu_us', 'gpu_us_p20', 'gpu_us_p80', 'gpu_clock', 'host_us', 'kept_of_x', 'peak_bytes')
    return {
        **case.columns(),
        'way': way(case.shape, case.options),
        'provider': name,
        'mode': mode,
        **dict.fromkeys((*empty, 'error_of_allowed', 'failed'), ''),
    }


def _print(case: Case, rows: list[dict]) -> None:
    times = ', '.join(f'{r["provider"]} {r["gpu_us"]}' for r in rows if r['mode'] == BOTH)
    print(f'{case}: us forward+backward: {times}', flush=True)
