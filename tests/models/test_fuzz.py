"""Layers, backbone and options as nobody would write them: either they work, or the message names the argument.

What hypothesis found stands in the tests of the layers (``test_bad_arguments``) and of the tools as plain cases.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmccd.configs import load_config
from mmccd.errors import UserError
from mmccd.models import CCD, FCA, GE, SGE, SK, AttentionResNet, SimAM
from mmccd.models.build import build_model
from mmccd.models.layers import attention_types

CONFIG = Path(__file__).parents[2] / 'configs' / 'ccd_r18_digits.py'
few = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
odd = st.sampled_from([None, True, -1, 0, 2.0, 0.5, 'x', '4', (), (1,), [2, 2], float('nan'), float('inf')])


def mostly(*good):
    """One of the values that make sense; one time in five, or so, something else."""
    return st.one_of(*[st.sampled_from(good)] * 4, odd)


channels = mostly(1, 2, 8, 24, 32, 64)
flag = st.booleans()
# What the words of the constructors mean is the same in all of them.
WORDS = dict(
    in_channels=channels,
    ratio=mostly(1, 4, 16, 24, 64),
    groups=mostly(1, 2, 8, 32, 64),
    kernel_size=mostly(1, 3, 7, 4),
    identity_init=flag,
    stride=mostly(1, 2, 3),
    dilation=mostly(1, 2),
)
# And what only one of them has.
OWN_WORDS = {
    CCD: dict(
        scales=st.one_of(st.lists(st.integers(0, 9), max_size=4), odd),
        similarity=mostly('dot', 'cosine'),
        normalize=mostly('zscore', 'minmax', None),
        eps=mostly(1e-7, 1e-3),
    ),
    SGE: dict(eps=mostly(1e-5, 1e-3)),
    SimAM: dict(e_lambda=mostly(1e-4, 0.5)),
    FCA: dict(frequencies=mostly(1, 2, 8, 16), grid=mostly(7, 14)),
    GE: dict(extent=mostly(0, 2, 4, 8), extra_params=flag, feat_size=mostly(None, 5, (5, 7), (7, 5)), mlp=flag),
    SK: dict(out_channels=mostly(None, 8, 32, 64)),
}
LAYERS = {
    layer: {k: v for k, v in {**WORDS, **OWN_WORDS.get(layer, {})}.items() if k in inspect.signature(layer).parameters}
    for layer in attention_types().values()
}


def names_one_of(message: str, names) -> bool:
    """Whether an error names an argument; ``channels`` stands for ``in_channels``."""
    return any(re.search(rf'\b{name}\b', message) for name in (*names, 'channels', 'scale'))


EVERY_TIME = ('CBAM', 'CCD', 'ECA', 'GC', 'GE', 'SE', 'SK')  # test_bad_arguments of the others is


@pytest.mark.parametrize(
    'layer', [pytest.param(each, marks=() if each.__name__ in EVERY_TIME else pytest.mark.long) for each in LAYERS]
)
@few
@given(data=st.data())
def test_layers(layer, data):
    """Built, a layer gates maps of any size, layout and contents, and all its gradients are finite."""
    strategies = LAYERS[layer]
    chosen = data.draw(st.sets(st.sampled_from(sorted(strategies))))
    options = {k: data.draw(s, label=k) for k, s in strategies.items() if k in chosen or k == 'in_channels'}
    try:
        m = layer(**options)
    except (TypeError, ValueError) as e:
        assert names_one_of(str(e), strategies), e
        return
    size = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)), label='size')
    size = getattr(m, 'feat_size', None) or size
    x = torch.randn(2, options['in_channels'], *size) * data.draw(st.sampled_from([0.0, 1e-30, 1.0, 1e4]), label='peak')
    if data.draw(flag, label='channels_last'):
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y = m.train(data.draw(flag, label='training'))(x)
    stride = options.get('stride', 1)
    assert y.shape == (2, options.get('out_channels') or x.shape[1], *(-(-n // stride) for n in size))
    assert y.isfinite().all()
    y.sum().backward()
    for name, gradient in [('x', x.grad), *((n, p.grad) for n, p in m.named_parameters())]:
        assert gradient is not None, name
        assert gradient.isfinite().all(), name


ATTENTION = st.fixed_dictionaries(
    dict(type=mostly(*(f'mmccd.{name}' for name in attention_types()), 'mmccd.Ccd')),
    optional=dict(
        groups=mostly(1, 2, 4, 8),
        ratio=mostly(1, 4, 8),
        extent=mostly(0, 2),
        scales=mostly((1,), (1, 2)),
        identity_init=flag,
        stages=st.one_of(st.lists(flag, min_size=4, max_size=4), odd),
    ),
)
BACKBONE = dict(
    attention=st.one_of(ATTENTION, ATTENTION, odd),
    plugins=st.one_of(
        st.none(),
        st.lists(
            st.fixed_dictionaries(
                dict(position=mostly('after_conv1', 'after_conv2', 'after_conv3')),
                optional=dict(
                    cfg=st.one_of(st.just(dict(type='mmccd.CCD', groups=8)), odd), stages=mostly((True,) * 4)
                ),
            ),
            max_size=2,
        ),
    ),
    num_stages=mostly(4, 4, 4, 3),
    out_indices=st.one_of(st.lists(st.integers(0, 4), max_size=4), odd),
    strides=mostly((1, 2, 2, 2), (1, 2, 1, 1), (1, 2)),
    dilations=mostly((1, 1, 1, 1), (1, 1, 2, 4)),
    frozen_stages=mostly(-1, 0, 1, 4, 5),
    drop_path_rate=mostly(0, 0.2),
    norm_eval=flag,
    with_cp=flag,
    deep_stem=flag,
    avg_down=flag,
    zero_init_residual=flag,
)


@few
@given(data=st.data())
def test_backbone(data):
    chosen = data.draw(st.sets(st.sampled_from(sorted(BACKBONE)), max_size=4))
    options = {k: data.draw(s, label=k) for k, s in BACKBONE.items() if k in chosen}
    depth = data.draw(st.sampled_from([18, 50, 20]), label='depth')
    try:
        net = AttentionResNet(depth, base_channels=8, **options)
    except (TypeError, ValueError, KeyError) as e:
        inside = ('type', 'cfg', 'position', 'stages', 'groups', 'ratio', 'extent', 'scales', 'identity_init', 'depth')
        assert names_one_of(str(e), (*BACKBONE, *inside)), e
        return
    outputs = net.train()(torch.randn(2, 3, 64, 64))
    expected = [i for i in range(net.num_stages) if i in net.out_indices]
    width = 8 * (1 if depth == 18 else 4)
    assert [out.shape[:2] for out in outputs] == [(2, width * 2**i) for i in expected]
    loss = sum(out.square().mean() for out in outputs)
    assert loss.isfinite()
    if loss.requires_grad:
        loss.backward()
    for name, p in net.named_parameters():
        assert p.grad is None or p.grad.isfinite().all(), name


OPTIONS = {
    'model.backbone.depth': mostly(18, 34, 50),
    'model.backbone.attention.type': mostly('mmccd.CCD', 'mmccd.SE', 'CCD'),
    'model.backbone.attention.groups': mostly(1, 8, 64),
    'model.backbone.attention.scales': mostly((1,), [1, 4]),
    'model.backbone.attention.normalise': mostly('zscore'),
    'model.backbone.attention.stages': mostly((True,) * 4),
    'model.backbone.attention': odd,
    'model.backbone.num_stages': mostly(4),
    'model.backbone.out_indices': mostly((3,)),
    'model.backbone.frozen_stages': mostly(-1, 1),
    'model.backbone.strides': mostly((1, 2, 2, 2)),
    'model.backbone.frozen_stage': mostly(1),
    'model.backbone.plugins': odd,
    'model.backbon.depth': mostly(18),
    'modle.backbone.depth': mostly(18),
    'train_dataloader.batch_size': mostly(8),
    'param_scheduler.1.end': mostly(3),
    'param_scheduler.5.end': mostly(3),
    'model.backbone.depth.x': mostly(1),
}


@few
@given(
    options=st.lists(st.sampled_from(sorted(OPTIONS)), min_size=1, max_size=2, unique=True).flatmap(
        lambda keys: st.fixed_dictionaries({k: OPTIONS[k] for k in keys})
    )
)
def test_options_of_a_config(options):
    """``--cfg-options``: the model can be built, or one message says what is wrong."""
    try:
        build_model(load_config(str(CONFIG), options))
    except UserError as e:
        words = {word for option in options for word in option.split('.')} | {'type', 'Index', 'normalise'}
        assert names_one_of(str(e), words), e
        assert len(str(e)) < 1000
