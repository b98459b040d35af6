"""A stranger's path by the tools: a stock detector and its public checkpoint, CCD added, trained, exported, used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

pytestmark = [pytest.mark.slow, pytest.mark.long]
STOCK = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
SMALL = ['train_dataloader.num_workers=0', 'val_dataloader.num_workers=0', 'default_hooks.logger.interval=1']


def stock_model():
    """MMDetection's own, with other numbers than its initial ones in the norms."""
    cfg = Config.fromstring(f'_base_ = {STOCK!r}', '.py')
    torch.manual_seed(0)
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        model.init_weights()
    for name, p in model.named_parameters():
        if name.endswith('bn3.weight'):
            p.data.fill_(0.5)  # 0 at first, and in no checkpoint
    for name, buffer in model.named_buffers():
        if name.endswith('running_var'):
            buffer.uniform_(0.8, 1.2)
    return model


@pytest.fixture
def public(toy_coco, monkeypatch) -> Path:
    """A checkpoint as MMDetection publishes them: with its key list, COCO's 80 classes; in the current folder."""
    monkeypatch.chdir(toy_coco)
    meta = dict(dataset_meta=dict(classes=tuple(f'class {i}' for i in range(80))), mmdet_version='3.3.0')
    torch.save(dict(meta=meta, state_dict=stock_model().state_dict()), 'faster_rcnn_r50_fpn_1x_coco.pth')
    return toy_coco / 'faster_rcnn_r50_fpn_1x_coco.pth'


def test_stock_detector_with_a_public_checkpoint(run_tool, public):
    """Its own classes, fine-tuned from the public detector; all but the gates and the class tensors are taken over."""
    data = ['--train', 'train', 'train.json', '--val', 'val', 'val.json']

    def run(*args, **options):
        done = run_tool(*args, cwd=public.parent, **options)
        return done.stdout + done.stderr

    run('make_config.py', *data, '--base', STOCK, '--workers', '0')
    config = 'faster-rcnn_r50_fpn_own.py'
    backbone = Config.fromfile(config).model.backbone
    assert (backbone.type, backbone.attention.type) == ('mmccd.AttentionResNet', 'mmccd.CCD')

    # What the checkpoint does not have is named, and nothing is done before it is allowed.
    start = [f'model.backbone.init_cfg.checkpoint={public.name}', f'load_from={public.name}', *SMALL]
    refused = run('train.py', config, '--cfg-options', *start, expect=2)
    text = ' '.join(refused.split())
    assert '32 missing keys (ccd: 32): backbone.layer1.0.ccd.scale' in text
    assert 'load_from_allow=' in text
    assert not Path('work_dirs').exists()

    steps = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1']
    run('train.py', config, '--cfg-options', *start, *steps, 'load_from_allow=ccd,classes')
    work = Path('work_dirs/faster-rcnn_r50_fpn_own')
    log = next(work.glob('*/*.log')).read_text()
    state = torch.load(public, weights_only=True)['state_dict']
    class_tensors = [f'roi_head.bbox_head.fc_{kind}.{name}' for kind in ('cls', 'reg') for name in ('weight', 'bias')]
    assert f'{len(state) - 4} tensors are loaded, 36 keep their initial values' in log
    rows = [json.loads(line) for line in next(work.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    assert [row['iter'] for row in rows if 'loss' in row] == [1, 2, 3]
    trained = torch.load(work / 'epoch_1.pth', weights_only=False)['state_dict']
    assert set(trained) - set(state) == {k for k in trained if '.ccd.' in k}
    assert all(trained[k].shape == state[k].shape for k in state if k not in class_tensors)
    frozen = [k for k in state if k.startswith(('backbone.conv1', 'backbone.layer1.')) and 'num_batches' not in k]
    assert all(torch.equal(trained[k], state[k]) for k in frozen)
    gates = [k for k in trained if k.endswith('.ccd.bias')]  # those of the frozen stage learn, too
    assert len(gates) == 16
    assert all(trained[k].unique().numel() > 1 for k in gates)

    onnx = work / 'detector.onnx'
    run('deployment/export_onnx.py', config, work / 'epoch_1.pth', '--out', onnx)
    run('deployment/infer_onnx.py', onnx, 'val', '--json', 'found.json')
    assert [Path(row['image']).name for row in json.loads(Path('found.json').read_text())] == [
        '1.jpg',
        '2.jpg',
        '3.jpg',
    ]


def test_three_lines_keep_the_outputs(public):
    """The config of the page: with CCD and its checkpoint, a stock detector finds what it found without."""
    import mmccd
    from mmccd.configs import load_config

    root = Path(mmccd.__file__).parents[1]
    page = (root / 'docs' / 'any_detector.md').read_text()
    code = next(c for c in re.findall(r'^```python\n(.*?)^```', page, re.MULTILINE | re.DOTALL))
    assert STOCK in code
    Path('mine.py').write_text(code)
    cfg = load_config('mine.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        ours, theirs = MODELS.build(cfg.model).eval(), stock_model().eval()
    found = ours.load_state_dict(torch.load(public, weights_only=True)['state_dict'], strict=False)
    assert (len(found.missing_keys), found.unexpected_keys) == (32, [])
    assert all('.ccd.' in key for key in found.missing_keys)
    x = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        for a, b in zip(ours.extract_feat(x), theirs.extract_feat(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
