"""The replacement against numbers of mmcv's own operators: values and gradients of `mmcv_ops_cases.py`.

tests/data/mmcv_ops/README.md says where the numbers are from.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from mmccd.compat import mmcv_ops

STATE = mmcv_ops.install()
DATA = Path(__file__).parents[1] / 'data' / 'mmcv_ops'


def load_cases():
    spec = importlib.util.spec_from_file_location('mmcv_ops_cases', Path(__file__).with_name('mmcv_ops_cases.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = load_cases()
# Where mmcv's kernels are less exact than the replacement: float32 for the corners of boxes, for the weights of CARAFE
# and in a sigmoid of float64, too.
TOLERANCE = {
    'box_iou_rotated': (1e-4, 1e-5),
    'carafe.double': (1e-6, 1e-7),
    'sigmoid_focal_loss.double': (1e-6, 1e-7),
}


@cache
def numbers(file: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f'{file}.npz') as arrays:
        return dict(arrays)


def expected(name: str) -> dict[str, torch.Tensor]:
    start = f'{name}/'
    arrays = numbers(name.split('.')[0])
    return {key[len(start) :]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith(start)}


def compare(got: dict[str, torch.Tensor], golden: dict[str, torch.Tensor], name: str) -> None:
    assert got.keys() == golden.keys()
    for key, value in golden.items():
        assert got[key].dtype == value.dtype, key
        largest = float(value.double().nan_to_num().abs().max()) if value.numel() else 0.0
        rtol, atol = (1e-12, 1e-13) if value.dtype == torch.float64 else (1e-5, 1e-6)
        rtol, atol = TOLERANCE.get(name, (rtol, atol))
        torch.testing.assert_close(
            got[key], value, rtol=rtol, atol=atol * max(1.0, largest), equal_nan=True, msg=lambda m, k=key: f'{k}: {m}'
        )


@pytest.mark.parametrize('name', CASES.CASES)
def test_equal_to_mmcv(name):
    golden = expected(name)
    assert golden
    compare(CASES.CASES[name](mmcv_ops.make_replacement()), golden, name)


def test_compiled_operators_give_these_numbers():
    if STATE != 'compiled':
        pytest.skip(f'mmcv has no compiled operators here to compare with (in use: {STATE})')
    for name in set(CASES.CASES) - CASES.KERNELS:
        compare(CASES.CASES[name](importlib.import_module('mmcv._ext')), expected(name), name)


def test_nothing_is_left_over():
    """Every number belongs to a case, and all of them together are small."""
    files = sorted(DATA.glob('*.npz'))
    assert {file.stem for file in files} == {name.split('.')[0] for name in CASES.CASES}
    cases = {key.rpartition('/')[0] for file in files for key in numbers(file.stem)}
    assert cases == set(CASES.CASES)
    assert sum(file.stat().st_size for file in files) < 1e6


def test_an_offset_at_the_border_has_no_gradient():
    """Zero offsets, padding: the first row and column of samples are at -1, where torchvision's gradient is not 0."""
    grad = expected('modulated_deform_conv.plain.zero')['grad_offset'].view(2, 9, 2, 7, 9)
    assert not grad[:, 0, :, 0].any() and not grad[:, 0, :, :, 0].any()  # the upper left tap
    assert grad[:, 0, :, 1:, 1:].all() and grad[:, 4].all()  # the rest of it, and the middle one
