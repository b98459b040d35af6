"""Bytes kept for the backward pass, counted by hand; costs in a file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mmccd.analysis.bench.cost import Cost, read_costs, saved_bytes, step_times, write_costs
from mmccd.errors import UserError

COST = Cost('clothes', 'plain', 10, 5.0, 1.0, 20.0, 64, 20, '123', '2.11', 'a CPU', 1)


def test_saved_bytes():
    x = torch.rand(4, 8)
    net = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Flatten())
    # The input of the linear layer, and the sigmoid's output; the weights are the model's, a view costs nothing.
    assert saved_bytes(lambda: net(x).sum(), net) == 4 * (4 * 8 + 4 * 16)


def test_step_times():
    calls = []

    def step(name: str, scale: int):
        def run() -> torch.Tensor:
            calls.append(name)
            return (torch.ones(scale, requires_grad=True) * 2).sum()

        return run

    times = step_times(dict(a=step('a', 1), b=step('b', 2)), 3)
    assert calls == ['a', 'b'] * 5  # in turns, two not counted
    assert times.keys() == {'a', 'b'} and min(times.values()) > 0


def test_costs_of_others_stay(tmp_path):
    path = str(tmp_path / 'costs.csv')
    other = replace(COST, arm='ccd')
    write_costs(path, [COST, other])
    write_costs(path, [replace(COST, step_ms=6.0)])
    assert read_costs(path) == [replace(COST, step_ms=6.0), other]


def test_two_tables_of_one_dataset(tmp_path):
    """A network may be in both: its time is relative to another network in each."""
    path = str(tmp_path / 'costs.csv')
    ccd, first = replace(COST, arm='ccd', of_first=1.1), replace(COST, table='ablation', arm='ccd')
    write_costs(path, [COST, ccd])
    write_costs(path, [first])
    assert read_costs(path) == [COST, ccd, first]


def test_no_costs(tmp_path):
    path = tmp_path / 'costs.csv'
    assert read_costs(str(path)) == []
    path.write_text('a,b\n1,2\n')
    with pytest.raises(UserError, match='is no file of costs'):
        read_costs(str(path))
    with pytest.raises(UserError, match='Is a directory'):
        read_costs(str(tmp_path))
