"""Forward and training step of ResNets with different attentions, side by side; by default the seven of the paper.

Examples:
    python benchmarks/bench_backbone.py
    python benchmarks/bench_backbone.py --only plain ccd --runs 40
    python benchmarks/bench_backbone.py --only ccd sge simam coord ema triplet bam shuffle nam lsk fca eca
    python benchmarks/bench_backbone.py --only ccd ccd-ignore-padding --padded --norm-eval --batch 2 --size 320
    python benchmarks/bench_backbone.py --device cuda --batch 1 64 --amp --channels-last

Each run takes every network in turn; ratios to the plain one are of medians within the one run. A training step is
forward, the mean of the last map as a loss, backward; the optimizer's step is the same for all but for its few
parameters, and left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import RESULTS, add_allocator, environment, interleaved, percentiles, use_allocator, write

from mmccd.models import AttentionResNet

IGNORING = '-ignore-padding'
PAPER = dict(plain=None, se='SE', ge='GE', cbam='CBAM', sk='SK', gc='GC', ccd='CCD')
NETWORKS = dict(
    PAPER,
    eca='ECA',
    sge='SGE',
    simam='SimAM',
    coord='CoordAttention',
    ema='EMAttention',
    triplet='TripletAttention',
    bam='BAM',
    shuffle='ShuffleAttention',
    nam='NAM',
    lsk='LSK',
    fca='FCA',
)
ALL = [*NETWORKS, *(name + IGNORING for name in NETWORKS)]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', choices=ALL, default=list(PAPER), help='networks')
    parser.add_argument('--depth', type=int, default=50)
    parser.add_argument('--size', type=int, default=224, help='pixels a side')
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 8], help='batches; the last one is trained, too')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--amp', action='store_true', help='autocast: float16 on a GPU, bfloat16 on a CPU')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--norm-eval', action='store_true', help='train with running statistics, as detectors do')
    parser.add_argument('--padded', action='store_true', help='the lower half of every second image is padding')
    parser.add_argument('--compile', action='store_true', help='torch.compile')
    add_allocator(parser)
    parser.add_argument('--runs', type=int, default=20, help='timed runs of each, at least 20 for results to keep')
    parser.add_argument('--out', type=Path, help='default: results/backbone_<device>[_<option>...].csv')
    return parser.parse_args()


def build(
    attention: dict | None, depth: int, device: torch.device, memory_format: torch.memory_format, **options: bool
) -> AttentionResNet:
    """The network, with the same random weights at every call where its tensors are the same."""
    torch.manual_seed(0)
    net = AttentionResNet(depth, attention=attention, out_indices=(3,), **{'norm_eval': False, **options})
    return net.to(device, memory_format=memory_format)


def main() -> None:
    args = parse_args()
    use_allocator(args)
    device = torch.device(args.device)
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    torch.backends.cudnn.benchmark = device.type == 'cuda'  # as in the configs for classification
    networks = {}
    for name in dict.fromkeys(['plain', *args.only]):
        layer = NETWORKS[name.removesuffix(IGNORING)]
        attention = None if layer is None else dict(type=f'mmccd.{layer}')
        options = dict(norm_eval=args.norm_eval, ignore_padding=name.endswith(IGNORING))
        net = build(attention, args.depth, device, memory_format, **options)
        networks[name] = torch.compile(net) if args.compile else net

    half = torch.float16 if device.type == 'cuda' else torch.bfloat16

    def run(net, x, train: bool) -> None:
        net.train(train)
        with torch.autocast(device.type, enabled=args.amp, dtype=half):
            if not train:
                with torch.no_grad():
                    net(x)
                return
            y = net(x)[0]
        y.float().mean().backward()
        net.zero_grad()

    rows = []
    for batch, train in [*((b, False) for b in args.batch), (args.batch[-1], True)]:
        x = torch.randn(batch, 3, args.size, args.size, device=device).to(memory_format=memory_format)
        if args.padded:
            x[1::2, :, args.size // 2 :] = 0
        calls = {k: lambda net=net, x=x, train=train: run(net, x, train) for k, net in networks.items()}
        times = interleaved(calls, device, args.runs)
        plain = percentiles(times['plain'])['ms_p50']
        for name, t in times.items():
            peak = ''
            if device.type == 'cuda':
                torch.cuda.reset_peak_memory_stats()
                run(networks[name], x, train)
                peak = torch.cuda.max_memory_allocated()
            ms = percentiles(t)
            rows.append(
                dict(
                    network=name,
                    mode='train' if train else 'forward',
                    depth=args.depth,
                    size=args.size,
                    batch=batch,
                    amp=args.amp,
                    channels_last=args.channels_last,
                    compile=args.compile,
                    norm_eval=args.norm_eval,
                    padded=args.padded,
                    runs=args.runs,
                    **ms,
                    images_per_s=round(1e3 * batch / ms['ms_p50'], 2),
                    of_plain=round(ms['ms_p50'] / plain, 4),
                    peak_bytes=peak,
                    **environment(device, args),
                )
            )
            print(
                '{network:18} {mode:8} batch {batch:<3} {ms_p50:10.2f} ms {images_per_s:9.2f} images/s  '
                'of plain {of_plain}'.format(**rows[-1])
            )
    suffix = ''.join(
        f'_{n}'
        for n, on in (
            ('amp', args.amp),
            ('channels-last', args.channels_last),
            ('compile', args.compile),
            ('norm-eval', args.norm_eval),
            ('padded', args.padded),
            ('default-allocator', args.allocator == 'default'),
        )
        if on
    )
    out = args.out or RESULTS / f'backbone_{device.type}{suffix}.csv'
    write(rows, out)
    print(f'{len(rows)} rows in {out}')


if __name__ == '__main__':
    main()
