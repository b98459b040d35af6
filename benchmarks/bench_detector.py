"""Training step of RetinaNet on the seven ResNet-50s, side by side.

Examples:
    python benchmarks/bench_detector.py
    python benchmarks/bench_detector.py --only plain ccd --runs 40
    python benchmarks/bench_detector.py --device cuda --batch 8 --size 800x1344

The configs of COCO as they are, with random weights: the first stage is frozen, and norms use their running statistics.
A training step is the losses of a batch of images with four boxes each, and backward; the optimizer's step is left out.
Every network takes its turn; ratios to the plain one are of medians within the one run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from bench_backbone import NETWORKS, PAPER
from common import RESULTS, add_allocator, environment, interleaved, percentiles, use_allocator, write

import mmccd
from mmccd.models.build import build_model


def size(text: str) -> tuple[int, int]:
    """Height and width from a text like 320x480."""
    height, width = text.split('x')
    return int(height), int(width)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    with_config = [name for name in NETWORKS if name != 'eca']
    parser.add_argument('--only', nargs='+', choices=with_config, default=list(PAPER), help='networks')
    parser.add_argument('--size', type=size, default=(320, 480), help='height x width of the images; default: 320x480')
    parser.add_argument('--batch', type=int, default=2, help='images; default: 2')
    parser.add_argument('--device', default='cpu')
    add_allocator(parser)
    parser.add_argument('--runs', type=int, default=20, help='timed runs of each, at least 20 for results to keep')
    parser.add_argument('--out', type=Path, help='default: results/detector_<device>.csv')
    return parser.parse_args()


def build(name: str, device: torch.device) -> torch.nn.Module:
    """The detector of the config, for training."""
    attention = '' if name == 'plain' else f'{name}_'
    cfg = mmccd.get_config(f'retinanet_{attention}r50_fpn_1x_coco')
    torch.manual_seed(0)
    return build_model(cfg, 'cpu').to(device).train()


def make_batch(images: int, height: int, width: int) -> dict:
    """What the loader would give: random images, four boxes in each."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    rng = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(images):
        corner = torch.rand(4, 2, generator=rng) * torch.tensor([width / 2, height / 2])
        extent = (torch.rand(4, 2, generator=rng) * 0.4 + 0.1) * torch.tensor([width, height])
        shape = height, width
        sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1, 1)))
        labels = torch.randint(0, 80, (4,), generator=rng)
        sample.gt_instances = InstanceData(bboxes=torch.cat([corner, corner + extent], 1), labels=labels)
        samples.append(sample)
    pixels = torch.randint(0, 256, (images, 3, height, width), generator=rng, dtype=torch.uint8)
    return dict(inputs=list(pixels), data_samples=samples)


def step(net: torch.nn.Module, data: dict) -> None:
    """Losses and gradients."""
    losses = net(**net.data_preprocessor(data, training=True), mode='loss')
    net.parse_losses(losses)[0].backward()
    net.zero_grad()


def main() -> None:
    args = parse_args()
    use_allocator(args)
    device = torch.device(args.device)
    torch.backends.cudnn.benchmark = False  # as in the configs: sizes vary
    height, width = args.size
    data = make_batch(args.batch, height, width)
    networks = {name: build(name, device) for name in dict.fromkeys(['plain', *args.only])}
    calls = {name: lambda net=net: step(net, data) for name, net in networks.items()}
    times = interleaved(calls, device, args.runs)
    plain = percentiles(times['plain'])['ms_p50']
    rows = []
    for name, t in times.items():
        ms = percentiles(t)
        of_plain = round(ms['ms_p50'] / plain, 4)
        sizes = dict(height=height, width=width, batch=args.batch, runs=args.runs)
        rows.append(dict(network=name, **sizes, **ms, of_plain=of_plain, **environment(device, args)))
        print(f'{name:6} {ms["ms_p50"]:10.2f} ms  of plain {of_plain}')
    out = args.out or RESULTS / f'detector_{device.type}.csv'
    write(rows, out)
    print(f'{len(rows)} rows in {out}')


if __name__ == '__main__':
    main()
