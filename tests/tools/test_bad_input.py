"""Whatever a user gets wrong ends the tool with code 2 and one message, before anything is written."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import pytest
import torch

from mmccd.checkpoints.read import read_checkpoint
from mmccd.cli import arguments, checks
from mmccd.env import set_ranks
from mmccd.errors import UserError

DETECTOR = 'retinanet_ccd_r18_fpn_digits.py'
CLASSIFIER = 'ccd_r18_digits.py'


class Trap:
    """Unpickled, it makes a file called ``sprung``."""

    def __reduce__(self):
        return os.system, ('touch sprung',)


@pytest.fixture
def config(root):
    return lambda name: root / 'configs' / name


@pytest.fixture(autouse=True)
def in_workplace(workplace):
    """Every call is made from a user's folder."""


@pytest.fixture
def checkpoint(workplace) -> Path:
    """A checkpoint file that is one, of another model."""
    torch.save(dict(meta={}, state_dict={'backbone.conv1.weight': torch.zeros(64, 3, 7, 7)}), 'other.pth')
    return workplace / 'other.pth'


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_config_that_does_not_exist(refused, config, tool):
    wrong = config('retinanet_cdd_r50_fpn_1x_coco.py')
    message = refused(tool, wrong, *['x.pth'] * (tool == 'test.py'))
    assert message.startswith(f"config '{wrong}' does not exist; did you mean ")
    assert message.split('did you mean ')[1].split(' or ')[0].rstrip('?') == repr(
        str(config('retinanet_ccd_r50_fpn_1x_coco.py'))
    )


def test_config_nothing_is_near_to(refused):
    assert refused('train.py', 'nowhere/x.py') == "config 'nowhere/x.py' does not exist"


def test_data_that_are_not_there(refused, config):
    """Detection: annotation file, image folder and the evaluator's file, each with its key."""
    message = refused('train.py', config('retinanet_r50_fpn_1x_coco.py'))
    assert message.splitlines()[0] == f'data not found from the folder {os.getcwd()}:'
    assert message.splitlines()[1:6] == [
        '  data/coco/annotations/instances_train2017.json (train_dataloader.dataset.ann_file)',
        '  data/coco/train2017/ (train_dataloader.dataset.data_prefix.img)',
        '  data/coco/annotations/instances_val2017.json (val_dataloader.dataset.ann_file)',
        '  data/coco/val2017/ (val_dataloader.dataset.data_prefix.img)',
        '  data/coco/annotations/instances_val2017.json (val_evaluator.ann_file)',
    ]
    assert message.splitlines()[6].endswith('--cfg-options, e.g. train_dataloader.dataset.ann_file=PATH')


def test_digits_that_are_not_made(refused, config, workplace):
    (workplace / 'data' / 'digits').unlink()
    message = refused('train.py', config(CLASSIFIER))
    assert 'data/digits/cls/train (train_dataloader.dataset.data_prefix)' in message
    assert 'data/digits/cls/val (val_dataloader.dataset.data_prefix)' in message
    assert message.endswith('Make data/digits with: python tools/dataset_converters/make_digits.py')
    message = refused(
        'train.py', config('retinanet_ccd_r18_fpn_trees.py'), '--cfg-options', 'model.backbone.init_cfg=None'
    )
    assert message.endswith('Make data/trees with: python tools/dataset_converters/make_trees.py')


def test_test_data_that_are_not_there(refused, config, checkpoint):
    """Testing asks for the test set alone; a missing evaluator's file is named by its own key."""
    message = refused(
        'test.py', config(CLASSIFIER), checkpoint, '--cfg-options', 'test_dataloader.dataset.data_root=elsewhere'
    )
    assert 'elsewhere/val (test_dataloader.dataset.data_prefix)' in message
    assert 'train' not in message.split('(test_dataloader')[0].split(':')[1]
    message = refused('test.py', config(DETECTOR), checkpoint, '--cfg-options', 'test_evaluator.ann_file=gone.json')
    assert message.splitlines()[1] == '  gone.json (test_evaluator.ann_file)'


def test_missing_imagenet_checkpoint(run_tool, config, workplace):
    """As a program: the message says how to make the checkpoint, and how to do without."""
    done = run_tool('train.py', config('retinanet_ccd_r50_fpn_1x_coco.py'), cwd=workplace, expect=2)
    assert done.stderr.startswith("error: init_cfg.checkpoint 'checkpoints/ccd_r50_in1k.pth' does not exist")
    assert done.stderr.count('error:') == 1
    assert 'tools/dist_train.sh configs/ccd_r50_8xb32_in1k.py 8\n' in done.stderr
    assert 'publish_model.py work_dirs/ccd_r50_8xb32_in1k/epoch_100.pth checkpoints/ccd_r50_in1k.pth\n' in done.stderr
    assert (
        'model.backbone.attention.identity_init=True model.backbone.init_cfg.checkpoint=torchvision://resnet50 '
        'model.backbone.init_cfg.allow_missing=ccd'
    ) in done.stderr
    assert 'Traceback' not in done.stderr
    assert not done.stdout
    assert [p.name for p in workplace.iterdir()] == ['data']


@pytest.mark.parametrize(('launcher', 'name'), [('pytorch', 'LOCAL_RANK'), ('slurm', 'SLURM_LOCALID')])
def test_one_message_a_machine(monkeypatch, capsys, launcher, name):
    """Of several processes only the first of a machine speaks, with torchrun as with slurm."""

    def main() -> None:
        set_ranks(launcher)
        raise UserError('no')

    for local_rank, text in (('0', 'error: no\n'), ('1', '')):
        monkeypatch.setenv('LOCAL_RANK', '')  # so that what main sets is undone
        monkeypatch.delenv('LOCAL_RANK')
        monkeypatch.setenv(name, local_rank)
        with pytest.raises(SystemExit, match='2'):
            arguments.run_tool(main)
        assert capsys.readouterr().err == text


def test_resume_from_nowhere(refused, config):
    message = refused('train.py', config(CLASSIFIER), '--resume', 'gone.pth')
    assert message == f"--resume 'gone.pth' does not exist (looked for {Path('gone.pth').absolute()})"


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_checkpoint_of_another_attention(refused, config, workplace, tool):
    """A file of the SE classifier, given to the CCD one: nothing is half loaded."""
    from mmccd.models import AttentionResNet

    net = AttentionResNet(18, out_indices=(3,), attention=dict(type='mmccd.SE'))
    state = {f'backbone.{k}': v for k, v in net.state_dict().items()}
    state.update({'head.fc.weight': torch.zeros(10, 512), 'head.fc.bias': torch.zeros(5)})
    torch.save(dict(meta={}, state_dict=state), 'se.pth')
    args = ['--resume', 'se.pth'] if tool == 'train.py' else ['se.pth']
    message = refused(tool, config(CLASSIFIER), *args)
    lines = message.splitlines()
    assert lines[0] == 'checkpoint se.pth does not fit the config, nothing was done:'
    # Two parameters in each of 8 blocks; SE's two convolutions have a weight and a bias each.
    assert lines[1].startswith('  16 missing keys (ccd: 16): backbone.layer1.0.ccd.scale, ')
    assert lines[2].startswith('  32 unexpected keys (se_layer: 32): backbone.layer1.0.se_layer.')
    assert lines[3] == '  size mismatch of 1 tensor: head.fc.bias (5,) in the checkpoint, (10,) in the model'
    remedy = 'To start another training from its weights, without --resume: --cfg-options load_from=PATH'
    assert lines[4:] == ([remedy] if tool == 'train.py' else [])


def test_test_checkpoint_that_is_not_there(refused, config):
    message = refused('test.py', config(CLASSIFIER), 'gone.pth')
    assert message.startswith("checkpoint 'gone.pth' does not exist")


@pytest.mark.parametrize('share', [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_truncated_checkpoint(refused, config, checkpoint, tool, share):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(share * len(content))])
    args = ['--resume', checkpoint] if tool == 'train.py' else [checkpoint]
    message = refused(tool, config(CLASSIFIER), *args)
    assert message.startswith(str(checkpoint))
    assert re.search('cannot be read as a checkpoint|is not a checkpoint', message)


@pytest.mark.parametrize('new_format', [True, False])
@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_checkpoint_that_holds_code(refused, config, workplace, tool, new_format):
    torch.save(dict(state_dict={}, meta=Trap()), 'trap.pth', _use_new_zipfile_serialization=new_format)
    args = ['--resume', 'trap.pth'] if tool == 'train.py' else ['trap.pth']
    message = refused(tool, config(CLASSIFIER), *args)
    assert message.startswith('trap.pth is not a checkpoint of tensors and plain data, and is not loaded')
    assert not (workplace / 'sprung').exists()
    with open('trap.pth', 'wb') as f:
        pickle.dump(Trap(), f)
    refused(tool, config(CLASSIFIER), *args)
    assert not (workplace / 'sprung').exists()
    pickle.loads(Path('trap.pth').read_bytes())  # the trap is one
    assert (workplace / 'sprung').exists()


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'not a checkpoint\n',
        b'{"a": 1}',
        b'\x89PNG\r\n\x1a\n' + bytes(64),
        b'\x80\x02',
        b'PK\x03\x04',
        bytes(1000),
        b'I1\n',
        b'\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.',
        b'c__builtin__\neval\n.',
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content):
    path = tmp_path / 'x.pth'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_checkpoint(str(path))


def test_amp_on_the_cpu(refused, config, monkeypatch):
    monkeypatch.setattr(checks, 'get_device', lambda: 'cpu')
    message = refused('train.py', config(CLASSIFIER), '--amp')
    assert message.startswith('--amp (AmpOptimWrapper) needs a GPU')
    assert '\n' not in message


@pytest.mark.parametrize(
    ('args', 'rule'),
    [
        (['--out', 'x.json'], "--out must end with .pkl or .pickle for --out-item pred, got 'x.json'"),
        (['--out', 'x.pkl', '--out-item', 'metrics'], "--out must end with .json for --out-item metrics, got 'x.pkl'"),
    ],
)
def test_out_with_a_wrong_suffix(refused, config, checkpoint, args, rule):
    assert refused('test.py', config(CLASSIFIER), checkpoint, *args) == rule


OUTPUTS = [
    ('test.py', [CLASSIFIER, 'other.pth', '--show-dir', '{file}'], '--show-dir'),
    ('test.py', [CLASSIFIER, 'other.pth', '--out', '{file}/x.pkl'], '--out'),
    ('train.py', [CLASSIFIER, '--work-dir', '{file}'], '--work-dir'),
    ('visualization/vis_attention.py', ['x.png', CLASSIFIER, 'other.pth', '--out-dir', '{file}'], '--out-dir'),
    ('visualization/vis_cam.py', ['x.png', CLASSIFIER, 'other.pth', '--out-dir', '{file}/x'], '--out-dir'),
    ('analysis_tools/infer_tiled.py', ['x', DETECTOR, 'x', '--tile', '64', '--json', '{file}/x.json'], '--json'),
    ('analysis_tools/run_seeds.py', [CLASSIFIER, '--work-dir', '{file}'], '--work-dir'),
    ('analysis_tools/run_seeds.py', [CLASSIFIER, '--csv', '{file}/x.csv'], '--csv'),
    ('analysis_tools/report.py', ['data', '--record', '{file}', '--command', 'x'], '--record'),
    ('deployment/export_onnx.py', [CLASSIFIER, 'other.pth', '--out', '{file}/x.onnx'], '--out'),
    ('checks/check_dataset.py', [CLASSIFIER, '--out', '{file}/x.json'], '--out'),
    ('checks/check_dataset.py', [CLASSIFIER, '--write-clean', '{file}/x.json'], '--write-clean'),
    ('model_converters/publish_model.py', ['other.pth', '{file}/x.pth'], 'out_file'),
    ('model_converters/original_to_mmccd.py', ['other.pth', '{file}/x.pth'], 'OUT'),
    ('model_converters/get_weights.py', ['ccd_r50_in1k', '--out', '{file}'], '--out'),
]


@pytest.mark.parametrize(('tool', 'args', 'option'), OUTPUTS, ids=[f'{t[0]} {t[2]}' for t in OUTPUTS])
def test_outputs_below_a_file(refused, config, checkpoint, workplace, tool, args, option):
    """Said at the start, not after the work."""
    (workplace / 'text').write_text('mine')
    args = [config(a) if a in (CLASSIFIER, DETECTOR) else a.format(file=workplace / 'text') for a in args]
    message = refused(tool, *args)
    assert message.startswith(f'{option} ')
    assert message.endswith('text is no folder')


@pytest.mark.parametrize('option', ['auto_scale_lr=None', 'auto_scale_lr.base_batch_size=None'])
def test_auto_scale_lr_without_a_batch_size(refused, config, option):
    message = refused('train.py', config(CLASSIFIER), '--auto-scale-lr', '--cfg-options', option)
    assert message == f'--auto-scale-lr needs auto_scale_lr.base_batch_size, and {config(CLASSIFIER)} has none'


@pytest.mark.parametrize(
    ('options', 'rule'),
    [
        (['model.backbone.attention.type=mmccd.CDD'], "got 'mmccd.CDD'; did you mean 'mmccd.CCD'?"),
        (
            ['model.backbone.attention.groups=48'],
            'groups must divide the number of channels: 64 channels, got groups=48',
        ),
        (['model.backbone.attention.groups=0'], 'groups must be at least 1, got 0'),
        (['model.backbone.attention.scales=1,0'], 'every scale must be at least 1, got 0 in scales=(1, 0)'),
        (['model.backbone.attention.similarity=l2'], "similarity must be one of ('dot', 'cosine'), got 'l2'"),
        (['model.backbone.attention.stages=True,False'], 'stages must have one entry for each of the 4 stages'),
        (['model.backbone.attention.type=3'], 'got 3'),
        (['model.backbone.attention.grops=3'], "option 'grops' that CCD does not know; did you mean 'groups'?"),
        (
            ['model.backbone.attention.colour=3'],
            "option 'colour' that CCD does not know, which has in_channels, groups, ",
        ),
        (['model.backbone.num_stages=5'], 'num_stages must be at most 4, got 5'),
        (['model.backbone.out_indices=3,4'], 'out_indices must name stages from 0 to 3, got [3, 4]'),
        (['model.backbone.strides=1,2'], 'strides must have one entry for each of the 4 stages, got [1, 2]'),
        (['model.backbone.frozen_stages=5'], 'frozen_stages must be at most num_stages=4, got 5'),
        (['model.backbone.frozn_stages=1'], "unexpected keyword argument 'frozn_stages'"),
        (['model.backbon.depth=18'], "unexpected keyword argument 'backbon'"),
        (['model.backbone.depth=19'], 'depth must be one of (18, 34, 50, 101, 152), got 19'),
    ],
)
@pytest.mark.parametrize('name', [CLASSIFIER, DETECTOR])
def test_model_that_cannot_be_built(refused, config, workplace, checkpoint, name, options, rule):
    """Training, with both tasks; what the layers say about their arguments is the message."""
    message = refused(
        'train.py', config(name), '--cfg-options', f'model.backbone.init_cfg.checkpoint={checkpoint}', *options
    )
    assert message.startswith('the model of the config cannot be built: ')
    assert rule in message


def test_plugin_position_that_does_not_exist(refused, config, workplace):
    """A config of the user's own: BasicBlocks have no third convolution."""
    (workplace / 'mine.py').write_text(
        f"_base_ = ['{config('r18_digits.py')}']\n"
        "model = dict(backbone=dict(plugins=[dict(cfg=dict(type='mmccd.SE'), position='after_conv3')]))\n"
    )
    assert refused('train.py', 'mine.py') == (
        "the model of the config cannot be built: position of a plugin must be one of ('after_conv1', 'after_conv2') "
        "at depth 18, got 'after_conv3'"
    )


@pytest.mark.parametrize(
    'call',
    [
        ['train.py', 'mine.py'],
        ['test.py', 'mine.py', 'other.pth'],
        ['analysis_tools/get_flops.py', 'mine.py'],
        ['deployment/export_onnx.py', 'mine.py', 'other.pth'],
    ],
    ids=lambda call: call[0],
)
def test_model_without_a_backbone(refused, config, checkpoint, call):
    """Whichever tool builds it."""
    head = "dict(type='LinearClsHead', num_classes=10, in_channels=512)"
    Path('mine.py').write_text(
        f"_base_ = '{config(CLASSIFIER)}'\nmodel = dict(_delete_=True, type='ImageClassifier', head={head})\n"
    )
    message = refused(*call)
    assert message.startswith('the model of the config cannot be built: ')
    assert "missing 1 required positional argument: 'backbone'" in message


@pytest.mark.parametrize('extra', [[], ['--tta']])
def test_model_that_cannot_be_built_to_test(refused, config, checkpoint, extra):
    message = refused(
        'test.py', config(DETECTOR), checkpoint, *extra, '--cfg-options', 'model.backbone.attention.groups=48'
    )
    assert message == (
        'the model of the config cannot be built: groups must divide the number of channels: 64 channels, got groups=48'
    )


@pytest.mark.parametrize(
    ('options', 'rule'),
    [
        (['model.backbone.depth.x=3'], 'depth is a dict in the child config'),
        (['param_scheduler.7.begin=3'], 'Index 7 exceeds the length of list'),
    ],
)
def test_options_that_do_not_fit(refused, config, options, rule):
    message = refused('train.py', config(CLASSIFIER), '--cfg-options', *options)
    assert message.startswith(f'--cfg-options does not fit {config(CLASSIFIER)}: ')
    assert rule in message


@pytest.mark.parametrize('option', ['model.backbone.depth', 'model.head=dict(type="A",x=1)', 'x=[1,2'])
def test_options_that_cannot_be_parsed(call_tool, config, workplace, option):
    code, stderr = call_tool('train.py', config(CLASSIFIER), '--cfg-options', option)
    assert code == 2
    assert stderr.splitlines()[-1].startswith('train.py: error: argument --cfg-options: must be key.sub=value pairs')
    assert stderr.rstrip().endswith(f'got {option}')
    assert os.listdir() == ['data']


@pytest.mark.parametrize(('text', 'rule'), [("_base_ = './gone.py'", 'gone.py'), ('x = = 1', 'invalid syntax')])
def test_config_that_cannot_be_read(refused, workplace, text, rule):
    (workplace / 'mine.py').write_text(text)
    message = refused('train.py', 'mine.py')
    assert message.startswith("config 'mine.py' cannot be read: ")
    assert rule in message


@pytest.mark.parametrize(
    ('content', 'rule'),
    [
        ({'conv1.weight': torch.zeros(64, 3, 7, 7)}, '115 missing keys'),
        (b'no checkpoint', 'start.pth is not a checkpoint of tensors and plain data'),
        (b'', 'start.pth cannot be read as a checkpoint'),
        ({'x': torch.zeros(1)}, 'nothing in start.pth matches the backbone'),
        ([1], 'start.pth has no state dict of tensors'),
        (None, "init_cfg.checkpoint 'start.pth' is a folder: it has epoch_1.pth"),
    ],
)
def test_start_that_does_not_fit(refused, config, workplace, content, rule):
    if content is None:
        Path('start.pth').mkdir()
        Path('start.pth/epoch_1.pth').write_bytes(b'')
    elif isinstance(content, bytes):
        Path('start.pth').write_bytes(content)
    else:
        torch.save(content, 'start.pth')
    message = refused('train.py', config(DETECTOR), '--cfg-options', 'model.backbone.init_cfg.checkpoint=start.pth')
    assert rule in message


@pytest.mark.parametrize(
    ('launcher', 'rule'),
    [
        ('pytorch', '--launcher pytorch needs the environment that torchrun sets'),
        ('mpi', '--launcher mpi needs GPUs'),
    ],
)
def test_launcher_without_its_environment(refused, config, monkeypatch, launcher, rule):
    monkeypatch.setattr(checks, 'get_device', lambda: 'cpu')
    monkeypatch.delenv('RANK', raising=False)
    assert refused('train.py', config(CLASSIFIER), '--launcher', launcher).startswith(rule)


def test_accidents_keep_their_traceback(call_tool, config, workplace):
    """An error that no check of ours raised is a bug, or another package's: its traceback is wanted."""
    with pytest.raises(KeyError, match='NoSuchHead'):
        call_tool('train.py', config(CLASSIFIER), '--cfg-options', 'model.head.type=NoSuchHead')


@pytest.mark.parametrize('options', [['--mirror', 'http://127.0.0.1'], ['--original', 'x.pth'], ['--keep-original']])
def test_options_of_downloads_for_what_is_not_downloaded(call_tool, options):
    code, stderr = call_tool('model_converters/get_weights.py', 'zoo://r18-w32_fashion', *options)
    assert code == 2
    assert 'error: zoo://r18-w32_fashion is not downloaded: --original, --mirror' in stderr
