"""Measures what the arms of a table of the attention bench cost, side by side in one process."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmengine.device import get_device
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

from mmccd.analysis.bench.cost import Cost, saved_bytes, step_times
from mmccd.analysis.bench.plan import Table

from .bench_piece import piece_config, surroundings, use_every


def measure_costs(table: Table, threads: int, runs: int, commit: str) -> list[Cost]:
    """Parameters, time and memory of a training step of each arm, on the first batch of its own pipeline.

    Args:
        table (Table): Its arms are compared.
        threads (int): OpenMP's.
        runs (int): Timed steps of each arm.
        commit (str): Goes into the rows.

    Raises:
        UserError: If the data is not made, or a config is wrong.
    """
    here = surroundings(table.data)
    torch.set_num_threads(threads)
    steps, models = {}, {}
    for arm in table.arms:
        cfg = piece_config(table.data, arm)
        if table.data.backbones:
            cfg.model.backbone.init_cfg = None
        use_every(cfg.train_dataloader, table.data.train_every, 0, cfg.default_scope)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model).to(get_device()).train()
            batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
        steps[arm.name] = _step(model, model.data_preprocessor(batch, training=True), cfg.default_scope)
        models[arm.name] = model
    size = cfg.train_dataloader.get('batch_size') or cfg.train_dataloader.batch_sampler.batch_size
    saved = {name: saved_bytes(step, models[name]) for name, step in steps.items()}
    times = step_times(steps, runs)
    first = times[table.arms[0].name]
    return [
        Cost(
            table.name,
            name,
            sum(p.numel() for p in models[name].parameters()),
            round(ms, 2),
            round(ms / first, 4),
            round(saved[name] / 2**20, 2),
            size,
            runs,
            commit,
            here['torch'],
            here['device'],
            threads,
        )
        for name, ms in times.items()
    ]


def _step(model: nn.Module, data: dict, scope: str) -> Callable[[], Tensor]:
    def step() -> Tensor:
        model.zero_grad()
        with DefaultScope.overwrite_default_scope(scope):
            return model.parse_losses(model(**data, mode='loss'))[0]

    return step
