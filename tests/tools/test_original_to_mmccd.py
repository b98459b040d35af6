"""The converter as a user calls it: what it writes, what it refuses, and the way from there to metrics."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor

import mmccd
from mmccd.checkpoints.read import read_checkpoint
from mmccd.errors import UserError
from mmccd.models.conversion import convert_file

TOOL = 'model_converters/original_to_mmccd.py'
OUT = 'made/out.pth'
KEY_WARNING = re.compile(r'missing key|unexpected key|size mismatch|not match', re.I)


class Trap:
    """Unpickled, it makes a file called ``sprung``."""

    def __reduce__(self):
        return os.system, ('touch sprung',)


@pytest.fixture(scope='session')
def seeded_state(root) -> Callable[[dict], dict[str, np.ndarray]]:
    spec = importlib.util.spec_from_file_location(
        'seeded_weights', root / 'tests' / 'data' / 'golden' / 'seeded_weights.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.seeded_state


@pytest.fixture(scope='session')
def shapes(root) -> Callable[[str], dict[str, list[int]]]:
    """Original names and shapes."""
    return lambda name: json.loads((root / f'tests/data/golden/{name}.json').read_text())['shapes']


@pytest.fixture
def state(shapes) -> Callable[..., dict[str, Tensor]]:
    """Original names and shapes, tensors without memory of their own: files of a few kilobytes."""
    return lambda name: {k: torch.zeros(()).expand(shape) for k, shape in shapes(name).items()}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(*args, **kwargs) -> str:
    """What the tool prints."""
    return str(convert_file(*args, **kwargs))


def save(state: dict, path: str = 'in.pth.tar', **more) -> str:
    """The authors' format."""
    torch.save(
        dict(
            epoch=100,
            arch='x',
            state_dict={f'module.{k}': v for k, v in state.items()},
            best_prec1=torch.tensor(77.3),
            optimizer=dict(state={}, param_groups=[dict(lr=0.1, params=[0])]),
            **more,
        ),
        path,
    )
    return path


def test_what_is_written(place, state):
    out = convert(save(state('ccd_resnet50')), OUT)
    assert out == (
        f'ccd_r50 (classifier): 352 tensors, 25,559,080 parameters -> {OUT}, fits configs/ccd_r50_8xb32_in1k.py'
    )
    assert sorted(p.name for p in (place / 'made').iterdir()) == ['.out.pth.sha256', 'out.pth']
    checkpoint = read_checkpoint(OUT)
    assert set(checkpoint) == {'meta', 'state_dict'}
    assert checkpoint['meta'].pop('dataset_meta')['classes'][:1] == ('tench, Tinca tinca',)
    assert checkpoint['meta'].pop('mmccd_version')
    assert checkpoint['meta'] == dict(arch='ccd_r50', converted_from='in.pth.tar', epoch=100)
    assert checkpoint['state_dict']['backbone.layer3.5.ccd.bias'].shape == (64,)


def test_detector(place, state):
    torch.save(dict(meta=dict(epoch=24), state_dict=state('det_cascade_rcnn_ccd_r50'), optimizer={}), 'in.pth')
    out = convert('in.pth', OUT, arch='ccd_r50', task='det')
    assert out == (
        f'cascade_rcnn_ccd_r50 (detector): 396 tensors, 69,396,814 parameters -> {OUT}, '
        'fits configs/cascade_rcnn_ccd_r50_fpn_2x_legacy_coco.py'
    )
    assert len(read_checkpoint(OUT)['meta']['dataset_meta']['classes']) == 80


@pytest.mark.parametrize(
    'arch, name, config',
    [
        (None, 'r50', 'configs/r50_8xb32_in1k.py'),
        ('resnet50', 'r50', 'configs/r50_8xb32_in1k.py'),
        ('ge_r50', 'ge_r50', 'configs/ge_r50_8xb32_in1k.py'),  # the same tensors
    ],
)
def test_arch_is_recorded(place, state, arch, name, config):
    line = convert(save(state('resnet50')), OUT, arch=arch)
    assert line.startswith(f'{name} (classifier)')
    assert line.endswith(f'fits {config}')
    assert read_checkpoint(OUT)['meta']['arch'] == name


def test_depth_without_a_config_of_its_own(place):
    with torch.device('meta'):
        net = torchvision.models.resnet34()
    line = convert(save({k: torch.zeros(()).expand(v.shape) for k, v in net.state_dict().items()}), OUT)
    assert line.endswith(
        'fits configs/r50_8xb32_in1k.py --cfg-options model.backbone.depth=34 model.head.in_channels=512'
    )


def test_files_from_before_batch_counters(place, state):
    save({k: v for k, v in state('ccd_resnet50').items() if not k.endswith('num_batches_tracked')})
    assert '352 tensors' in convert('in.pth.tar', OUT)


def test_an_older_out_is_replaced(call_tool, place, state):
    (place / 'out.pth').write_text('old')
    (place / 'out.pth.sha256').write_text(f'{"0" * 64}  out.pth\n')  # of version 0.1
    assert call_tool(TOOL, save(state('resnet50')), 'out.pth')[0] == 0
    assert len(read_checkpoint('out.pth')['state_dict']) == 320


@pytest.mark.parametrize(
    'arch, task, message',
    [
        ('se_r50', None, 'it is ccd_r50, and --arch is se_r50'),
        ('r50', None, 'it is ccd_r50, and --arch is r50'),
        ('ge_r50', None, 'it is ccd_r50, and --arch is ge_r50'),
        ('ccd_r101', None, 'it is ccd_r50, and --arch is ccd_r101'),
        ('retinanet_ccd_r50', None, 'it is ccd_r50, and --arch is retinanet_ccd_r50'),
        (None, 'det', 'it is a classifier (ccd_r50), and --task is det'),
    ],
)
def test_another_classifier_than_told(refused, state, arch, task, message):
    args = [save(state('ccd_resnet50')), OUT, *(['--arch', arch] if arch else []), *(['--task', task] if task else [])]
    assert refused(TOOL, *args) == f'in.pth.tar is not converted: {message}'


@pytest.mark.parametrize(
    'options, message',
    [
        (['--task', 'cls'], 'it is a detector (retinanet_ccd_r50), and --task is cls'),
        (['--arch', 'se_r50'], 'it is retinanet_ccd_r50, and --arch is retinanet_se_r50'),
        (['--arch', 'cascade_rcnn_ccd_r50'], 'it is retinanet_ccd_r50, and --arch is cascade_rcnn_ccd_r50'),
    ],
)
def test_another_detector_than_told(refused, state, options, message):
    error = refused(TOOL, save(state('det_retinanet_ccd_r50')), OUT, *options)
    assert error == f'in.pth.tar is not converted: {message}'


def test_unknown_arch(refused, state):
    assert refused(TOOL, save(state('resnet50')), OUT, '--arch', 'senet154').startswith(
        '--arch must be [<detector>_][<attention>_]r<depth>, '
    )


@pytest.mark.parametrize(
    'change, message',
    [
        (
            {'layer1.0.pf.scale': (1, 32, 1), 'layer1.0.pf.bias': (1, 32, 1)},
            'backbone.layer1.0.ccd.scale (32,) in the checkpoint, (64,) in the model (groups=32 and groups=64)',
        ),
        ({'layer1.0.pf.scale': (64,)}, 'layer1.0.pf.scale: must have shape (1, groups, 1), has (64,)'),
        ({'layer1.0.simam.conv.weight': (1, 1, 3)}, '1 tensors have no place in it: layer1.0.simam.conv.weight'),
        ({'layer3.2.bn2.weight': None}, '1 missing key (layer3: 1): backbone.layer3.2.bn2.weight'),
        ({'layer3.5.pf.scale': None}, '1 missing key (ccd: 1): backbone.layer3.5.ccd.scale'),
        (
            {'fc.weight': (10, 2048), 'fc.bias': (10,)},
            'head.fc.weight (10, 2048) in the checkpoint, (1000, 2048) in the model',
        ),
        (
            {'layer4.0.conv2.weight': (512, 16, 3, 3)},
            'layer4.0.conv2.weight (512, 16, 3, 3) in the checkpoint, (512, 512, 3, 3) in the model',
        ),  # ResNeXt
        ({'layer4.0.se.fc.0.weight': (128, 2048)}, 'its blocks have several attentions: ccd, se'),
    ],
    ids=['groups', 'shape of a gate', 'unknown key', 'missing norm', 'missing gate', 'classes', 'resnext', 'two'],
)
def test_tensors_that_do_not_fit(refused, state, change, message):
    tensors = state('ccd_resnet50')
    for key, shape in change.items():
        if shape is None:
            del tensors[key]
        else:
            tensors[key] = torch.zeros(shape)
    text = refused(TOOL, save(tensors), OUT)
    assert text.startswith('in.pth.tar is not converted: ')
    assert message in text


def test_all_groups_differ(refused, state):
    """The authors' ablation with 32 groups: 32 tensors, a few of them named."""
    tensors = {k: torch.zeros(1, 32, 1) if '.pf.' in k else v for k, v in state('ccd_resnet50').items()}
    error = refused(TOOL, save(tensors), OUT)
    assert 'size mismatch of 32 tensors: backbone.layer1.0.ccd.scale (32,) in the checkpoint' in error


def test_code_does_not_run(refused, place, state):
    error = refused(TOOL, save(state('ccd_resnet50'), args=Trap()), OUT)
    assert 'is not a checkpoint of tensors and plain data' in error
    assert not (place / 'sprung').exists()


@pytest.mark.parametrize('share', [0.02, 0.3, 0.6, 0.98])
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'before PyTorch 1.6'])
def test_truncated(refused, place, share, zipped):
    torch.save(
        {f'module.layer{i}.0.conv1.weight': torch.zeros(30, 30) for i in range(9)},
        place / 'whole',
        _use_new_zipfile_serialization=zipped,
    )
    whole = (place / 'whole').read_bytes()
    (place / 'in.pth.tar').write_bytes(whole[: int(share * len(whole))])
    refused(TOOL, 'in.pth.tar', OUT)


@pytest.mark.parametrize('content', [b'', b'hello', b'\x80\x02}q\x00.'], ids=['empty', 'text', 'pickle of a dict'])
def test_no_checkpoint(refused, place, content):
    (place / 'in.pth.tar').write_bytes(content)
    assert refused(TOOL, 'in.pth.tar', OUT).startswith('in.pth.tar ')


@pytest.mark.parametrize(
    'args, message',
    [
        (['nowhere.pth', OUT], "IN 'nowhere.pth' does not exist"),
        (['in.pth.tar', 'in.pth.tar'], 'OUT must be another file than IN'),
        (['in.pth.tar', '.'], "OUT must name a file, '.' is a folder"),
    ],
)
def test_bad_paths(refused, state, args, message):
    save(state('resnet50'))
    assert refused(TOOL, *args).startswith(message)


def test_an_interrupted_write_leaves_nothing(place, state, monkeypatch):
    save(state('resnet50'))

    def fail(fd):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='disk full'):
        convert_file('in.pth.tar', 'out.pth')
    assert [p.name for p in place.iterdir()] == ['in.pth.tar']


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, config, options, metric',
    [
        pytest.param(
            'ccd_resnet50',
            'ccd_r50_8xb32_in1k',
            ['test_dataloader.batch_size=3'],
            'accuracy/top1',
            marks=pytest.mark.long,
        ),
        pytest.param(
            'det_retinanet_ccd_r50',
            'retinanet_ccd_r50_fpn_2x_legacy_coco',
            ['test_dataloader.dataset.pipeline.1.scale=(160,128)'],
            'coco/bbox_mAP',
            marks=pytest.mark.long,
        ),
        pytest.param(
            'det_cascade_rcnn_ccd_r50',
            'cascade_rcnn_ccd_r50_fpn_2x_legacy_coco',
            ['test_dataloader.dataset.pipeline.1.scale=(160,128)'],
            'coco/bbox_mAP',
            marks=pytest.mark.long,
        ),
    ],
    ids=['classifier', 'retinanet', 'cascade_rcnn'],
)
def test_from_the_authors_file_to_metrics(
    run_tool, root, place, coco, seeded_state, shapes, name, config, options, metric
):
    save({k: torch.from_numpy(v) for k, v in seeded_state(shapes(name)).items()})
    line = convert('in.pth.tar', OUT)
    assert line.endswith(f'fits configs/{config}.py')
    Path('data').mkdir()
    if name.startswith('det'):
        Path('data/coco').symlink_to(coco)
    else:  # three of ImageNet's classes
        files = sorted((coco / 'val2017').glob('*.jpg'))
        Path('data/imagenet/val').mkdir(parents=True)
        Path('data/imagenet/meta').mkdir()
        for file in files:
            Image.open(file).resize((256, 256)).save(f'data/imagenet/val/{file.name}')
        Path('data/imagenet/meta/val.txt').write_text('\n'.join(f'{f.name} {i}' for i, f in enumerate(files)))
    done = run_tool(
        'test.py',
        root / f'configs/{config}.py',
        OUT,
        '--out',
        'metrics.json',
        '--out-item',
        'metrics',
        '--cfg-options',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
        *options,
        cwd=place,
    )
    assert not KEY_WARNING.search(done.stdout + done.stderr)
    metrics = json.loads(Path('metrics.json').read_text())
    assert np.isfinite(metrics[metric])
    for file in ('in.pth.tar', OUT):
        os.remove(file)


def test_eca_with_kernels_of_its_own(place):
    """The authors' 3, 3, 5, 7: plugins, named in the last line, as a config of one's own has them."""
    state = torchvision.models.resnet50().state_dict()
    for stage, (blocks, kernel) in enumerate(zip((3, 4, 6, 3), (3, 3, 5, 7)), 1):
        for block in range(blocks):
            state[f'layer{stage}.{block}.eca.conv.weight'] = torch.zeros(1, 1, kernel)
    torch.save({k: torch.zeros(()).expand(v.shape) for k, v in state.items()}, 'eca.pth')
    said = convert('eca.pth', OUT).splitlines()
    assert said[0].startswith('eca_r50 (classifier): 336 tensors, 25,557,104 parameters')  # 25,557,032 and 72 weights
    assert said[0].endswith('fits configs/eca_r50_8xb32_in1k.py, with this in a config of your own:')
    Path('mine.py').write_text(f"_base_ = 'mmccd::eca_r50_8xb32_in1k.py'\n{said[1]}\n")
    model = mmccd.init_model('mine.py', OUT, device='cpu')
    assert model.backbone.layer3[5].eca.conv.kernel_size == (5,)


def test_network_that_only_its_name_tells(place, state):
    with pytest.raises(
        UserError, match=r"in\.pth\.tar is not converted: it names its network: 'resnetblur50' has the ten"
    ):
        convert(save(state('resnet50'), meta=dict(arch='resnetblur50')), OUT)
    assert not Path(OUT).exists()
