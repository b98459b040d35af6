"""What a model costs: counted, and timed on this machine."""

from __future__ import annotations

import datetime
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from mmccd.analysis.complexity import Complexity, measure, run_once
from mmccd.configs import datasets_of
from mmccd.data.classes import parse_json
from mmccd.env import processor_name

from .run import annotation_file

WARMUP, MAX_ROUNDS = 2, 50


def test_size(cfg: Config) -> tuple[int, int]:
    """Height and width of the largest image that the test pipeline gives to the model, padding included.

    For a pipeline that keeps or multiplies (``scale_factor``) the size, that of the largest image of the annotation
    file.

    Raises:
        ValueError: If neither the pipeline nor an annotation file has it.
    """
    detection = cfg.get('default_scope') == 'mmdet'
    size, factors = None, (1.0, 1.0)
    loaders = datasets_of(cfg.get('test_dataloader') or {}, 'test_dataloader')
    for step in next((dataset.pipeline for _, dataset in loaders if dataset.get('pipeline')), ()):
        given, factor = step.get('crop_size') or step.get('scale'), step.get('scale_factor')
        if isinstance(given, int):
            size = (given, given)
        elif isinstance(given, (tuple, list)) and len(given) == 2 and all(isinstance(v, int) for v in given):
            # A scale is (width, height), or with keep_ratio the long and the short side in any order.
            size = tuple(given) if 'crop_size' in step else (given[1], given[0])
            if detection:
                size = min(size), max(size)
        elif factor:
            width, height = factor if isinstance(factor, (tuple, list)) else (factor, factor)
            factors = factors[0] * height, factors[1] * width
            size = size and _times(size, (height, width))
    if size is None:
        size = _times(_largest_annotated(cfg), factors)
    preprocessor = (cfg.get('model') or {}).get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    divisor = preprocessor.get('pad_size_divisor', 1)
    return tuple(-(-v // divisor) * divisor for v in size)


def _times(size: tuple[int, int], factors: tuple[float, float]) -> tuple[int, int]:
    """As mmcv rounds it."""
    return tuple(int(v * f + 0.5) for v, f in zip(size, factors))


def _largest_annotated(cfg: Config) -> tuple[int, int]:
    """Height and width of the image with most pixels in test or, if its annotations are not public, in val."""
    for split in ('test', 'val'):
        path = annotation_file(cfg, split)
        if path and path.endswith('.json') and Path(path).is_file():
            try:
                images = parse_json(Path(path).read_bytes())['images']
                return max(((int(i['height']), int(i['width'])) for i in images), key=math.prod)
            except (ValueError, KeyError, TypeError, RecursionError) as e:
                raise ValueError(
                    f'annotation file {path} does not have the size of its images: {type(e).__name__}: {e}'
                ) from e
    raise ValueError(
        'the size of the images is not known: the test pipeline sets none, and there is no COCO annotation file'
    )


def count(cfg: Config, model: nn.Module) -> tuple[tuple[int, int], Complexity, Complexity]:
    """Size, and counts in the conventions ``published`` and ``mac``, of a model that ``build_on_meta`` built."""
    size = test_size(cfg)
    return size, measure(model, size, 'published'), measure(model, size, 'mac')


def device_name(device: torch.device) -> str:
    """The processor's or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else processor_name()


def surroundings(device: torch.device) -> dict[str, Any]:
    """Device, version of PyTorch and, on the CPU, threads: what a time depends on beside the model."""
    found = dict(device=device_name(device), torch=torch.__version__)
    if device.type == 'cpu':
        found['threads'] = torch.get_num_threads()
    return found


def now() -> str:
    """Date and time of day, with the time zone."""
    return datetime.datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z')


def describe(place: dict) -> str:
    """Device, threads and version of PyTorch in words; ``place`` is of :func:`.surroundings`."""
    threads = f', {place["threads"]} thread{"s" * (place["threads"] != 1)}' if 'threads' in place else ''
    return f'{place["device"]}{threads}, PyTorch {place["torch"]}'


@torch.no_grad()
def speed(
    models: dict[str, tuple[nn.Module, tuple[int, int]]], device: torch.device, seconds: float
) -> dict[str, tuple[float, float, float]]:
    """Time one forward of one image, the models in turn, so that other load on the machine affects all alike.

    Backbone, neck and heads, no post-processing, as in the counts; it does not depend on the weights.

    Args:
        models (dict[str, tuple[nn.Module, tuple[int, int]]]): Model and size of the image, by name.
        device (torch.device): Where the models are.
        seconds (float): No round begins after that time; there are at least 5 and at most 50.

    Returns:
        dict[str, tuple[float, float, float]]: 20th, 50th and 80th percentile in milliseconds.
    """
    inputs = {name: torch.randn(1, 3, *size, device=device) for name, (_, size) in models.items()}
    times = {name: [] for name in models}
    for i in _rounds(seconds):
        for name, (model, _) in models.items():
            ms = _milliseconds(model, inputs[name], device)
            if i >= WARMUP:
                times[name].append(ms)
    return {
        name: tuple(statistics.quantiles(t, n=10, method='inclusive')[k] for k in (1, 4, 7))
        for name, t in times.items()
    }


def _rounds(seconds: float) -> Iterator[int]:
    end = time.monotonic() + seconds
    for i in range(WARMUP + MAX_ROUNDS):
        if i < WARMUP + 5 or time.monotonic() < end:
            yield i


def _milliseconds(model: nn.Module, x: torch.Tensor, device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run_once(model, x)
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)
