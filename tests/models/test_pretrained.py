import logging
import pickle
import re

import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmccd import env
from mmccd.models import AttentionResNet, PretrainedBackbone, pretrained
from mmccd.models.backbones import attention_resnet
from mmccd.models.pretrained import allowed_missing, missing_checkpoint_message


@pytest.fixture(scope='module')
def trained():
    """State of a CCD-ResNet-18 unlike any initial weights, and of its plain part."""
    torch.manual_seed(1)
    state = AttentionResNet(18, attention=dict(type='mmccd.CCD')).state_dict()
    return {k: torch.rand_like(v) + 0.5 if v.is_floating_point() else v for k, v in state.items()}


def backbone(checkpoint, attention='CCD', **options):
    init_cfg = dict(type='mmccd.PretrainedBackbone', checkpoint=str(checkpoint), **options)
    net = AttentionResNet(18, attention=attention and dict(type=f'mmccd.{attention}'), init_cfg=init_cfg)
    return net


def unchanged(net, before):
    return all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.', 'module.backbone.'])
@pytest.mark.parametrize('wrapped', [True, False])
def test_finds_the_prefix_and_loads_everything(tmp_path, trained, prefix, wrapped):
    state = {prefix + k: v for k, v in trained.items()}
    state['head.fc.weight' if 'backbone' in prefix else f'{prefix}fc.weight'] = torch.ones(10, 512)
    torch.save(dict(state_dict=state, meta=dict(epoch=3)) if wrapped else state, tmp_path / 'a.pth')
    net = backbone(tmp_path / 'a.pth')
    net.init_weights()
    assert unchanged(net, trained)


def test_one_line_says_what_was_loaded(tmp_path, trained, monkeypatch):
    plain = {f'backbone.{k}': v for k, v in trained.items() if '.ccd.' not in k}
    torch.save({**plain, 'backbone.fc.weight': torch.ones(2), 'head.fc.bias': torch.ones(2)}, tmp_path / 'a.pth')
    messages = []
    monkeypatch.setattr(pretrained, 'print_log', lambda text, **kwargs: messages.append(text))
    PretrainedBackbone(str(tmp_path / 'a.pth'), allow_missing='ccd')(
        AttentionResNet(18, attention=dict(type='mmccd.CCD'))
    )
    line = f'{len(plain)} tensors loaded, 16 missing (ccd: 16), 1 unexpected (fc: 1)'
    assert messages == [f'{tmp_path / "a.pth"}: {line}']


def test_new_parts_keep_their_start(tmp_path, trained):
    torch.save({k: v for k, v in trained.items() if '.ccd.' not in k}, tmp_path / 'plain.pth')
    net = backbone(tmp_path / 'plain.pth', allow_missing=['ccd'])
    net.init_weights()
    assert torch.equal(net.layer4[1].ccd.bias, torch.ones(64))
    assert torch.equal(net.layer4[1].conv2.weight, trained['layer4.1.conv2.weight'])


def test_new_parts_of_frozen_stages_are_trained(tmp_path, trained, monkeypatch):
    torch.save({k: v for k, v in trained.items() if '.ccd.' not in k}, tmp_path / 'plain.pth')
    init_cfg = dict(type='mmccd.PretrainedBackbone', checkpoint=str(tmp_path / 'plain.pth'), allow_missing='ccd')
    net = AttentionResNet(18, frozen_stages=1, attention=dict(type='mmccd.CCD'), init_cfg=init_cfg)
    gates = {f'layer1.{b}.ccd.{p}' for b in (0, 1) for p in ('scale', 'bias')}

    def trainable():
        return {k for k, p in net.named_parameters() if p.requires_grad and k.startswith(('conv1', 'bn1', 'layer1'))}

    assert trainable() == gates  # from the start: DistributedDataParallel is built before init_weights
    messages = []
    monkeypatch.setattr(attention_resnet, 'print_log', lambda text, **kwargs: messages.append(text))
    net.init_weights()
    net.train()
    assert trainable() == gates
    assert messages[0].startswith(
        'frozen_stages=1: 4 tensors that the checkpoint may miss are trained nevertheless (layer1.0.ccd.scale'
    )
    init_cfg.pop('allow_missing')
    net = AttentionResNet(18, frozen_stages=1, attention=dict(type='mmccd.CCD'), init_cfg=init_cfg)
    assert trainable() == set()


def test_a_runners_checkpoint_loads_without_running_code(tmp_path, trained):
    hub = dict(log_scalars={'train/loss': HistoryBuffer([1.0], [1])}, runtime_info={}, resumed_keys={})
    torch.save(dict(state_dict=trained, message_hub=hub, meta=dict(epoch=1)), tmp_path / 'epoch_1.pth')
    net = backbone(tmp_path / 'epoch_1.pth')
    net.init_weights()
    assert unchanged(net, trained)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


HALF = [
    (
        'no gates in the file',
        lambda s: {k: v for k, v in s.items() if '.ccd.' not in k},
        {},
        r'16 missing keys \(ccd: 16\): layer1\.0\.ccd\.scale.*allow_missing',
    ),
    (
        'a layer missing',
        lambda s: {k: v for k, v in s.items() if not k.startswith('layer3')},
        dict(allow_missing=('ccd',)),
        r'missing keys \(layer3: ',
    ),
    (
        'a tensor too many',
        lambda s: {**s, 'layer1.2.conv1.weight': torch.ones(64, 64, 3, 3)},
        {},
        r'1 unexpected key \(layer1: 1\).*allow_unexpected',
    ),
    (
        'another attention',
        lambda s: {k.replace('.ccd.', '.se_layer.'): v for k, v in s.items()},
        {},
        r'16 missing keys \(ccd: 16\).*\n.*16 unexpected keys \(se_layer: 16\)',
    ),
    (
        'other groups',
        lambda s: {k: v[:32] if '.ccd.' in k else v for k, v in s.items()},
        {},
        r'size mismatch of 16 tensors: layer1\.0\.ccd\.scale \(32,\) in the checkpoint, \(64,\) in the model',
    ),
    (
        'nothing in common',
        lambda s: {'encoder.weight': torch.ones(3)},
        dict(allow_missing='ccd'),
        r'nothing in .* matches the backbone: it has encoder\.weight',
    ),
    ('no tensors', lambda s: {'meta': 'text'}, {}, 'has no state dict of tensors'),
]


@pytest.mark.parametrize(('change', 'options', 'message'), [h[1:] for h in HALF], ids=[h[0] for h in HALF])
def test_half_a_backbone_is_refused(tmp_path, trained, change, options, message):
    torch.save(change(trained), tmp_path / 'half.pth')
    net = AttentionResNet(18, attention=dict(type='mmccd.CCD'))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match=f'(?s){message}'):
        PretrainedBackbone(str(tmp_path / 'half.pth'), **options)(net)
    assert unchanged(net, before)
    with pytest.raises(ValueError, match=f'(?s){message}'):
        backbone(tmp_path / 'half.pth', **options).init_weights()


def test_allow_unexpected(tmp_path, trained):
    torch.save(trained, tmp_path / 'a.pth')
    cut = AttentionResNet(
        18, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,), attention=dict(type='mmccd.CCD')
    )
    with pytest.raises(ValueError, match=r'unexpected keys \(layer4: '):
        PretrainedBackbone(str(tmp_path / 'a.pth'))(cut)
    PretrainedBackbone(str(tmp_path / 'a.pth'), allow_unexpected='layer4')(cut)
    assert torch.equal(cut.layer3[0].conv1.weight, trained['layer3.0.conv1.weight'])


def test_former_names_of_options(tmp_path, trained, monkeypatch):
    """Configs of version 0.1 load, with a warning; both names together are one list."""
    state = {k: v for k, v in trained.items() if '.ccd.' not in k}
    torch.save({**state, 'layer9.x': torch.ones(1), 'layer8.x': torch.ones(1)}, tmp_path / 'a.pth')
    monkeypatch.setattr(env, '_WARNED', set())
    records = []
    monkeypatch.setattr(pretrained, 'print_log', lambda text, logger, level=20: records.append((level, text)))
    for _ in range(2):
        loader = PretrainedBackbone(
            str(tmp_path / 'a.pth'), allow_new='ccd', allow_unexpected='layer8', allow_unused=['layer9']
        )
    assert [level for level, _ in records] == [logging.WARNING] * 2  # once each
    assert [re.findall(r'allow_\w+', text) for _, text in records] == [
        ['allow_new', 'allow_missing'],
        ['allow_unused', 'allow_unexpected'],
    ]
    net = AttentionResNet(18, attention=dict(type='mmccd.CCD'))
    loader(net)
    assert torch.equal(net.layer3[0].conv1.weight, trained['layer3.0.conv1.weight'])
    for options in (dict(allow_new='ccd'), dict(allow_missing='ccd'), dict(allow_new=['a'], allow_missing=('b', 'c'))):
        names = tuple(n for v in options.values() for n in ([v] if isinstance(v, str) else v))
        assert set(allowed_missing(options)) == set(names)
    assert allowed_missing(dict(type='Pretrained')) == ()
    # What is frozen is decided by the former name as well.
    init_cfg = dict(type='mmccd.PretrainedBackbone', checkpoint=str(tmp_path / 'a.pth'), allow_new='ccd')
    frozen = AttentionResNet(18, frozen_stages=1, attention=dict(type='mmccd.CCD'), init_cfg=init_cfg)
    assert frozen.layer1[0].ccd.scale.requires_grad
    assert not frozen.layer1[0].conv1.weight.requires_grad


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    victim = tmp_path / 'written'
    with open(tmp_path / 'evil.pth', 'wb') as f:
        pickle.dump({'state_dict': Evil(victim)}, f)
    torch.save({'state_dict': Evil(victim)}, tmp_path / 'evil2.pth')
    for name in ('evil.pth', 'evil2.pth'):
        with pytest.raises(ValueError, match=r'is not a checkpoint of tensors and plain data|cannot be read'):
            backbone(tmp_path / name).init_weights()
    assert not victim.exists()


def test_truncated_file(tmp_path, trained):
    torch.save(trained, tmp_path / 'a.pth')
    data = (tmp_path / 'a.pth').read_bytes()
    (tmp_path / 'a.pth').write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r'a\.pth cannot be read as a checkpoint'):
        backbone(tmp_path / 'a.pth').init_weights()


def test_missing_file_names_the_commands():
    text = missing_checkpoint_message('checkpoints/ccd_r50_in1k.pth')
    assert 'tools/dist_train.sh configs/ccd_r50_8xb32_in1k.py 8' in text
    assert 'publish_model.py work_dirs/ccd_r50_8xb32_in1k/epoch_100.pth checkpoints/ccd_r50_in1k.pth' in text
    assert (
        '--cfg-options model.backbone.attention.identity_init=True '
        'model.backbone.init_cfg.checkpoint=torchvision://resnet50 model.backbone.init_cfg.allow_missing=ccd'
    ) in text
    assert 'identity' not in missing_checkpoint_message('checkpoints/ge_r50_in1k.pth')
    for name in ('ccd_r18_fashion', 'r18_solar', 'r18_digits'):
        assert f'train.py configs/{name}.py' in missing_checkpoint_message(f'checkpoints/{name}.pth')
    with pytest.raises(FileNotFoundError, match=r'does not exist.*ccd_r18_digits'):
        backbone('checkpoints-nowhere/ccd_r18_digits.pth').init_weights()


@pytest.mark.parametrize(
    ('attention', 'new'), [('CCD', 'ccd'), ('SE', 'se_layer'), ('CBAM', 'cbam'), ('GC', 'context_block')]
)
@pytest.mark.parametrize('depth', [18, *(pytest.param(d, marks=pytest.mark.long) for d in (34, 50, 101, 152))])
def test_identity_start_gives_the_plain_outputs(tmp_path, depth, attention, new):
    plain = AttentionResNet(depth)
    for p in plain.parameters():
        if p.dim() == 1:
            torch.nn.init.uniform_(p, 0.1, 0.5)
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    options = {} if attention == 'GC' else dict(identity_init=True)
    net = AttentionResNet(
        depth,
        attention=dict(type=f'mmccd.{attention}', **options),
        init_cfg=dict(type='mmccd.PretrainedBackbone', checkpoint=str(tmp_path / 'plain.pth'), allow_missing=new),
    )
    net.init_weights()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(net.eval()(x), plain.eval()(x)):
            assert (a - b).abs().max() / b.abs().max() < 1e-6
