"""Everything that later steps compile, compiled beforehand in many processes, into the caches of this run.

Kernels of a map of two samples are those of any number of samples.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from typing import NamedTuple

import torch
from bench_op import provider

from gpu import backbones
from gpu.knobs import constants, settings
from gpu.operators import BOTH, COMPILED_DTYPES, FORWARD, calls_of
from gpu.task import Case, Task, cases, first_line, note
from gpu.tuning import DTYPES as TUNED

PROCESSES = 14


class Job(NamedTuple):
    """Something to compile.

    Attributes:
        kind (str): 'triton' (kernels of a case), 'tuning' (kernels of a case with other constants), 'textbook' (of a
            case, by Inductor) or 'network' (a ResNet under torch.compile).
        what (Case | str): The case or the network.
        constants (dict[str, int]): Of the Triton backend, where not its own.
    """

    kind: str
    what: Case | str
    constants: dict[str, int]


def run(task: Task) -> None:
    """Compile in order of importance until time is up; what is missing is compiled where it is used."""
    jobs = planned(task.dry)
    begin = time.perf_counter()
    done: Counter[str] = Counter()
    if task.dry:
        for job in jobs:
            kind, _, failed = compile_job((job, True))
            done[kind] += not failed
            if failed:
                note(failed)
    else:
        workers = max(1, min(PROCESSES, (os.cpu_count() or 2) - 2))
        with multiprocessing.get_context('spawn').Pool(workers) as pool:  # which ends them when it is left
            results = pool.imap_unordered(compile_job, ((job, False) for job in jobs))
            for _ in jobs:
                try:
                    kind, seconds, failed = results.next(timeout=max(0.1, task.left - 1))
                except multiprocessing.TimeoutError:
                    break
                done[kind] += not failed
                print(f'{kind} {seconds:.1f} s {failed}', flush=True)
                if failed:
                    note(failed)
    wanted = Counter(job.kind for job in jobs)
    seconds = time.perf_counter() - begin
    note(f'compiled in {seconds:.0f} s: ' + ', '.join(f'{done[k]} of {n} {k}' for k, n in wanted.items()))


def planned(dry: bool) -> list[Job]:
    """All jobs, the most important first; in a dry run, one of each kind."""
    everything = list(cases(dry))
    jobs = [Job('triton', case, {}) for case in everything]
    jobs += [Job('network', name, {}) for name in backbones.COMPILED]
    jobs += [Job('textbook', case, {}) for case in everything if case.dtype in COMPILED_DTYPES]
    for case in everything:
        if case.dtype in TUNED:
            jobs += [Job('tuning', case, values) for values in settings(case.shape, case.options) if values]
    return list({job.kind: job for job in reversed(jobs)}.values()) if dry else jobs


def compile_job(work: tuple[Job, bool]) -> tuple[str, float, str]:
    """Its kind, the seconds that it took, and what went wrong, if something did."""
    job, dry = work
    begin = time.perf_counter()
    failed = ''
    torch.set_num_threads(1)
    device = torch.device('cpu' if dry else 'cuda')
    try:
        if isinstance(job.what, str):
            backbones.warm_up(job.what, device)
        else:
            with constants(job.constants):
                name = 'compiled' if job.kind == 'textbook' else 'triton'
                _call(name, job.what, device)
    except Exception as e:  # it will fail again where it is measured, and be reported there
        failed = f'{job.kind} {job.what} {job.constants or ""}: {first_line(e)}'
    return job.kind, time.perf_counter() - begin, failed


def _call(name: str, case: Case, device: torch.device) -> None:
    samples = None if name == 'compiled' else 2  # Inductor compiles for the very shape
    x, grad_y = case.tensor(device, samples).requires_grad_(), case.tensor(device, samples)
    function, parameters = provider(name, case.shape[1], device, x.dtype, case.groups)
    calls = calls_of(name, function, parameters, [x], [grad_y])
    for mode in (FORWARD, BOTH):
        calls[name, mode](0)
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
