"""tools/make_config.py as a user calls it."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

import mmccd

TOOL = 'make_config.py'
SMALL = 'retinanet_ccd_r18_fpn_digits'


@pytest.fixture
def coco(toy_coco, monkeypatch) -> Path:
    """6 + 3 images of 40 x 30 with a cat and a dog each; the current folder."""
    monkeypatch.chdir(toy_coco)
    rng = np.random.default_rng(1)
    for path in toy_coco.glob('val/*.jpg'):  # other images than those of train
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(path)
    return toy_coco


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """Class folders, 4 + 2 images of 28 x 28 in each of three classes; the current folder."""
    rng = np.random.default_rng(0)
    for split, n in (('train', 4), ('val', 2)):
        for name in ('ant', 'bee', 'cow'):
            (tmp_path / split / name / 'more').mkdir(parents=True)
            for i in range(n):
                path = tmp_path / split / name / ('more' if i else '') / f'{i}.png'
                Image.fromarray(rng.integers(0, 255, (28, 28, 3), np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(call_tool, *options: object) -> tuple[int, str]:
    return call_tool(TOOL, '--train', 'train', 'train.json', '--val', 'val', 'val.json', '--workers', 0, *options)


def edit(path: str, **changes: object) -> None:
    Path(path).write_text(json.dumps({**json.loads(Path(path).read_text()), **changes}))


def test_detector(call_tool, coco, capsys):
    code, err = make(call_tool, '--gpus', 2)
    assert (code, err) == (0, '')
    out = 'retinanet_ccd_r50_fpn_own.py'
    output = capsys.readouterr().out
    lines = Path(out).read_text().splitlines()
    assert len(lines) <= 44  # with other image sizes; 36 without
    assert max(map(len, lines)) <= 120
    cfg = Config.fromfile(out)
    assert cfg.model.bbox_head.num_classes == 1 + 1
    assert cfg.train_dataloader.dataset.metainfo.classes == ('cat', 'dog')
    assert cfg.test_dataloader == cfg.val_dataloader
    assert cfg.test_evaluator.ann_file == cfg.val_evaluator.ann_file == 'val.json'
    # 40 x 30 becomes 80 x 60 and boxes of 20 x 10 40 x 20: 64 is the next multiple of 32, 107 = 1333 * 64 / 800.
    assert [t.scale for t in cfg.train_dataloader.dataset.pipeline if t.type == 'Resize'] == [(107, 64)]
    assert [t.scale for t in cfg.val_dataloader.dataset.pipeline if t.type == 'Resize'] == [(107, 64)]
    assert [t.type for t in cfg.train_dataloader.dataset.pipeline] == [
        t.type for t in mmccd.get_config('retinanet_ccd_r50_fpn_1x_coco').train_dataloader.dataset.pipeline
    ]
    assert cfg.train_dataloader.dataset.filter_cfg == dict(filter_empty_gt=True, min_size=1)  # 30 < 32
    # 6 images, 2 x 2 a step: 2 iterations; 16 x 12 epochs; 0.01 at batch 16
    assert (cfg.optim_wrapper.optimizer.lr, cfg.auto_scale_lr.base_batch_size) == (0.0025, 4)
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == (192, 16)
    assert cfg.param_scheduler[1].milestones == [128, 176]
    assert cfg.param_scheduler[0].end == 2
    assert cfg.model.backbone.attention == dict(type='mmccd.CCD', identity_init=True)
    assert cfg.model.backbone.init_cfg == dict(
        type='mmccd.PretrainedBackbone', checkpoint='torchvision://resnet50', allow_missing='ccd'
    )
    assert [line.split('tools/')[1] for line in output.splitlines()[-2:]] == [
        f'dist_train.sh {out} 2',
        f'checks/check_dataset.py {out}',
    ]
    # It may be moved, and what mmengine dumps says the same.
    Path('elsewhere').mkdir()
    shutil.move(out, 'elsewhere/mine.py')
    moved = Config.fromfile('elsewhere/mine.py')
    assert moved.to_dict() == cfg.to_dict()
    moved.dump('dumped.py')
    assert Config.fromfile('dumped.py').to_dict() == cfg.to_dict()


def test_the_last_words_for_one_gpu_and_one_iteration(call_tool, coco, capsys):
    assert make(call_tool, '--out', 'own.py', '--batch-size', 6)[0] == 0
    output = capsys.readouterr().out
    assert 'Length: 192 epochs of 1 iteration process 1,152 images' in output
    assert [line.split('tools/')[1] for line in output.splitlines()[-2:]] == [
        'train.py own.py',
        'checks/check_dataset.py own.py',
    ]


def test_small_boxes_get_small_anchors(call_tool, coco):
    """Boxes of 8 x 8 in images enlarged by 64 / 30 are 17 x 17: octave_base_scale 4 and 3 begin at 32 and 24."""
    for split in ('train', 'val'):
        content = json.loads(Path(f'{split}.json').read_text())
        for annotation in content['annotations']:
            annotation.update(bbox=[4, 4, 8, 8], area=64)
        edit(f'{split}.json', annotations=content['annotations'])
    assert make(call_tool, '--out', 'own.py')[0] == 0
    assert Config.fromfile('own.py').model.bbox_head.anchor_generator.octave_base_scale == 3
    text = ' '.join(Path('own.py').read_text().replace('# ', '').split())
    assert "Anchors: the base's match 0% of the boxes (IoU 0.5 or more; 90% are enough), these 100%." in text


def test_ids_subfolders_crowds_and_absolute_paths(call_tool, coco, capsys):
    """Category ids are 10 and 20; images lie in folders; one box is a crowd, one category has no box."""
    for split in ('train', 'val'):
        content = json.loads(Path(f'{split}.json').read_text())
        (coco / split / 'deep').mkdir()
        for image in content['images']:
            shutil.move(coco / split / image['file_name'], coco / split / 'deep')
            image['file_name'] = f'deep/{image["file_name"]}'
        content['annotations'][0]['iscrowd'] = 1
        content['categories'].append(dict(id=3, name='bird'))
        edit(f'{split}.json', **content)
    train, val = ((coco / split, coco / f'{split}.json') for split in ('train', 'val'))
    code, err = call_tool(TOOL, '--train', *train, '--val', *val, '--base', SMALL, '--out', 'own.py', '--workers', 0)
    assert code == 0, err
    assert err == 'warning: 1 of 3 classes have no example in --train and stay classes: bird\n'
    cfg = Config.fromfile('own.py')
    assert cfg.model.bbox_head.num_classes == 3
    assert cfg.train_dataloader.dataset.ann_file == str(coco / 'train.json')
    assert '11 boxes to train on' in Path('own.py').read_text().replace('\n# ', ' ')


def test_base_by_path(call_tool, coco, root):
    """A base of the user's own is named relative to the config; it has a repeated dataset and a list of heads."""
    Path('bases').mkdir()
    Path('bases/mine.py').write_text(
        f'_base_ = {str(root / "configs" / "cascade_rcnn_r50_fpn_1x_coco.py")!r}\n'
        "train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=100,\n"
        '    dataset=_base_.train_dataloader.dataset))\n'
    )
    Path('out').mkdir()
    assert make(call_tool, '--base', 'bases/mine.py', '--out', 'out/own.py')[0] == 0
    assert "_base_ = '../bases/mine.py'" in Path('out/own.py').read_text()
    cfg = Config.fromfile('out/own.py')
    assert [head.num_classes for head in cfg.model.roi_head.bbox_head] == [2, 2, 2]
    assert cfg.model.rpn_head.anchor_generator.scales == [8]
    assert cfg.train_dataloader.dataset.dataset.metainfo.classes == ('cat', 'dog')
    assert cfg.train_cfg.max_epochs == 100  # 60,000 / 600
    assert cfg.model.backbone.init_cfg.checkpoint == 'torchvision://resnet50'


def test_base_whose_entries_cannot_be_merged_with(call_tool, coco, root):
    """None, a number or another type in the place of what is written: it is replaced, not merged."""
    Path('mine.py').write_text(
        f'_base_ = {str(root / "configs" / "retinanet_ccd_r50_fpn_1x_coco.py")!r}\n'
        'auto_scale_lr = None\n'
        'default_hooks = dict(checkpoint=None)\n'
        "model = dict(backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='gone', prefix='b')))\n"
    )
    assert make(call_tool, '--base', 'mine.py', '--out', 'own.py')[0] == 0
    cfg = Config.fromfile('own.py')
    weights = dict(type='mmccd.PretrainedBackbone', checkpoint='torchvision://resnet50', allow_missing='ccd')
    assert cfg.model.backbone.init_cfg == weights
    assert cfg.auto_scale_lr == dict(base_batch_size=2)
    assert (cfg.default_hooks.checkpoint.type, cfg.default_hooks.checkpoint.save_best) == (
        'mmccd.CheckpointHook',
        'auto',
    )
    for init_cfg in ('None', "[dict(type='Kaiming', layer='Conv2d')]"):
        text = Path('mine.py').read_text().splitlines()[0]
        Path('mine.py').write_text(f'{text}\nmodel = dict(backbone=dict(init_cfg={init_cfg}))\n')
        assert make(call_tool, '--base', 'mine.py', '--out', 'own.py', '--overwrite')[0] == 0
        assert Config.fromfile('own.py').model.backbone.init_cfg == weights


def test_base_with_scopes_in_its_types(call_tool, coco):
    """``mmdet.Resize`` is Resize: other sizes, anchors and evaluators than by its short name would be silent."""
    text = mmccd.get_config('retinanet_ccd_r50_fpn_1x_coco').pretty_text
    for name in ('Resize', 'CocoMetric', 'PackDetInputs', 'RetinaNet'):
        assert f"type='{name}'" in text
        text = text.replace(f"type='{name}'", f"type='mmdet.{name}'")
    Path('scoped.py').write_text(text)
    for base, out in (('retinanet_ccd_r50_fpn_1x_coco', 'plain_own.py'), ('./scoped.py', 'own.py')):
        code, err = make(call_tool, '--base', base, '--out', out)
        assert code == 0, err
    plain, cfg = (Config.fromfile(name) for name in ('plain_own.py', 'own.py'))
    for loader in ('train_dataloader', 'val_dataloader'):
        scales = [t.scale for t in cfg[loader].dataset.pipeline if t.type == 'mmdet.Resize']
        assert scales == [t.scale for t in plain[loader].dataset.pipeline if t.type == 'Resize'] == [(107, 64)]
    assert cfg.model.bbox_head == plain.model.bbox_head


def test_base_of_the_new_style(call_tool, coco, root, capsys):
    """It names classes: what it has is written beside the config as one file, since mmengine mixes the styles in no
    other way."""
    Path('new.py').write_text(
        'from mmdet.models import RetinaNet\nfrom mmccd.models import CCD, AttentionResNet\n\n'
        + mmccd.get_config('retinanet_ccd_r50_fpn_1x_coco').pretty_text
        + 'default_scope = None\nmodel.update(type=RetinaNet)\n'
        "model['backbone'].update(dict(type=AttentionResNet, attention=dict(type=CCD), init_cfg=None))\n"
    )
    code, err = make(call_tool, '--base', 'new.py', '--out', 'own.py')
    assert code == 0, err
    assert 'own.py: written (with own_base.py, what --base has as one file). Next:' in capsys.readouterr().out
    assert "_base_ = './own_base.py'" in Path('own.py').read_text()
    cfg = Config.fromfile('own.py')
    assert (cfg.default_scope, cfg.model.type, cfg.model.backbone.type) == (
        'mmdet',
        'RetinaNet',
        'mmccd.AttentionResNet',
    )
    assert cfg.model.backbone.attention == dict(type='mmccd.CCD', identity_init=True)
    assert cfg.model.bbox_head.num_classes == 2
    assert cfg.model.backbone.init_cfg.checkpoint == 'torchvision://resnet50'
    code, err = make(call_tool, '--base', 'new.py', '--out', 'own2.py')
    Path('own2.py').unlink()
    code, err = make(call_tool, '--base', 'new.py', '--out', 'own2.py')
    assert (code, err) == (2, 'error: --out own2_base.py is there: give another name, or --overwrite\n')


def test_classifier(call_tool, folders, capsys):
    code, err = call_tool(TOOL, '--train', 'train', '--val', 'val', '--workers', 0)
    assert (code, err) == (0, '')
    lines = Path('ccd_r50_own.py').read_text().splitlines()
    assert len(lines) <= 42  # with other image sizes and few classes; 34 without
    assert max(map(len, lines)) <= 120
    cfg = Config.fromfile('ccd_r50_own.py')
    assert (cfg.model.head.num_classes, cfg.model.data_preprocessor.num_classes) == (3, 3)
    assert cfg.train_dataloader.dataset.metainfo.classes == ('ant', 'bee', 'cow')
    assert cfg.train_dataloader.dataset.max_broken == 0.01
    assert cfg.val_evaluator == dict(type='Accuracy', topk=(1,))  # of three classes, one among five says nothing
    assert cfg.model.head.topk == (1,)
    # 28 pixels become 56 at most: crops of 64
    assert [t.scale for t in cfg.train_dataloader.dataset.pipeline if t.type == 'mmccd.RandomResizedCrop'] == [64]
    assert [t.get('scale', t.get('crop_size')) for t in cfg.val_dataloader.dataset.pipeline[1:3]] == [73, 64]
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.1 * 0.1 * 32 / 256)
    assert cfg.train_cfg.max_epochs == 200
    assert cfg.param_scheduler[0].milestones == [60, 120, 180]


BAD = [
    (dict(train=['train', 'train.json', 'x']), '--train takes DIR JSON, or DIR alone for class folders; got 3 paths'),
    (dict(val=['val']), '--train and --val must be of one kind, both DIR JSON or both DIR: got train train.json and'),
    (dict(train=['nothing', 'train.json']), "--train: 'nothing' must be a folder of images, and does not exist"),
    (dict(train=['train.json', 'train.json']), "--train: 'train.json' must be a folder of images, and is a file"),
    (dict(val=['val', 'no.json']), "--val: the annotation file 'no.json' does not exist"),
    (dict(train=['train'], val=['val']), "--train: 'train' has no class folders. A COCO dataset needs its annot"),
    (dict(gpus=0), '--gpus must be at least 1, got 0'),
    (dict(batch_size=-2), '--batch-size must be at least 1, got -2'),
    (dict(out='x.json'), "--out must end with .py, got 'x.json'"),
    (dict(out='train.py'), '--out train.py is there: give another name, or --overwrite'),
    (dict(out='no/x.py'), '--out no/x.py: the folder no does not exist'),
    (
        dict(base='retinanet_cdc_r50_fpn_1x_coco'),
        "no config of mmccd is called 'retinanet_cdc_r50_fpn_1x_coco'; did you mean 'retinanet_ccd_r50_fpn_1x_coco'",
    ),
    (dict(base='bases/no.py'), "config 'bases/no.py' does not exist"),
    (dict(base='bases/voc.py'), '--base voc: its dataset must read COCO annotations, and is VOCDataset'),
    (dict(base='bases/iters.py'), '--base iters: it must have model.backbone, train_cfg.max_epochs, '),
    (dict(base='ccd_r50_8xb32_in1k'), '--base ccd_r50_8xb32_in1k is a classifier, and --train is data for a detector'),
]


@pytest.mark.parametrize(('change', 'rule'), BAD)
def test_bad_usage(call_tool, coco, change, rule):
    Path('train.py').touch()
    Path('bases').mkdir()
    head = f'_base_ = {mmccd.config_path(SMALL)!r}\n'
    Path('bases/voc.py').write_text(f"{head}train_dataloader = dict(dataset=dict(type='VOCDataset'))\n")
    Path('bases/iters.py').write_text(f'{head}train_cfg = dict(_delete_=True, max_iters=9)\n')
    options = dict(train=['train', 'train.json'], val=['val', 'val.json'], out='own.py') | change
    args = []
    for name, values in options.items():
        args += [f'--{name.replace("_", "-")}', *(values if isinstance(values, list) else [values])]
    code, err = call_tool(TOOL, *args)
    assert code == 2
    assert err.startswith(f'error: {rule}'), err
    assert not Path('own.py').exists()


CAT, DOG = dict(id=10, name='cat'), dict(id=20, name='dog')


@pytest.mark.parametrize(
    ('categories', 'rule'),
    [
        (
            [CAT, dict(id=20, name='dogs')],
            "--train and --val have different classes; only --train has 'dog'; only --val has 'dogs'. Labels",
        ),
        (
            [CAT, DOG, dict(id=30, name='bird')],
            "--train and --val have different classes; only --val has 'bird'. Labels",
        ),
        ([DOG, CAT], '--train and --val have different classes in order or number: cat, dog and dog, cat. Labels'),
    ],
)
def test_other_classes_in_val(call_tool, coco, categories, rule):
    edit('val.json', categories=categories)
    code, err = make(call_tool, '--out', 'own.py')
    assert code == 2
    assert err.startswith(f'error: {rule}'), err


def test_other_class_folders_in_val(call_tool, folders):
    (folders / 'val' / 'dog').mkdir()
    code, err = call_tool(TOOL, '--train', 'train', '--val', 'val')
    assert code == 2
    assert err.startswith("error: --train and --val have different classes; only --val has 'dog'."), err


def test_errors_in_the_data(call_tool, coco, capsys):
    """Two categories with one id and an image that is none: nothing is written, but with --force."""
    edit('train.json', categories=[CAT, DOG, dict(id=20, name='bird')])
    edit('val.json', categories=[CAT, DOG, dict(id=20, name='bird')])
    (coco / 'train' / '3.jpg').write_bytes(b'nothing')
    code, err = make(call_tool, '--base', SMALL, '--out', 'own.py')
    output = capsys.readouterr().out
    assert code == 2
    assert err.startswith('error: the data have 5 errors (above), and nothing was written')  # none is a warning
    assert 'category-entry' in output
    assert 'image-broken' in output
    assert not Path('own.py').exists()
    code, _ = make(call_tool, '--base', SMALL, '--out', 'own.py', '--force')
    assert code == 0
    assert Config.fromfile('own.py').model.bbox_head.num_classes == 3


def test_the_way_out_of_broken_data(call_tool, coco, capsys):
    """What is printed, done: --force, the cleaning of either split, and the config of the clean files."""
    for split in ('train', 'val'):
        (coco / split / '3.jpg').write_bytes(b'nothing')
    Path('my val.json').write_text(Path('val.json').read_text())
    options = ('--base', SMALL, '--out', 'own.py', '--workers', 0)
    data = ('--train', 'train', 'train.json', '--val', 'val', 'my val.json')
    code, err = call_tool(TOOL, *data, *options)
    assert code == 2
    commands = err.splitlines()[-3:-1]
    assert [shlex.split(c)[2:] for c in commands] == [
        ['own.py', '--splits', 'train', '--write-clean', 'train_clean.json'],
        ['own.py', '--splits', 'val', '--write-clean', 'my val_clean.json'],
    ]
    assert err.splitlines()[-1].startswith('writes the annotations without their broken entries')
    assert not Path('own.py').exists()
    assert call_tool(TOOL, *data, *options, '--force')[0] == 0
    assert capsys.readouterr().out.splitlines()[-2:] == commands
    for command in commands:
        tool = Path(shlex.split(command)[1])
        assert tool.is_file()
        assert call_tool('checks/check_dataset.py', *shlex.split(command)[2:], '--workers', 0)[0] == 1  # it names them
    assert [i['id'] for i in json.loads(Path('train_clean.json').read_text())['images']] == [1, 2, 4, 5, 6]
    capsys.readouterr()
    assert (
        call_tool(
            TOOL, '--train', 'train', 'train_clean.json', '--val', 'val', 'my val_clean.json', *options, '--overwrite'
        )[0]
        == 0
    )
    assert '--write-clean' not in capsys.readouterr().out


def test_errors_that_no_cleaning_fixes(call_tool, folders):
    """Class folders have no annotations to clean."""
    (folders / 'train' / 'ant' / '0.png').write_bytes(b'nothing')
    code, err = call_tool(TOOL, '--train', 'train', '--val', 'val', '--workers', 0)
    assert code == 2
    assert err == (
        'error: the data have 1 error (above), and nothing was written: fix them, or add --force to have '
        'the config as it is\n'
    )


def save_backbone(name: str) -> None:
    """Random weights where the config of the digits looks for its initial weights."""
    Path('checkpoints').mkdir()
    torch.save(mmccd.init_model(name, device='cpu').backbone.state_dict(), 'checkpoints/ccd_r18_digits.pth')


@pytest.mark.long
def test_the_detector_trains(call_tool, run_tool, coco):
    save_backbone(SMALL)
    assert make(call_tool, '--base', SMALL)[0] == 0
    out = 'retinanet_ccd_r18_fpn_own.py'
    assert 'Initial weights: checkpoints/ccd_r18_digits.pth.' in Path(out).read_text()
    done = run_tool('train.py', out, '--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1', cwd=coco)
    assert 'Epoch(train)' in done.stdout
    assert 'coco/bbox_mAP' in done.stdout or 'The testing results of the whole dataset is empty' in done.stdout
    assert (coco / 'work_dirs' / 'retinanet_ccd_r18_fpn_own' / 'epoch_1.pth').is_file()


@pytest.mark.long
def test_the_classifier_trains(call_tool, run_tool, folders):
    save_backbone('ccd_r18_digits')
    assert call_tool(TOOL, '--train', 'train', '--val', 'val', '--base', 'ccd_r18_digits', '--workers', 0)[0] == 0
    done = run_tool(
        'train.py', 'ccd_r18_own.py', '--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1', cwd=folders
    )
    assert 'accuracy/top1' in done.stdout
    assert (folders / 'work_dirs' / 'ccd_r18_own' / 'epoch_1.pth').is_file()


FASTER_RCNN = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'


def test_base_of_mmdetection(call_tool, coco):
    """Its recipe with own classes, and CCD in its backbone, which starts as the plain one with all of its weights."""
    assert make(call_tool, '--base', FASTER_RCNN) == (0, '')
    text = Path('faster-rcnn_r50_fpn_own.py').read_text()
    assert f"_base_ = {FASTER_RCNN!r}\ncustom_imports = dict(imports=['mmccd'], allow_failed_imports=False)" in text
    cfg = Config.fromfile('faster-rcnn_r50_fpn_own.py')
    assert cfg.model.roi_head.bbox_head.num_classes == 2
    backbone = cfg.model.backbone
    assert (backbone.type, backbone.depth, backbone.frozen_stages) == ('mmccd.AttentionResNet', 50, 1)
    assert backbone.attention == dict(type='mmccd.CCD', identity_init=True)
    assert backbone.init_cfg == dict(
        type='mmccd.PretrainedBackbone', checkpoint='torchvision://resnet50', allow_missing='ccd'
    )
    assert cfg.optim_wrapper.optimizer.lr == 0.02 * 2 / 16
    assert 'Initial weights: torchvision://resnet50.' in text


@pytest.mark.long
@pytest.mark.parametrize(
    ('base', 'attention', 'expected'),
    [
        (FASTER_RCNN, 'mmccd.SE', dict(type='mmccd.SE', identity_init=True)),
        ('mmdet::regnet/retinanet_regnetx-3.2GF_fpn_1x_coco.py', None, dict(type='mmccd.CCD', groups=48)),
        ('mmdet::retinanet/retinanet_x101-32x4d_fpn_1x_coco', None, dict(type='mmccd.CCD', identity_init=True)),
    ],
)
def test_attention_in_a_base_of_mmdetection(call_tool, coco, base, attention, expected):
    options = [] if attention is None else ['--attention', attention]
    assert make(call_tool, '--base', base, '--out', 'own.py', *options) == (0, '')
    backbone = Config.fromfile('own.py').model.backbone
    assert backbone.attention == expected
    if 'regnet' in base:
        assert (backbone.type, backbone.backbone.type) == ('mmccd.WithAttention', 'RegNet')
        assert backbone.backbone.init_cfg.checkpoint == 'open-mmlab://regnetx_3.2gf'
    if 'x101' in base:
        assert (backbone.groups, backbone.base_width, backbone.depth) == (32, 4, 101)


@pytest.mark.long
def test_a_base_of_mmdetection_as_it_is(call_tool, coco):
    assert make(call_tool, '--base', FASTER_RCNN, '--out', 'own.py', '--attention', 'none') == (0, '')
    backbone = Config.fromfile('own.py').model.backbone
    assert (backbone.type, backbone.init_cfg.type, 'attention' in backbone) == ('ResNet', 'Pretrained', False)


@pytest.mark.long
def test_base_of_mmpretrain(call_tool, folders):
    base = 'mmpretrain::resnet/resnetv1d50_8xb32_in1k.py'
    code, err = call_tool(TOOL, '--train', 'train', '--val', 'val', '--base', base, '--out', 'own.py', '--workers', 0)
    assert (code, err) == (0, '')
    backbone = Config.fromfile('own.py').model.backbone
    assert (backbone.type, backbone.deep_stem, backbone.avg_down) == ('mmccd.AttentionResNet', True, True)
    assert (backbone.out_indices, backbone.norm_eval) == ((3,), False)
    assert backbone.init_cfg.allow_missing == 'ccd'
    assert 'resnetv1d50_' in backbone.init_cfg.checkpoint


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--base', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coc.py'], FASTER_RCNN),
        (['--base', FASTER_RCNN, '--attention', 'mmccd.CDC'], "there is no 'mmccd.CDC'"),
        (['--base', SMALL, '--attention', 'mmccd.SE'], '--attention is for a --base of MMDetection'),
        (['--attention', 'mmccd.SE'], '--attention is for a --base of MMDetection'),
        (['--base', 'mmpretrain::resnet/resnet50_8xb32_in1k.py'], 'is a classifier'),
    ],
)
def test_wrong_base_of_mmdetection(call_tool, coco, options, message):
    code, err = make(call_tool, '--out', 'own.py', *options)
    assert (code, message in err, err.count('\n')) == (2, True, 1), err
    assert not Path('own.py').exists()
