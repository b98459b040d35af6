from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from mmccd.configs import load_config

TOOL = 'visualization/vis_attention.py'


@pytest.fixture(scope='module')
def checkpoints(root, folder):
    """Networks of the digits with gates that are not flat, by the names of their configs."""
    paths = {}
    torch.manual_seed(0)
    for name in ('ccd_r18_digits', 'retinanet_ccd_r18_fpn_digits', 'r18_digits'):
        cfg = load_config(str(root / 'configs' / f'{name}.py'))
        init_default_scope(cfg.default_scope)
        model = MODELS.build(dict(cfg.model, _scope_=cfg.default_scope))
        for key, p in model.named_parameters():
            if key.endswith('ccd.scale'):
                torch.nn.init.normal_(p)
        paths[name] = folder / f'{name}.pth'
        torch.save(dict(state_dict=model.state_dict()), paths[name])
    return paths


@pytest.mark.parametrize(
    ('name', 'split', 'size', 'maps'),
    [
        ('ccd_r18_digits', 'cls/val/3', (64, 64), {'layer2.0': (8, 8), 'layer4.0': (2, 2)}),
        ('retinanet_ccd_r18_fpn_digits', 'det/val', (128, 128), {'layer2.0': (16, 16), 'layer4.0': (4, 4)}),
    ],
)
def test_classifier_and_detector(call_tool, root, workplace, checkpoints, name, split, size, maps):
    images = sorted((workplace / 'data' / 'digits' / split).iterdir())[:2]
    folder = workplace / 'images'
    folder.mkdir()
    for p in images:
        (folder / p.name).symlink_to(p)
    (folder / 'notes.txt').write_text('no image, and not taken for one')
    assert call_tool(
        TOOL,
        folder,
        root / 'configs' / f'{name}.py',
        checkpoints[name],
        '--stages',
        2,
        4,
        '--blocks',
        0,
        '--raw',
        '--device',
        'cpu',
    ) == (0, '')
    out = workplace / 'work_dirs' / name / 'gates'
    assert sorted(p.name for p in out.iterdir()) == sorted(
        f'{p.stem}_gates.{kind}' for p in images for kind in ('npz', 'png')
    )

    arrays = np.load(out / f'{images[0].stem}_gates.npz')
    assert {k: v.shape for k, v in arrays.items()} == {
        'image': (*size, 3),
        'padded_size': (2,),
        **{f'{k}.ccd.spatial': (64, *v) for k, v in maps.items()},
    }
    if split.startswith('det'):  # nothing is resized: the image itself
        assert np.array_equal(arrays['image'], np.asarray(Image.open(images[0]).convert('RGB')))
    # The layer's own output over its input, from the image alone.
    cfg = load_config(str(root / 'configs' / f'{name}.py'))
    init_default_scope(cfg.default_scope)
    model = MODELS.build(dict(cfg.model, _scope_=cfg.default_scope)).eval()
    model.load_state_dict(torch.load(checkpoints[name])['state_dict'])
    layer, seen = model.backbone.layer2[0].ccd, []
    layer.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    bgr = torch.from_numpy(arrays['image'][..., ::-1].copy()).permute(2, 0, 1)
    with torch.no_grad():
        model.backbone(model.data_preprocessor(dict(inputs=[bgr], data_samples=None), False)['inputs'])
        ratio = (layer(seen[0]) / seen[0])[0, ::2]  # any channel of a group of two
    assert np.allclose(arrays['layer2.0.ccd.spatial'], ratio, atol=1e-4)
    assert arrays['layer2.0.ccd.spatial'].std() > 0.01

    image = Image.open(out / f'{images[0].stem}_gates.png')
    assert image.format == 'PNG'
    assert image.width == pytest.approx(150 * (2.42 + 2 * 1.62 + 0.03), abs=1)  # two panels


def test_class_folders(call_tool, root, class_folders, checkpoints):
    name = 'ccd_r18_digits'
    assert call_tool(
        TOOL,
        'val',
        root / 'configs' / f'{name}.py',
        checkpoints[name],
        '--stages',
        4,
        '--blocks',
        0,
        '--out-dir',
        'out',
        '--device',
        'cpu',
    ) == (0, '')
    assert sorted(str(p) for p in Path('out').rglob('*.*')) == sorted(
        f'out/{name}_gates.png' for name in class_folders.values()
    )


def test_bad_input_is_one_clear_error_and_writes_nothing(call_tool, root, workplace, checkpoints):
    image = next((workplace / 'data' / 'digits' / 'det' / 'val').iterdir())
    config, checkpoint = (
        root / 'configs' / 'retinanet_ccd_r18_fpn_digits.py',
        checkpoints['retinanet_ccd_r18_fpn_digits'],
    )
    (workplace / 'text.jpg').write_text('no image')
    (workplace / 'empty').mkdir()
    (workplace / 'mixed').mkdir()
    (workplace / 'mixed' / 'a.png').symlink_to(image)
    (workplace / 'mixed' / 'b.png').write_bytes(image.read_bytes()[:200])
    for args, message in (
        (('text.jpg', config, checkpoint), "image 'text.jpg' cannot be used: it is no image\n"),
        (('none.jpg', config, checkpoint), "image 'none.jpg' cannot be used: there is no such file\n"),
        (('empty', config, checkpoint), "folder 'empty' has no image in it (a file named "),
        (('mixed', config, checkpoint), "image 'mixed/b.png' cannot be used: "),
        (
            (image, config, checkpoint, '--stages', 5),
            'stage 5 has no attention, or does not exist; there are 1, 2, 3, 4\n',
        ),
        ((image, config, checkpoint, '--blocks', 2), 'there are, in stage 1: 0, 1; stage 2: 0, 1; stage 3: 0, 1; '),
        (
            (image, config, checkpoint, '--groups', 'mean', 64),
            'group 64 does not exist: layer1.0.ccd (CCD) has groups 0 to 63\n',
        ),
        ((image, config, checkpoint, '--range', 1, 0), '--range must have LOW below HIGH, got 1 0\n'),
        ((image, config, checkpoint, '--device', 'gpu'), "device 'gpu' cannot be used: "),
        ((image, config, 'none.pth'), "checkpoint 'none.pth' does not exist"),
        (
            (image, root / 'configs' / 'ccd_r18_digits.py', checkpoints['r18_digits']),
            'does not fit the config, nothing was done:\n  16 missing keys (ccd: 16): backbone.layer1.0.ccd.scale, ',
        ),
        ((image, root / 'configs' / 'r18_digits.py', checkpoints['r18_digits']), 'there is nothing to show: no '),
    ):
        code, stderr = call_tool(TOOL, *args)
        assert code == 2, args
        assert stderr.startswith('error: '), args
        assert message in stderr, args
    code, stderr = call_tool(TOOL, image, config, checkpoint, '--groups', 'all')
    assert code == 2
    assert "argument --groups: must be an index (from 0) or 'mean', got 'all'" in stderr
    assert not list(workplace.rglob('*_gates.*'))
