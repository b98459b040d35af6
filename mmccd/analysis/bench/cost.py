"""What a network costs: parameters, time of a training step beside the others', memory kept for the backward pass."""

from __future__ import annotations

import csv
import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from mmccd.checkpoints.files import write_atomically
from mmccd.errors import UserError


@dataclass(frozen=True)
class Cost:
    """Cost of an arm of a table.

    Attributes:
        table (str): Name of the table in the plan.
        arm (str): Name of the network in the plan.
        parameters (int): Elements of all parameters.
        step_ms (float): Median time of forward and backward of a training batch, all arms in turns.
        of_first (float): The same by that of the table's first arm.
        saved_mib (float): Tensors kept for the backward pass, parameters aside, each storage once; 2^20 bytes.
        batch (int): Images.
        runs (int): Timed steps of each arm.
        commit (str): Of the repository.
        torch (str): Version.
        device (str): Model of the GPU or CPU.
        threads (int): OpenMP's.
    """

    table: str
    arm: str
    parameters: int
    step_ms: float
    of_first: float
    saved_mib: float
    batch: int
    runs: int
    commit: str
    torch: str
    device: str
    threads: int


def saved_bytes(step: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that ``step``, a forward pass, keeps for its backward pass: each storage once, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = step()
        total = sum(found.values())
    del loss  # until here its graph keeps the storages, so that no address is used twice
    return total


def step_times(steps: Mapping[str, Callable[[], Tensor]], runs: int) -> dict[str, float]:
    """Median milliseconds of forward and backward of each, all in turns, after two that are not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(runs + 2):
        for name, step in steps.items():
            _wait()
            start = time.perf_counter()
            step().backward()
            _wait()
            if i >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(t) for name, t in times.items()}


def write_costs(path: str, costs: Sequence[Cost]) -> None:
    """Write the costs; those of other tables and arms that the file has stay."""
    kept = {(c.table, c.arm): c for c in (*read_costs(path), *costs)}
    text = io.StringIO()
    writer = csv.DictWriter(text, [x.name for x in fields(Cost)], lineterminator='\n')
    writer.writeheader()
    writer.writerows(asdict(c) for c in kept.values())
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


def read_costs(path: str) -> list[Cost]:
    """Read what :func:`write_costs` wrote; no file has none.

    Raises:
        UserError: If the file cannot be read, has other columns, or a value is not a number.
    """
    if not Path(path).exists():
        return []
    types = dict(parameters=int, step_ms=float, of_first=float, saved_mib=float, batch=int, runs=int, threads=int)
    try:
        with open(path, newline='', encoding='utf-8') as f:
            return [Cost(**{k: types.get(k, str)(v) for k, v in r.items()}) for r in csv.DictReader(f)]
    except (OSError, TypeError, ValueError, csv.Error) as e:
        raise UserError(f'{path} is no file of costs: {e}') from e


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
