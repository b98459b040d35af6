"""The metrics that evaluators give, and what waits for one that none gives."""

from __future__ import annotations

import pytest
from mmengine.config import Config, ConfigDict

import mmccd
from mmccd.cli.metric_names import check_monitors, metric_names
from mmccd.errors import UserError

BOXES = [f'coco/bbox_{x}' for x in ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')]


@pytest.mark.parametrize(
    ('evaluator', 'scope', 'names'),
    [
        (dict(type='CocoMetric', metric='bbox'), 'mmdet', BOXES),
        (
            dict(type='mmccd.CocoMetric', metric=['bbox', 'segm'], metric_items=['mAP']),
            'mmdet',
            ['bbox_mAP', 'segm_mAP'],
        ),
        (
            dict(type='CocoMetric', classwise=True, prefix='val', metric_items=['mAP']),
            'mmdet',
            ['val/bbox_mAP', 'val/a_p'],
        ),
        (
            dict(type='CocoMetric', metric='proposal_fast', proposal_nums=(10, 100)),
            'mmdet',
            ['coco/AR@10', 'coco/AR@100'],
        ),
        (dict(type='VOCMetric'), 'mmdet', ['pascal_voc/mAP', 'pascal_voc/AP50']),
        (dict(type='Accuracy', topk=(1, 5)), 'mmpretrain', ['accuracy/top1', 'accuracy/top5']),
        (dict(type='Accuracy'), 'mmpretrain', ['accuracy/top1']),
        (dict(type='Accuracy', thrs=(0.1, None)), 'mmpretrain', ['accuracy/top1_thr-0.10', 'accuracy/top1_no-thr']),
        (
            dict(type='SingleLabelMetric', items=['precision', 'f1-score'], average='micro'),
            'mmpretrain',
            ['single-label/precision_micro', 'single-label/f1-score_micro'],
        ),
        (dict(type='LVISMetric'), 'mmdet', None),
        (dict(type='NoSuchMetric'), 'mmdet', None),
    ],
)
def test_names(evaluator, scope, names):
    if names is not None:
        names = [n if '/' in n else f'coco/{n}' for n in names]
        names = [n.replace('a_p', 'a_precision') for n in names]
    assert metric_names(ConfigDict(evaluator), scope, ['a']) == names


def test_names_are_those_that_evaluation_gives():
    """Against the metric itself, on made-up results."""
    import torch
    from mmpretrain.evaluation import Accuracy, SingleLabelMetric

    results = [
        dict(
            pred_score=torch.tensor([0.2, 0.8]), pred_label=torch.tensor([1]), gt_label=torch.tensor([1]), num_classes=2
        )
    ]
    for metric, options in (
        (Accuracy, dict(topk=(1, 2), thrs=(0.5, None))),
        (SingleLabelMetric, dict(thrs=(0.1, 0.2), average=None)),
    ):
        given = metric(**options).compute_metrics(results)
        expected = metric_names(ConfigDict(type=metric.__name__, **options), 'mmpretrain')
        assert [name.partition('/')[2] for name in expected] == list(given)


def config(save_best=None, name='retinanet_ccd_r18_fpn_digits', **changes) -> Config:
    cfg = mmccd.get_config(name)
    cfg.default_hooks.checkpoint.save_best = save_best
    cfg.merge_from_dict(changes)
    return cfg


@pytest.mark.parametrize(
    'cfg',
    [
        config(),
        config('auto'),
        config('coco/bbox_mAP'),
        config(['coco/bbox_mAP', 'coco/bbox_mAP_50']),
        config('accuracy/top1', 'ccd_r18_digits'),
        config(**{'val_evaluator.classwise': True, 'default_hooks.checkpoint.save_best': 'coco/3_precision'}),
        config(custom_hooks=[dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP')]),
        # An evaluator whose metrics are not known, and a name with another prefix.
        config(
            'lvis/bbox_AP',
            val_evaluator=dict(_delete_=True, type='LVISMetric'),
            **{'default_hooks.checkpoint.rule': 'greater'},
        ),
    ],
)
def test_what_is_there(cfg):
    check_monitors(cfg)


@pytest.mark.parametrize(
    ('cfg', 'rule'),
    [
        (config('bbox_mAP'), r"^default_hooks\.checkpoint\.save_best='bbox_mAP': .*; did you mean 'coco/bbox_mAP'\?$"),
        (config('coco/bbox_map'), r"; did you mean 'coco/bbox_mAP'\?$"),
        (config(['coco/bbox_mAP', 'coco/segm_mAP']), r"save_best='coco/segm_mAP'.*; did you mean 'coco/bbox_mAP'\?$"),
        (config('top1', 'ccd_r18_digits'), r"='top1': .*; did you mean 'accuracy/top1'\?$"),
        (config('accuracy/top7', 'ccd_r18_digits'), r"='accuracy/top7': .*; did you mean 'accuracy/top1'\?$"),
        (
            config('mAcc'),
            r"='mAcc': the validation has no such metric; the evaluators give coco/bbox_mAP, coco/bbox_mA",
        ),
        (config('coco/3_precision'), r"='coco/3_precision': the validation has no such metric"),
        (
            config('f1'),
            r"^default_hooks\.checkpoint: Cannot infer .*: set default_hooks\.checkpoint\.rule='greater' or",
        ),
        (
            config('auto', **{'default_hooks.checkpoint.rule': 'bigger'}),
            r'rule must be greater, less or None, but got bi',
        ),
        (
            config(
                'auto',
                'ccd_r18_digits',
                val_evaluator=dict(_delete_=True, type='SingleLabelMetric', items=['recall', 'precision']),
            ),
            r'^default_hooks\.checkpoint: Cannot infer the rule for key single-label/recall.* set default_hooks\.check',
        ),
        (config(['auto', 'coco/bbox_mAP']), r'Only support one "auto" in "save_best" list$'),
        (config(3), r'^default_hooks\.checkpoint: "save_best" should be a str or list of str or None'),
        (
            config(custom_hooks=[dict(type='EarlyStoppingHook', monitor='coco/mAP')]),
            r"^custom_hooks\.0\.monitor='coco/mAP': .*; did you mean 'coco/bbox_mAP'\?$",
        ),
        (
            config(custom_hooks=[dict(type='EarlyStoppingHook')]),
            r"^custom_hooks\.0: .*missing 1 required positional argument: 'monitor'$",
        ),
        (
            config(param_scheduler=[dict(type='ReduceOnPlateauLR', factor=0.5)]),
            r"^param_scheduler\.0\.monitor='loss': the validation has no such metric",
        ),
    ],
)
def test_what_is_refused(cfg, rule):
    with pytest.raises(UserError, match=rule):
        check_monitors(cfg)


def test_without_validation(capsys):
    check_monitors(config('auto'))
    assert capsys.readouterr().out == ''
    cfg = config('coco/bbox_mAP', **{'train_cfg.val_begin': 6})
    check_monitors(cfg)
    assert capsys.readouterr().out == (
        'note: default_hooks.checkpoint.save_best has no effect, since train_cfg.val_begin=6 is after the end of the '
        'training, 5\n'
    )
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    check_monitors(cfg)
    assert capsys.readouterr().out == (
        'note: default_hooks.checkpoint.save_best has no effect, since the config has no validation (val_evaluator)\n'
    )
