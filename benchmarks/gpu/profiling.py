"""What a training step does on the GPU: kernels and the gaps between them, waits for the GPU, capture in a graph."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable

import torch
from bench_op import GROUPS, SIZES, STAGES
from torch import Tensor

import mmccd
from gpu.backbones import DRY_MODES, MODES, Network, images
from gpu.task import Task, first_line, note, override, save_json
from mmccd.ops import ccd
from mmccd.ops.backends import ENV_VAR

IMPLS = ('triton', 'torch')
DETECTOR = 'retinanet_ccd_r50_fpn_1x_coco'
ITERATIONS = 5
SHOWN = 25  # kernels


def run(task: Task) -> None:
    """Writes ``profile.json`` after each part."""
    content: dict = {}
    parts: dict[str, Callable[[Task, str], object]] = dict(
        layers_waits=layers_wait, layers_graph=layers_graph, step=step, detector_waits=detector_waits
    )
    for part, function in parts.items():
        content[part] = {}
        for impl in IMPLS:
            if task.left < 3:
                note(f'not profiled, no time left: {part} with {impl}')
                continue
            try:
                content[part][impl] = function(task, impl)
            except Exception as e:  # the other parts are independent
                content[part][impl] = f'failed: {first_line(e)}'
                note(f'{part} with {impl} failed: {first_line(e)}')
            save_json({**content, **task.where()}, task.out / 'profile.json')


def _layers(task: Task, impl: str) -> Callable[[], None]:
    """Forward and backward of the 16 layers of ResNet-50 at 224, batch 2; in a dry run, of one small layer a stage."""
    height, width, _ = SIZES['224']
    groups = 1 if task.dry else GROUPS
    scale, bias = (torch.randn(groups, device=task.device, requires_grad=True) for _ in range(2))
    inputs: list[tuple[Tensor, Tensor]] = []
    for channels, stride, layers in STAGES:
        shape = (1, 4, 7, 7) if task.dry else (2, channels, height // stride, width // stride)
        for _ in range(1 if task.dry else layers):
            x, grad_y = torch.randn(2, *shape, device=task.device)
            inputs.append((x.requires_grad_(), grad_y))

    def call() -> None:
        for x, grad_y in inputs:
            torch.autograd.grad(ccd(x, scale, bias, groups, impl=impl), (x, scale, bias), grad_y)

    call()  # compiles
    return call


def layers_wait(task: Task, impl: str) -> str:
    """'no wait', or what waited for the GPU."""
    call = _layers(task, impl)
    if task.dry:
        return ''
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        call()
    except RuntimeError as e:
        return first_line(e)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    return 'no wait'


def layers_graph(task: Task, impl: str) -> str:
    """'captured and replayed', or why not."""
    call = _layers(task, impl)
    if task.dry:
        return ''
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError as e:
        return first_line(e)
    return 'captured and replayed'


def step(task: Task, impl: str) -> dict:
    """Kernels of one training step of CCD-ResNet-50 at batch 64, and the time in which none ran."""
    network = Network(f'ccd-{impl}', task.device)
    mode = (DRY_MODES if task.dry else MODES)[0]
    x = images(mode, task.device)
    for _ in range(1 if task.dry else 3):
        network(x, True)
    if task.dry:
        return {}
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        network(x, True)
        torch.cuda.synchronize()
    device_type = torch.autograd.DeviceType.CUDA
    # Ranges that PyTorch names, such as the optimizer's step, are events, too.
    events = [e for e in profile.events() if e.device_type == device_type and not e.is_user_annotation]
    return kernels([(e.name, e.time_range.start, e.time_range.end) for e in events])


def kernels(events: list[tuple[str, float, float]]) -> dict:
    """Totals of kernels.

    Args:
        events (list[tuple[str, float, float]]): Name, begin and end in microseconds of each.

    Returns:
        dict: ``kernels`` (how many), ``span_us`` from the first begin to the last end, ``gaps_us`` of it without any,
        and ``by_name``: count and microseconds, the longest first.
    """
    if not events:
        return {}
    events = sorted(events, key=lambda e: e[1])
    busy_until, gaps = events[0][1], 0.0
    counts: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for name, begin, end in events:
        gaps += max(0.0, begin - busy_until)
        busy_until = max(busy_until, end)
        counts[name] += 1
        times[name] += end - begin
    return dict(
        kernels=len(events),
        span_us=round(busy_until - events[0][1], 1),
        gaps_us=round(gaps, 1),
        by_name=[dict(name=n[:120], count=counts[n], us=round(t, 1)) for n, t in times.most_common(SHOWN)],
    )


def detector_waits(task: Task, impl: str) -> dict:
    """Waits for the GPU in training iterations of a detector: by the line of Python that waits, most first."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    if task.dry and impl == 'triton':
        return dict(left_out='it would take minutes in the interpreter')
    model = mmccd.init_model(DETECTOR, device=str(task.device)).train()
    height, width = (64, 64) if task.dry else (800, 1344)
    samples = []
    for _ in range(2):
        size = (height, width)
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), pad_shape=size))
        boxes = torch.tensor([[4.0, 6.0, 24.0, 44.0], [30.0, 10.0, 52.0, 50.0]]) * (height / 64)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 3])).to(task.device)
        samples.append(sample)
    x = torch.randn(2, 3, height, width, device=task.device)

    def iteration() -> None:
        losses = model(x, samples, mode='loss')
        model.parse_losses(losses)[0].backward()
        model.zero_grad()

    with override(ENV_VAR, impl):
        iteration()
        if task.dry:
            return {}
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            torch.cuda.set_sync_debug_mode('warn')
            for _ in range(ITERATIONS):
                iteration()
            torch.cuda.set_sync_debug_mode('default')
    waits = [w for w in caught if 'synchroniz' in str(w.message)]
    lines = Counter(f'{"/".join(w.filename.split("/")[-3:])}:{w.lineno}' for w in waits)
    return dict(iterations=ITERATIONS, waits=len(waits), by_line=dict(lines.most_common(SHOWN)))
