import pytest
import torch
from mmengine.config import Config

import mmccd.models
from mmccd.analysis.complexity import build_on_meta, measure

# Parameters and operations of the published models, exact.
PUBLISHED = {
    'r50': (25_557_032, 4_121_924_096),
    'se_r50': (28_088_024, 4_129_959_344),
    'ge_r50': (25_557_032, 4_127_443_456),
    'cbam_r50': (28_089_624, 4_139_381_292),
    'sk_r50': (26_154_496, 4_186_862_296),
    'gc_r50': (28_105_032, 4_129_989_259),
    'ccd_r50': (25_559_080, 4_121_924_096),
}


def model(root, name):
    return build_on_meta(Config.fromfile(root / 'configs' / f'{name}.py'))


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_integers(root, name):
    found = measure(model(root, f'{name}_8xb32_in1k'), (224, 224))
    assert (found.params, found.flops) == PUBLISHED[name]


def test_ccds_own_arithmetic_is_counted(root):
    found = measure(model(root, 'ccd_r50_8xb32_in1k'), (224, 224), 'mac')
    # 16 layers: 5 operations for each of the elements that they see, 8 for each position of 64 groups.
    elements = 3 * 256 * 56**2 + 4 * 512 * 28**2 + 6 * 1024 * 14**2 + 3 * 2048 * 7**2
    positions = 3 * 56**2 + 4 * 28**2 + 6 * 14**2 + 3 * 7**2
    assert found.attention_ops == 5 * elements + 8 * 64 * positions
    assert found.attention_params == 2048
    plain = measure(model(root, 'r50_8xb32_in1k'), (224, 224), 'mac')
    assert found.flops - plain.flops == found.attention_ops
    assert plain.attention_ops == 0
    # With the three poolings alone, as facts about the published model give it.
    assert 4_121_924_096 + 3 * elements == 4_138_482_176


def test_eca_is_counted(root):
    plain, found = (measure(model(root, f'{n}r50_8xb32_in1k'), (224, 224)) for n in ('', 'eca_'))
    # 16 poolings over what the layers see, and 16 kernels of 5 (7 in the last stage) at each channel.
    elements = 3 * 256 * 56**2 + 4 * 512 * 28**2 + 6 * 1024 * 14**2 + 3 * 2048 * 7**2
    products = (3 * 256 + 4 * 512 + 6 * 1024) * 5 + 3 * 2048 * 7
    assert found.attention_params == found.params - plain.params == 13 * 5 + 3 * 7
    assert found.flops - plain.flops == elements + products
    assert found.attention_ops == 2 * elements + products + (3 * 256 + 4 * 512 + 6 * 1024 + 3 * 2048)


# Of 64 channels, 4 x 6: 1,536 elements, 24 positions, 10 rows and columns. Convolutions with their biases, norms two an
# element, then what is no module, as in the comments of mmccd/analysis/complexity.py.
OPERATIONS = {
    'SGE': 3 * 1536 + 8 * 64 * 24,
    'SimAM': 8 * 1536,
    'CoordAttention': 80 * 65 + 2 * 80 + (256 + 384) * 9 + 4 * 1536 + (8 + 64) * 10,
    'EMAttention': 640 * 9 + 1536 * 73 + 16 * 1536 + 64 * 10 + 6 * 64 + 2 * 8 * 24,
    'TripletAttention': (64 * 6 + 64 * 4 + 24) * (98 + 2) + 10 * 1536 + 64 * 10 + 24,
    'BAM': (4 * 65 + 3 * 4 + 64 * 5) + 96 * (65 + 3 + 2 * (37 + 3)) + 24 * 5 + 5 * 1536,
    'ShuffleAttention': 768 * 2 + 3 * 32 + 768 * 11,
    'NAM': 5 * 1536 + 2 * 64,
    'LSK': 1536 * (26 + 50) + 2 * 768 * 65 + 48 * 99 + 1536 * 33 + 4 * 768 + 48 + 3 * 768 + 1536,
    'FCA': 2 * 256 + 4 + 2 * 1536 + 64 * 49 + 64,
}


@pytest.mark.parametrize('name', OPERATIONS)
def test_operations_of_a_layer(name):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 64, 1)
            self.layer = getattr(mmccd.models, name)(64).eval()

        def forward(self, x, mode):
            return self.layer(self.stem(x))

    with torch.device('meta'):
        found, stem = measure(Net(), (4, 6), 'mac'), 3 * 1536
    assert found.attention_ops == OPERATIONS[name]
    assert found.flops == stem + OPERATIONS[name]


@pytest.mark.parametrize(('convention', 'expected'), [('mac', 4.089), ('mmengine', 4.112)])
def test_other_conventions_of_plain_resnet50(root, convention, expected):
    assert round(measure(model(root, 'r50_8xb32_in1k'), (224, 224), convention).flops / 1e9, 3) == expected


@pytest.mark.parametrize('name', ['retinanet_ccd_r50_fpn_1x_coco', 'cascade_rcnn_ccd_r50_fpn_1x_coco'])
def test_detectors(root, name):
    ours, plain = (measure(model(root, n), (256, 320), 'mac') for n in (name, name.replace('_ccd', '')))
    assert ours.params - plain.params == 2048
    assert ours.flops - plain.flops == ours.attention_ops > 0
    assert ours.activations == plain.activations
    wider = measure(model(root, name), (512, 320), 'mac')
    if 'retinanet' in name:
        assert wider.flops == pytest.approx(2 * ours.flops, rel=0.01)
    else:  # the RoI heads do not grow with the image
        assert ours.flops < wider.flops < 2 * ours.flops


def test_unknown_convention(root):
    with pytest.raises(ValueError, match=r"convention must be one of .*got 'flops'"):
        measure(model(root, 'r50_8xb32_in1k'), (224, 224), 'flops')
