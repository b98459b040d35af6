"""The judge finds nothing in mmccd's own layers and in timm's right ones; its definitions are independent of them."""

from __future__ import annotations

import pytest
import torch

from mmccd.analysis.judge import check_attention
from mmccd.analysis.judge.checks import CHECKS
from mmccd.analysis.judge.references import REFERENCES
from mmccd.models.layers import attention_types

SMALL = dict(channels=16, size=(7, 6))
# Options for few channels.
FEW = {
    'CCD': dict(groups=8),
    'SGE': dict(groups=8),
    'SK': dict(groups=8, ratio=4),
    'EMAttention': dict(groups=4),
    'ShuffleAttention': dict(groups=4),
    'BAM': dict(ratio=4),
    'CBAM': dict(ratio=4),
    'FCA': dict(ratio=4),
    'GC': dict(ratio=4),
    'SE': dict(ratio=4),
}
SLOW = ('compile', 'onnx', 'forward', 'training', 'memory')
LAYERS = sorted(attention_types())


def test_every_layer_but_sk_has_a_definition():
    assert set(LAYERS) - set(REFERENCES) == {'SK'}
    assert all(kind.paper and kind.formula for kind in REFERENCES.values())


@pytest.mark.parametrize('name', LAYERS)
def test_layers(name):
    like = name if name in REFERENCES else None
    checks = [check for check in CHECKS if check not in SLOW]
    verdict = check_attention(f'mmccd.models:{name}', like, options=FEW.get(name), checks=checks, **SMALL)
    assert not verdict.failed, verdict.text()
    if like:
        assert verdict['equality'].status == 'pass', verdict['equality'].figure
        assert verdict['parameters'].status == 'pass'
    assert verdict['dtype'].figure == 'float64, float16, bfloat16'
    assert not verdict.of('skipped') or like is None


@pytest.mark.long
@pytest.mark.parametrize('name', LAYERS)
def test_layers_by_all_checks(name):
    like = name if name in REFERENCES else None
    verdict = check_attention(f'mmccd.models:{name}', like, channels=128)
    assert not verdict.failed, verdict.text()
    assert verdict['compile'].status == 'pass'
    assert verdict['forward'].value > 0


IDENTITY = ['BAM', 'CBAM', 'CCD', 'CoordAttention', 'ECA', 'EMAttention', 'FCA', 'LSK', 'SE', 'SGE', 'TripletAttention']


@pytest.mark.parametrize('name', IDENTITY)
def test_identity_init_is_seen(name):
    options = {**FEW.get(name, {}), 'identity_init': True}
    verdict = check_attention(
        f'mmccd.models:{name}', options=options, checks=['gain', 'identity', 'gradients', 'state_dict'], **SMALL
    )
    assert not verdict.failed, verdict.text()
    assert verdict['identity'].status == 'pass'
    assert verdict['gain'].value == pytest.approx(1, abs=1e-5)


# Of timm, what its papers define: name, class, definition, and its options that differ from the defaults there.
TIMM = [
    ('squeeze_excite:SEModule', 'SE', {}),
    ('eca:EcaModule', 'ECA', {}),
    ('cbam:CbamModule', 'CBAM', {}),
    ('coord_attn:CoordAttn', 'CoordAttention', {}),
    pytest.param('split_attn:SplitAttn', None, {}, marks=pytest.mark.long),
    pytest.param('selective_kernel:SelectiveKernel', None, {}, marks=pytest.mark.long),
    pytest.param('global_context:GlobalContext', None, {}, marks=pytest.mark.long),
    pytest.param('squeeze_excite:EffectiveSEModule', None, {}, marks=pytest.mark.long),
]


@pytest.mark.parametrize(('name', 'like', 'options'), TIMM)
def test_timm(name, like, options):
    pytest.importorskip('timm')
    checks = [check for check in CHECKS if check not in SLOW]
    verdict = check_attention(f'timm.layers.{name}', like, channels=128, size=(7, 6), options=options, checks=checks)
    assert not verdict.failed, verdict.text()
    if like:
        assert verdict['equality'].status == 'pass'


def test_definitions_are_not_the_layers():
    """What both are computed by is not shared, beside CCD's own definition."""
    import inspect

    for kind in REFERENCES.values():
        assert 'mmccd.models' not in inspect.getsource(inspect.getmodule(kind))
    layer = REFERENCES['SE'](16, ratio=4)
    x = torch.randn(2, 16, 3, 5)
    hidden = torch.relu(x.mean((2, 3)) @ layer.fc1.weight.flatten(1).T + layer.fc1.bias)
    gate = torch.sigmoid(hidden @ layer.fc2.weight.flatten(1).T + layer.fc2.bias)
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])
