"""Time and memory of the CCD operator and of the other gates: providers x modes x the shapes of ResNet-50's stages.

Examples:
    python benchmarks/bench_op.py
    python benchmarks/bench_op.py --size 800x1344 --layout channels_last
    python benchmarks/bench_op.py --device cuda --dtype float16 --size 224 --batch 64

Each run takes every provider in turn; ratios are of medians within the one run. ``copy`` is ``x.clone()``; the
gradient that backward gets is made outside the timed region. Rows ``sum`` add the stages, each as often as ResNet-50
has layers of it. Providers ``SE``, ``GE``, ``CBAM`` and ``GC`` are the layers that CCD is compared with;
``compiled`` is the reference under ``torch.compile``, compiled once a shape. On a GPU times are of kernels, with a cold
L2 cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from common import RESULTS, add_allocator, environment, interleaved, percentiles, use_allocator, write

from mmccd.ops import ccd, ccd_reference
from mmccd.ops.backends import BACKENDS

GATES = ('SE', 'GE', 'CBAM', 'GC')
GROUPS = 64
STAGES = [(256, 4, 3), (512, 8, 4), (1024, 16, 6), (2048, 32, 3)]  # channels, stride, layers of ResNet-50
SIZES = {'224': (224, 224, 8), '800x1344': (800, 1344, 1)}  # height, width, batch


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', nargs='+', choices=list(SIZES), default=list(SIZES), help='images')
    parser.add_argument('--batch', type=int, help='images at once; default: 8 at 224, 1 at 800x1344')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', choices=['float32', 'float64', 'float16', 'bfloat16'], default='float32')
    parser.add_argument('--layout', choices=['contiguous', 'channels_last'], default='contiguous')
    parser.add_argument(
        '--providers',
        nargs='+',
        choices=['reference', 'compiled', *BACKENDS, *GATES],
        help='default: reference, torch, the kernels of the device, the other gates; on a GPU compiled, too',
    )
    add_allocator(parser)
    parser.add_argument('--runs', type=int, default=20, help='timed runs of each, at least 20 for results to keep')
    parser.add_argument('--out', type=Path, help='default: results/op_<device>_<dtype>_<layout>[_...].csv')
    return parser.parse_args()


def provider(
    name: str, channels: int, device: torch.device, dtype: torch.dtype, groups: int = GROUPS
) -> tuple[Callable, list[torch.Tensor]]:
    """Function of x, and its parameters."""
    if name == 'copy':
        return torch.clone, []
    if name in GATES:
        from mmccd import models  # here, since it takes seconds and the other providers do without

        layer = getattr(models, name)(channels).to(device, dtype)
        return layer, list(layer.parameters())
    scale, bias = (torch.randn(groups, device=device, requires_grad=True) for _ in range(2))
    if name == 'reference':
        return lambda x: ccd_reference(x, scale, bias, groups), [scale, bias]
    if name == 'compiled':
        torch._dynamo.reset()  # beyond 8 compilations of a function it would run as it is, without a word
        compiled = torch.compile(ccd_reference, dynamic=False)
        return lambda x: compiled(x, scale, bias, groups), [scale, bias]
    return lambda x: ccd(x, scale, bias, groups, impl=name), [scale, bias]


def kept_bytes(function: Callable, parameters: list[torch.Tensor], x: torch.Tensor) -> int:
    """Memory kept for backward besides x and the parameters."""
    kept = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function(x)
    for t in (x, *parameters):
        kept.pop(t.untyped_storage().data_ptr(), None)
    del y
    return sum(kept.values())


def peak_bytes(function: Callable, grad_y: torch.Tensor, x: torch.Tensor) -> int | str:
    """Most memory in use during forward and backward besides what was there; CUDA only."""
    if not x.is_cuda:
        return ''
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.grad(function(x), x, grad_y)
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    args = parse_args()
    use_allocator(args)
    torch.manual_seed(0)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    memory_format = torch.channels_last if args.layout == 'channels_last' else torch.contiguous_format
    kernels = ['compiled', 'triton'] if device.type == 'cuda' else ['cpu']
    names = args.providers or ['reference', 'torch', *kernels, *GATES]
    rows = []
    for size in args.size:
        height, width, batch = SIZES[size]
        batch = args.batch or batch
        sums: dict[tuple, list[float]] = {}
        for channels, stride, layers in STAGES:
            shape = (batch, channels, height // stride, width // stride)
            x = torch.randn(shape, device=device, dtype=dtype).to(memory_format=memory_format).requires_grad_()
            grad_y = torch.randn(shape, device=device, dtype=dtype).to(memory_format=memory_format)
            providers = {name: provider(name, channels, device, dtype) for name in ['copy', *names]}

            def forward(f, x=x):
                with torch.no_grad():
                    f(x)

            def both(f, parameters, x=x, grad_y=grad_y):
                torch.autograd.grad(f(x), (x, *parameters), grad_y)

            calls = {(n, 'forward'): lambda f=f: forward(f) for n, (f, _) in providers.items()}
            calls.update(
                {(n, 'forward+backward'): lambda f=f, p=p: both(f, p) for n, (f, p) in providers.items() if n != 'copy'}
            )
            times = interleaved(calls, device, args.runs)
            medians = {key: percentiles(t)['ms_p50'] for key, t in times.items()}
            for (name, mode), t in times.items():
                memory = {}
                if mode != 'forward':
                    function, parameters = providers[name]
                    kept = kept_bytes(function, parameters, x)
                    memory = dict(
                        kept_of_x=round(kept / (x.numel() * x.element_size()), 3),
                        peak_bytes=peak_bytes(function, grad_y, x),
                    )
                rows.append(
                    {**row(size, batch, shape, layers, name, mode, percentiles(t), medians, args, device), **memory}
                )
                sums.setdefault((name, mode), []).append(layers * medians[name, mode])
        totals = {key: sum(v) for key, v in sums.items()}
        for (name, mode), total in totals.items():
            rows.append(row(size, batch, 'sum', 16, name, mode, dict(ms_p50=round(total, 4)), totals, args, device))
    suffix = '_default-allocator' if args.allocator == 'default' else ''
    out = args.out or RESULTS / f'op_{device.type}_{args.dtype}_{args.layout}{suffix}.csv'
    write(rows, out)
    print(f'{len(rows)} rows in {out}')


def row(size, batch, shape, layers, name, mode, times, medians, args, device) -> dict:
    """One measurement."""
    ms = medians[name, mode]
    reference = medians.get(('reference', mode))
    result = dict(
        size=size,
        batch=batch,
        shape='x'.join(map(str, shape)) if shape != 'sum' else shape,
        layers=layers,
        provider=name,
        mode=mode,
        dtype=args.dtype,
        layout=args.layout,
        runs=args.runs,
        ms_p20='',
        ms_p50='',
        ms_p80='',
    )
    result.update(
        times,
        of_reference=round(ms / reference, 4) if reference else '',
        of_copy=round(ms / medians['copy', 'forward'], 2),
    )
    print(
        '{size:9} {shape:16} {provider:10} {mode:17} {ms_p50:9.3f} ms  of reference {of_reference:<7} '
        'of copy {of_copy}'.format(**result)
    )
    return {**result, **environment(device, args)}


if __name__ == '__main__':
    main()
