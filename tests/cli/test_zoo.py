"""How the zoo is made: a training's bits, the file that is written of it, its card, and the comparison with one."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

import mmccd
from mmccd.checkpoints.zoo import list_zoo, zoo_folder
from mmccd.cli import zoo
from mmccd.cli.zoo import MODELS, check_names, environment, half_precision, log_of, recipe_hash, train, verify
from mmccd.cli.zoo_page import PAGE, read_cards, table, write_page
from mmccd.errors import UserError

NAME = 'ccd_r18-w32_fashion'


def save(path, **tensors):
    torch.save(dict(state_dict=tensors, meta={}), path)
    return path


def test_names():
    assert [m.name for m in check_names([])] == list(MODELS)
    assert [m.name for m in check_names([NAME, 'r18-w32_fashion'])] == ['r18-w32_fashion', NAME]  # as they are made
    with pytest.raises(UserError, match=f"ccd_r18_fashion.*did you mean.*'{NAME}'"):
        check_names(['ccd_r18_fashion'])
    assert set(MODELS) <= set(mmccd.list_configs())


def test_half_precision(tmp_path):
    """The same bytes for the same numbers, in whatever order they were saved; nothing infinite."""
    weight, counter = torch.tensor([1.0, 1 / 3]), torch.tensor(7)
    first = half_precision(save(tmp_path / 'a.pth', b=weight, a=counter))
    assert half_precision(save(tmp_path / 'b.pth', a=counter, b=weight.clone())) == first
    found = load(first)
    assert torch.equal(found['b'], weight.half()) and torch.equal(found['a'], counter)
    with pytest.raises(UserError, match='b is NaN or infinite'):
        half_precision(save(tmp_path / 'c.pth', b=torch.tensor([70000.0])))


def test_log(tmp_path):
    folder = tmp_path / '2026' / 'vis_data'
    folder.mkdir(parents=True)
    rows = [dict(epoch=1, iter=i, lr=0.001, loss=1 / i, time=0.1) for i in range(10, 250, 10)]
    rows += [{'accuracy/top1': 91.23456, 'time': 1, 'step': 1}]
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, rows)))
    found = log_of(tmp_path)
    assert len(found) == 13
    assert found[0] == dict(epoch=1, iter=10, lr=0.001, loss=0.1)
    assert found[-1] == {'accuracy/top1': 91.235}


def test_what_a_recipe_is():
    """Classes that a runner exchanges for those of the same name do not count; anything else does."""
    cfg = mmccd.get_config(NAME)
    first = recipe_hash(cfg)
    cfg.train_dataloader.dataset.pipeline[0].type = 'mmccd.LoadImageFromFile'
    cfg.work_dir = 'elsewhere'
    assert recipe_hash(cfg) == first
    cfg.randomness.seed = 1
    assert recipe_hash(cfg) != first


def test_the_cards_are_of_these_recipes():
    """Who changes a recipe trains its weights again."""
    for card in read_cards(zoo_folder()):
        assert card['recipe_sha256'] == recipe_hash(mmccd.get_config(card['name'])), card['name']
        assert (card['seed'], card['config']) == (0, f'configs/{card["name"]}.py')
        assert 'Fashion-MNIST (MIT)' in card['licence']
        assert len(card['log']) > 10 and (0.8 if card['metric'] == 'top-1' else 0.3) < card['score'] < 1
        assert card['variables'] == zoo.ENVIRONMENT
        if card['initialised_by']:
            assert card['initialised_by'].removeprefix('zoo://') in list_zoo()


def test_every_card_is_of_one_of_the_networks():
    assert sorted(list_zoo()) == sorted(MODELS)


def test_the_page_is_of_the_cards(tmp_path, root):
    cards = read_cards(zoo_folder())
    for card in cards:
        (tmp_path / f'{card["name"]}.json').write_text(json.dumps(card))
    write_page(tmp_path)
    assert (tmp_path / 'README.md').read_text() == (zoo_folder() / 'README.md').read_text()
    assert PAGE.partition('{')[0] in (zoo_folder() / 'README.md').read_text()
    assert table(cards) in (root / 'docs' / 'model_zoo.md').read_text()


def test_verification(tmp_path, monkeypatch):
    """The same bits, and other ones, with what else is different from the card."""
    path = save(tmp_path / 'a.pth', weight=torch.ones(3))
    cfg = mmccd.get_config(NAME)
    monkeypatch.setattr(zoo, 'train', lambda name, work_dir: path)
    monkeypatch.setattr(zoo, 'data_sha256', lambda cfg: 'd' * 64)
    here = environment()
    monkeypatch.setattr(zoo, 'environment', lambda: here)
    card = dict(
        sha256=hashlib.sha256(half_precision(path)).hexdigest(),
        environment=here,
        recipe_sha256=recipe_hash(cfg),
        data_sha256='d' * 64,
    )
    assert card['sha256'] in verify(MODELS[NAME], card, tmp_path)
    with pytest.raises(UserError, match=r'other bits.* agree'):
        verify(MODELS[NAME], dict(card, sha256='0' * 64), tmp_path)
    other = dict(card, sha256='0' * 64, environment=dict(here, torch='1.0', processor='Z80'))
    with pytest.raises(UserError, match=r"processor '.*' \(card: 'Z80'\), torch '.*' \(card: '1.0'\)"):
        verify(MODELS[NAME], other, tmp_path)


@pytest.mark.parametrize('content', [None, '{', '[]', '{"sha256": null}'])
def test_without_data(tmp_path, content):
    cfg = mmccd.get_config(NAME)
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'fashion' / 'cls')
    if content is not None:
        (tmp_path / 'fashion').mkdir()
        (tmp_path / 'fashion' / 'fashion.json').write_text(content)
    with pytest.raises(UserError, match=f'{tmp_path}/fashion.*make_fashion'):
        zoo.data_sha256(cfg)


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """Class folders as the classifiers read them, with noise in each class's own brightness."""
    folder, rng = tmp_path_factory.mktemp('data') / 'cls', np.random.default_rng(0)
    for split, count in (('train', 32), ('val', 4)):
        for i, name in enumerate(mmccd.get_config(NAME).train_dataloader.dataset.metainfo.classes):
            (folder / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 20 * (i + 2), (28, 28), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f'{k}.png')
    return folder


@pytest.mark.long
@pytest.mark.parametrize('name', [NAME, 'r18-w32_fashion'])
def test_a_training_twice_has_the_same_bits(name, photographs, tmp_path):
    """The short form of ``make verify-zoo``: five iterations, in processes of their own. Another seed has others."""
    options = [f'{split}_dataloader.dataset.data_root={photographs}' for split in ('train', 'val')]
    found = [
        hashlib.sha256(half_precision(train(name, tmp_path / f'{i}', [*options, *more]))).hexdigest()
        for i, more in enumerate(([], [], ['randomness.seed=1']))
    ]
    assert found[0] == found[1] != found[2]
    assert 'Epoch(train) [1][5/5]' in (tmp_path / '0' / 'train.log').read_text() or list(tmp_path.glob('0/epoch_1.pth'))


@pytest.mark.long
def test_a_training_that_fails(tmp_path):
    with pytest.raises(UserError, match=r'train\.py ended with exit code 2.*train\.log'):
        train('no_such_config', tmp_path)
