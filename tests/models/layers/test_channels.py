"""An input with another number of channels than the layer was made for."""

from __future__ import annotations

import re

import pytest
import torch
import torch.fx

from mmccd import models
from mmccd.models.layers import attention_types


@pytest.mark.parametrize('name', sorted(attention_types()))
def test_other_number_of_channels(name):
    """Not broadcast, and not left to PyTorch's convolutions: the message has both numbers; so have the maps."""
    layer = attention_types()[name](64)
    for call in (layer, layer.gates):
        with pytest.raises(
            ValueError,
            match=rf'^in_channels of {name} is 64, and its input has 32 channels: got shape \(2, 32, 8, 8\)$',
        ):
            call(torch.rand(2, 32, 8, 8))
    with pytest.raises(ValueError, match='and its input has 1 channels'):  # which broadcasts
        layer(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize('name', sorted(attention_types()))
@pytest.mark.parametrize('shape', [(16, 16, 16), (1, 16, 4, 4, 4), (4, 16), (16,)])
def test_other_number_of_dimensions(name, shape):
    """One image without its N, a video, tokens: PyTorch pools, convolves and broadcasts some of them in silence."""
    layer = attention_types()[name](16, **(dict(groups=8) if name in ('CCD', 'SGE', 'SK') else {}))
    for call in (layer, layer.gates):
        with pytest.raises(
            ValueError, match=rf'^the input of {name} must have shape \(N, C, H, W\), got {re.escape(str(shape))}$'
        ):
            call(torch.rand(shape))


def test_tracing_is_not_disturbed():
    """Shapes are not numbers then."""
    layer, x = models.CCD(64).eval(), torch.rand(2, 64, 8, 8)
    traced = torch.fx.symbolic_trace(layer)
    assert torch.equal(traced(x), layer(x))
    with pytest.raises(ValueError, match='in_channels of CCD is 64'):
        traced(x[:, :32])
