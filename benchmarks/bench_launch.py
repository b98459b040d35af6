"""Host time of CCD's Triton backend: Python and PyTorch around the kernels, which are not launched.

Examples:
    python benchmarks/bench_launch.py

No GPU is needed: tensors are on the CPU, and in the place of Triton's compiler and launcher is a function that does
nothing. What is left is what a layer costs the thread that launches: checks, the choice of a backend, autograd,
allocation, looking up the launch, and the sums of the gradients.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import contextmanager
from unittest import mock

import torch
from common import device_name, interleaved, percentiles

from mmccd.models import CCD
from mmccd.ops import backends, self_test
from mmccd.ops.triton_backend import launch, launches

SHAPES = {'whole': (1, 256, 14, 14), 'split': (1, 256, 60, 84)}
LAYERS = 16


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=int, default=200, help='timed runs of each')
    return parser.parse_args()


@contextmanager
def nothing_launched() -> object:
    """Triton's kernels on tensors of the CPU, chosen as on a GPU, compiled and run by nobody."""

    class Kernel:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *_: None

    class Function:
        def __init__(self, function: object) -> None:
            self.arg_names = function.arg_names

        def __getitem__(self, grid: object) -> Callable[..., Kernel]:
            return lambda *_, **__: Kernel()

    real = launches.Launch.__init__
    row = backends.BACKENDS['triton']._replace(preferred_on=('cpu',))
    with (
        mock.patch.object(launches.Launch, '__init__', lambda self, kernel, *a: real(self, Function(kernel), *a)),
        mock.patch.object(launch, 'unavailable', lambda x, options: None),
        mock.patch.object(self_test, 'fault', lambda *_: None),
        mock.patch.dict(backends.BACKENDS, {'cpu': backends.BACKENDS['torch'], 'triton': row}),
    ):
        yield


def chain(shape: tuple[int, ...], fused: bool) -> tuple[Callable[[], object], Callable[[], object]]:
    """Forward without gradients, and forward and backward, of as many layers in a row as ResNet-50 has."""
    layers = [CCD(shape[1]) for _ in range(LAYERS)]
    x, residual, grad = (torch.empty(shape, dtype=torch.float16) for _ in range(3))
    affine = torch.ones(2, shape[1]).unbind() if fused else ()
    wanted = [x, *affine, *(p for layer in layers for p in (layer.scale, layer.bias))]
    for t in wanted:
        t.requires_grad_()

    def run() -> torch.Tensor:
        y = x
        for layer in layers:
            y = layer(y, residual, *affine) if fused else layer(y)
        return y

    def forward() -> None:
        with torch.no_grad():
            run()

    return forward, lambda: torch.autograd.grad(run(), wanted, grad)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    functions = {}
    for kind, shape in SHAPES.items():
        for fused in (False, True):
            for name, function in zip(('forward', 'forward+backward'), chain(shape, fused)):
                functions[kind, 'affine and residual' if fused else 'alone', name] = function
    with nothing_launched():
        times = interleaved(functions, torch.device('cpu'), args.runs, 20)
    for key, values in times.items():
        p = {q: ms / LAYERS for q, ms in percentiles(values).items()}
        print(f'{key[0]:6} {key[1]:20} {key[2]:17} {p["ms_p50"]:.4f} ms  ({p["ms_p20"]:.4f} to {p["ms_p80"]:.4f})')
    print(f'{device_name(torch.device("cpu"))}, 1 thread, PyTorch {torch.__version__}; a layer, of {LAYERS}')


if __name__ == '__main__':
    main()
