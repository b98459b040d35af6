"""ECA against its definition, written out in other words."""

import pytest
import torch

from mmccd.models import ECA, AttentionResNet


@pytest.mark.parametrize(
    ('channels', 'expected'), [(1, 1), (16, 3), (64, 3), (127, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)]
)
def test_kernel_follows_the_channels(channels, expected):
    assert ECA(channels).conv.kernel_size == (expected,)
    assert [p.shape for p in ECA(channels).parameters()] == [(1, 1, expected)]  # and no other parameter


def test_hand_worked():
    # means of the channels    1                2                    4
    # below, at, above      .01*1 + .1*2   .001*1+.01*2+.1*4   .001*2 + .01*4      for the kernel (.001, .01, .1)
    layer = ECA(3, kernel_size=3).double()
    layer.conv.weight.data.copy_(torch.tensor([[[0.001, 0.01, 0.1]]]))
    x = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)[None, :, None, None] * torch.tensor([[0.5, 1.0, 1.5]])
    gate = torch.sigmoid(torch.tensor([0.210, 0.421, 0.042], dtype=torch.float64))
    assert torch.allclose(layer(x), x * gate[None, :, None, None], atol=1e-7)


@pytest.mark.parametrize('options', [{}, dict(kernel_size=1), dict(kernel_size=9), dict(identity_init=True)])
def test_equals_a_product_with_a_band_matrix(options):
    """Values and all gradients; the convolution is a (C, C) matrix with the kernel along its diagonals."""
    layer = ECA(16, **options).double()
    torch.nn.init.normal_(layer.conv.weight)
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = layer.conv.weight.detach().flatten().requires_grad_()
    reach = len(weight) // 2
    band = sum(torch.diag_embed(w.expand(16 - abs(o)), o) for o, w in enumerate(weight, -reach))
    gain = 2 if layer.identity_init else 1
    expected = x * (gain * torch.sigmoid(x.mean((2, 3)) @ band.T))[:, :, None, None]
    actual = layer(x)
    assert torch.allclose(actual, expected, rtol=1e-12)

    direction = torch.randn_like(x)
    ours = torch.autograd.grad(actual, (x, layer.conv.weight), direction)
    theirs = torch.autograd.grad(expected, (x, weight), direction)
    assert torch.allclose(ours[0], theirs[0], rtol=1e-10)
    assert torch.allclose(ours[1].flatten(), theirs[1], rtol=1e-10)


def test_in_a_network():
    net = AttentionResNet(50, attention=dict(type='mmccd.ECA'))
    extra = {n: p.shape[-1] for n, p in net.named_parameters() if '.eca.' in n}
    assert len(extra) == 16
    assert sum(extra.values()) == (3 + 4 + 6) * 5 + 3 * 7
    assert extra['layer4.2.eca.conv.weight'] == 7


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(in_channels=0), ValueError, 'in_channels must be at least 1, got 0'),
        (dict(in_channels=64, kernel_size=4), ValueError, 'kernel_size must be odd, got 4'),
        (dict(in_channels=64, kernel_size=3.0), TypeError, r'kernel_size must be an int, got 3\.0'),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        ECA(**options)
