"""Features as large as float16 can hold them, in mixed precision: no gate overflows, and all are near to float64's."""

import copy

import pytest
import torch

from mmccd.models import CCD, FCA, GE
from mmccd.models.layers import attention_types
from mmccd.ops import ccd

LAYERS = {
    **{name: lambda layer=layer: layer(64) for name, layer in attention_types().items()},
    'FCA': lambda: FCA(64, ratio=4),  # of four hidden channels, ReLU may leave one, whose gradient is nearly nothing
    'CCD of wide groups': lambda: CCD(64, groups=8),
    'CCD without normalisation': lambda: CCD(64, groups=8, normalize=None),
    'CCD by cosine': lambda: CCD(64, groups=8, similarity='cosine'),
    'GE in windows': lambda: GE(64, extent=2),
    'GE with all parameters': lambda: GE(64, extent=4, extra_params=True, mlp=True),
}
DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'))]
EPS = {torch.float16: 2**-11, torch.bfloat16: 2**-8}  # of one rounding
LARGEST = 6e4  # float16 ends at 65504


def make(name):
    """The layer in evaluation mode, with parameters under which its gate is neither 0 nor 1 for usual features."""
    layer = LAYERS[name]().eval()
    for p in layer.parameters():
        torch.nn.init.normal_(p, 0.0, 0.1)
    if name == 'CCD without normalisation':  # sums of squares of 6e4 would leave float32's rounding errors in the logit
        torch.nn.init.normal_(layer.scale, 0.0, 1e-9)
    if name == 'SK':  # its convolutions are the network's own, in half precision: weights under which they hold 6e4
        for branch in layer.branches:
            torch.nn.init.dirac_(branch.conv.weight, groups=branch.conv.groups)
            torch.nn.init.ones_(branch.bn.weight)
            torch.nn.init.zeros_(branch.bn.bias)
    return layer


def features(kind, peak):
    x = {
        'everywhere': torch.ones(2, 64, 12, 10),
        'noise': torch.rand(2, 64, 12, 10) * 2 - 1,
        'one pixel': torch.zeros(2, 64, 12, 10),
    }[kind]
    x[:, :, 3, 4] = 1.0  # the largest stands everywhere
    return (x * peak).half()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', EPS, ids=str)
@pytest.mark.parametrize('kind', ['everywhere', 'noise', 'one pixel'])
@pytest.mark.parametrize('name', LAYERS)
def test_large_features(name, kind, dtype, device):
    layer = make(name).to(device)
    if name == 'LSK':  # whose factor is no gate, but as large as its input: one under which the output can be written
        layer.conv.weight.data.mul_(1e-5)
    # BAM's output is up to twice its input.
    x = features(kind, LARGEST / 2 if name == 'BAM' else LARGEST).to(device, dtype).requires_grad_()
    exact_layer, exact_x = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    gradient = torch.randn(x.shape, device=device).mul(1e-3).to(dtype)

    with torch.autocast(device, dtype):
        y = layer(x)
    y.backward(gradient.to(y.dtype))
    exact = exact_layer(exact_x)
    exact.backward(gradient.double())

    got = {'y': y, 'x': x.grad, **{n: p.grad for n, p in layer.named_parameters()}}
    wanted = {'y': exact, 'x': exact_x.grad, **{n: p.grad for n, p in exact_layer.named_parameters()}}
    for key, value in got.items():
        assert value.isfinite().all(), key
    # A handful of half precision's roundings; a closed gate (1e-260 in float64) rounds to 0.
    allowed = 8 * EPS[dtype] * max(wanted['y'].abs().max().item(), 1.0)
    assert (got['y'].double() - wanted['y']).abs().max().item() <= allowed


@pytest.mark.parametrize('dtype', EPS, ids=str)
@pytest.mark.parametrize('name', LAYERS)
def test_gradients_of_usual_features(name, dtype):
    """Where gates are not saturated, each gradient is near to float64's too."""
    layer = make(name)
    x = features('noise', 2.0).to(dtype).requires_grad_()
    exact_layer, exact_x = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    gradient = torch.randn(x.shape).to(dtype)
    with torch.autocast('cpu', dtype):
        y = layer(x)
    y.backward(gradient.to(y.dtype))
    exact_layer(exact_x).backward(gradient.double())
    got = {'x': x.grad, **{n: p.grad for n, p in layer.named_parameters()}}
    wanted = {'x': exact_x.grad, **{n: p.grad for n, p in exact_layer.named_parameters()}}
    for key, value in got.items():
        scale = max(wanted[key].abs().max().item(), 1e-3)
        assert (value.double() - wanted[key]).abs().max().item() < 32 * EPS[dtype] * scale, key


@pytest.mark.parametrize('name', [n for n in LAYERS if not n.startswith('SK')])
def test_float32_features_under_autocast(name):
    """The gate's small layers stay in float32: the output has no rounding of half precision in it."""
    layer, x = make(name), features('noise', 100.0).float()
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        y = layer(x)
    assert y.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(y, layer(x))


@pytest.mark.parametrize('size', [(12, 10), (40, 36)])  # small maps are pooled by a product with a matrix
@pytest.mark.parametrize('dtype', [torch.float32, *EPS], ids=str)
def test_ccd_by_stock_operators_under_autocast(dtype, size):
    """The implementation that GPUs take: autocast does not reach into it, forward or backward."""
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        x = torch.randn(2, 16, *size).to(dtype).requires_grad_()
        scale, bias = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            y = ccd(x, scale, bias, 4, impl='torch')
            y.sum().backward()
        results.append((y, x.grad, scale.grad, bias.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize('name', LAYERS)
def test_layers_in_bfloat16_as_a_whole(name):
    """Weights in half precision, too, as ``model.bfloat16()`` makes them."""
    layer, x = make(name).bfloat16(), features('noise', 1.0).bfloat16()
    with torch.no_grad():
        y, exact = layer(x), copy.deepcopy(layer).double()(x.double())
    assert y.dtype == torch.bfloat16
    assert (y.double() - exact).abs().max() < 16 * EPS[torch.bfloat16] * exact.abs().max()
