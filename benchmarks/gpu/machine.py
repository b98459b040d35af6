"""The machine: card, driver, clocks, versions, and the bandwidth of a copy, which is the yardstick for all times."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib import metadata

import torch
from common import interleaved, percentiles

from gpu.task import Task, note, save_json
from mmccd.env import c_compiler

COPIED = 1 << 30  # bytes
QUERIES = (
    'driver_version',
    'clocks.sm',
    'clocks.mem',
    'clocks.max.sm',
    'power.limit',
    'temperature.gpu',
    'memory.total',
)
PACKAGES = ('torch', 'triton', 'numba', 'numpy', 'torchvision', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection')


def run(task: Task) -> None:
    """Writes ``env.json``."""
    device = task.device
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise SystemExit('no CUDA device; --dry runs every step on the CPU')
    content = dict(
        **task.where(),
        dry=task.dry,
        machine=platform.platform(),
        capability='',
        memory_bytes='',
        multiprocessors='',
        l2_bytes='',
        copy_gb_per_s='',
        nvidia_smi=nvidia_smi(),
        c_compiler=c_compiler() or '',
        compute_sanitizer=shutil.which('compute-sanitizer') or '',
        packages={name: version(name) for name in PACKAGES},
    )
    if device.type == 'cuda':
        card = torch.cuda.get_device_properties(device)
        content.update(
            capability=f'{card.major}.{card.minor}',
            memory_bytes=card.total_memory,
            multiprocessors=card.multi_processor_count,
            l2_bytes=card.L2_cache_size,
            copy_gb_per_s=bandwidth(device),
        )
    if not content['c_compiler']:
        note('no C compiler: neither the Triton kernels nor torch.compile can run')
    save_json(content, task.out / 'env.json')


def nvidia_smi() -> dict[str, str]:
    """What the driver says of the first card; empty without one."""
    command = ['nvidia-smi', '--id=0', f'--query-gpu={",".join(QUERIES)}', '--format=csv,noheader']
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in done.stdout.split(',')]
    return dict(zip(QUERIES, values)) if done.returncode == 0 and len(values) == len(QUERIES) else {}


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ''


def bandwidth(device: torch.device) -> float:
    """GB/s of a copy, bytes read and written counted."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = interleaved({'copy': lambda: target.copy_(source)}, device, 20)['copy']
    return round(2 * COPIED / percentiles(times)['ms_p50'] / 1e6, 1)
