"""Other constants of the Triton backend: time of forward + backward with each, at every shape, in two dtypes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence

import torch
from bench_op import provider

from gpu.clock import Prepared, in_turns, inputs_for_cold_cache, prepare
from gpu.knobs import PRODUCTS, constants, missing, settings, way
from gpu.operators import BOTH, calls_of
from gpu.task import Case, Task, cases, first_line, note, save_json

DTYPES = ('float16', 'float32')


def run(task: Task) -> None:
    """Measure case by case; writes ``tuning.json`` after each."""
    torch.manual_seed(0)
    absent = missing()
    if absent:
        note(f'not tuned, since plan.py of the Triton backend has no such constant: {", ".join(absent)}')
    planned = list(cases(task.dry, DTYPES[:1] if task.dry else DTYPES))
    results: list[dict] = []
    longest = 0.0
    for i, case in enumerate(planned):
        if task.left < 1.2 * longest:
            note(f'not tuned, no time left: {len(planned) - i} of {len(planned)} cases, {case} and later ones')
            break
        begin = time.perf_counter()
        results.append({**case.columns(), 'settings': tune(case, task)})
        content = dict(
            tried=[{k: v for k, v in product.items() if k not in absent} for product in PRODUCTS],
            missing=absent,
            timed=not task.dry,
            overall=overall(results),
            cases=results,
            **task.where(),
        )
        save_json(content, task.out / 'tuning.json')
        longest = max(longest, time.perf_counter() - begin)


def tune(case: Case, task: Task) -> list[dict]:
    """Microseconds of every setting, the fastest first; None in a dry run and where a setting does not run."""
    device = task.device
    count = inputs_for_cold_cache(case.bytes, device)
    xs = [case.tensor(device).requires_grad_() for _ in range(count)]
    grad_ys = [case.tensor(device) for _ in range(count)]
    function, parameters = provider('triton', case.shape[1], device, xs[0].dtype, case.groups)
    both = calls_of('triton', function, parameters, xs, grad_ys)['triton', BOTH]
    rows: list[dict] = []
    prepared: dict[int, Prepared] = {}
    for values in settings(case.shape, case.options)[: 2 if task.dry else None]:
        with constants(values):
            row = dict(setting=values, way=way(case.shape, case.options), us=None)
            try:
                both(0)
                if not task.dry:
                    prepared[len(rows)] = prepare(both, device)
            except Exception as e:  # more than this card has, say; the others are tried
                row['failed'] = first_line(e)
        rows.append(row)
    # In turns and outside of the constants: a graph has its kernels, but single calls would run others.
    captured = {i: p for i, p in prepared.items() if p.count}
    for i, time_ in (in_turns(captured, device) if captured else {}).items():
        rows[i]['us'] = time_.p50
    for i in prepared.keys() - captured.keys():
        rows[i]['failed'] = 'cannot be captured in a CUDA graph'
    return sorted(rows, key=lambda row: math.inf if row['us'] is None else row['us'])


def overall(results: Iterable[dict]) -> list[dict]:
    """Settings by their time in times of the constants as they are, the geometric mean over the cases that have both.

    Args:
        results (Iterable[dict]): Cases with ``settings``, rows of ``setting`` and ``us``.
    """
    ratios: dict[str, list[float]] = {}
    for case in results:
        times = {json.dumps(row['setting'], sort_keys=True): row['us'] for row in case['settings']}
        now = times.get('{}')
        for key, us in times.items():
            if now is not None and us is not None:
                ratios.setdefault(key, []).append(us / now)
    means = [
        dict(setting=json.loads(key), cases=len(r), of_now=round(geometric_mean(r), 4)) for key, r in ratios.items()
    ]
    return sorted(means, key=lambda row: row['of_now'])


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
