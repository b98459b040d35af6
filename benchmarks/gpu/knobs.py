"""The constants of the Triton backend that were chosen without a GPU, and how to try others.

They are module constants of ``mmccd/ops/triton_backend/plan.py``. One that is not there any more is reported, not
guessed: this table has to follow the backend.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from mmccd.ops.options import Options

PLAN = 'mmccd.ops.triton_backend.plan'
# What is tried: all combinations within a row, while the other rows have the backend's own values.
PRODUCTS: tuple[dict[str, tuple[int, ...]], ...] = (
    dict(WHOLE_LIMIT=(8192, 16384, 32768), FORWARD_PER_THREAD=(16, 32, 64)),
    dict(BACKWARD_PER_THREAD=(16, 32, 64)),
    dict(TILE_ELEMENTS=(2048, 4096, 8192), CELL_ELEMENTS=(1024, 2048, 4096)),
)


def missing() -> list[str]:
    """Names of PRODUCTS that the backend does not have."""
    plan = importlib.import_module(PLAN)
    return [name for product in PRODUCTS for name in product if not hasattr(plan, name)]


def settings(shape: tuple[int, ...], options: Options) -> list[dict[str, int]]:
    """What to try on such a map: {} for the constants as they are, then others, without what makes no difference."""
    plan = importlib.import_module(PLAN)
    found: dict[tuple, dict[str, int]] = {}
    for product in ({}, *PRODUCTS):
        names = [name for name in product if hasattr(plan, name)]
        for values in itertools.product(*(product[name] for name in names)):
            changed = {name: v for name, v in zip(names, values) if v != getattr(plan, name)}
            with constants(changed):
                kind = way(shape, options)
            # The limit only says which way; tiles are of one way alone.
            unused = ('WHOLE_LIMIT', *(PRODUCTS[-1] if kind == 'whole' else ()))
            found.setdefault((kind, *(item for item in changed.items() if item[0] not in unused)), changed)
    return list(found.values())


@contextmanager
def constants(values: Mapping[str, int]) -> Iterator[None]:
    """The backend with other constants.

    Its modules are loaded again, all but the kernels, so that nothing cached for the former constants is left, and
    what was compiled is kept.

    Args:
        values (Mapping[str, int]): Names of plan.py, and their values.

    Raises:
        AttributeError: If plan.py has no such constant.
    """
    plan = importlib.import_module(PLAN)
    for name in values:
        if not hasattr(plan, name):
            raise AttributeError(f'{plan.__name__} has no constant {name}; benchmarks/gpu/knobs.py names it')
    _reload({})
    try:
        _reload(values)
        yield
    finally:
        _reload({})


def _reload(values: Mapping[str, int]) -> None:
    plan = importlib.reload(importlib.import_module(PLAN))
    for name, value in values.items():
        setattr(plan, name, value)
    package = PLAN.rpartition('.')[0]
    # An imported module enters the table after the one that imports it.
    for name in reversed([n for n in sys.modules if n.startswith(f'{package}.')]):
        if name != PLAN and not name.rpartition('.')[2].startswith('kernels'):
            importlib.reload(sys.modules[name])


def way(shape: tuple[int, ...], options: Options) -> str:
    """How the Triton backend goes over such a map: 'whole', one program a slab, or 'split', several."""
    launch_plan = importlib.import_module(PLAN).launch_plan
    x = torch.empty(shape, device='meta')
    return 'whole' if launch_plan((x, x), options).whole else 'split'
