"""Gates of whole networks: places, values, choices."""

import numpy as np
import pytest
import torch
from mmdet.models import ResNet
from mmengine.registry import MODELS, init_default_scope

from mmccd.analysis.attention_maps import attention_layers, choose_layers, record_gates
from mmccd.analysis.inputs import prepare_image
from mmccd.configs import load_config
from mmccd.models import AttentionResNet


def classifier(attention, **backbone):
    backbone = dict(type='mmccd.AttentionResNet', depth=18, attention=attention, **backbone)
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=backbone,
            data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', mean=[100.0] * 3, std=[50.0] * 3),
        )
    ).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)  # gates that differ from place to place
    return model


def batch(h=40, w=56):
    return dict(inputs=[torch.randint(0, 256, (3, h, w), dtype=torch.uint8)], data_samples=None)


@pytest.mark.parametrize('fuse', [True, False])
def test_recorded_gates_are_those_that_the_network_applies(fuse):
    model = classifier(dict(type='mmccd.CCD', groups=8), fuse=fuse)
    block, data = model.backbone.layer2[1], batch()
    seen = {}
    block.register_forward_pre_hook(lambda m, args: seen.update(shortcut=args[0]))
    block.ccd.register_forward_pre_hook(lambda m, args: seen.update(x=args[0].clone()))
    block.register_forward_hook(lambda m, args, out: seen.update(out=out))
    found = record_gates(model, data, attention_layers(model.backbone))

    assert [(g.name, g.stage, g.block, g.layer, g.kind) for g in found.gates] == [
        (f'layer{s}.{b}.ccd', s, b, 'CCD', 'spatial') for s in (1, 2, 3, 4) for b in (0, 1)
    ]
    assert [g.values.shape for g in found.gates][::2] == [(8, 10, 14), (8, 5, 7), (8, 3, 4), (8, 2, 2)]
    gate = torch.from_numpy(found.arrays()['layer2.1.ccd.spatial'])
    assert gate.std() > 0.01
    expected = torch.relu(seen['x'] * gate.repeat_interleave(16, 0) + seen['shortcut'])
    assert torch.allclose(seen['out'], expected, atol=1e-5)
    assert not model.backbone.layer1[0].ccd._forward_pre_hooks  # nothing stays behind


@pytest.mark.parametrize(
    ('attention', 'shapes'),
    [
        ('EMAttention', {'spatial': (8, 5, 7)}),
        ('BAM', {'spatial': (128, 5, 7)}),
        ('FCA', {'channel': (128,)}),
    ],
)
def test_gates_of_other_layers_are_recorded(attention, shapes):
    model = classifier(dict(type=f'mmccd.{attention}'))
    layers = choose_layers(attention_layers(model.backbone), stages=[2], blocks=[1])
    found = record_gates(model, batch(), layers).gates
    assert {(g.layer, g.kind): g.values.shape for g in found} == {(attention, k): s for k, s in shapes.items()}
    assert all(g.values.std() > 1e-4 for g in found)


def test_image_is_rgb_and_padding_is_told(root):
    init_default_scope('mmdet')
    cfg = load_config(str(root / 'configs' / 'retinanet_ccd_r18_fpn_digits.py'))
    model = MODELS.build(dict(cfg.model, _scope_='mmdet')).eval()
    data = batch(40, 56)
    found = record_gates(model, data, attention_layers(model.backbone))
    assert found.padded == (64, 64)  # pad_size_divisor=32
    assert found.gates[0].values.shape == (64, 16, 16)
    assert np.array_equal(found.pixels, data['inputs'][0].flip(0).permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ('attention', 'keys'),
    [
        (dict(type='mmccd.CBAM', stages=(False, False, True, False)), {'spatial': (1, 3, 4), 'channel': (256,)}),
        (dict(type='mmccd.GC', stages=(False, False, True, False)), {'spatial': (1, 3, 4), 'channel': (256,)}),
        (dict(type='mmccd.SE', stages=(False, False, True, False)), {'channel': (256,)}),
        (dict(type='mmccd.SK', stages=(False, False, True, False)), {'channel': (256,)}),
        (dict(type='mmccd.GE', stages=(False, False, True, False)), {'channel': (256,)}),
        (dict(type='mmccd.GE', extent=2, stages=(False, False, True, False)), {'spatial': (256, 3, 4)}),
    ],
)
def test_all_attentions(attention, keys):
    model = classifier(attention)
    found = record_gates(model, batch(), attention_layers(model.backbone))
    assert [(g.stage, g.block, g.kind, g.values.shape) for g in found.gates] == [
        (3, b, kind, shape) for b in (0, 1) for kind, shape in keys.items()
    ]
    assert all(np.isfinite(g.values).all() for g in found.gates)


def test_plugins_of_mmdets_resnet():
    plugins = [dict(cfg=dict(type='mmccd.CCD'), stages=(True,) * 4, position='after_conv3')]
    assert list(attention_layers(ResNet(50, plugins=plugins)))[3:5] == ['layer2.0.ccd', 'layer2.1.ccd']


def test_choice_of_stages_and_blocks():
    layers = attention_layers(AttentionResNet(50, attention=dict(type='mmccd.CCD', stages=(True, False, True, True))))
    assert list(choose_layers(layers, [3, 4], [2, 5])) == ['layer3.2.ccd', 'layer3.5.ccd', 'layer4.2.ccd']
    assert len(choose_layers(layers)) == 12
    with pytest.raises(ValueError, match=r'stage 2 has no attention, or does not exist; there are 1, 3, 4$'):
        choose_layers(layers, [1, 2])
    with pytest.raises(ValueError, match=r'block 3 has no.*there are, in stage 1: 0, 1, 2; stage 4: 0, 1, 2$'):
        choose_layers(layers, [1, 4], [0, 3])
    with pytest.raises(ValueError, match=r'nothing to show: no residual block of the backbone \(AttentionResNet\)'):
        attention_layers(AttentionResNet(18))


def test_pipeline_is_the_configs(root, toy_coco):
    cfg = load_config(str(root / 'configs' / 'retinanet_ccd_r50_fpn_1x_coco.py'))
    data = prepare_image(cfg, str(toy_coco / 'val' / '1.jpg'))  # 40 x 30, no annotations at hand
    assert data['inputs'][0].shape == (3, 800, 1067)
    cfg.test_dataloader = None
    with pytest.raises(ValueError, match=r'the config has no test_dataloader\.dataset\.pipeline'):
        prepare_image(cfg, str(toy_coco / 'val' / '1.jpg'))
