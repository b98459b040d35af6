"""A block's last norm inside the pass of its last layer: the same numbers and gradients, and never behind a back."""

import copy
import logging

import pytest
import torch
from mmcv.cnn.utils import fuse_conv_bn
from torch import nn

from mmccd.models import CCD, AttentionResNet
from mmccd.models.backbones import folded_norm
from mmccd.ops import backends, ccd

pytest.importorskip('numba')


def network(depth=18, **kwargs):
    """With statistics and parameters as after some training."""
    net = AttentionResNet(depth, **{**dict(attention=dict(type='mmccd.CCD')), **kwargs})
    rng = torch.Generator().manual_seed(depth)
    for name, t in net.state_dict().items():
        if name.endswith('running_var') or (t.dim() == 1 and name.endswith('weight')):
            t.copy_(torch.rand(t.shape, generator=rng) * 0.4 + 0.8)
        elif t.dim() == 1:
            t.copy_(torch.randn(t.shape, generator=rng) * 0.1)
    return net


def plain_twin(net, **kwargs):
    depth = net.depth
    twin = network(depth, fuse=False, **kwargs)
    twin.load_state_dict(net.state_dict())
    assert list(twin.state_dict()) == list(net.state_dict())
    return twin.train(net.training)


@pytest.fixture
def folded(monkeypatch):
    """Weights of the norms that ran inside a layer, in the order of the calls."""
    seen, affine = [], folded_norm._affine

    def watch(norm):
        seen.append(norm.weight)
        return affine(norm)

    monkeypatch.setattr(folded_norm, '_affine', watch)
    return seen


def block_and_input(depth=50, train=False, **kwargs):
    net = network(depth, **kwargs).train(train)
    block = net.layer2[0]
    return block, torch.randn(2, block.conv1.in_channels, 12, 10)


def in_steps(block, x):
    """The block's forward, module by module."""
    out = x
    last = len(block.positions)
    for i in range(1, last + 1):
        out = getattr(block, f'conv{i}')(out)
        out = getattr(block, getattr(block, f'norm{i}_name'))(out)
        out = torch.relu(out) if i < last else out
    return torch.relu(block.ccd(out) + block.downsample(x))


@pytest.mark.parametrize('depth', [18, 34, 50, pytest.param(101, marks=pytest.mark.slow)])
def test_evaluation_to_the_bit(folded, depth):
    net = network(depth).eval()
    twin = plain_twin(net)
    x = torch.randn(2, 3, 64, 96)
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        folded.clear()
        with context():
            outs = net(x)
            assert len(folded) == sum(isinstance(m, CCD) for m in net.modules())
            assert all(map(torch.equal, outs, twin(x)))
            assert all(map(torch.equal, outs, net(x)))  # nothing was written over that is read again


def gradients(net, x):
    net.zero_grad()
    x = x.clone().requires_grad_()
    outs = net(x)
    sum((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() for y in outs).backward()
    return outs, {'x': x.grad, **{k: p.grad for k, p in net.named_parameters()}}


def assert_close(got, expected, tolerance):
    assert got.keys() == expected.keys()
    for name, e in expected.items():
        g = got[name]
        assert (g is None) == (e is None), name
        if e is not None:
            assert (g - e).abs().max() <= tolerance * e.abs().max(), name


@pytest.mark.parametrize(
    ('depth', 'kwargs'),
    [
        (18, {}),
        (18, dict(with_cp=True)),
        (18, dict(frozen_stages=2)),
        (18, dict(norm_cfg=dict(type='BN', requires_grad=False))),
        (18, dict(norm_cfg=dict(type='SyncBN', requires_grad=True))),
        (18, dict(drop_path_rate=0.3)),
        (50, {}),
        pytest.param(101, {}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize('train', [False, True])
def test_gradients(folded, depth, kwargs, train):
    """Training of a detector: norms use running statistics, and their parameters are trained."""
    net = network(depth, **kwargs).train(train)
    twin = plain_twin(net, **kwargs)
    x = torch.randn(2, 3, 64, 96)
    torch.manual_seed(1)  # of dropped branches
    outs, grads = gradients(net, x)
    assert folded
    torch.manual_seed(1)
    expected_outs, expected = gradients(twin, x)
    assert all(map(torch.equal, outs, expected_outs))
    assert_close(grads, expected, 1e-5)


@pytest.mark.parametrize('depth', [18, 50])
def test_gradients_of_the_norm_against_float64(depth):
    """Also where the mean is many deviations from zero, and two terms of a gradient nearly cancel."""
    block, x = block_and_input(depth)
    norm = getattr(block, getattr(block, f'norm{len(block.positions)}_name'))
    norm.running_mean.add_(100)
    with torch.no_grad():
        norm.bias.add_(100 * norm.weight * (norm.running_var + norm.eps).rsqrt())  # as many above zero as before
    errors = {}
    double = copy.deepcopy(block).double()
    y = in_steps(double, x.double())
    grad_y = torch.randn_like(y)
    exact = torch.autograd.grad(y, list(double.parameters()), grad_y)
    for name, function in dict(folded=block, plain=lambda x: in_steps(block, x)).items():
        grads = torch.autograd.grad(function(x), list(block.parameters()), grad_y.float())
        errors[name] = [((g - e).abs().max() / e.abs().max()).item() for g, e in zip(grads, exact)]
    assert all(f <= 2 * p + 1e-6 for f, p in zip(errors['folded'], errors['plain']))


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('kind', ['ddp', 'fsdp', 'fsdp-norms'])
def test_distributed(folded, one_process, kind):
    """FSDP with units of blocks folds; norms that are units of their own gather their weights when they run."""
    net = network().train()
    twin = plain_twin(net)
    x = torch.randn(2, 3, 64, 64)
    expected_outs, expected = gradients(twin, x)
    if kind == 'ddp':
        wrapped = nn.parallel.DistributedDataParallel(net)
    else:
        units = [m for m in net.modules() if hasattr(m, 'conv3x3')]
        if kind == 'fsdp-norms':
            units = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        mesh = torch.distributed.init_device_mesh('cpu', (1,))
        for unit in units:
            torch.distributed.fsdp.fully_shard(unit, mesh=mesh)
        wrapped = torch.distributed.fsdp.fully_shard(net, mesh=mesh)
    outs, grads = gradients(wrapped, x)
    assert bool(folded) == (kind != 'fsdp-norms')
    assert all(map(torch.equal, outs, expected_outs))
    whole = {k.removeprefix('module.'): getattr(g, 'full_tensor', lambda g=g: g)() for k, g in grads.items()}
    assert_close(whole, expected, 1e-5)


def test_batch_statistics_are_left_to_the_norm(folded):
    net = network(norm_eval=False).train()
    twin = plain_twin(net, norm_eval=False)
    x = torch.randn(2, 3, 64, 64)
    outs, grads = gradients(net, x)
    expected_outs, expected = gradients(twin, x)
    assert not folded
    assert all(map(torch.equal, outs, expected_outs))
    assert_close(grads, expected, 1e-5)
    assert all(map(torch.equal, net.buffers(), twin.buffers()))


@pytest.mark.parametrize(
    'change',
    [
        lambda block: setattr(block, 'bn3', nn.BatchNorm2d(512, affine=False).eval()),
        lambda block: setattr(block, 'bn3', nn.BatchNorm2d(512, track_running_stats=False).eval()),
        lambda block: setattr(block, 'bn3', nn.GroupNorm(32, 512)),
        lambda block: setattr(block, 'bn3', nn.InstanceNorm2d(512, affine=True)),
        lambda block: setattr(block.bn3, 'forward', lambda x: x * 2),
        lambda block: block.bn3.register_forward_hook(lambda m, args, out: out * 2),
        lambda block: block.bn3.register_forward_pre_hook(lambda m, args: args[0] * 2),
        lambda block: block.ccd.register_forward_pre_hook(lambda m, args: (args[0] * 2, *args[1:])),
    ],
)
def test_norms_that_run_themselves(folded, change):
    block, x = block_and_input()
    change(block)
    with torch.no_grad():
        y = block(x)
        assert not folded
        out = torch.relu(block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))))
        out = block.bn3(block.conv3(out))
        assert torch.allclose(y, block.ccd(out, block.downsample(x)), atol=1e-6)


def test_hooks_on_all_modules_see_the_norm(folded):
    block, x = block_and_input()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.append(m))
    try:
        with torch.no_grad():
            y = block(x)
    finally:
        handle.remove()
    assert block.bn3 in seen and not folded
    with torch.no_grad():
        assert torch.equal(block(x), y)
    assert folded


def test_what_a_hook_of_the_convolution_got_is_not_written_over(folded):
    block, x = block_and_input()
    kept = []
    block.conv3.register_forward_hook(lambda m, args, out: kept.append((out, out.clone())))
    with torch.no_grad():
        y = block(x)
        ((out, copied),) = kept
        assert folded and torch.equal(out, copied)
        assert torch.equal(y, in_steps(block, x)) or torch.allclose(y, in_steps(block, x), atol=1e-6)


def test_y_lies_where_the_convolution_wrote(monkeypatch):
    block, x = block_and_input()
    pointers, forward = [], nn.Conv2d.forward

    def watch(self, x):
        out = forward(self, x)
        pointers.append(out.data_ptr())
        return out

    monkeypatch.setattr(nn.Conv2d, 'forward', watch)
    with torch.no_grad():
        assert block(x).data_ptr() == pointers[2]  # conv3's; the last is the shortcut's
    pointers.clear()
    assert block(x).data_ptr() not in pointers  # a gradient is wanted


def test_a_plugin_between_norm_and_layer(folded):
    plugins = [dict(cfg=dict(type='mmccd.SE'), position='after_conv2')]
    net = network(plugins=plugins).eval()
    twin = plain_twin(net, plugins=plugins)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(map(torch.equal, net(x), twin(x)))
    assert not folded


def test_fuse_conv_bn(folded):
    net = network(50).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = net(x)
        folded.clear()
        fused = fuse_conv_bn(copy.deepcopy(net))
        assert isinstance(fused.layer1[0].bn3, nn.Identity)
        for got, e in zip(fused(x), expected):
            assert torch.allclose(got, e, rtol=1e-3, atol=1e-4 * e.abs().max())
    assert not folded


def test_other_backends_leave_it_to_the_norm(folded, monkeypatch):
    monkeypatch.setattr(backends, '_reported', {'cpu'})
    monkeypatch.setattr(backends.load('cpu'), 'unavailable', lambda *_: 'not today')
    block, x = block_and_input()
    with torch.no_grad():
        assert torch.allclose(block(x), in_steps(block, x), atol=1e-6)
    assert not folded


@pytest.mark.parametrize('train', [False, True])
def test_bfloat16(folded, train):
    net = network().train(train)
    twin = plain_twin(net)
    x = torch.randn(2, 3, 64, 64)
    exact = [y.detach() for y in twin(x)]
    errors = []
    for each in (net, twin):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            outs, grads = gradients(each, x)
        assert all(g is None or g.isfinite().all() for g in grads.values())
        errors.append([((y - e).norm() / e.norm()).item() for y, e in zip(outs, exact)])
    assert folded
    assert all(f <= 2 * p for f, p in zip(*errors))


def test_model_in_half_precision(folded):
    block, x = block_and_input()
    expected = block(x)
    block, x = block.bfloat16(), x.bfloat16()
    folded.clear()
    with torch.no_grad():
        y = block(x)
        assert folded and y.dtype == torch.bfloat16
        plain = in_steps(block, x)
    assert (y - expected).norm() <= 2 * (plain - expected).norm()


def test_norm_of_another_dtype_says_so_itself():
    block, x = block_and_input()
    block.bn3.double()
    with torch.no_grad(), pytest.raises(RuntimeError):
        block(x)


@pytest.mark.slow
def test_compile_export_trace_and_fx():
    block, x = block_and_input(18)
    expected = block(x).detach()
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend='aot_eager')
    assert torch.allclose(compiled(x), expected, atol=1e-5)
    exported = torch.export.export(block, (x,)).module()
    assert torch.allclose(exported(x), expected, atol=1e-5)
    with torch.no_grad():
        traced = torch.jit.trace(block, x)
    assert 'mmccd::' not in str(traced.inlined_graph)
    assert torch.allclose(traced(x), expected, atol=1e-5)
    twin = torch.vmap(lambda t: block(t[None])[0])(x)
    assert torch.allclose(twin, expected, atol=1e-5)


def test_a_listening_mode_sees_the_norm(folded):
    from torch.utils.flop_counter import FlopCounterMode

    block, x = block_and_input()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(x)
    assert not folded and counter.get_total_flops() > 0


def test_layer_takes_the_affine_by_hand(caplog):
    layer = CCD(8, groups=4)
    nn.init.normal_(layer.scale)
    x, residual = torch.randn(2, 2, 8, 9, 6)
    weight, shift = torch.randn(2, 8)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        assert layer.takes_affine(x) and not layer.takes_affine(x.to('meta'))
        y = layer(x.clone(), residual, weight, shift, overwrite=True)
    assert torch.equal(y, ccd(x, layer.scale, layer.bias, 4, residual=residual, weight=weight, shift=shift))
    with pytest.raises(ValueError, match='weight and shift'):
        layer(x, residual, weight)
