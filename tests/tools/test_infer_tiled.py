"""tools/analysis_tools/infer_tiled.py as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmccd
from mmccd.analysis.tiles import detect_tiled

TOOL = 'analysis_tools/infer_tiled.py'


@pytest.fixture
def detector(root, tmp_path, monkeypatch) -> list[object]:
    """Image, config and checkpoint of a detector with random weights, in the current folder, and options."""
    monkeypatch.chdir(tmp_path)
    config = root / 'configs' / 'retinanet_ccd_r18_fpn_digits.py'
    model = mmccd.init_model(str(config), device='cpu')
    torch.save(dict(state_dict=model.state_dict()), 'it.pth')
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    Image.fromarray(pixels).save('scene.png')
    options = ['--cfg-options', 'model.test_cfg.score_thr=0.0', 'model.test_cfg.max_per_img=20']
    yield ['scene.png', config, 'it.pth', '--device', 'cpu', *options]
    Path('it.pth').unlink()


def test_boxes_are_drawn_and_written(call_tool, detector, root, capsys):
    code, stderr = call_tool(TOOL, *detector, '--tile', 64, '--score-thr', 0, '--json', 'it.json', '--raw')
    assert (code, 'Traceback' in stderr) == (0, False), stderr
    cfg = mmccd.get_config('retinanet_ccd_r18_fpn_digits')
    cfg.model.test_cfg.update(score_thr=0.0, max_per_img=20)
    expected = detect_tiled(mmccd.init_model(cfg, 'it.pth', 'cpu'), 'scene.png', 64)
    assert expected.tiles == 2
    [(path, found)] = json.loads(Path('it.json').read_text()).items()
    assert path == 'scene.png'
    assert [f['score'] for f in found] == pytest.approx(expected.scores.tolist())
    np.testing.assert_allclose([f['box'] for f in found], expected.boxes, rtol=1e-5)
    assert {f['name'] for f in found} <= set('0123456789')
    folder = Path('work_dirs/retinanet_ccd_r18_fpn_digits/tiled')
    assert Image.open(folder / 'scene_tiled.png').size == (96, 64)
    assert np.load(folder / 'scene_tiled.npz')['boxes'].shape == (len(found), 4)
    assert f'scene.png: {len(found)} objects in 2 tiles' in capsys.readouterr().out


def test_bad_input(call_tool, detector, root, capsys):
    for args, message in (
        ((*detector, '--tile', 8), 'argument --tile: must be a whole number, at least 16'),
        ((*detector, '--tile', 64, '--overlap', 1), 'argument --overlap: must be a number from 0 to 0.9'),
        ((*detector,), 'the following arguments are required: --tile'),
        (('none.png', *detector[1:], '--tile', 64), "image 'none.png' cannot be used"),
        (('scene.png', root / 'configs' / 'ccd_r18_digits.py', 'it.pth', '--tile', 64), 'is no config of a detector'),
    ):
        code, stderr = call_tool(TOOL, *args)
        assert code == 2 and message in stderr, stderr
    assert not Path('work_dirs').exists()
