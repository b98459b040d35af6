# Aerial photographs with 951 tree boxes: tools/dataset_converters/make_trees.py
dataset_type = 'mmccd.CocoDataset'
data_root = 'data/trees/'
metainfo = dict(classes=('tree',))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    # 1.5 times the tiles' 512 pixels, times 0.75 to 1.33: crowns of 40 pixels become 60.
    dict(type='RandomResize', scale=(768, 768), ratio_range=(0.75, 1.33), keep_ratio=True),
    # Other windows every time: 411 trees are soon known by heart.
    dict(type='RandomCrop', crop_size=(256, 256), allow_negative_crop=True),
    # What the crop left of the trees at its border.
    dict(type='FilterAnnotations', min_gt_bbox_wh=(10, 10), keep_empty=False),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 384), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='RepeatDataset',
        times=15,
        dataset=dict(
            type=dataset_type,
            data_root=data_root,
            ann_file='annotations/instances_train.json',
            data_prefix=dict(img='train/'),
            metainfo=metainfo,
            filter_cfg=dict(filter_empty_gt=False, min_size=1),
            max_broken=0.01,  # share of broken images that training skips, and stops above
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    batch_size=6,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='CocoMetric', ann_file=data_root + 'annotations/instances_val.json', metric='bbox', format_only=False
)
test_evaluator = val_evaluator
auto_scale_lr = dict(enable=False, base_batch_size=8)
