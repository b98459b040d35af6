"""Images a second on one core: the training pipeline of the ImageNet configs, mmccd's and MMPretrain's in turns.

Examples:
    taskset -c 1 python benchmarks/bench_pipeline.py
    python benchmarks/bench_pipeline.py --images 64 --runs 5 --out /tmp/pipeline.csv

The images are made on the fly: JPEGs of ImageNet's sizes, with the spectrum of photographs. Before anything is timed,
all four pipelines have to give the same pixels. Rows of results/pipeline_cpu.csv:

    plain       MMPretrain's dataset and transforms
    guarded     mmccd's dataset, MMPretrain's transforms: the file is opened twice
    transforms  MMPretrain's dataset, mmccd's transforms
    ours        mmccd's dataset and transforms, as the configs have them
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from common import RESULTS, environment, interleaved, percentiles, write
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope

from mmccd.apis import get_config

SIZES = ((375, 500), (333, 500), (500, 375), (375, 500), (400, 500), (500, 334), (375, 500), (300, 400))  # (h, w)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=128, help='images a round; default: 128')
    parser.add_argument('--runs', type=int, default=30, help='timed rounds of each pipeline; default: 30')
    parser.add_argument('--quality', type=int, default=90, help='of the JPEGs; default: 90, about 100 KB an image')
    parser.add_argument('--seed', type=int, default=0, help='of images and crops; default: 0')
    parser.add_argument('--out', type=Path, default=RESULTS / 'pipeline_cpu.csv', help='CSV file; default: %(default)s')
    return parser.parse_args()


def photograph(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """An image (h, w, 3), uint8, whose amplitudes fall with the frequency as in photographs; less colour than light."""
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None])
    frequency[0, 0] = 1

    def field(exponent: float) -> np.ndarray:
        values = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((h, w))) / frequency**exponent, (h, w))
        return (values - values.mean()) / values.std()

    light = field(1.0)
    pixels = np.stack([118 + 45 * light + 18 * field(1.3) for _ in range(3)], axis=-1)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def make_images(folder: Path, args: argparse.Namespace) -> int:
    """Write the images into one class folder; the mean size of a file in bytes."""
    rng = np.random.default_rng(args.seed)
    (folder / 'a').mkdir()
    for i in range(args.images):
        pixels = photograph(rng, *SIZES[i % len(SIZES)])
        cv2.imwrite(str(folder / 'a' / f'{i}.jpg'), pixels, [cv2.IMWRITE_JPEG_QUALITY, args.quality])
    return sum(p.stat().st_size for p in (folder / 'a').iterdir()) // args.images


def make_datasets(folder: Path) -> dict[str, BaseDataset]:
    """The four datasets, by the names of their rows."""
    ours = get_config('r50_8xb32_in1k').train_dataloader.dataset.pipeline
    stock = [dict(step, type=step['type'].removeprefix('mmccd.')) for step in ours]
    options = dict(data_root=str(folder), data_prefix='')

    def build(scope: str, pipeline: list, **more: object) -> BaseDataset:
        return DATASETS.build(dict(type=f'{scope}.CustomDataset', pipeline=pipeline, **options, **more))

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return {
            'plain': build('mmpretrain', stock),
            'guarded': build('mmccd', stock, max_broken=0.01),
            'transforms': build('mmpretrain', ours),
            'ours': build('mmccd', ours, max_broken=0.01),
        }


def one_round(dataset: BaseDataset, seed: int) -> Callable[[], list]:
    """A call that takes every image through the pipeline once, with the same crops each time."""

    def call() -> None:
        np.random.seed(seed)
        for i in range(len(dataset)):
            dataset[i]

    return call


def check_same(datasets: dict[str, BaseDataset], seed: int) -> None:
    """AssertionError if a pipeline gives other pixels, labels or metainfo than the plain one."""
    samples = {}
    for name, dataset in datasets.items():
        np.random.seed(seed)
        samples[name] = [dataset[i] for i in range(len(dataset))]
    for name, of_dataset in samples.items():
        for plain, sample in zip(samples['plain'], of_dataset):
            assert torch.equal(plain['inputs'], sample['inputs']), name
            assert torch.equal(plain['data_samples'].gt_label, sample['data_samples'].gt_label), name
            assert plain['data_samples'].metainfo == sample['data_samples'].metainfo, name


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # as mmengine has it in a loader's workers
    with tempfile.TemporaryDirectory() as folder:
        size = make_images(Path(folder), args)
        datasets = make_datasets(Path(folder))
        check_same(datasets, args.seed)
        rounds = {name: one_round(dataset, args.seed) for name, dataset in datasets.items()}
        times = interleaved(rounds, torch.device('cpu'), args.runs)
    where = environment(torch.device('cpu'), argparse.Namespace(allocator='default'))
    rows = []
    for name, of_pipeline in times.items():
        ratios = [plain / own for plain, own in zip(times['plain'], of_pipeline)]
        per_second = [round(1e3 * args.images / p, 1) for p in percentiles(of_pipeline).values()]
        rows.append(
            dict(
                pipeline=name,
                images_per_s=per_second[1],
                p20=per_second[2],
                p80=per_second[0],
                of_plain=round(float(np.median(ratios)), 4),
                images=args.images,
                file_bytes=size,
                runs=args.runs,
                opencv=cv2.__version__,
                **where,
            )
        )
        print(f'{name:10} {per_second[1]:7.1f} images/s ({per_second[2]:.1f} to {per_second[0]:.1f})  '
              f'{rows[-1]["of_plain"]:.3f} of plain')  # fmt: skip
    write(rows, args.out)
    print(f'{where["device"]}, 1 thread, {size / 1000:.0f} KB an image; written to {args.out}')


if __name__ == '__main__':
    main()
