import json
import runpy

import torch

from mmccd.models import AttentionResNet


def test_get_flops(call_tool, root, capsys):
    configs = [root / 'configs' / f'{n}_8xb32_in1k.py' for n in ('r50', 'ccd_r50')]
    assert call_tool('analysis_tools/get_flops.py', *configs)[0] in (0, None)
    table = capsys.readouterr().out
    assert '| ccd_r50_8xb32_in1k | 224 x 224 | 25,559,080 | 2,048 | 4.122 | 4,121,924,096 | 0 |' in table
    call_tool('analysis_tools/get_flops.py', configs[1], '--shape', '64', '96', '--convention', 'mac', '--json')
    (row,) = json.loads(capsys.readouterr().out)
    assert row['shape'] == [64, 96]
    assert row['flops_over_plain'] == row['attention_ops'] > 0
    code, stderr = call_tool('analysis_tools/get_flops.py', configs[1], '--shape', '8', '8')
    assert (code, stderr) == (2, 'error: --shape must be at least 32 32, got 8 8\n')


def rows(text):
    return [line.split() for line in text.splitlines()]


def test_check_pretrained(call_tool, root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = root / 'configs' / 'retinanet_ccd_r18_fpn_digits.py'
    state = AttentionResNet(18, attention=dict(type='mmccd.CCD')).state_dict()
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in state.items()}), 'whole.pth')
    assert call_tool('checks/check_pretrained.py', config, 'whole.pth')[0] == 0
    out = capsys.readouterr().out
    assert ['layer1', '28', '0', '0', '0'] in rows(out)
    assert out.rstrip().endswith('The backbone would load whole.')

    del state['layer3.1.ccd.scale']
    state['layer4.0.ccd.bias'] = torch.ones(32)
    torch.save(state, 'half.pth')
    assert call_tool('checks/check_pretrained.py', config, 'half.pth')[0] == 1
    out = capsys.readouterr().out
    # loaded, missing, unexpected, of another size
    assert ['layer3', '33', '1', '0', '0'] in rows(out)
    assert ['layer4', '33', '0', '0', '1'] in rows(out)
    problems = [line for line in out.splitlines() if line.startswith('PROBLEM: ')]
    assert any('layer3.1.ccd.scale' in p for p in problems)
    assert any('layer4.0.ccd.bias' in p and '64' in p and '32' in p for p in problems)
    assert len(problems) == 2
    assert [line for line in out.splitlines()[-2:] if 'allow_' in line] == [
        'To initialise them instead, name them in allow_missing.'
    ]

    code, stderr = call_tool('checks/check_pretrained.py', config)
    assert code == 2
    assert "init_cfg.checkpoint 'checkpoints/ccd_r18_digits.pth' does not exist" in stderr


def test_get_flops_with_options(root, capsys, monkeypatch):
    config = str(root / 'configs' / 'r18_digits.py')
    options = ['--cfg-options', 'model.backbone.attention.type=mmccd.CCD']
    monkeypatch.setattr('sys.argv', ['get_flops.py', config, '--json', *options])
    runpy.run_path(str(root / 'tools' / 'analysis_tools' / 'get_flops.py'), run_name='__main__')
    (row,) = json.loads(capsys.readouterr().out)
    assert row['params_over_plain'] == 2 * 64 * 8  # scale and bias of 64 groups in 8 blocks


def test_detector_matrix_refuses(call_tool, tmp_path):
    tool = 'analysis_tools/detector_matrix.py'
    assert call_tool(tool, '--out', 'x.csv') == (2, "error: --out must end with .json, got 'x.csv'\n")
    code, err = call_tool(tool, '--out', tmp_path / 'no' / 'x.json')
    assert (code, f'the folder {tmp_path}/no does not exist' in err) == (2, True)
    code, err = call_tool(tool, 'atss/atss_r50_fpn_2x_coco', '--out', tmp_path / 'x.json')
    assert (code, 'atss/atss_r50_fpn_1x_coco' in err) == (2, True)
    assert not list(tmp_path.iterdir())
