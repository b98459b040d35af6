"""Names, shapes and refusals of the converter, on state dicts whose tensors take no memory."""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor

from mmccd.checkpoints.architecture import other_than_resnet
from mmccd.checkpoints.convert import (
    DEPTHS,
    Arch,
    check_fits,
    config_candidates,
    convert,
    eca_kernels,
    parse_arch,
    recognise,
    state_dict_of,
)

DETECTORS = {'det_retinanet_ccd_r50': 'retinanet_ccd_r50', 'det_cascade_rcnn_ccd_r50': 'cascade_rcnn_ccd_r50'}
CLASSIFIERS = {f'{a}resnet50': f'{a}r50' for a in ('', 'ccd_', 'se_', 'sk_', 'cbam_', 'gc_')}


@pytest.fixture
def original(golden):
    """State dicts with the original's names and shapes, on the meta device."""

    def load(name: str) -> dict[str, Tensor]:
        shapes = json.loads((golden / f'{name}.json').read_text())['shapes']
        return {k: torch.empty(shape, device='meta') for k, shape in shapes.items()}

    return load


@pytest.fixture(scope='session')
def target(root):
    """State dict of a config's model, on the meta device."""

    def build(name: str, options: dict | None = None) -> dict[str, Tensor]:
        cfg = Config.fromfile(root / 'configs' / name)
        cfg.merge_from_dict(options or {})
        with torch.device('meta'):
            return MODELS.build(dict(cfg.model, _scope_=cfg.default_scope)).state_dict()

    return build


@pytest.mark.parametrize(
    'name, arch',
    [
        ('r18', Arch(None, None, 18)),
        ('ccd_r50', Arch(None, 'ccd', 50)),
        ('ge_r101', Arch(None, 'ge', 101)),
        ('retinanet_se_r34', Arch('retinanet', 'se', 34)),
        ('cascade_rcnn_r152', Arch('cascade_rcnn', None, 152)),
    ],
)
def test_parse_arch(name, arch):
    assert parse_arch(name) == arch
    assert parse_arch(name.replace('r1', 'resnet1')) == arch
    assert str(arch) == name
    assert arch.task == ('det' if arch.detector else 'cls')
    assert name.endswith(arch.backbone)


@pytest.mark.parametrize('name', ['', 'ccd', 'r51', 'ccd-r50', 'faster_rcnn_r50', 'simam_r50', 'r50_ccd', 'CCD_r50'])
def test_parse_arch_refuses(name):
    with pytest.raises(ValueError, match=r'arch must be \[<detector>_\]\[<attention>_\]r<depth>.*got '):
        parse_arch(name)


def test_state_dict_of():
    x, y = torch.zeros(1), torch.ones(1)
    assert state_dict_of(dict(epoch=1, state_dict={'module.a': x, 'module.b.c': y})) == {'a': x, 'b.c': y}
    assert state_dict_of({'a': x}) == {'a': x}
    # A part of the tensors under module. is no wrapper's work.
    assert set(state_dict_of({'module.a': x, 'b': y})) == {'module.a', 'b'}


@pytest.mark.parametrize('checkpoint', [{}, [], None, 3, dict(state_dict={}), dict(state_dict=3), dict(a=1)])
def test_state_dict_of_nothing(checkpoint):
    with pytest.raises(ValueError, match='has no state dict of tensors'):
        state_dict_of(checkpoint)


def test_state_dict_of_other_things():
    with pytest.raises(ValueError, match=r'1 entries of its state dict are no tensors: b \(list\)'):
        state_dict_of({'a': torch.zeros(1), 'b': [1]})


@pytest.mark.parametrize('name, arch', [*CLASSIFIERS.items(), *DETECTORS.items()])
def test_originals_fit_their_configs(original, target, name, arch):
    state = original(name)
    found = recognise(state)
    assert str(found) == arch
    config, options = config_candidates(found)[0]
    assert options == {}
    converted = convert(state, found)
    check_fits(converted, target(config))
    # A renaming: nothing is made up, nothing is lost.
    assert len(converted) == len(state)
    assert sum(v.numel() for v in converted.values()) == sum(v.numel() for v in state.values())


def test_values_move_as_they_should():
    """One block of each kind, with numbers in it; the input stays as it is."""
    scale = torch.arange(3.0).view(1, 3, 1)
    linear = torch.arange(6.0).view(2, 3)
    background_first = torch.tensor([9.0, 1.0, 2.0])
    state = {'layer1.0.pf.scale': scale, 'layer1.0.conv1.weight': linear}
    assert {k: v.tolist() for k, v in convert(state, parse_arch('ccd_r50')).items()} == {
        'backbone.layer1.0.ccd.scale': [0, 1, 2],
        'backbone.layer1.0.conv1.weight': linear.tolist(),
    }
    assert state['layer1.0.pf.scale'].shape == (1, 3, 1)
    out = convert({'layer4.2.se.fc.2.weight': linear, 'layer4.2.se.fc.2.bias': scale[0, :, 0]}, parse_arch('se_r50'))
    assert out['backbone.layer4.2.se_layer.conv2.conv.weight'].tolist() == linear[:, :, None, None].tolist()
    assert out['backbone.layer4.2.se_layer.conv2.conv.bias'].tolist() == [0, 1, 2]
    out = convert(
        {
            'bbox_head.1.fc_cls.bias': background_first,
            'bbox_head.1.fc_cls.weight': background_first[:, None] * torch.ones(1, 2),
            'rpn_head.rpn_cls.bias': background_first,  # three anchors: one logit each, no background
        },
        parse_arch('cascade_rcnn_r50'),
    )
    assert {k: v.tolist() for k, v in out.items()} == {
        'roi_head.bbox_head.1.fc_cls.bias': [1, 2, 9],
        'roi_head.bbox_head.1.fc_cls.weight': [[1, 1], [2, 2], [9, 9]],
        'rpn_head.rpn_cls.bias': [9, 1, 2],
    }
    assert background_first.tolist() == [9, 1, 2]
    out = convert(
        {'bbox_head.retina_cls.bias': background_first, 'bbox_head.reg_convs.3.bias': scale},
        parse_arch('retinanet_r50'),
    )
    assert out['bbox_head.retina_cls.bias'].tolist() == [9, 1, 2]
    assert list(out) == ['bbox_head.retina_cls.bias', 'bbox_head.reg_convs.3.conv.bias']


def test_sk_names():
    """The convolution beside the block's own is the second branch: of conv2 in a Bottleneck, conv1 in a BasicBlock."""
    names = ['conv1', 'bn1', 'conv2', 'bn2', 'conv_fc1', 'bn_fc1', 'conv_fc2']
    for depth, i in ((50, 2), (18, 1)):
        state = {f'layer2.1.{n}.weight': torch.zeros(1) for n in (*names, f'conv{i}g', f'bn{i}g')}
        other = 3 - i
        assert set(convert(state, Arch(None, 'sk', depth))) == {
            f'backbone.layer2.1.{n}.weight'
            for n in (
                f'conv{other}',
                f'bn{other}',
                f'conv{i}.branches.0.conv',
                f'conv{i}.branches.0.bn',
                f'conv{i}.branches.1.conv',
                f'conv{i}.branches.1.bn',
                f'conv{i}.fc1.conv',
                f'conv{i}.fc1.bn',
                f'conv{i}.fc2',
            )
        }
    with pytest.raises(ValueError, match=r'1 tensors have no place in it: layer2\.1\.conv2g\.weight'):
        convert({'layer2.1.conv2g.weight': torch.zeros(1)}, Arch(None, 'sk', 18))


def test_batch_counters_are_added():
    state = {
        'bn1.running_var': torch.ones(4),
        'layer1.0.bn2.running_var': torch.ones(4),
        'layer1.0.bn2.num_batches_tracked': torch.tensor(7),
    }
    out = convert(state, parse_arch('r50'))
    assert out['backbone.bn1.num_batches_tracked'].item() == 0
    assert out['backbone.bn1.num_batches_tracked'].dtype == torch.long
    assert out['backbone.layer1.0.bn2.num_batches_tracked'].item() == 7


@pytest.mark.parametrize('conv3, blocks', DEPTHS, ids=[f'r{d}' for d in DEPTHS.values()])
def test_depths(conv3, blocks):
    state = {
        f'layer{i}.{j}.conv{k}.weight': torch.zeros(1)
        for i, n in enumerate(blocks, 1)
        for j in range(n)
        for k in range(1, 4 if conv3 else 3)
    }
    assert recognise(state) == Arch(None, None, DEPTHS[conv3, blocks])
    state['layer3.1.se.fc.0.weight'] = torch.zeros(1)
    assert recognise(state) == Arch(None, 'se', DEPTHS[conv3, blocks])
    last = f'layer2.{blocks[1] - 1}.'
    with pytest.raises(ValueError, match=r'no ResNet of depth 18, 34, 50, 101, 152: \w+s a stage: \('):
        recognise({k: v for k, v in state.items() if not k.startswith(last)})


def change(state: dict[str, Tensor], **renamed: str) -> dict[str, Tensor]:
    """The state dict with parts of its keys replaced."""
    for old, new in renamed.items():
        state = {k.replace(old, new): v for k, v in state.items()}
    return state


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda o: {'conv1.weight': torch.zeros(1)}, 'no ResNet of depth 18, .*: it has conv1.weight'),
        (lambda o: {**o('ccd_resnet50'), **o('se_resnet50')}, 'several attentions: ccd, se'),
        (
            lambda o: {f'backbone.{k}': v for k, v in o('resnet50').items()},
            'no RetinaNet and no Cascade R-CNN of MMDetection 0.6: its top-level modules are backbone',
        ),
        # Faster R-CNN: one head without a number.
        (
            lambda o: change(o('det_cascade_rcnn_ccd_r50'), **{'bbox_head.0.': 'bbox_head.'}),
            'no RetinaNet and no Cascade R-CNN',
        ),
        (lambda o: convert(o('se_resnet50'), parse_arch('se_r50')), "its names are today's already"),
        (lambda o: convert(o('resnet50'), parse_arch('r50')), "its names are today's already"),
        (
            lambda o: convert(o('det_cascade_rcnn_ccd_r50'), parse_arch('cascade_rcnn_ccd_r50')),
            "names are today's already",
        ),
        (lambda o: change(o('det_retinanet_ccd_r50'), **{'_convs.0.': '_convs.0.conv.'}), 'no file of MMDetection 0.6'),
        (lambda o: {**o('resnet50'), 'layer1.0.conv2.paths.0.conv.weight': torch.zeros(1)}, "timm's SK-ResNets"),
        (
            lambda o: dict.fromkeys(('stages.0.0.attn.conv_attn.weight', 'head.fc.weight'), torch.zeros(1)),
            "timm's GC-ResNet-50-T",
        ),
    ],
    ids=[
        'no resnet',
        'two attentions',
        'no head',
        'faster rcnn',
        "today's classifier",
        "today's plain one",
        "today's detector",
        'newer retinanet',
        'timm sk',
        'timm gc',
    ],
)
def test_recognise_refuses(original, make, message):
    with pytest.raises(ValueError, match=message):
        recognise(make(original))


@pytest.mark.parametrize(
    'name, extra, message',
    [
        ('ccd_resnet50', {'layer1.0.pf.gamma.weight': (1,)}, r'1 tensors have no .*: layer1\.0\.pf\.gamma\.weight'),
        ('resnet50', {'layer1.0.eca.weight': (3,), 'aux': (1,)}, r'2 tensors have no .*: layer1\.0\.eca\.weight, aux'),
        ('resnet50', {'layer5.0.conv1.weight': (3,)}, r'no place in it: layer5'),
        ('ccd_resnet50', {'layer1.0.pf.scale': (64,)}, r'pf\.scale: must have shape \(1, groups, 1\), has \(64,\)'),
        ('ccd_resnet50', {'layer1.0.pf.bias': (2, 64, 1)}, r'pf\.bias: must have shape \(1, groups, 1\)'),
        (
            'det_cascade_rcnn_ccd_r50',
            {'bbox_head.0.fc_reg.bias': (324,)},
            'must be class-agnostic, 4 outputs .* has 324',
        ),
        ('det_cascade_rcnn_ccd_r50', {'mask_head.conv.weight': (3,)}, r'no place in it: mask_head\.conv\.weight'),
        ('det_retinanet_ccd_r50', {'fc.weight': (1000, 2048)}, r'no place in it: fc\.weight'),
        ('se_resnet50', {'layer1.0.se.fc1.weight': (16, 256, 1, 1)}, r'no place in it: layer1\.0\.se\.fc1\.weight'),
    ],
)
def test_convert_refuses(original, name, extra, message):
    state = {**original(name), **{k: torch.empty(shape, device='meta') for k, shape in extra.items()}}
    with pytest.raises(ValueError, match=f'^it looks like .*, but:\n.*{message}'):
        convert(state, recognise(state))


def test_check_fits_names_everything(original, target):
    """What is missing, unexpected and of another shape, each in a line; groups by their name."""
    goal = target('ccd_r50_8xb32_in1k.py')
    state = convert(original('ccd_resnet50'), parse_arch('ccd_r50'))
    check_fits(state, goal)
    del state['head.fc.bias']
    state['head.fc.weight'] = torch.empty(10, 2048)
    state['backbone.layer1.0.ccd.scale'] = torch.empty(32)
    state['backbone.more'] = torch.empty(1)
    with pytest.raises(ValueError) as e:
        check_fits(state, goal)
    assert str(e.value).splitlines() == [
        'it does not fit the model:',
        '  1 missing key (head: 1): head.fc.bias',
        '  1 unexpected key (more: 1): backbone.more',
        '  size mismatch of 2 tensors: backbone.layer1.0.ccd.scale (32,) in the checkpoint, (64,) in the model '
        '(groups=32 and groups=64), head.fc.weight (10, 2048) in the checkpoint, (1000, 2048) in the model',
    ]


def test_long_lists_are_cut(target):
    with pytest.raises(ValueError, match=r'320 missing keys \(.*\): .* and 312 more$'):
        check_fits({}, target('r50_8xb32_in1k.py'))


@pytest.mark.parametrize(
    'arch',
    ['r18', 'se_r34', 'gc_r101', 'cbam_r152', 'sk_r18', 'retinanet_gc_r50', 'retinanet_r18', 'cascade_rcnn_sk_r101'],
)
def test_configs_for_what_has_none_of_its_own(root, target, arch):
    """The nearest config, overridden, builds the architecture."""
    wanted = parse_arch(arch)
    config, options = next((n, o) for n, o in config_candidates(wanted) if (root / 'configs' / n).is_file())
    assert options
    keys = target(config, options)
    blocks = tuple(len({k.split('.')[2] for k in keys if k.startswith(f'backbone.layer{i}.')}) for i in range(1, 5))
    assert DEPTHS['backbone.layer1.0.conv3.weight' in keys, blocks] == wanted.depth
    mark = {None: 'conv1', 'se': 'se_layer', 'gc': 'context_block', 'cbam': 'cbam', 'sk': 'branches'}[wanted.attention]
    assert any(f'.{mark}.' in k for k in keys if k.startswith('backbone.layer4.1.'))
    channels = 512 if wanted.depth < 50 else 2048
    last = 'neck.lateral_convs.2.conv.weight' if wanted.detector == 'retinanet' else 'neck.lateral_convs.3.conv.weight'
    assert keys[last if wanted.detector else 'head.fc.weight'].shape[1] == channels


@pytest.mark.parametrize('depth', [50, 101])
def test_mmpretrain_se_resnet_loads_unchanged(target, depth):
    """MMPretrain's own model, of which it publishes weights, has the names and shapes of ours."""
    theirs = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='SEResNet', depth=depth, num_stages=4, out_indices=(3,), style='pytorch'),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=1000, in_channels=2048),
            _scope_='mmpretrain',
        )
    ).state_dict()
    check_fits(theirs, target('se_r50_8xb32_in1k.py', {'model.backbone.depth': depth}))


def eca(kernels: tuple[int, ...]) -> dict[str, Tensor]:
    """The authors' ECA-ResNet-50: torchvision's names, and a convolution in each block."""
    state = torchvision.models.resnet50().state_dict()
    for stage, (blocks, kernel) in enumerate(zip((3, 4, 6, 3), kernels), 1):
        for block in range(blocks):
            state[f'layer{stage}.{block}.eca.conv.weight'] = torch.rand(1, 1, kernel)
    return {k: v.to('meta') for k, v in state.items()}


def test_eca(target):
    """Its names are ours; the kernels are in the tensors."""
    for kernels, name, options in (
        ((5, 5, 5, 7), 'eca_r50_8xb32_in1k.py', {}),
        ((3, 3, 3, 3), 'eca_r50_8xb32_in1k.py', {'model.backbone.attention.kernel_size': 3}),
    ):
        state = eca(kernels)
        arch = recognise(state)
        assert arch == Arch(None, 'eca', 50)
        converted = convert(state, arch)
        assert eca_kernels(converted) == list(kernels)
        check_fits(converted, target(name, options))
    with pytest.raises(
        ValueError, match=r'size mismatch of 16 tensors: .*eca\.conv\.weight \(1, 1, 3\) in the checkpoint'
    ):
        check_fits(converted, target('eca_r50_8xb32_in1k.py'))
    assert eca_kernels(target('r50_8xb32_in1k.py')) is None


NAMED = {
    'by timm': dict(arch='resnetblur50', state_dict={}),
    'anti-aliased': dict(arch='seresnetaa50', state_dict={}),
    'in its meta data': dict(meta=dict(arch='ResNetBlur18')),
    'of safetensors': dict(state_dict={}, metadata=dict(architecture='resnetblur50')),
    'with its origin': dict(pretrained_cfg=dict(architecture='resnetaa50d.sw_in12k')),
    'by an argument': dict(arch='resnet50', model_args=dict(aa_layer='blurpool')),
    'by a stride': dict(arch='resnet50', model_args=dict(output_stride=8)),
}


@pytest.mark.parametrize('content', NAMED.values(), ids=NAMED)
def test_networks_that_no_tensor_tells_apart(tmp_path, content):
    assert 'has the tensors of a plain ResNet, and ' in other_than_resnet(content, str(tmp_path / 'x.pth'))


def test_files_called_by_their_network():
    """As timm publishes them, alone; any other name says nothing."""
    for source in (
        'https://a.org/resnetaa50_a1h-4cf422b3.pth',
        'w/resnetblur50-84f4748f.pth',
        'seresnetaa50d.safetensors',
    ):
        assert 'has the tensors of a plain ResNet, and ' in other_than_resnet({'conv1.weight': 0}, source)
    for source in ('blurred/resnet50.pth', 'resnet50_blur_augmented.pth', 'my-resnetaa.pth'):
        assert other_than_resnet({'conv1.weight': 0}, source) is None


def test_config_json_beside_the_weights(tmp_path):
    """timm's; what is not one is left alone."""
    path = str(tmp_path / 'model.safetensors')
    beside = tmp_path / 'config.json'
    for content, other in (
        ('{"architecture": "resnet50"}', False),
        ('{"architecture": "resnetblur50", "num_classes": 1000}', True),
        ('{"pretrained_cfg": {"architecture": "resnetaa50"}}', True),
        ('{"architecture": "resnet50", "model_args": {"aa_layer": "avg"}}', True),
        ('{', False),
        ('[1]', False),
    ):
        beside.write_text(content)
        assert (other_than_resnet({'conv1.weight': 0}, path) is not None) == other, content
    for plain in (
        dict(arch='resnet50'),
        dict(arch='seresnet50'),
        dict(arch='x', args=dict(model='resnet50.a1_in1k')),
        [1],
    ):
        assert other_than_resnet(plain, 'x.pth') is None
