import math

import torch

from mmccd.models import CCD
from mmccd.ops import ccd


def test_parameters_and_start():
    m = CCD(256)
    assert {k: tuple(v.shape) for k, v in m.state_dict().items()} == {'scale': (64,), 'bias': (64,)}
    assert torch.equal(m.scale, torch.zeros(64))
    assert torch.equal(m.bias, torch.ones(64))
    x = torch.randn(2, 256, 7, 7)
    assert torch.allclose(m(x), x / (1 + math.exp(-1)))  # sigmoid(1) = 0.731


def test_options_reach_the_operator():
    options = dict(groups=4, scales=(1, 3), similarity='cosine', normalize='minmax', eps=1e-3)
    m = CCD(8, **options).double()
    torch.nn.init.normal_(m.scale)
    x = torch.randn(2, 8, 7, 5, dtype=torch.float64)
    assert torch.equal(m(x), ccd(x, m.scale, m.bias, **options))
    assert not torch.allclose(m(x), ccd(x, m.scale, m.bias, groups=4))


def test_gate_inside_autocast_has_float32_statistics():
    m = CCD(64, groups=8)
    torch.nn.init.normal_(m.scale)
    x = (300 * torch.randn(1, 64, 14, 14)).half()
    with torch.autocast('cpu', torch.bfloat16):
        y = m(x)
    expected = ccd(x.double(), m.scale.double(), m.bias.double(), 8)
    assert y.dtype == torch.float16
    assert (y - expected).abs().max() / expected.abs().max() < 2e-3  # bfloat16 statistics would miss it
