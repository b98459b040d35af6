"""Weights that were trained here: cards against files, by name wherever a checkpoint may stand, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader

import mmccd
from mmccd.checkpoints import zoo
from mmccd.checkpoints.read import read_checkpoint
from mmccd.checkpoints.zoo import find_card, list_zoo, read_zoo, zoo_file, zoo_folder
from mmccd.errors import UserError
from mmccd.models.build import build_model

NAMES = list_zoo()
CLASSIFIERS = [name for name in NAMES if not name.startswith('retinanet')]


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A zoo with one classifier, which may be damaged; and no folder of downloads."""
    folder = tmp_path / 'zoo'
    folder.mkdir()
    for ending in ('json', 'safetensors'):
        shutil.copy(zoo_folder() / f'{CLASSIFIERS[0]}.{ending}', folder)
    monkeypatch.setattr(zoo, 'zoo_folder', lambda: folder)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    return folder


@pytest.mark.parametrize('name', NAMES)
def test_card_and_file(name):
    """Size, SHA-256, parameters; half precision, whole and finite; exactly the tensors of the config's model."""
    card = find_card(name)
    content = (zoo_folder() / f'{name}.safetensors').read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (card.size, card.sha256)
    assert card.size < 25e6
    model = mmccd.init_model(name, f'zoo://{name}', device='cpu')
    assert sum(p.numel() for p in model.parameters()) == card.parameters
    assert model.dataset_meta['classes'] == card.classes
    state = read_zoo(name)['state_dict']
    assert {t.dtype for t in state.values()} == {torch.float16, torch.int64}
    assert all(t.isfinite().all() for t in state.values())
    assert set(state) == set(model.state_dict())
    weight = 'backbone.layer4.1.conv2.weight'
    assert torch.equal(model.state_dict()[weight], state[weight].float())


def test_all_of_them_are_small():
    assert sum(path.stat().st_size for path in zoo_folder().rglob('*') if path.is_file()) < 25e6


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_a_fixed_photograph(name, root):
    """Each classifier knows each of the three photographs beside the weights."""
    from mmpretrain import ImageClassificationInferencer

    model = mmccd.init_model(name, f'zoo://{name}', device='cpu')
    images = ('ankle-boot', 'bag', 'trouser')
    paths = [str(root / 'zoo' / 'images' / f'{image}.png') for image in images]
    for image, found in zip(images, ImageClassificationInferencer(model)(paths)):
        assert found['pred_class'] == image
        assert found['pred_score'] > 0.8


@pytest.mark.parametrize('source', [f'zoo://{name}' for name in CLASSIFIERS[:1]])
def test_wherever_a_checkpoint_may_stand(source, tmp_path):
    name = source.removeprefix('zoo://')
    path = mmccd.get_weights(source, tmp_path)
    assert path == zoo_folder() / f'{name}.safetensors' and not list(tmp_path.iterdir())
    plain = read_checkpoint(path)['state_dict']
    for content in (read_checkpoint(source), CheckpointLoader.load_checkpoint(source, map_location='cpu')):
        assert content['meta']['dataset_meta']['classes'][:2] == ('ankle-boot', 'bag')
        assert all(torch.equal(content['state_dict'][k], v) for k, v in plain.items())


def test_as_initial_weights_of_a_detector():
    """The backbone of the detector's config is the classifier's, to the last tensor."""
    model = build_model(mmccd.get_config('retinanet_r18-w32_fpn_fashion'), 'cpu')
    model.init_weights()
    state = read_zoo('r18-w32_fashion')['state_dict']
    ours = model.backbone.state_dict()
    assert len(ours) == sum(key.startswith('backbone.') for key in state)
    assert all(torch.equal(value.float(), state[f'backbone.{key}'].float()) for key, value in ours.items())


def test_load_from():
    """As training's and testing's ``load_from``: whole."""
    from mmccd.cli.initial_weights import check_load_from

    cfg = mmccd.get_config('r18-w32_fashion')
    cfg.load_from = 'zoo://r18-w32_fashion'
    model = mmccd.init_model('r18-w32_fashion', device='cpu')
    found = check_load_from(cfg, model)
    assert f'{len(model.state_dict())} tensors are loaded' in found.summary
    cfg.load_from = 'zoo://r18-w33_fashion'
    with pytest.raises(UserError, match=r'r18-w33_fashion.*did you mean.*r18-w32_fashion'):
        check_load_from(cfg, model)


@pytest.mark.parametrize(
    ('name', 'expected'),
    [('r18-w32_fashon', r"did you mean.*'r18-w32_fashion'"), ('qqqq', 'it has .*r18-w32_fashion')],
)
def test_a_wrong_name(name, expected):
    with pytest.raises(UserError, match=f"'{name}'.*{expected}"):
        mmccd.get_weights(f'zoo://{name}')
    with pytest.raises(UserError, match=f"'{name}'.*{expected}"):
        mmccd.init_model('r18-w32_fashion', f'zoo://{name}', device='cpu')


def test_a_damaged_file(copy):
    name = CLASSIFIERS[0]
    path = copy / f'{name}.safetensors'
    content = path.read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b''):
        path.write_bytes(damaged)
        with pytest.raises(UserError) as e:
            zoo_file(f'zoo://{name}')
        text = str(e.value)
        assert str(path) in text and f'make_zoo.py {name}' in text
        assert hashlib.sha256(damaged).hexdigest() in text and hashlib.sha256(content).hexdigest() in text


def test_a_damaged_card(copy):
    path = copy / f'{CLASSIFIERS[0]}.json'
    for content in (path.read_text()[:-20], '{}', '[]', json.dumps(dict(json.loads(path.read_text()), size='x'))):
        path.write_text(content)
        with pytest.raises(UserError, match=re.escape(str(path))):
            zoo_file(CLASSIFIERS[0])


def test_without_the_file_as_in_a_wheel(copy, tmp_path):
    """Where it is is said; in PyTorch's folder of downloads, it is found, and compared as well."""
    name = CLASSIFIERS[0]
    content = (copy / f'{name}.safetensors').read_bytes()
    (copy / f'{name}.safetensors').unlink()
    downloads = tmp_path / 'hub' / 'checkpoints'
    with pytest.raises(UserError, match=f'{name}.safetensors.* MB.*checkout') as e:
        zoo_file(name)
    assert str(downloads) in str(e.value)
    downloads.mkdir(parents=True)
    (downloads / f'{name}.safetensors').write_bytes(content)
    assert zoo_file(name) == downloads / f'{name}.safetensors'
    (downloads / f'{name}.safetensors').write_bytes(content[1:])
    with pytest.raises(UserError, match='SHA-256'):
        zoo_file(name)


def test_an_empty_zoo(copy):
    for path in Path(copy).iterdir():
        path.unlink()
    assert list_zoo() == []
    with pytest.raises(UserError, match='no card'):
        find_card('r18-w32_fashion')
