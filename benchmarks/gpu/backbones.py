"""Whole ResNet-50s as they are trained: mixed precision, channels_last, GradScaler and a step of SGD.

Two comparisons, each interleaved within itself: all attentions; and plain and CCD with and without ``torch.compile``.
CCD goes through the Triton kernels, through stock operators (``torch``) and as the textbook composition, which
``torch.compile`` may join with the layers around it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from bench_backbone import NETWORKS, build
from common import interleaved, percentiles, write
from torch import Tensor, nn

from gpu.task import Task, first_line, note, override
from mmccd.models import CCD
from mmccd.ops import ccd_reference
from mmccd.ops.backends import ENV_VAR

EAGER = ('plain', 'se', 'ge', 'cbam', 'sk', 'gc', 'ccd-triton', 'ccd-torch', 'ccd-textbook')
COMPILED = ('plain-compiled', 'ccd-triton-compiled', 'ccd-textbook-compiled')
COMPARISONS = {'eager': EAGER, 'compiled': ('plain', 'ccd-triton', *COMPILED)}


class Mode(NamedTuple):
    """What a network does.

    Attributes:
        name (str): 'train' or 'forward'.
        batch (int): Images.
        size (int): Pixels a side.
    """

    name: str
    batch: int
    size: int


MODES = (Mode('train', 64, 224), Mode('train', 32, 224), Mode('forward', 1, 224))
DRY_MODES = (Mode('train', 2, 64), Mode('forward', 1, 64))


class TextbookCCD(CCD):
    """CCD as the composition of stock operators that defines it."""

    takes_residual = False

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return ccd_reference(x, self.scale, self.bias, *self.options)


class Network:
    """A network with its optimizer.

    Args:
        name (str): One of EAGER or COMPILED.
        device (torch.device): On a CPU it is a small one, and bfloat16 takes the place of float16.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        torch._dynamo.config.recompile_limit = 64  # beyond 8 of a function it would run as it is, without a word
        self.device = device
        base, *words = name.split('-')
        self.impl = words[0] if words and words[0] in ('triton', 'torch') else 'auto'
        attention: dict | None = None
        if base == 'ccd':
            attention = dict(type=TextbookCCD if 'textbook' in words else CCD)
        elif NETWORKS[base] is not None:
            attention = dict(type=f'mmccd.{NETWORKS[base]}')
        gpu = device.type == 'cuda'
        if base == 'ccd' and not gpu:
            attention = dict(attention or {}, groups=1, stages=(True, False, False, False))  # few programs to interpret
        net = build(attention, 50 if gpu else 18, device, torch.channels_last)
        self.net: nn.Module = torch.compile(net, dynamic=False) if 'compiled' in words else net
        self.optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
        self.scaler = torch.amp.GradScaler(device.type, enabled=gpu)
        self.half = torch.float16 if gpu else torch.bfloat16

    def __call__(self, x: Tensor, train: bool) -> None:
        """A training step, or a forward pass."""
        self.net.train(train)
        with override(ENV_VAR, self.impl), torch.autocast(self.device.type, dtype=self.half):
            if not train:
                with torch.no_grad():
                    self.net(x)
                return
            loss = self.net(x)[0].float().mean()
        with override(ENV_VAR, self.impl):
            self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


def images(mode: Mode, device: torch.device) -> Tensor:
    return torch.randn(mode.batch, 3, mode.size, mode.size, device=device).to(memory_format=torch.channels_last)


def warm_up(name: str, device: torch.device) -> None:
    """What a network compiles, in the order in which :func:`run` does."""
    network = Network(name, device)
    for mode in MODES if device.type == 'cuda' else DRY_MODES:
        network(images(mode, device), mode.name == 'train')
        if device.type == 'cuda':
            torch.cuda.synchronize(device)


def run(task: Task) -> None:
    """Measure; writes ``backbone.csv`` after each mode."""
    torch.backends.cudnn.benchmark = True  # as in the configs for classification
    rows: list[dict] = []
    for comparison, names in COMPARISONS.items():
        networks = _networks(names, task)
        for mode in DRY_MODES if task.dry else MODES:
            if task.left < 8:
                note(f'not measured, no time left: {comparison} networks, {mode.name} at batch {mode.batch}')
                continue
            rows += measure(comparison, networks, mode, task)
            write(rows, task.out / 'backbone.csv')
        del networks
        if not task.dry:
            torch.cuda.empty_cache()


def _networks(names: tuple[str, ...], task: Task) -> dict[str, Network]:
    """Those that there is time for, called once in every mode, so that they are compiled."""
    networks = {}
    for name in names:
        longest = 0.0 if name not in COMPILED else 20.0  # of a network that is compiled, with a cache
        if task.left < longest + 10:
            note(f'not measured, no time left: {name}')
            continue
        torch.manual_seed(0)
        network = Network(name, task.device)
        begin = time.perf_counter()
        try:
            for mode in DRY_MODES if task.dry else MODES:
                network(images(mode, task.device), mode.name == 'train')
        except Exception as e:  # the others are measured
            note(f'{name} failed: {first_line(e)}')
            continue
        print(f'{name}: first calls {time.perf_counter() - begin:.1f} s', flush=True)
        networks[name] = network
    return networks


def measure(comparison: str, networks: dict[str, Network], mode: Mode, task: Task) -> list[dict]:
    """Rows of all networks in one mode."""
    x, train = images(mode, task.device), mode.name == 'train'

    def call(network: Network) -> Callable[[], None]:
        return lambda: network(x, train)

    times = {} if task.dry else interleaved({n: call(network) for n, network in networks.items()}, task.device, 20, 5)
    medians = {name: percentiles(t) for name, t in times.items()}
    plain = medians.get('plain')
    rows = []
    for name, network in networks.items():
        empty = dict.fromkeys(('ms_p20', 'ms_p50', 'ms_p80', 'images_per_s', 'of_plain', 'peak_bytes'), '')
        row = dict(comparison=comparison, network=name, mode=mode.name, batch=mode.batch, size=mode.size, **empty)
        if times:
            ms = medians[name]['ms_p50']
            torch.cuda.reset_peak_memory_stats()
            network(x, train)
            row.update(
                medians[name],
                images_per_s=round(1e3 * mode.batch / ms, 1),
                of_plain=round(ms / plain['ms_p50'], 4) if plain else '',
                peak_bytes=torch.cuda.max_memory_allocated(),
            )
        rows.append({**row, **task.where()})
        print('{comparison} {network} {mode} batch {batch}: {ms_p50} ms, of plain {of_plain}'.format(**row), flush=True)
    return rows
