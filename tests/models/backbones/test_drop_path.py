"""Stochastic depth, as MMPretrain's ResNet has it."""

import copy

import pytest
import torch
from mmcv.cnn.bricks import DropPath
from mmpretrain.models.backbones import ResNet as MMPretrainResNet

from mmccd.models import AttentionResNet


def rates(net):
    blocks = [block for name in net.res_layers for block in getattr(net, name)]
    return [getattr(block.drop_path, 'drop_prob', 0.0) for block in blocks]


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('stages', [4, 2])
def test_rates_are_mmpretrains(depth, stages):
    options = dict(num_stages=stages, strides=(1, 2, 2, 2)[:stages], dilations=(1,) * stages, out_indices=(stages - 1,))
    ours = rates(AttentionResNet(depth, drop_path_rate=0.3, **options))
    assert ours == rates(MMPretrainResNet(depth, drop_path_rate=0.3, **options))
    assert ours[0] == 0
    assert all(a < b for a, b in zip(ours, ours[1:]))
    if stages == 4:
        assert ours[-1] == pytest.approx(0.3)
    assert rates(AttentionResNet(depth, **options)) == [0.0] * len(ours)


@pytest.mark.parametrize('depth', [18, 50])
def test_training_equals_mmpretrain_seed_by_seed(depth):
    """One network's outputs and gradients, dropped branches and all, for one seed."""
    # norm_eval=False is MMPretrain's default; mmdet's keeps the norms' statistics fixed.
    ours = AttentionResNet(depth, drop_path_rate=0.9, norm_eval=False).double().train()
    theirs = MMPretrainResNet(depth, drop_path_rate=0.9, out_indices=(0, 1, 2, 3)).double()
    theirs.load_state_dict(ours.state_dict())
    theirs.train()
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    results = []
    for net in (ours, theirs):
        torch.manual_seed(5)
        outs = net(x)
        outs[-1].square().mean().backward()
        results.append((outs, [p.grad for p in net.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(results[0][0], results[1][0]))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(results[0][1], results[1][1]))


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('attention', ['CCD', 'SE', 'SK'])
def test_a_block_keeps_or_drops_its_branch(depth, attention):
    """Each sample has the shortcut alone, or the branch divided by the share that is kept; attention included."""
    net = AttentionResNet(depth, drop_path_rate=0.6, attention=dict(type=f'mmccd.{attention}'))
    block = net.train().layer4[1]  # its shortcut is its input
    rate = block.drop_path.drop_prob
    assert rate > 0.4
    x = torch.rand(64, net.feat_dim, 2, 2)
    seen = []
    block.drop_path.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    torch.manual_seed(3)
    with torch.no_grad():
        out = block(x)
    torch.manual_seed(3)
    kept = (1 - rate + torch.rand(64)).floor().bool()
    assert 10 < kept.sum() < 54
    (branch,) = seen
    assert branch.std() > 1e-3
    expected = torch.relu(x + branch / (1 - rate) * kept[:, None, None, None])
    assert torch.allclose(out, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(out[~kept], x[~kept])


def test_nothing_is_dropped_in_evaluation():
    torch.manual_seed(1)
    net = AttentionResNet(18, drop_path_rate=0.9, attention=dict(type='mmccd.CCD'))
    torch.manual_seed(1)
    plain = AttentionResNet(18, attention=dict(type='mmccd.CCD'))
    assert list(net.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(net.eval()(x), plain.eval()(x)))
        dropped = net.train()(x)[-1]
    assert (dropped - plain(x)[-1]).abs().max() > 1e-2
    assert any(m.training for m in net.modules() if isinstance(m, DropPath))


def test_frozen_stages_drop_nothing():
    net = AttentionResNet(18, drop_path_rate=0.5, frozen_stages=1)
    for _ in ('as built', 'in training'):
        found = {n.split('.')[0]: m.training for n, m in net.named_modules() if isinstance(m, DropPath)}
        assert found == dict(layer1=False, layer2=True, layer3=True, layer4=True)
        net.train()


@pytest.mark.parametrize('attention', ['CCD', 'SK'])
def test_checkpointing_drops_the_same_branches_twice(attention):
    net = AttentionResNet(18, drop_path_rate=0.9, attention=dict(type=f'mmccd.{attention}')).double().train()
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    results = []
    for with_cp in (False, True):
        twin = copy.deepcopy(net)
        for m in twin.modules():
            m.with_cp = with_cp
        torch.manual_seed(2)
        out = twin(x)[-1]
        out.square().mean().backward()
        results.append([out, *(p.grad for p in twin.parameters())])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*results))


def test_blocks_that_drop_are_not_fused():
    """A fused layer adds the shortcut itself, behind which nothing can be dropped."""
    net = AttentionResNet(18, drop_path_rate=0.1, attention=dict(type='mmccd.CCD'))
    blocks = [block for name in net.res_layers for block in getattr(net, name)]
    assert [block.fused for block in blocks] == ['ccd'] + [None] * 7


def test_built_without_memory():
    with torch.device('meta'):
        assert rates(AttentionResNet(18, drop_path_rate=0.7))[-1] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ('rate', 'error', 'message'),
    [
        (1, ValueError, 'drop_path_rate must be from 0 to below 1, got 1'),
        (-0.1, ValueError, r'got -0\.1'),
        (float('nan'), ValueError, 'got nan'),
        ('0.1', TypeError, "drop_path_rate must be a number, got '0.1'"),
        (True, TypeError, 'got True'),
        ((0.1,), TypeError, r'got \(0\.1,\)'),
    ],
)
def test_bad_rates(rate, error, message):
    with pytest.raises(error, match=message):
        AttentionResNet(18, drop_path_rate=rate)
