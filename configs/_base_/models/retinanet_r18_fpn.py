# For small images in batches of 8, such as the digits': nothing is frozen, norms learn on, three levels of 64 channels.
_base_ = './retinanet_r50_fpn.py'
model = dict(
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=dict(checkpoint='checkpoints/r18_digits.pth')),
    # Neck and head are trained from scratch: without norms of their own for each level, some hundred iterations find
    # the digits but do not tell them apart.
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, num_outs=3, norm_cfg=dict(type='BN')),
    bbox_head=dict(
        type='RetinaSepBNHead',
        num_ins=3,
        in_channels=64,
        feat_channels=64,
        norm_cfg=dict(type='BN'),
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32]),
        reg_decoded_bbox=True,
        loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=2.0),
    ),
)
