"""mmccd from Python, and the libraries' own inferencers with our configs."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys

import mmengine.runner.checkpoint
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import DefaultScope

import mmccd
from mmccd.apis import _dataset_meta
from mmccd.checkpoints.read import mmengine_globals
from mmccd.errors import UserError

DIGITS = tuple('0123456789')
CLASSIFIER, DETECTOR = 'ccd_r18_digits', 'retinanet_ccd_r18_fpn_digits'


@pytest.fixture(autouse=True)
def scope():
    """The current default scope goes with the test."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Checkpoints of both tasks as mmengine's runner writes them, histories included; the classes are renamed."""
    folder = tmp_path_factory.mktemp('checkpoints')
    for name in (CLASSIFIER, DETECTOR):
        torch.manual_seed(1)
        model = mmccd.init_model(name, device='cpu')
        if name == DETECTOR:
            model.bbox_head.retina_cls.bias.data.fill_(2.0)  # detections without training
        torch.save(
            dict(
                meta=dict(dataset_meta=dict(classes=tuple(f'n{i}' for i in range(10))), epoch=5),
                state_dict=model.state_dict(),
                message_hub=dict(log_scalars={'train/loss': HistoryBuffer([1.0], [1])}),
            ),
            folder / f'{name}.pth',
        )
    DefaultScope._instance_dict.clear()
    yield folder
    for path in folder.glob('*.pth'):
        path.unlink()


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)


def test_list(root):
    everything = mmccd.list_configs()
    files = [p.stem for p in (root / 'configs').glob('*.py')]
    former = [name for name in files if '_24e_' in name]  # Cascade R-CNN's 2x; still found by name
    assert everything == sorted(set(files) - set(former))
    assert {mmccd.config_path(name) for name in former} == {str(root / 'configs' / f'{n}.py') for n in former}
    assert mmccd.list_configs('*retinanet_r*_digits') == ['retinanet_r18_fpn_digits']
    assert mmccd.list_configs('c*_r18_digits') == ['cbam_r18_digits', 'ccd_r18_digits']
    assert mmccd.list_configs('nothing*') == []


def test_path(root, tmp_path):
    """A config that names its base by it may lie anywhere."""
    assert (
        mmccd.config_path(CLASSIFIER)
        == mmccd.config_path(f'{CLASSIFIER}.py')
        == str(root / 'configs' / f'{CLASSIFIER}.py')
    )
    own = tmp_path / 'own.py'
    base = f"_base_ = __import__('mmccd').config_path({CLASSIFIER!r})"
    own.write_text(f'{base}\nmodel = dict(head=dict(num_classes=3))\n')
    cfg = Config.fromfile(own)
    assert (cfg.model.head.num_classes, cfg.model.backbone.attention) == (3, dict(type='mmccd.CCD'))
    with pytest.raises(UserError, match="no config of mmccd is called 'ccd_r19_digits'; did you mean 'ccd_r18_digits'"):
        mmccd.config_path('ccd_r19_digits')


def test_list_stays_light(tmp_path):
    out = subprocess.run(
        [
            sys.executable,
            '-c',
            'import sys, mmccd; print(len(mmccd.list_configs()) > 50, '
            '"get_config" in dir(mmccd), "torch" in sys.modules)',
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert out.stdout.split() == ['True', 'True', 'False'], out.stderr
    with pytest.raises(AttributeError, match="module 'mmccd' has no attribute 'init_detector'"):
        _ = mmccd.init_detector


@pytest.mark.parametrize('suffix', ['', '.py'])
def test_get(root, tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    cfg = mmccd.get_config(DETECTOR + suffix)
    assert isinstance(cfg, Config)
    assert cfg.filename == str(root / 'configs' / f'{DETECTOR}.py')
    assert cfg.model.backbone.attention.type == 'mmccd.CCD'


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        (
            'ccd_r50_8xb32_in1',
            r"no config of mmccd is called 'ccd_r50_8xb32_in1'; did you mean 'ccd_r50_8xb32_in1k' or .*",
        ),
        ('_base_/attention/ccd', r"no config of mmccd is called '_base_/attention/ccd'; .*"),
        ('', r"no config of mmccd is called ''; mmccd\.list_configs\(\) names all"),
    ],
)
def test_no_such_config(name, message):
    for function in (mmccd.get_config, mmccd.init_model)[: 1 if '/' in name else 2]:
        with pytest.raises(UserError, match=f'^{message}$'):
            function(name)


def test_init_without_checkpoint():
    model = mmccd.init_model(DETECTOR, device='cpu')  # though its backbone's checkpoint is not there
    assert not model.training
    assert model.dataset_meta['classes'] == DIGITS
    assert DefaultScope.get_current_instance().scope_name == 'mmdet'
    model = mmccd.init_model('retinanet_ccd_r50_fpn_1x_coco', device='meta')
    assert (len(model.dataset_meta['classes']), len(model.dataset_meta['palette'])) == (80, 80)
    model = mmccd.init_model('ccd_r50_8xb32_in1k', device='meta')
    assert len(model.dataset_meta['classes']) == 1000
    assert 'goldfish' in model.dataset_meta['classes'][1]
    assert model._dataset_meta is model.dataset_meta
    assert DefaultScope.get_current_instance().scope_name == 'mmpretrain'


def test_init_loads_every_tensor_and_the_classes(checkpoints, monkeypatch):
    path = checkpoints / f'{CLASSIFIER}.pth'
    model = mmccd.init_model(CLASSIFIER, path, 'cpu')
    saved = torch.load(path, weights_only=False)['state_dict']
    state = model.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[k], saved[k]) for k in saved)
    assert model.dataset_meta['classes'] == tuple(f'n{i}' for i in range(10))
    again = mmccd.init_model(CLASSIFIER, path.as_uri(), 'cpu')
    assert all(torch.equal(v, saved[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize('meta', [dict(CLASSES=['a', 'b']), dict(dataset_meta=dict(CLASSES=('a', 'b')))])
def test_classes_of_older_checkpoints(meta):
    assert _dataset_meta(mmccd.get_config(DETECTOR), meta)['classes'] == ('a', 'b')
    assert _dataset_meta(Config(dict(default_scope='mmdet')), meta) == dict(
        classes=meta.get('CLASSES', ('a', 'b')), palette='random'
    )


def test_init_takes_a_file_and_a_config(root, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        f"_base_ = '{root}/configs/{CLASSIFIER}.py'\nmodel = dict(head=dict(num_classes=3))\n"
        "test_dataloader = dict(dataset=dict(metainfo=dict(classes=['a', 'b', 'c'])))\n"
    )
    cfg = Config.fromfile(path)
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')  # where MMPretrain's configs have it
    before = cfg.to_dict()
    for config in (path, str(path), cfg):
        model = mmccd.init_model(config, device='cpu')
        assert model.head.fc.out_features == 3
        assert model.dataset_meta['classes'] == ('a', 'b', 'c')
        assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert cfg.to_dict() == before


def test_bad_input(checkpoints, tmp_path):
    refusals = [
        ((f'{tmp_path}/no.py',), rf"config '{tmp_path}/no\.py' does not exist$"),
        ((Config(dict(a=1)),), 'config has no model'),
        ((CLASSIFIER, tmp_path / 'no.pth'), rf"checkpoint '{tmp_path}/no\.pth' does not exist"),
        ((CLASSIFIER, (tmp_path / 'no.pth').as_uri()), r'file:///.*no\.pth cannot be loaded as a checkpoint: '),
        (
            ('r18_digits', checkpoints / f'{CLASSIFIER}.pth'),
            r'checkpoint \S+ does not fit the config, nothing was done:\n  16 unexpected keys \(ccd: 16\): '
            r'backbone\.layer1\.0\.ccd\.scale, ',
        ),
        ((DETECTOR, checkpoints / f'{CLASSIFIER}.pth'), r'does not fit the config(?s:.*) missing keys '),
        ((CLASSIFIER, None, 'cpu:x'), r"device 'cpu:x' cannot be used: Invalid device string"),
        ((CLASSIFIER, None, 'cuda:99'), r"device 'cuda:99' cannot be used: "),
        ((CLASSIFIER, None, 'gpu'), r"device 'gpu' cannot be used: "),
    ]
    for arguments, message in refusals:
        with pytest.raises(UserError, match=message):
            mmccd.init_model(*arguments, **({} if len(arguments) == 3 else dict(device='cpu')))


@pytest.fixture
def nothing_allowed():
    """The process's list of what checkpoints may hold is empty, and after the test as it was."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def test_nothing_but_the_call_for_it_allows_histories(checkpoints, nothing_allowed):
    """Neither a config nor a checkpoint that is read changes what the process allows; mmengine 0.10.7 needs it."""
    path = checkpoints / f'{CLASSIFIER}.pth'
    mmccd.get_config(CLASSIFIER)
    mmccd.init_model(CLASSIFIER, path, 'cpu')
    assert torch.serialization.get_safe_globals() == []
    with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer'):
        torch.load(path, weights_only=True)
    mmccd.allow_mmengine_checkpoints()
    assert torch.load(path, weights_only=True)['meta']['epoch'] == 5


@pytest.mark.parametrize('allowed', [mmengine_globals, lambda: [HistoryBuffer, np.ndarray]])
def test_reading_a_checkpoint_takes_nothing_back(checkpoints, nothing_allowed, allowed):
    torch.serialization.add_safe_globals(allowed())
    before = set(torch.serialization.get_safe_globals())
    for source in (checkpoints / f'{CLASSIFIER}.pth', (checkpoints / 'gone.pth').as_uri()):
        with contextlib.suppress(UserError):
            mmccd.init_model(CLASSIFIER, source, 'cpu')
        assert set(torch.serialization.get_safe_globals()) == before


class Trap:
    def __reduce__(self):
        return open, (self.path, 'w')


def test_no_code_in_a_checkpoint_runs(tmp_path, monkeypatch):
    trap = Trap()
    trap.path = str(tmp_path / 'sprung')
    torch.save(dict(state_dict={}, meta=trap), tmp_path / 'bad.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    for checkpoint in (tmp_path / 'bad.pth', (tmp_path / 'bad.pth').as_uri()):
        with pytest.raises(UserError, match=r'bad\.pth'):
            mmccd.init_model(CLASSIFIER, checkpoint, 'cpu')
    assert not (tmp_path / 'sprung').exists()


@pytest.fixture
def mmengine_reads_histories():
    """The maintained line does on its own; the original one needs the call for it."""
    if not hasattr(mmengine.runner.checkpoint, '_safe_torch_load'):
        mmccd.allow_mmengine_checkpoints()


@pytest.mark.usefixtures('mmengine_reads_histories')
def test_stock_detection_inferencer(checkpoints, image):
    """By path, as MMDetection's users call it, and by config; both with the checkpoint of a training."""
    from mmdet.apis import DetInferencer, inference_detector

    weights = str(checkpoints / f'{DETECTOR}.pth')
    cfg = mmccd.get_config(DETECTOR)
    results = []
    for model in (cfg.filename, cfg):
        inferencer = DetInferencer(model, weights, device='cpu', show_progress=False)
        assert inferencer.model.dataset_meta['classes'][3] == 'n3'
        assert type(inferencer.model.backbone.layer1[0].ccd).__module__ == 'mmccd.models.layers.ccd'
        [found] = inferencer(image, no_save_vis=True)['predictions']
        results.append(found)
    assert results[0] == results[1]
    assert len(found['bboxes']) == 100
    model = mmccd.init_model(DETECTOR, weights, 'cpu')
    assert model.dataset_meta == inferencer.model.dataset_meta
    ours = inference_detector(model, image).pred_instances
    assert ours.labels.tolist() == found['labels']
    np.testing.assert_allclose(ours.scores.numpy(), found['scores'], rtol=1e-5)
    np.testing.assert_allclose(ours.bboxes.numpy(), found['bboxes'], atol=1e-3)


@pytest.mark.usefixtures('mmengine_reads_histories')
def test_stock_classification_inferencer(checkpoints, image):
    """By path, by config and by model; after a detector in the same process, too."""
    from mmpretrain import ImageClassificationInferencer

    weights = str(checkpoints / f'{CLASSIFIER}.pth')
    cfg = mmccd.get_config(CLASSIFIER)
    alone = ImageClassificationInferencer(cfg.filename, weights)(image)[0]
    mmccd.init_model(DETECTOR, device='cpu')
    ours = ImageClassificationInferencer(mmccd.init_model(CLASSIFIER, weights, 'cpu'))(image)[0]
    for found in (alone, ours, ImageClassificationInferencer(cfg, weights)(image)[0]):
        assert found['pred_label'] == alone['pred_label']
        assert found['pred_class'] == f'n{found["pred_label"]}'
        np.testing.assert_array_equal(found['pred_scores'], alone['pred_scores'])
    assert sum(alone['pred_scores']) == pytest.approx(1, abs=1e-5)


@pytest.mark.long
def test_inferencers_need_nothing_but_the_import(checkpoints, tmp_path):
    """In a process of its own, where no test has imported anything before; the original mmengine needs a call, too."""
    maintained = hasattr(mmengine.runner.checkpoint, '_safe_torch_load')
    code = (
        'import mmccd, numpy\n'
        + ('' if maintained else 'mmccd.allow_mmengine_checkpoints()\n')
        + 'from mmdet.apis import DetInferencer\n'
        'from mmpretrain import ImageClassificationInferencer\n'
        'image = numpy.zeros((128, 128, 3), "uint8")\n'
        f'd, c = mmccd.get_config("{DETECTOR}"), mmccd.get_config("{CLASSIFIER}")\n'
        f'c = ImageClassificationInferencer(c, r"{checkpoints}/{CLASSIFIER}.pth", device="cpu")(image)\n'
        f'd = DetInferencer(d, r"{checkpoints}/{DETECTOR}.pth", device="cpu")(image, no_save_vis=True)\n'
        'print(c[0]["pred_class"], len(d["predictions"][0]["scores"]))\n'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    name, found = done.stdout.split()[-2:]
    assert name.startswith('n') and found == '100'
    assert list(tmp_path.iterdir()) == []
