"""Logs that every parser of JSON reads."""

from __future__ import annotations

import json
import math
from collections import OrderedDict

import numpy as np
import pytest

from mmccd.checkpoints.files import finite_or_null, valid_json
from mmccd.engine.json_logs import LocalVisBackend, LoggerHook

VALUES = {
    'AP': math.nan,
    'loss': -math.inf,
    'AR': np.float64(0.5),
    'all': [0.25, (math.inf,)],
    'step': 3,
    'name': 'NaN',
}
NULLS = {'AP': None, 'loss': None, 'AR': 0.5, 'all': [0.25, [None]], 'step': 3, 'name': 'NaN'}


def strict(text: str) -> object:
    return json.loads(text, parse_constant=pytest.fail)


def test_numbers_that_json_does_not_have():
    assert finite_or_null(VALUES) == NULLS
    assert strict(valid_json(VALUES, indent=1)) == NULLS
    assert finite_or_null(np.float32(math.nan)) is None


def test_scalars(tmp_path):
    backend = LocalVisBackend(save_dir=str(tmp_path))
    backend.add_scalars(dict(VALUES), step=3)
    backend.add_scalar('AP', math.nan, step=4)
    lines = (tmp_path / 'scalars.json').read_text().splitlines()
    assert [strict(line) for line in lines] == [NULLS, dict(AP=None, step=4)]


def test_metrics_of_a_test():
    assert LoggerHook._process_tags(OrderedDict(VALUES)) == OrderedDict(NULLS)
