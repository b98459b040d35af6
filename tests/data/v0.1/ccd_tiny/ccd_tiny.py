attention = dict(type='mmccd.CCD')
auto_scale_lr = dict(base_batch_size=64, enable=False)
classes = (
    '0',
    '1',
    '2',
    '3',
    '4',
    '5',
    '6',
    '7',
    '8',
    '9',
)
custom_imports = dict(
    allow_failed_imports=False, imports=[
        'mmccd',
    ])
data_root = 'data/digits/cls'
dataset_type = 'mmccd.CustomDataset'
default_hooks = dict(
    broken_pictures=dict(type='mmccd.BrokenPicturesHook'),
    checkpoint=dict(
        interval=1,
        max_keep_ckpts=3,
        save_best='auto',
        type='mmccd.CheckpointHook'),
    finite=dict(type='mmccd.CheckFiniteHook'),
    interrupt=dict(type='mmccd.InterruptHook'),
    logger=dict(interval=5, type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    timer=dict(type='IterTimerHook'),
    visualization=dict(enable=False, type='VisualizationHook'))
default_scope = 'mmpretrain'
env_cfg = dict(
    cudnn_benchmark=True,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
launcher = 'none'
load_from = None
log_level = 'INFO'
model = dict(
    backbone=dict(
        attention=dict(groups=8, type='mmccd.CCD'),
        base_channels=8,
        depth=18,
        dilations=(
            1,
            1,
        ),
        norm_eval=False,
        num_stages=2,
        out_indices=(1, ),
        strides=(
            1,
            2,
        ),
        style='pytorch',
        type='mmccd.AttentionResNet',
        zero_init_residual=False),
    data_preprocessor=dict(
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        num_classes=10,
        std=[
            58.395,
            57.12,
            57.375,
        ],
        to_rgb=True),
    head=dict(
        in_channels=16,
        loss=dict(loss_weight=1.0, type='CrossEntropyLoss'),
        num_classes=10,
        topk=(1, ),
        type='LinearClsHead'),
    neck=dict(type='GlobalAveragePooling'),
    type='ImageClassifier')
optim_wrapper = dict(
    optimizer=dict(fused=True, lr=0.001, type='AdamW', weight_decay=0.01),
    type='OptimWrapper')
param_scheduler = [
    dict(begin=0, by_epoch=False, end=30, start_factor=0.1, type='LinearLR'),
    dict(
        T_max=5,
        begin=0,
        by_epoch=True,
        convert_to_iter_based=True,
        end=5,
        eta_min_ratio=0.01,
        type='CosineAnnealingLR'),
]
randomness = dict(deterministic=False, seed=0)
resume = False
test_cfg = dict()
test_dataloader = dict(
    batch_size=100,
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        data_prefix='val',
        data_root='data/digits/cls',
        metainfo=dict(
            classes=(
                '0',
                '1',
                '2',
                '3',
                '4',
                '5',
                '6',
                '7',
                '8',
                '9',
            )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(scale=64, type='Resize'),
            dict(type='PackInputs'),
        ],
        type='mmccd.CustomDataset'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type='DefaultSampler'))
test_evaluator = dict(topk=(1, ), type='Accuracy')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(scale=64, type='Resize'),
    dict(type='PackInputs'),
]
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
train_dataloader = dict(
    batch_size=16,
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        data_prefix='train',
        data_root='data/digits/cls',
        max_broken=0.01,
        metainfo=dict(
            classes=(
                '0',
                '1',
                '2',
                '3',
                '4',
                '5',
                '6',
                '7',
                '8',
                '9',
            )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                aspect_ratio_range=(
                    0.8,
                    1.25,
                ),
                crop_ratio_range=(
                    0.7,
                    1.0,
                ),
                scale=64,
                type='RandomResizedCrop'),
            dict(angle=15.0, pad_val=0, prob=0.5, type='Rotate'),
            dict(prob=0.5, type='Invert'),
            dict(type='PackInputs'),
        ],
        type='mmccd.CustomDataset'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=True, type='DefaultSampler'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        aspect_ratio_range=(
            0.8,
            1.25,
        ),
        crop_ratio_range=(
            0.7,
            1.0,
        ),
        scale=64,
        type='RandomResizedCrop'),
    dict(angle=15.0, pad_val=0, prob=0.5, type='Rotate'),
    dict(prob=0.5, type='Invert'),
    dict(type='PackInputs'),
]
val_cfg = dict()
val_dataloader = dict(
    batch_size=100,
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        data_prefix='val',
        data_root='data/digits/cls',
        metainfo=dict(
            classes=(
                '0',
                '1',
                '2',
                '3',
                '4',
                '5',
                '6',
                '7',
                '8',
                '9',
            )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(scale=64, type='Resize'),
            dict(type='PackInputs'),
        ],
        type='mmccd.CustomDataset'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type='DefaultSampler'))
val_evaluator = dict(topk=(1, ), type='Accuracy')
vis_backends = [
    dict(type='LocalVisBackend'),
]
visualizer = dict(
    type='UniversalVisualizer', vis_backends=[
        dict(type='LocalVisBackend'),
    ])
work_dir = 'work_dirs/ccd_tiny'
