"""Walk every config: name, contents, size, and two iterations of training."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATA_SAMPLERS, MODELS, DefaultScope
from mmengine.structures import InstanceData

import mmccd
from mmccd import env
from mmccd.cli import config_table
from mmccd.configs import load_config
from mmccd.models.resnet_variants import named_variant, published_weights

FOLDER = Path(__file__).parents[1] / 'configs'
EVERYTHING = sorted(p.stem for p in FOLDER.glob('*.py'))
NAMES = [n for n in EVERYTHING if '_24e_' not in n]  # those: old names of the Cascade R-CNN's 2x
ATTENTIONS = ('se', 'ge', 'cbam', 'sk', 'gc', 'ccd')  # with configs for both detectors
LATER = ('sge', 'simam', 'coord', 'ema', 'triplet', 'bam', 'shuffle', 'nam', 'lsk', 'fca')  # with RetinaNet's 1x
TYPES = {a.name: f'mmccd.{a.type}' for a in config_table.ATTENTIONS}
# [<detector>_]<attention>_<network>[_fpn]_<schedule>_<dataset>; CCD's ablations are ccd-<what is different>;
# how it is trained goes before the schedule, as MMDetection's amp-1x: fsdp-1x
# How classifiers and detectors are trained, beside the authors' way.
CLASSIFIED = '|'.join(['8xb32', *config_table.RECIPES])
RECIPES = ('fsdp', 'coslr', 'ema', 'plateau', 'earlystop')
STOCK = {stock.name.partition('_{}')[0]: stock for stock in config_table.STOCK}  # by MMDetection's own recipe
RULE = re.compile(
    rf'(?:(?P<detector>retinanet|cascade_rcnn|{"|".join(STOCK)})_)?'
    rf'(?:(?P<attention>{"|".join(TYPES)}|ccd(?:-[a-z0-9]+)+)_)?'
    r'(?P<network>(?P<kind>[rx])(?P<depth>\d+)(?P<variant>d|-32x4d|-w32)?)'
    rf'(?P<fpn>_fpn)?(?:_(?P<schedule>(?:(?:{"|".join(RECIPES)})-)?(?:1x|2x)|8xb2-12e|{CLASSIFIED})(?:_legacy)?)?_'
    r'(?P<dataset>in1k|coco|digits|trees|fashion|solar)'
)
# Table 1's exact integers (facts of the published models); ECA: kernels of 5, in the last stage of 7.
PARAMETERS = {
    None: 25_557_032,
    'se': 28_088_024,
    'ge': 25_557_032,
    'cbam': 28_089_624,
    'sk': 26_154_496,
    'gc': 28_105_032,
    'eca': 25_557_032 + 13 * 5 + 3 * 7,
    'ccd': 25_559_080,
    # By the formulas of tests/models/layers/test_definitions.py.
    'sge': 25_559_080,
    'simam': 25_557_032,
    'coord': 25_557_032 + 1_917_832,
    'ema': 25_557_032 + 3_151_232,
    'triplet': 25_557_032 + 16 * 300,
    'bam': 25_557_032 + 5_214_464,
    'shuffle': 25_557_032 + 708,
    'nam': 25_557_032 + 30_208,
    'lsk': 25_557_032 + 31_360_608,
    'fca': 25_557_032 + 2_514_944,
}
# torchvision's ResNeXt-50 32x4d; timm's resnet50d
NETWORKS = {'r50': 25_557_032, 'x50-32x4d': 25_028_904, 'r50d': 25_576_264}
# The authors' detectors with 80 classes, by the shapes in data/golden/det_*.json, less CCD's 2,048.
DETECTOR_PARAMETERS = {'retinanet': 37_968_692, 'cascade_rcnn': 69_394_766}


def parsed(name):
    match = RULE.fullmatch(name)
    return match and match.groupdict()


def load(name):
    return Config.fromfile(FOLDER / f'{name}.py')


def build(cfg, device='cpu'):
    model = copy.deepcopy(cfg.model)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device(device):
        return MODELS.build(model)


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_the_promised_configs_are_there():
    backbones = ['r50', *(f'{a}_r50' for a in ATTENTIONS)]
    promised = {f'{b}_8xb32_in1k' for b in backbones} | {f'ccd_r{d}_8xb32_in1k' for d in (18, 34, 101)}
    promised |= {
        f'{d}_{b}_fpn_{s}_coco' for d in ('retinanet', 'cascade_rcnn') for b in backbones for s in ('1x', '2x')
    }
    promised |= {f'{a}_r50_8xb32_in1k' for a in LATER} | {f'retinanet_{a}_r50_fpn_1x_coco' for a in LATER}
    promised |= {f'retinanet_{b}_fpn_2x_legacy_coco' for b in ('r50', 'se_r50', 'ccd_r50')}
    promised |= {f'cascade_rcnn_{b}_fpn_2x_legacy_coco' for b in ('r50', 'gc_r50', 'ccd_r50')}
    promised |= {'r18_digits', 'retinanet_r18_fpn_digits', 'cascade_rcnn_ccd_r18_fpn_digits'}
    promised |= {f'{a}_r18_digits' for a in ATTENTIONS} | {f'retinanet_{a}_r18_fpn_digits' for a in ATTENTIONS}
    promised |= {'retinanet_r18_fpn_trees', 'retinanet_ccd_r18_fpn_trees'}
    promised |= {f'{a}r18_{d}' for a in ('', *(f'{t}_' for t in TYPES)) for d in ('fashion', 'solar')}
    promised |= {f'retinanet_{a}r18_fpn_fashion' for a in ('', *(f'{a}_' for a in ATTENTIONS))}
    networks = [f'{a}{n}' for a in ('', 'ccd_') for n in ('r50d', 'x50-32x4d')]
    promised |= {f'{n}_8xb32_in1k' for n in networks} | {f'retinanet_{n}_fpn_1x_coco' for n in networks}
    detectors = ('faster_rcnn', 'mask_rcnn', 'atss', 'fcos', 'gfl')
    promised |= {f'{d}_{a}r50_fpn_1x_coco' for d in detectors for a in ('', 'ccd_')}
    promised |= {f'dino-4scale_{a}r50_8xb2-12e_coco' for a in ('', 'ccd_')}
    promised |= {f'{a}r50_{r}_in1k' for a in ('', 'ccd_') for r in config_table.RECIPES}
    promised |= {f'retinanet_{a}r50_fpn_{r}-1x_coco' for a in ('', 'ccd_') for r in RECIPES[1:]}
    promised |= {f'{a}r18-w32_fashion' for a in ('', 'se_', 'ccd_')}
    promised |= {f'retinanet_{a}r18-w32_fpn_fashion' for a in ('', 'ccd_')}
    assert promised <= set(NAMES)
    assert mmccd.list_configs() == NAMES


def test_old_names_stay_loadable():
    """Cascade R-CNN's 2x was 24e: by name, as a base, and by its path."""
    new = [n for n in NAMES if n.startswith('cascade_rcnn_') and '_2x_' in n]
    old = [n.replace('_2x_', '_24e_') for n in new]
    assert sorted(old) == sorted(set(EVERYTHING) - set(NAMES))
    assert len(old) == 10
    for name, was in zip(new, old):
        assert load(was).to_dict() == load(name).to_dict()
        assert mmccd.config_path(was) == str(FOLDER / f'{was}.py')
        assert mmccd.get_config(f'{was}.py').to_dict() == load(name).to_dict()
    with pytest.raises(mmccd.UserError, match=r"'cascade_rcnn_cdc_r50_fpn_24e_coco'.*cascade_rcnn_ccd_r50_fpn_2x_coco"):
        mmccd.config_path('cascade_rcnn_cdc_r50_fpn_24e_coco')


@pytest.mark.parametrize('by', [lambda name: mmccd.get_config(name), lambda name: load_config(f'{FOLDER}/{name}.py')])
def test_old_names_say_so_once(monkeypatch, capsys, by):
    monkeypatch.setattr(env, '_WARNED', set())
    for _ in range(2):
        by('cascade_rcnn_ccd_r50_fpn_24e_legacy_coco')
    by('cascade_rcnn_ccd_r50_fpn_2x_coco')
    [line] = capsys.readouterr().err.splitlines()
    assert re.findall(r'cascade\w+', line) == [f'cascade_rcnn_ccd_r50_fpn_{n}_legacy_coco' for n in ('24e', '2x')]


@pytest.mark.parametrize('stem', NAMES)
def test_name_and_runtime(stem):
    name = parsed(stem)
    assert name, f'{stem} breaks the naming rule'
    assert len((FOLDER / f'{stem}.py').read_text().splitlines()) <= 25
    cfg = load(stem)
    assert cfg.default_scope == ('mmdet' if name['detector'] else 'mmpretrain')
    assert cfg.custom_imports.imports == ['mmccd']
    assert bool(name['fpn']) == bool(name['detector']) or name['detector'] == 'dino-4scale'
    backbone = cfg.model.backbone
    assert backbone.type == 'mmccd.AttentionResNet'
    assert backbone.depth == int(name['depth'])
    attention = backbone.get('attention')
    word = name['attention'] and name['attention'].split('-')[0]
    assert (attention and attention.type) == (word and TYPES[word])
    if name['detector']:
        assert backbone.init_cfg.type == 'mmccd.PretrainedBackbone'
        classifier = '_'.join(filter(None, (name['attention'], name['network'])))
        plain = name['dataset'] == 'coco' and not name['attention']
        dataset = dict(coco='in1k', fashion='fashion').get(name['dataset'], 'digits')
        published = published_weights(named_variant(name['network']))
        expected = published if plain else f'checkpoints/{classifier}_{dataset}.pth'
        expected = f'zoo://{classifier}_{dataset}' if name['variant'] == '-w32' else expected
        assert backbone.init_cfg.checkpoint == expected
        assert type(cfg.model.type) is str
    if name['dataset'] in ('coco', 'in1k'):
        assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size
        assert cfg.auto_scale_lr.get('enable', False) is False
    if name['detector'] is None:
        assert backbone.norm_eval is False
        assert backbone.zero_init_residual is False
        assert all(cfg[k].collate_fn.type == 'default_collate' for k in ('train_dataloader', 'val_dataloader'))


@pytest.mark.parametrize('file', ['digits_cls', 'fashion_cls', 'solar_cls'])
def test_classes_of_folders_are_sorted(file):
    """Labels of class folders follow from their sorted names; training refuses another order."""
    classes = Config.fromfile(FOLDER / '_base_' / 'datasets' / f'{file}.py').train_dataloader.dataset.metainfo.classes
    assert list(classes) == sorted(classes)


def test_basenames_are_unique():
    everything = [p.stem for p in FOLDER.rglob('*.py')]
    assert [n for n in EVERYTHING if everything.count(n) > 1] == []


@pytest.mark.parametrize('name', [n for n in NAMES if (parsed(n) or {}).get('attention')])
def test_siblings_differ_in_the_attention_alone(name):
    plain_name = re.sub(rf'(^|_){parsed(name)["attention"]}_([rx])', r'\1\2', name)
    if plain_name not in NAMES:
        plain_name = name.replace('ccd_r', 'r').replace('r18', 'r50').replace('r34', 'r50').replace('r101', 'r50')
    if plain_name not in NAMES:
        pytest.skip(f'{name} has no plain sibling')
    ours, plain = load(name).to_dict(), load(plain_name).to_dict()
    for cfg in (ours, plain):
        cfg.pop('attention', None)
        for key in ('attention', 'init_cfg'):
            cfg['model']['backbone'].pop(key, None)
        if parsed(name)['depth'] != parsed(plain_name)['depth']:
            cfg['model']['backbone'].pop('depth')
            cfg['model']['head'].pop('in_channels')
    assert ours == plain


@pytest.mark.smoke
@pytest.mark.parametrize('name', [n for n in NAMES if n.endswith('r50_8xb32_in1k')])
def test_classifier_parameters(name):
    attention, model = parsed(name)['attention'], build(load(name), 'meta')
    groups = load(name).model.backbone.get('attention', {}).get('groups', 64)
    expected = PARAMETERS.get(attention, PARAMETERS[None] + 16 * 2 * groups)  # CCD's ablations: 16 layers
    if attention in set(TYPES) - set(PARAMETERS):  # without a published figure: a layer a block, and nothing else
        layers = [m for m in model.modules() if f'mmccd.{type(m).__name__}' == TYPES[attention]]
        assert len(layers) == 16
        expected = PARAMETERS[None] + sum(map(count, layers))
    assert count(model) == expected


def test_ablations():
    """The rows of the authors' ablation, each with its one difference, in the built layer."""
    differences = {
        'ccd-g8': dict(groups=8),
        'ccd-g16': dict(groups=16),
        'ccd-g32': dict(groups=32),
        'ccd-g128': dict(groups=128),
        'ccd-cosine': dict(similarity='cosine'),
        'ccd-s148': dict(scales=(1, 4, 8)),
        'ccd-s148-none': dict(scales=(1, 4, 8), normalize=None),
        'sge': dict(scales=(1,)),
        'ccd-s1-none': dict(scales=(1,), normalize=None),
        'ccd-s1-minmax': dict(scales=(1,), normalize='minmax'),
    }
    for name, different in differences.items():
        layer = build(load(f'{name}_r50_8xb32_in1k'), 'meta').backbone.layer3[2].ccd
        expected = dict(dict(groups=64, scales=(1, 2, 4), similarity='dot', normalize='zscore'), **different)
        assert {k: getattr(layer, k) for k in expected} == expected


@pytest.mark.smoke
@pytest.mark.parametrize(
    'name', [n for n in NAMES if n.endswith('_coco') and (parsed(n) or {}).get('detector') in DETECTOR_PARAMETERS]
)
def test_detector_parameters(name):
    fields = parsed(name)
    extra = PARAMETERS[fields['attention']] - PARAMETERS[None] + NETWORKS[fields['network']] - NETWORKS['r50']
    assert count(build(load(name), 'meta')) == DETECTOR_PARAMETERS[fields['detector']] + extra


@pytest.mark.parametrize('network', ['r50d', 'x50-32x4d'])
def test_networks_beside_resnet50(network):
    """The published numbers of parameters; CCD adds as many as in ResNet-50."""
    assert count(build(load(f'{network}_8xb32_in1k'), 'meta')) == NETWORKS[network]
    assert count(build(load(f'ccd_{network}_8xb32_in1k'), 'meta')) == NETWORKS[network] + 2048


@pytest.mark.parametrize('stock', config_table.STOCK, ids=lambda stock: stock.name.partition('_{}')[0])
def test_detectors_of_mmdetection(stock):
    """MMDetection's recipe to the last entry, but for the backbone's class and what reads and guards; CCD's 2,048."""
    import mmdet

    theirs = Config.fromfile(Path(mmdet.__file__).parent / '.mim' / 'configs' / f'{stock.base}.py')
    plain, ours = (load(stock.name.format(network)) for network in ('r50', 'ccd_r50'))
    assert count(build(plain, 'meta')) == count(build(theirs, 'meta'))
    assert list(build(plain, 'meta').state_dict()) == list(build(theirs, 'meta').state_dict())
    assert count(build(ours, 'meta')) == count(build(theirs, 'meta')) + 2048

    found, expected = (_without_scopes(cfg.to_dict()) for cfg in (plain, theirs))
    backbone, own = found['model'].pop('backbone'), {'type', 'init_cfg'}
    stock_backbone = expected['model'].pop('backbone')
    assert (backbone['type'], backbone['init_cfg']['type']) == ('mmccd.AttentionResNet', 'mmccd.PretrainedBackbone')
    if stock.base.startswith('fcos'):  # weights of PyTorch, not of Caffe
        own |= {'style'}
        assert found['model'].pop('data_preprocessor')['bgr_to_rgb'] is True
        expected['model'].pop('data_preprocessor')
    assert {k: v for k, v in backbone.items() if k not in own} == {
        k: v for k, v in stock_backbone.items() if k not in own
    }
    for split in ('train', 'val', 'test'):
        dataset = found[f'{split}_dataloader']['dataset']
        assert dataset.pop('type') == 'mmccd.CocoDataset'
        assert dataset.pop('max_broken', 0) == (0.01 if split == 'train' else 0)
        expected[f'{split}_dataloader']['dataset'].pop('type')
    hooks = found.pop('default_hooks')
    assert hooks['checkpoint'] == dict(type='mmccd.CheckpointHook', interval=1)
    assert {k: v for k, v in hooks.items() if 'mmccd.' not in v['type']} == {
        k: v for k, v in expected.pop('default_hooks').items() if k != 'checkpoint'
    }
    assert {k for k, v in hooks.items() if 'mmccd.' in v['type']} == {
        'checkpoint',
        'interrupt',
        'finite',
        'skipped_images',
    }
    assert {k: v for k, v in found.items() if not k.startswith('stock_') and k != 'custom_imports'} == expected


def _without_scopes(value):
    if isinstance(value, dict):
        return {k: _without_scopes(v) for k, v in value.items() if k != '_scope_'}
    return type(value)(map(_without_scopes, value)) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize('name', [n for n in NAMES if not n.endswith(('50_8xb32_in1k', '50d_8xb32_in1k', '_coco'))])
def test_builds(name):
    model = build(load(name), 'meta')
    assert count(model) > 1_000_000
    depth = int(parsed(name)['depth'])
    assert len(model.backbone.layer3) == {18: 2, 34: 6, 50: 6, 101: 23, 152: 36}[depth]


@pytest.mark.smoke
def test_stock_mmdet_config_takes_the_layer_as_plugin():
    import mmdet

    folder = Path(mmdet.__file__).parent / '.mim' / 'configs' / 'retinanet'
    cfg = Config.fromfile(folder / 'retinanet_r50_fpn_1x_coco.py')
    cfg.merge_from_dict(
        {
            'custom_imports': dict(imports=['mmccd']),
            'model.backbone.plugins': [dict(cfg=dict(type='mmccd.CCD'), stages=(True,) * 4, position='after_conv3')],
        }
    )
    model = build(cfg, 'meta')
    assert type(model.backbone).__module__ == 'mmdet.models.backbones.resnet'
    assert count(model) == DETECTOR_PARAMETERS['retinanet'] + 2048


def test_samplers_and_schedule_of_a_detector():
    cfg = load('retinanet_ccd_r50_fpn_1x_coco')
    assert cfg.train_dataloader.batch_size == 2
    assert DATA_SAMPLERS.get('mmdet.AspectRatioBatchSampler') is not None
    assert (cfg.optim_wrapper.optimizer.lr, load('cascade_rcnn_ccd_r50_fpn_1x_coco').optim_wrapper.optimizer.lr) == (
        0.01,
        0.02,
    )
    assert [cfg.train_cfg.max_epochs, cfg.param_scheduler[1].milestones] == [12, [8, 11]]
    assert [
        load('cascade_rcnn_ccd_r50_fpn_2x_coco').train_cfg.max_epochs,
        load('retinanet_ccd_r50_fpn_2x_coco').param_scheduler[1].milestones,
    ] == [24, [16, 22]]


def batch(cfg, size=64):
    """Two images with labels, as the data loader hands them over."""
    images = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8) for _ in range(2)]
    if cfg.default_scope == 'mmpretrain':
        from mmpretrain.structures import DataSample

        return dict(inputs=torch.stack(images), data_samples=[DataSample().set_gt_label(i) for i in range(2)])
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    samples = []
    last = cfg.model.get('bbox_head', {}).get('num_classes', 80) - 1
    for i in range(2):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(size, size),
                ori_shape=(size, size),
                pad_shape=(size, size),
                scale_factor=(1.0, 1.0),
                img_id=i,
                batch_input_shape=(size, size),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[4.0, 6.0, 40.0, 44.0], [20.0, 10.0, 60.0, 30.0]]),
            labels=torch.tensor([i, 3]).clamp(max=last),
        )
        if 'MaskRCNN' in cfg.model.type:
            bitmaps = np.zeros((2, size, size), np.uint8)
            bitmaps[0, 6:44, 4:40] = bitmaps[1, 10:30, 20:60] = 1
            sample.gt_instances.masks = BitmapMasks(bitmaps, size, size)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


# The two schedules of a detector have one and the same model.
TRAINED = [
    n
    for n in NAMES
    if not n.endswith(('2x_coco', '-1x_coco', '_legacy_coco'))
    and '_r101_' not in n
    and not re.search('(?<!ccd_)r50_8xb[0-9]+-', n)  # recipes: with CCD
    and not n.startswith('ccd-')
    # Each of these is trained as a classifier, and RetinaNet with one of them.
    and not (n.startswith('retinanet_') and (parsed(n) or {}).get('attention') in LATER[1:])
    and not (n.endswith(('_fashion', '_solar')) and (parsed(n) or {}).get('attention') not in (None, 'ccd'))
]
# At full depth they take a second or more each; of these the plain classifier and RetinaNet, and those with CCD, are
# trained every time.
LARGE = [
    n
    for n in TRAINED
    if re.search(f'(^|_)(se|ge|cbam|sk|gc|eca|{"|".join(LATER)})_r50_(fpn_1x_coco|8xb32_in1k)$', n)
    or parsed(n)['detector'] in STOCK
    or parsed(n)['variant'] in ('d', '-32x4d')
    or '_r50_8xb32-' in n
    or n == 'cascade_rcnn_r50_fpn_1x_coco'
]


def test_other_schedules_have_the_same_model():
    for name in NAMES:
        if name.endswith(('_2x_coco', '-1x_coco')):
            assert load(name).model.to_dict() == load(re.sub('_(2x|[a-z]+-1x)_', '_1x_', name)).model.to_dict()
        if re.search('_8xb32-(?!mixup)', name):
            assert load(name).model.to_dict() == load(re.sub('_8xb32-[a-z]+_', '_8xb32_', name)).model.to_dict()


def test_sharded_training_differs_in_the_runner_alone():
    ours, plain = (load(f'retinanet_ccd_r50_fpn_{s}_coco').to_dict() for s in ('fsdp-1x', '1x'))
    assert (ours.pop('runner_type'), ours.pop('strategy')['type']) == ('FlexibleRunner', 'mmccd.FSDPStrategy')
    assert (ours['optim_wrapper'].pop('clip_grad'), plain['optim_wrapper'].pop('clip_grad')['max_norm']) == (None, 35)
    assert ours == plain


@pytest.mark.slow
@pytest.mark.parametrize('name', [pytest.param(n, marks=pytest.mark.long if n in LARGE else ()) for n in TRAINED])
def test_two_iterations(name):
    cfg = load(name)
    cfg.model.backbone.pop('init_cfg', None)  # no checkpoint here
    if 'num_queries' in cfg.model:
        cfg.model.num_queries = 20  # of few pixels
    model = build(cfg).train()
    if hasattr(model, 'level_embed'):
        torch.nn.init.normal_(model.level_embed)  # DINO's are whatever lay in memory before init_weights
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        weight = model.backbone.layer2[0].conv1
        weight = (weight.branches[0].conv if hasattr(weight, 'branches') else weight).weight
        for _ in range(2):
            before = weight.detach().clone()
            data = model.data_preprocessor(batch(cfg), training=True)
            loss, logs = model.parse_losses(model(**data, mode='loss'))
            wrapper.backward(loss)
            # All that is trained is in the graph: DistributedDataParallel needs no find_unused_parameters.
            assert {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None} == set()
            wrapper.step()
            wrapper.zero_grad()
            assert not torch.equal(weight, before)
            assert all(torch.as_tensor(v).isfinite().all() for v in logs.values())
    norms_frozen = not cfg.model.backbone.get('norm_cfg', {}).get('requires_grad', True)
    frozen = {
        n.split('.')[1]
        for n, p in model.named_parameters()
        if not p.requires_grad and (p.dim() > 1 or not norms_frozen)
    }
    stem = {'stem'} if parsed(name)['variant'] == 'd' else {'conv1', 'bn1'}
    stem -= {'bn1'} if norms_frozen else set()
    assert {n for n in frozen if n != 'norm'} == (stem | {'layer1'} if name.endswith('_coco') else set())
