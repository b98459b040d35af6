"""The test split of a run, in batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from tqdm import tqdm

from .run import Run


def batches(run: Run, limit: int | None = None) -> Iterator[Any]:
    """Batches for ``model.test_step``, of the first ``limit`` images; None: of all. Loaded in this process."""
    init_default_scope(run.cfg.get('default_scope', 'mmengine'))
    loader = copy.deepcopy(run.cfg[f'{run.test_split()}_dataloader'])
    if limit is not None:
        loader.batch_size = min(loader.get('batch_size', 1), limit)
    loader.update(num_workers=0, persistent_workers=False, drop_last=False)
    for option in ('prefetch_factor', 'multiprocessing_context', 'timeout'):
        loader.pop(option, None)
    loader = Runner.build_dataloader(loader, seed=0)
    total = len(loader.dataset) if limit is None else min(limit, len(loader.dataset))
    seen = 0  # tqdm does not count where it is disabled
    with tqdm(total=total, desc=run.name, unit='images', disable=None) as bar:
        for batch in loader:
            n = min(len(batch['inputs']), total - seen)
            if n < len(batch['inputs']):
                batch = {k: v[:n] for k, v in batch.items()}
            yield batch
            seen += n
            bar.update(n)
            if seen >= total:
                return
