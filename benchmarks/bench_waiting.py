"""A training step beside another busy process, by what OpenMP's threads do while they wait.

Examples:
    python benchmarks/bench_waiting.py
    python benchmarks/bench_waiting.py --policies default passive --steps 5 --rounds 2 --out /tmp/waiting.csv

The step is that of a CCD-ResNet-50 without its optimizer, on as many threads as there are cores, alone and beside one
process that never waits. OpenMP reads its policy when PyTorch is loaded, so that each measurement is a process of its
own; all policies take turns. Rows of results/waiting_cpu.csv; ``ms_p50`` is the median of all rounds' steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

VARIABLES = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')
POLICIES = {
    'default': {},
    'passive': dict(OMP_WAIT_POLICY='passive'),
    'active': dict(OMP_WAIT_POLICY='active'),
    'spin1000': dict(GOMP_SPINCOUNT='1000'),
    'spin10000': dict(GOMP_SPINCOUNT='10000'),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--policies', nargs='+', choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)), help='default: one a core')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224, help='pixels a side')
    parser.add_argument('--rounds', type=int, default=3, help='processes of each policy; default: 3')
    parser.add_argument('--steps', type=int, default=10, help='timed steps of a process; default: 10')
    parser.add_argument('--out', type=Path, help='default: results/waiting_cpu.csv')
    parser.add_argument('--measure', action='store_true', help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(args: argparse.Namespace) -> list[float]:
    """Milliseconds of each step, in this process."""
    import torch

    from mmccd.env import keep_freed_memory
    from mmccd.models import AttentionResNet

    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    net = AttentionResNet(50, attention=dict(type='mmccd.CCD'), out_indices=(3,), norm_eval=False).train()
    images = torch.randn(args.batch, 3, args.size, args.size)
    times = []
    for _ in range(2 + args.steps):  # two to compile and to warm up
        begin = time.perf_counter()
        net(images)[0].mean().backward()
        net.zero_grad()
        times.append(1e3 * (time.perf_counter() - begin))
    return times[2:]


@contextmanager
def busy_process(wanted: bool):
    """A process that computes all the time, or none."""
    process = subprocess.Popen([sys.executable, '-c', 'while True: pass']) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def in_a_process(policy: str) -> list[float]:
    """:func:`measure` in a process with this policy, and the options of this one."""
    env = {k: v for k, v in os.environ.items() if k not in VARIABLES} | POLICIES[policy]
    command = [sys.executable, __file__, *sys.argv[1:], '--measure']
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    args = parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    times: dict[tuple[str, bool], list[float]] = {(p, busy): [] for busy in (False, True) for p in args.policies}
    for _ in range(args.rounds):
        for policy, busy in times:
            with busy_process(busy):
                times[policy, busy] += in_a_process(policy)

    import torch
    from common import RESULTS, environment, percentiles, write

    where = environment(torch.device('cpu'), argparse.Namespace(allocator='kept')) | dict(threads=args.threads)
    alone = {p: percentiles(times[p, False])['ms_p50'] for p in args.policies}
    rows = []
    for (policy, busy), of_policy in times.items():
        ms = percentiles(of_policy)
        rows.append(
            dict(
                policy=policy,
                busy_processes=int(busy),
                **ms,
                of_alone=round(ms['ms_p50'] / alone[policy], 3),
                of_default=round(ms['ms_p50'] / percentiles(times['default', busy])['ms_p50'], 3)
                if 'default' in args.policies
                else '',
                batch=args.batch,
                size=args.size,
                runs=len(of_policy),
                **where,
            )
        )
        print(
            '{policy:10} {busy_processes} busy {ms_p50:9.1f} ms ({ms_p20:.1f} to {ms_p80:.1f})  '
            'of alone {of_alone}  of default {of_default}'.format(**rows[-1])
        )
    write(rows, args.out or RESULTS / 'waiting_cpu.csv')


if __name__ == '__main__':
    main()
