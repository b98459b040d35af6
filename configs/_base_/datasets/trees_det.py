# Aerial photographs with 951 tree boxes: tools/dataset_converters/make_trees.py
_base_ = './digits_det.py'
data_root = 'data/trees/'
metainfo = dict(_delete_=True, classes=('tree',))

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
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=15,
        dataset=dict(
            _base_.train_dataloader.dataset,
            data_root=data_root,
            metainfo=dict(classes=('tree',)),
            filter_cfg=dict(filter_empty_gt=False, min_size=1),
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    batch_size=6, dataset=dict(data_root=data_root, metainfo=dict(classes=('tree',)), pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator
