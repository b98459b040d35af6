"""Weights by name: from a file of the authors' names and shapes, behind a server on this machine, to a model."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader

import mmccd
from mmccd.checkpoints import authors
from mmccd.checkpoints.authors import MODELS
from mmccd.checkpoints.read import read_checkpoint
from mmccd.configs import list_configs
from mmccd.errors import UserError

GOLDEN = Path(__file__).parents[1] / 'data' / 'golden'


def shapes(file: str) -> dict[str, list[int]]:
    content = json.loads((GOLDEN / f'{file}.json').read_text())
    return content.get('shapes', content)


def authors_shapes(name: str) -> dict[str, list[int]]:
    """Tensors of one of the thirteen files; those that golden data lacks are put together from those that it has."""
    arch = MODELS[name].arch
    attention = arch.removesuffix('_r50').removesuffix('r50').rpartition('_')[2]
    classifier = f'{attention}_resnet50' if attention in ('se', 'cbam', 'sk', 'gc', 'ccd') else 'resnet50'
    if name.endswith('_in1k'):
        return shapes(classifier)
    detector = 'retinanet' if arch.startswith('retinanet') else 'cascade_rcnn'
    attention = arch.removeprefix(detector).removesuffix('r50').strip('_')
    classifier = f'{attention}_resnet50' if attention else 'resnet50'
    rest = {k: v for k, v in shapes(f'det_{detector}_ccd_r50').items() if not k.startswith('backbone.')}
    return {f'backbone.{k}': v for k, v in shapes(classifier).items() if not k.startswith('fc.')} | rest


def save(path: Path, tensors: dict[str, list[int]]) -> None:
    """Zeros that take no room in the file."""
    state = {k: torch.zeros((), dtype=dtype_of(k)).expand(v) for k, v in tensors.items()}
    torch.save(dict(epoch=100, state_dict={f'module.{k}': v for k, v in state.items()}), path)


def dtype_of(key: str) -> torch.dtype:
    return torch.long if key.endswith('num_batches_tracked') else torch.float32


@pytest.fixture(scope='module')
def mirror(tmp_path_factory):
    """URL of a folder with the thirteen files, under their ids."""
    folder = tmp_path_factory.mktemp('mirror')
    for name, model in MODELS.items():
        save(folder / model.file_id, authors_shapes(name))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


@pytest.mark.parametrize('name', MODELS)
def test_from_download_to_checkpoint(name, mirror, tmp_path):
    path = mmccd.get_weights(name, tmp_path, mirror)
    assert path == tmp_path / f'{name}.pth'
    assert MODELS[name].config in list_configs()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [f'.{name}.lock', f'.{name}.pth.sha256', f'{name}.pth', 'authors.json']
    )
    checkpoint = read_checkpoint(path)
    assert checkpoint['meta']['arch'] == MODELS[name].arch
    assert mmccd.get_weights(name, tmp_path, 'http://127.0.0.1:9') == path  # not downloaded again


@pytest.mark.long
@pytest.mark.parametrize('name', MODELS)
def test_the_config_takes_them(name, mirror, tmp_path):
    path = mmccd.get_weights(name, tmp_path, mirror)
    model = mmccd.init_model(MODELS[name].config, path, device='cpu')
    assert sum(p.numel() for p in model.parameters()) == MODELS[name].parameters


def test_a_file_of_another_model(mirror, tmp_path):
    other = tmp_path / 'saved.pth'
    save(other, authors_shapes('se_r50_in1k'))
    with pytest.raises(UserError, match='se_r50') as e:
        mmccd.get_weights('ccd_r50_in1k', tmp_path / 'out', original=other)
    assert 'ccd_r50' in str(e.value)
    assert other.is_file() and not (tmp_path / 'out' / 'ccd_r50_in1k.pth').exists()


def test_another_number_of_classes(tmp_path):
    """The names of the model, and other shapes."""
    other = tmp_path / 'saved.pth'
    save(other, authors_shapes('r50_in1k') | {'fc.weight': [10, 2048], 'fc.bias': [10]})
    with pytest.raises(UserError, match='size mismatch'):
        mmccd.get_weights('r50_in1k', tmp_path, original=other)
    assert not (tmp_path / 'r50_in1k.pth').exists()


def test_a_damaged_result(mirror, tmp_path):
    path = mmccd.get_weights('r50_in1k', tmp_path, mirror, keep_original=True)
    assert (tmp_path / 'r50_in1k.original').is_file()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r'r50_in1k\.pth') as e:
        mmccd.get_weights('r50_in1k', tmp_path, mirror)
    assert 'remove' in str(e.value)


def test_by_name_wherever_a_checkpoint_may_stand(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(authors, 'DRIVE', f'{mirror}/')
    monkeypatch.setattr(authors, '_gdown', lambda: None)
    content = read_checkpoint('authors://ccd_r50_in1k')
    assert content['meta']['arch'] == 'ccd_r50'
    assert (tmp_path / 'checkpoints' / 'ccd_r50_in1k.pth').is_file()
    with pytest.raises(ValueError, match='authors://ccd_r51_in1k') as e:
        read_checkpoint('authors://ccd_r51_in1k')
    assert 'ccd_r50_in1k' in str(e.value)


def test_hub(tmp_path, monkeypatch):
    """hf:// asks huggingface_hub for the file."""
    hub = pytest.importorskip('huggingface_hub')
    path, asked = tmp_path / 'model.pth', []
    torch.save({'a': torch.ones(2)}, path)

    def download(repository, file, revision):
        asked.append((repository, file, revision))
        return str(path)

    monkeypatch.setattr(hub, 'hf_hub_download', download)
    assert torch.equal(read_checkpoint('hf://timm/resnet50.a1_in1k/sub/model.pth@v2')['a'], torch.ones(2))
    assert torch.equal(CheckpointLoader.load_checkpoint('hf://o/n/f')['a'], torch.ones(2))
    assert asked == [('timm/resnet50.a1_in1k', 'sub/model.pth', 'v2'), ('o/n', 'f', None)]
    with pytest.raises(ValueError, match='hf://timm/resnet50'):
        read_checkpoint('hf://timm/resnet50')
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ValueError, match='pip install huggingface_hub'):
        read_checkpoint('hf://o/n/f')


@pytest.mark.parametrize('scheme', ['authors', 'zoo', 'hf'])
def test_what_the_log_calls_a_loader(scheme):
    """mmengine: 'Loads checkpoint by zoo backend'."""
    name = CheckpointLoader._get_checkpoint_loader(f'{scheme}://x').__name__
    assert name == f'load_from_{"hub" if scheme == "hf" else scheme}'
