_base_ = [
    './_base_/models/retinanet_r50_fpn.py',
    './_base_/datasets/trees_det.py',
    './_base_/schedules/digits_5e.py',
    './_base_/det_runtime.py',
]
model = dict(
    # As retinanet_r18_fpn_digits, and from the same start: there is no larger one of CCD-ResNet-18 yet.
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=dict(checkpoint='checkpoints/r18_digits.pth')),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, num_outs=3, norm_cfg=dict(type='BN')),
    bbox_head=dict(
        type='RetinaSepBNHead',
        num_ins=3,
        num_classes=1,
        in_channels=64,
        feat_channels=64,
        norm_cfg=dict(type='BN'),
        # Crowns are as wide as tall, 24 to 112 pixels (5th to 95th percentile, enlarged): anchors of 24 to 152.
        anchor_generator=dict(octave_base_scale=3, ratios=[1.0], strides=[8, 16, 32]),
        reg_decoded_bbox=True,
        loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(assigner=dict(ignore_iof_thr=0.5)),
)  # crowd boxes: trees cut to less than half
default_hooks = dict(logger=dict(interval=25))
randomness = dict(seed=0)
