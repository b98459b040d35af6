"""Python's share of CCD: a layer on a tiny map, straight through autograd and as the custom operator.

Examples:
    python benchmarks/bench_overhead.py

The two take turns, call by call. What a call does is so little that nearly all of the time is Python and PyTorch's
own bookkeeping: the difference is what ``mmccd.ops.library.Direct`` saves a layer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import device_name, interleaved, percentiles

from mmccd.models import CCD
from mmccd.ops import functional


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=int, default=2000, help='timed runs of each')
    return parser.parse_args()


def as_operator(function: Callable[[], object]) -> Callable[[], object]:
    """The same call as if something listened to operators."""

    def call() -> None:
        functional.is_eager, before = lambda *_: False, functional.is_eager
        function()
        functional.is_eager = before

    return call


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    layer = CCD(8, groups=4)
    x, residual = torch.randn(2, 1, 8, 4, 4)
    x.requires_grad_()

    def forward(*r: torch.Tensor) -> None:
        with torch.no_grad():
            layer(x, *r)

    def step(*r: torch.Tensor) -> None:
        torch.autograd.grad(layer(x, *r), (x, layer.scale, layer.bias), residual)

    for mode, function in (('forward', forward), ('forward+backward', step)):
        for name, more in (('', ()), ('residual', (residual,))):
            direct = lambda function=function, more=more: function(*more)  # noqa: E731
            times = interleaved({'direct': direct, 'operator': as_operator(direct)}, torch.device('cpu'), args.runs, 50)
            ms = {key: percentiles(t)['ms_p50'] for key, t in times.items()}
            print(
                f'{mode:17} {name:9} direct {ms["direct"]:.4f} ms  operator {ms["operator"]:.4f} ms  '
                f'difference {ms["operator"] - ms["direct"]:.4f} ms'
            )
    print(f'{device_name(torch.device("cpu"))}, 1 thread, PyTorch {torch.__version__}')


if __name__ == '__main__':
    main()
