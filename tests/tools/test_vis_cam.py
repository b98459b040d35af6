"""tools/visualization/vis_cam.py as a user calls it, on networks with random weights."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmccd

pytest.importorskip('pytorch_grad_cam')
TOOL = 'visualization/vis_cam.py'
NAMES = ('ccd_r18_digits', 'retinanet_ccd_r18_fpn_digits', 'cascade_rcnn_ccd_r18_fpn_digits')


@pytest.fixture(scope='module')
def checkpoints(root, folder):
    """By the names of their configs; the classes stand in the files, as in those of trainings."""
    paths = {}
    for name in NAMES:
        torch.manual_seed(0)
        model = mmccd.init_model(root / 'configs' / f'{name}.py', device='cpu')
        for key, p in model.named_parameters():
            if key.endswith(('retina_cls.weight', 'fc_cls.weight')):
                torch.nn.init.normal_(p, std=0.03)
            elif 'retina_cls.bias' in key:
                torch.nn.init.zeros_(p)
        paths[name] = folder / f'{name}.pth'
        torch.save(
            dict(
                state_dict=model.state_dict(),
                meta=dict(
                    dataset_meta=dict(
                        classes=('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
                    )
                ),
            ),
            paths[name],
        )
    return paths


@pytest.fixture
def scenes(workplace):
    return sorted((workplace / 'data' / 'digits' / 'det' / 'val').iterdir())


@pytest.mark.parametrize(
    ('name', 'options', 'method', 'panels'),
    [
        (NAMES[0], ('--target-category', 'two', 5, 'two'), 'gradcam', 2),
        (
            NAMES[1],
            ('--topk', 3, '--method', 'gradcam++', '--target-layers', 'backbone.layer3', 'backbone.layer4.1.ccd'),
            'gradcam++',
            3,
        ),
        (NAMES[1], ('--topk', 3, '--method', 'eigencam'), 'eigencam', 1),
        (NAMES[2], ('--topk', 5, '--score-thr', 0, '--zoom', 3), 'hirescam', 5),
    ],
)
def test_figures_and_arrays(call_tool, root, workplace, scenes, checkpoints, name, options, method, panels):
    assert call_tool(
        TOOL, scenes[0], root / 'configs' / f'{name}.py', checkpoints[name], *options, '--raw', '--device', 'cpu'
    ) == (0, '')
    out = workplace / 'work_dirs' / name / 'cam'
    assert sorted(p.name for p in out.iterdir()) == [f'{scenes[0].stem}_{method}.npz', f'{scenes[0].stem}_{method}.png']
    arrays = np.load(out / f'{scenes[0].stem}_{method}.npz')
    assert np.array_equal(arrays['image'], np.asarray(Image.open(scenes[0]).convert('RGB')))
    assert arrays['maps'].shape == (panels, 128, 128)
    assert (arrays['maps'].min(), arrays['maps'].max()) == pytest.approx((0, 1), abs=1e-5)
    assert (np.diff(arrays['scores']) <= 0).all()
    if name == NAMES[0]:
        assert set(arrays['labels']) == {2, 5}
        assert 'boxes' not in arrays
    else:
        assert arrays['boxes'].shape == (options[1], 4)
    image = Image.open(out / f'{scenes[0].stem}_{method}.png')
    assert image.width == pytest.approx(150 * (2.42 + 2.12 * min(panels, 4) + 0.03), abs=1)


def test_class_folders(call_tool, root, class_folders, checkpoints):
    assert call_tool(
        TOOL,
        'val',
        root / 'configs' / f'{NAMES[0]}.py',
        checkpoints[NAMES[0]],
        '--method',
        'eigencam',
        '--out-dir',
        'out',
        '--raw',
        '--device',
        'cpu',
    ) == (0, '')
    assert sorted(str(p) for p in Path('out').rglob('*.*')) == sorted(
        f'out/{name}_eigencam.{kind}' for name in class_folders.values() for kind in ('png', 'npz')
    )


def test_images_without_detections_are_named(call_tool, root, workplace, scenes, checkpoints):
    """A threshold between the best scores of two images."""
    command = (
        workplace / 'images',
        root / 'configs' / f'{NAMES[1]}.py',
        checkpoints[NAMES[1]],
        '--method',
        'eigencam',
        '--device',
        'cpu',
    )
    (workplace / 'images').mkdir()
    for p in scenes[:2]:
        (workplace / 'images' / p.name).symlink_to(p)
    code, stderr = call_tool(TOOL, *command, '--score-thr', 1)
    lines = stderr.splitlines()
    assert code == 2
    assert lines[-1] == 'error: nothing was drawn: no detection in 2 images; lower --score-thr (1)'
    best = {p.name: float(line.split('of all: ')[1].split(')')[0]) for p, line in zip(scenes[:2], lines)}
    assert len(set(best.values())) == 2
    assert not (workplace / 'work_dirs').exists()

    code, stderr = call_tool(TOOL, *command, '--score-thr', sum(best.values()) / 2, '--out-dir', 'out')
    low, high = sorted(best, key=best.get)
    assert code == 0
    assert stderr.startswith(f'{workplace / "images" / low}: no detection with a score of at least ')
    assert stderr.count('\n') == 1
    assert [p.name for p in (workplace / 'out').iterdir()] == [high.replace('.png', '_eigencam.png')]


def test_bad_input_is_one_clear_error_and_writes_nothing(call_tool, root, workplace, scenes, checkpoints, monkeypatch):
    classifier, detector = ((root / 'configs' / f'{n}.py', checkpoints[n]) for n in NAMES[:2])
    (workplace / 'text.jpg').write_text('no image')
    (workplace / 'empty').mkdir()
    image = scenes[0]
    for args, message in (
        (('text.jpg', *detector), "image 'text.jpg' cannot be used: it is no image\n"),
        (('empty', *detector), "folder 'empty' has no image in it (a file named "),
        ((image, detector[0], classifier[1]), 'does not fit the config, nothing was done'),
        ((image, detector[0], 'none.pth'), "checkpoint 'none.pth' does not exist"),
        (
            (image, *detector, '--target-layers', 'neck.fpn_convs.0', 'layer4'),
            "layer 'layer4' does not exist in the model; did you mean 'backbone.layer4'?\n",
        ),
        ((image, *detector, '--target-layers', 'neck'), "layer 'neck' (FPN) gives a tuple, no map (N, C, H, W)\n"),
        ((image, *classifier, '--target-layers', 'head.fc'), "layer 'head.fc' (Linear) gives a tensor (1, 10), no "),
        ((image, *classifier, '--target-category', 'twoo'), "index from 0 to 9; did you mean 'two'?\n"),
        (
            (image, *detector, '--target-category', '10'),
            "class '10' does not exist, it must be a name, or an index from 0 to 9\n",
        ),
        ((image, *classifier, '--topk', 3), '--topk is for detections, and this config is of a classifier'),
        (
            (image, *classifier, '--target-category', 2, '--method', 'eigencam'),
            '--target-category asks for one map of each, and eigencam has only one',
        ),
        ((image, *detector, '--device', 'gpu'), "device 'gpu' cannot be used: "),
    ):
        code, stderr = call_tool(TOOL, *args)
        assert code == 2, args
        assert stderr.startswith('error: '), args
        assert message in stderr, args
    for option, value, message in (
        ('--topk', '0', 'must be a whole number, at least 1'),
        ('--score-thr', '2', 'must be a number from 0 to 1'),
        ('--zoom', '0.5', 'must be a number, at least 1'),
        ('--method', 'cam', "invalid choice: 'cam'"),
    ):
        code, stderr = call_tool(TOOL, image, *detector, option, value)
        assert code == 2
        assert message in stderr
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    code, stderr = call_tool(TOOL, image, *detector)
    assert code == 2
    assert stderr.startswith('error: class activation maps need pytorch-grad-cam, which cannot be imported (')
    assert stderr.endswith('): pip install grad-cam\n')
    assert not (workplace / 'work_dirs').exists()
