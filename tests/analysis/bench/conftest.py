"""A plan of two datasets and rows of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mmccd.analysis.bench.plan import Plan, read_plan
from mmccd.analysis.bench.rows import Row

CONTENT = dict(
    threads=1,
    data=dict(
        clothes=dict(
            config='configs/{arm}r18_fashion.py',
            manifest='data/fashion/fashion.json',
            make='make it',
            metric='accuracy/top1',
        ),
        scenes=dict(
            config='configs/retinanet_{arm}r18_fpn_fashion.py',
            manifest='data/fashion/fashion.json',
            make='make it',
            metric='coco/bbox_mAP',
            backbones='clothes',
        ),
    ),
    arms=dict(
        plain={},
        ccd=dict(prefix='ccd_'),
        nothing=dict(attention=dict(type='mmccd.NothingControl'), expect='same'),
        destroys=dict(attention=dict(type='mmccd.DestroyingControl'), expect='worse'),
    ),
    tables=dict(
        clothes=dict(data='clothes', arms=['plain', 'ccd', 'nothing', 'destroys'], seeds=3),
        again=dict(data='clothes', arms=['plain', 'ccd'], seeds=2),
        scenes=dict(data='scenes', arms=['plain', 'ccd'], seeds=2),
    ),
)


@pytest.fixture
def content() -> dict:
    return copy.deepcopy(CONTENT)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[object], str]:
    """Writes a plan's content; returns its path."""

    def write(content: object) -> str:
        path = tmp_path / 'plan.yml'
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return str(path)

    return write


@pytest.fixture
def plan(content: dict, written: Callable) -> Plan:
    return read_plan(written(content))


def make_row(arm: str, seed: int, value: float, metric: str = 'accuracy/top1', **other: object) -> Row:
    row = Row('clothes', arm, seed, metric, value, 9.5, 'abc', 'def', '{}', '123', '0.3', '2.11', 'a CPU', '2026-01-02')
    return replace(row, **other)


@pytest.fixture
def row() -> Callable[..., Row]:
    return make_row


@pytest.fixture
def rows() -> list[Row]:
    """Plain 80, 81, 82; CCD 1, 2 and 3 more; nothing -0.1, 0 and 0.1; destroyed 9, 10 and 11 less."""
    values = dict(plain=(80, 81, 82), ccd=(81, 83, 85), nothing=(79.9, 81, 82.1), destroys=(71, 71, 71))
    clean = [make_row(a, s, float(v)) for a, of in values.items() for s, v in enumerate(of)]
    kinds = [
        make_row(a, s, float(v) - less, f'{kind} accuracy/top1')
        for a, of in values.items()
        for s, v in enumerate(of)
        for kind, less in (('noise', 1), ('blur', 2 if a == 'ccd' else 3))
    ]
    return clean + kinds
