"""The planted controls do what they say; the corruptions are mild, and the same at every run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmccd.analysis.bench.controls import DestroyingControl, NothingControl
from mmccd.analysis.bench.corruptions import KINDS, BenchCorruption
from mmccd.models import AttentionResNet


def test_nothing_is_nothing_but_other_weights():
    x = torch.rand(2, 8, 5, 6)
    assert NothingControl(8)(x) is x
    torch.manual_seed(0)
    plain = AttentionResNet(18).state_dict()
    torch.manual_seed(0)
    other = AttentionResNet(18, attention=dict(type='mmccd.NothingControl')).state_dict()
    assert plain.keys() == other.keys()
    assert not torch.equal(plain['layer4.1.conv2.weight'], other['layer4.1.conv2.weight'])


def test_destroyed_maps_have_no_place():
    x = torch.rand(2, 8, 5, 6)
    y = DestroyingControl(8)(x)
    assert y.shape == x.shape and y.is_contiguous()
    assert torch.equal(y, x.mean((2, 3), keepdim=True).expand_as(x))


@pytest.mark.parametrize('kind', KINDS)
def test_corruptions(kind):
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    got = [BenchCorruption(kind)(dict(img=image.copy(), img_path=p))['img'] for p in ('/a/val/x/1.png', 'b\\x\\1.png')]
    assert got[0].dtype == np.uint8 and got[0].shape == image.shape
    assert np.array_equal(*got)  # by class and name, wherever the data is
    difference = np.abs(got[0].astype(int) - image).mean()
    assert 5 < difference < 70
    other = BenchCorruption(kind)(dict(img=image.copy(), img_path='x/2.png'))['img']
    assert np.array_equal(other, got[0]) == (kind != 'noise')


def test_contrast_by_hand():
    image = np.array([[[100], [200]]], np.uint8)
    assert BenchCorruption('contrast')(dict(img=image, img_path='a'))['img'].ravel().tolist() == [130, 170]


def test_no_such_corruption():
    with pytest.raises(ValueError, match="kind must be one of noise, blur, contrast, got 'fog'"):
        BenchCorruption('fog')
