"""Initial weights: whole, or refused before anything is done with what is wrong and what to do."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch import nn

import mmccd
from mmccd.checkpoints.read import read_checkpoint
from mmccd.cli.initial_weights import check_init_checkpoint, check_load_from, class_tensors, named_checkpoints
from mmccd.errors import UserError
from mmccd.models.build import build_model

DETECTOR = 'retinanet_ccd_r18_fpn_digits'  # 10 classes, 9 anchors a place: 90 scores
CLASSIFIER = 'ccd_r18_digits'


def one_number(shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of any shape whose file is small."""
    return torch.zeros(()).expand(shape)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: one_number(v.shape) for k, v in model.state_dict().items()}


@pytest.fixture(scope='module')
def detector() -> tuple[Config, nn.Module]:
    cfg = mmccd.get_config(DETECTOR)
    return cfg, build_model(cfg)


@pytest.fixture
def load(detector, tmp_path, monkeypatch):
    """``load_from`` of a file with this content, checked against the detector."""
    monkeypatch.chdir(tmp_path)

    def check(content: object, **options: object):
        torch.save(content, 'w.pth')
        cfg = copy.copy(detector[0])
        cfg = Config({**cfg.to_dict(), 'load_from': 'w.pth', **options})
        return check_load_from(cfg, detector[1])

    return check


def other_classes(state: dict[str, torch.Tensor], classes: int = 80) -> dict[str, torch.Tensor]:
    wide = {'bbox_head.retina_cls.weight': (9 * classes, 256, 3, 3), 'bbox_head.retina_cls.bias': (9 * classes,)}
    return {k: one_number(wide.get(k, v.shape)) for k, v in state.items()}


def test_whole(detector, load):
    """By whatever program it was saved: the runner gets the tensors under the model's names."""
    state = state_of(detector[1])
    for content in (
        state,
        dict(state_dict=state, meta=dict(epoch=1)),
        dict(model={f'model.{k}': v for k, v in state.items()}),
    ):
        loaded = load(content)
        assert loaded.summary == f'load_from w.pth: {len(state)} tensors are loaded'
        assert list(loaded.checkpoint.content['state_dict']) == list(state)
    assert load(state, load_from=None) is None
    assert load(state, resume=True) is None


def test_fine_tuning_on_other_classes(detector, load):
    """The usual case, in one line; the message has that line, and the summary what is initialised."""
    state = other_classes(state_of(detector[1]))
    with pytest.raises(UserError) as e:
        load(state)
    lines = str(e.value).splitlines()
    assert lines[0] == 'load_from w.pth does not fit the model, nothing was loaded:'
    assert lines[1].startswith(
        '  size mismatch of 2 tensors: bbox_head.retina_cls.weight (720, 256, 3, 3) in the checkpo'
    )
    assert lines[2] == (
        'They follow from the number of classes. To fine-tune on other classes, and initialise these 2 tensors: '
        'load_from_allow=classes'
    )
    for allowed in ('classes', ['retina_cls'], 'bbox_head.retina_cls'):
        loaded = load(state, load_from_allow=allowed)
        assert loaded.summary == (
            f'load_from w.pth: {len(state) - 2} tensors are loaded, 2 keep their initial values (bbox_head: 2): '
            'bbox_head.retina_cls.weight, bbox_head.retina_cls.bias'
        )
        assert set(state) - set(loaded.checkpoint.content['state_dict']) == {
            'bbox_head.retina_cls.weight',
            'bbox_head.retina_cls.bias',
        }


def test_classes_allow_nothing_else(detector, load):
    """A mismatch that does not follow from the classes stays an error."""
    state = other_classes(state_of(detector[1]))
    state['bbox_head.retina_reg.bias'] = one_number((32,))
    del state['neck.fpn_convs.0.bn.bias']
    with pytest.raises(UserError) as e:
        load(state, load_from_allow='classes')
    assert '1 missing key (neck: 1): neck.fpn_convs.0.bn.bias' in str(e.value)
    assert 'size mismatch of 1 tensor: bbox_head.retina_reg.bias (32,) in the checkpoint, (36,)' in str(e.value)
    assert (
        str(e.value)
        .splitlines()[-1]
        .endswith('initial values or out: load_from_allow=neck.fpn_convs.0.bn.bias,bbox_head.retina_reg.bias')
    )
    with pytest.raises(UserError) as e:
        load(state, load_from_allow=['classes', 'retina_reg'])
    assert 'retina_reg' not in str(e.value)


def test_class_tensors_of_a_classifier_and_a_cascade():
    cfg = mmccd.get_config(CLASSIFIER)
    assert class_tensors(cfg, build_model(cfg).state_dict()) == {'head.fc.weight', 'head.fc.bias'}


def test_classifier_for_a_detector(load):
    """It has the backbone alone: half of a detector. The message names the place for it."""
    state = state_of(build_model(mmccd.get_config(CLASSIFIER)))
    with pytest.raises(UserError) as e:
        load(state)
    text = str(e.value)
    assert '2 unexpected keys (head: 2): head.fc.weight, head.fc.bias' in text
    assert text.splitlines()[-1] == (
        'It has the whole backbone. To initialise that alone: load_from=None '
        'model.backbone.init_cfg.type=mmccd.PretrainedBackbone model.backbone.init_cfg.checkpoint=w.pth'
    )


def test_other_attention(detector, load):
    """Half of what the blocks have: named by the name that allows it."""
    state = {
        k.replace('.ccd.scale', '.se_layer.x'): v for k, v in state_of(detector[1]).items() if '.ccd.bias' not in k
    }
    with pytest.raises(UserError) as e:
        load(state)
    assert '16 missing keys (ccd: 16)' in str(e.value)
    assert '8 unexpected keys (se_layer: 8)' in str(e.value)
    assert str(e.value).endswith('load_from_allow=ccd,se_layer')
    loaded = load(state, load_from_allow=['ccd', 'se_layer'])
    assert loaded.summary.endswith(
        ', 16 keep their initial values (ccd: 16): ' + loaded.summary.split('(ccd: 16): ')[1]
    )
    assert '; 8 of the file are left out (se_layer: 8)' in loaded.summary


@pytest.mark.parametrize(
    ('content', 'options', 'rule'),
    [
        (
            {'x.weight': torch.zeros(1)},
            {},
            r'^nothing in load_from w\.pth matches the model: it has x\.weight; the mod',
        ),
        ({}, {}, r'^w\.pth has no state dict of tensors$'),
        ({'x': torch.zeros(1)}, dict(load_from=''), r"^load_from must be a path or a URL, got ''"),
        ({'x': torch.zeros(1)}, dict(load_from='v.pth'), r"^load_from 'v\.pth' does not .*; did you mean 'w\.pth'\?$"),
        ({'x': torch.zeros(1)}, dict(load_from='.'), r"^load_from '\.' is a folder: it has w\.pth$"),
        ({'x': torch.zeros(1)}, dict(load_from=3), r'^load_from must be a path or a URL, got 3$'),
        ({'x': torch.zeros(1)}, dict(load_from_allow='retina_cl'), r"has such a part; did you mean 'retina_cls'\?$"),
        ({'x': torch.zeros(1)}, dict(load_from_allow=3), r'^load_from_allow must be a name of a part .*, got 3$'),
    ],
)
def test_what_is_refused(load, content, options, rule):
    with pytest.raises(UserError, match=rule):
        load(content, **options)


# -------------------------------------------------------------------------------------------------------- init_cfg


class Net(BaseModule):
    """A convolution and a head."""

    def __init__(self, init_cfg: object = None) -> None:
        super().__init__(init_cfg)
        self.conv = nn.Conv2d(1, 1, 1)
        self.gate = nn.Conv2d(1, 1, 1)


class Whole(BaseModule):
    def __init__(self, backbone: object = None, init_cfg: object = None) -> None:
        super().__init__(init_cfg)
        self.backbone = Net(backbone)


FULL = {k: torch.full((1,) if 'bias' in k else (1, 1, 1, 1), 3.0) for k in Net().state_dict()}


def pretrained(**options: object) -> dict:
    return dict(type='Pretrained', checkpoint='w.pth', **options)


@pytest.mark.parametrize(
    ('content', 'options'),
    [
        (FULL, {}),
        (dict(state_dict=FULL), {}),
        ({**FULL, 'fc.weight': torch.zeros(3)}, {}),  # a classifier's head is no part of the backbone
        ({f'backbone.{k}': v for k, v in FULL.items()}, dict(prefix='backbone.')),
        ({f'module.{k}': v for k, v in FULL.items()}, {}),
        # What mmengine would not find:
        (dict(model=FULL), {}),
        ({f'_orig_mod.{k}': v for k, v in FULL.items()}, {}),
        (dict(state_dict={f'model.{k}': v for k, v in FULL.items()}), {}),
    ],
)
def test_mmengines_initialiser_loads_what_was_checked(tmp_path, monkeypatch, content, options):
    monkeypatch.chdir(tmp_path)
    torch.save(content, 'w.pth')
    model = Whole(pretrained(**options))
    check_init_checkpoint(Config(), model)
    model.init_weights()
    assert all(torch.equal(v, FULL[k]) for k, v in model.backbone.state_dict().items())


@pytest.mark.parametrize(
    ('content', 'backbone', 'whole', 'lines'),
    [
        (
            {k: v for k, v in FULL.items() if 'gate' not in k},
            pretrained(),
            None,
            ['init_cfg.checkpoint: w.pth does not fit model.backbone, and Pretrained', '2 missing keys (gate: 2)'],
        ),
        ({**FULL, 'se.weight': torch.zeros(1)}, [pretrained()], None, ['1 unexpected key (se: 1): se.weight']),
        ({**FULL, 'gate.bias': torch.zeros(2)}, pretrained(), None, ['size mismatch of 1 tensor: gate.bias (2,)']),
        (
            {f'backbone.{k}': v for k, v in FULL.items()},
            pretrained(),
            None,
            ['nothing in w.pth matches model.backbone: it has backbone.conv', "; with prefix='backbone.' it has"],
        ),
        (FULL, pretrained(prefix='neck'), None, ["matches model.backbone under prefix 'neck.'"]),
        (FULL, None, pretrained(), ['model.init_cfg.checkpoint: nothing in w.pth matches model: it has']),
        ({f'backbone.{k}': v for k, v in list(FULL.items())[:3]}, None, pretrained(), ['model.init_cfg', '1 missing']),
        (FULL, dict(type='Pretrained', checkpoint='gone.pth'), None, ["init_cfg.checkpoint 'gone.pth' does not exist"]),
        (FULL, None, dict(type='Pretrained', checkpoint='no'), ["model.init_cfg.checkpoint 'no' does not exist"]),
        (
            FULL,
            dict(type='Pretrained', checkpoint=None),
            None,
            ['init_cfg.checkpoint must be a path or a URL, got None'],
        ),
    ],
)
def test_half_of_a_module_is_refused(tmp_path, monkeypatch, content, backbone, whole, lines):
    """By mmengine's initialiser, in any module: it would load what fits, with a warning in the log."""
    monkeypatch.chdir(tmp_path)
    torch.save(content, 'w.pth')
    with pytest.raises(UserError) as e:
        check_init_checkpoint(Config(), Whole(backbone, whole))
    for line in lines:
        assert line in str(e.value)
    if 'and Pretrained' in str(e.value):
        assert "type='mmccd.PretrainedBackbone', with the names of what may be initialised instead in allow_mi" in str(
            e.value
        )


def test_biases_of_caffe_and_classes_with_their_own_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Own(Net):
        def init_weights(self) -> None:
            self.load_state_dict(read_checkpoint('w.pth'), strict=False)

    torch.save({'conv.weight': FULL['conv.weight']}, 'w.pth')
    model = Whole()
    model.backbone = Own(pretrained())
    check_init_checkpoint(Config(), model)  # it knows what it does
    model.backbone.conv = nn.Conv2d(1, 1, 1, bias=False)
    model.backbone = Net(pretrained())
    model.backbone.conv = nn.Conv2d(1, 1, 1, bias=False)
    torch.save(FULL, 'w.pth')
    check_init_checkpoint(Config(), model)


def test_a_backbone_that_load_from_has_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r'\nload_from has these .*: model\.backbone\.init_cfg=None leaves this file out$'
    ):
        check_init_checkpoint(Config(dict(load_from='x.pth')), Whole(pretrained()))


def test_safetensors(tmp_path, monkeypatch):
    """For mmengine's initialiser, too, which cannot read them."""
    save_file = pytest.importorskip('safetensors.torch').save_file
    monkeypatch.chdir(tmp_path)
    save_file(FULL, 'w.pth')
    assert read_checkpoint(Path('w.pth'))['state_dict'].keys() == FULL.keys()
    model = Whole(pretrained())
    check_init_checkpoint(Config(), model)
    model.init_weights()
    assert all(torch.equal(v, FULL[k]) for k, v in model.backbone.state_dict().items())


def test_an_attention_that_is_the_identity_may_be_missing(tmp_path, monkeypatch):
    """The network is the file's then, in AttentionResNet and around any other; an attention that is none is refused."""
    from mmdet.models import ResNet

    monkeypatch.chdir(tmp_path)
    torch.save(ResNet(18).state_dict(), 'w.pth')
    model = Whole()
    around = dict(type='mmccd.WithAttention', backbone=dict(type='mmdet.ResNet', depth=18, init_cfg=pretrained()))
    inside = dict(type='mmccd.AttentionResNet', depth=18, init_cfg=pretrained())
    for backbone, identity in ((around, True), (inside, True), (inside, False)):
        attention = dict(type='mmccd.CCD', **({'identity_init': identity} if backbone is inside else {}))
        model.backbone = MODELS.build(dict(backbone, attention=attention))
        if identity:
            check_init_checkpoint(Config(), model)
            continue
        with pytest.raises(UserError, match=r'16 missing keys \(ccd: 16\)'):
            check_init_checkpoint(Config(), model)


def test_a_missing_attention_can_be_the_identity(tmp_path, monkeypatch):
    """The shortest remedy is named, and works; where more is missing, it would not."""
    monkeypatch.chdir(tmp_path)

    def gated(**options: object) -> nn.Module:
        model = Whole(pretrained())
        model.backbone.gate = mmccd.models.CCD(64, **options)
        return model

    plain = {k: v for k, v in FULL.items() if 'gate' not in k}
    torch.save(plain, 'w.pth')
    with pytest.raises(UserError, match='identity at first, with identity_init=True'):
        check_init_checkpoint(Config(), gated())
    check_init_checkpoint(Config(), gated(identity_init=True))
    torch.save(dict(list(plain.items())[:-1]), 'w.pth')
    with pytest.raises(UserError) as e:
        check_init_checkpoint(Config(), gated())
    assert 'identity_init' not in str(e.value)


# ------------------------------------------------------------------------------------------------------ the teacher's


@MODELS.register_module()
class Pupil(BaseModule):
    """As MMDetection's distillation: the teacher is loaded while the model is built, and is no part of it."""

    def __init__(self, teacher_ckpt: str | None = None, init_cfg: object = None) -> None:
        super().__init__(init_cfg)
        self.net = Net()
        object.__setattr__(self, 'teacher_model', Net())
        if teacher_ckpt is not None:
            load_checkpoint(self.teacher_model, teacher_ckpt, map_location='cpu')


@pytest.fixture
def taught(tmp_path, monkeypatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return Config(dict(model=dict(type='Pupil', teacher_ckpt='t.pth'), default_scope='mmengine'))


@pytest.mark.parametrize(
    'content',
    [FULL, dict(model=FULL), {f'module.{k}': v for k, v in FULL.items()}, {f'model.{k}': FULL[k] for k in FULL}],
)
def test_teacher(taught, content):
    """Whole, whatever program saved it: mmengine alone would load none of the last three, with a warning."""
    torch.save(content, 't.pth')
    check_init_checkpoint(taught, build_model(taught))
    teacher = MODELS.build(taught.model).teacher_model
    assert all(torch.equal(v, FULL[k]) for k, v in teacher.state_dict().items())


def test_teacher_that_does_not_fit(taught):
    model = build_model(taught)  # which does not look for the file
    with pytest.raises(UserError, match=r"^model\.teacher_ckpt 't\.pth' does not exist"):
        check_init_checkpoint(taught, model)
    torch.save({k: v for k, v in FULL.items() if 'gate' not in k}, 't.pth')
    with pytest.raises(UserError, match=r'^model\.teacher_ckpt t\.pth does not fit the teacher(?s:.*)2 missing keys'):
        check_init_checkpoint(taught, model)
    taught.model.teacher_ckpt = None
    check_init_checkpoint(taught, model)


def test_checkpoints_that_a_backbone_names():
    own, other = dict(type='Pretrained', checkpoint='a.pth'), dict(type='Kaiming', layer='Conv2d')
    for backbone in (dict(init_cfg=own), dict(init_cfg=[other, own]), dict(backbone=dict(init_cfg=own))):
        assert named_checkpoints(backbone) == [own]
    for backbone in ({}, dict(init_cfg=None), dict(init_cfg=other), dict(init_cfg=[])):
        assert named_checkpoints(backbone) == []
