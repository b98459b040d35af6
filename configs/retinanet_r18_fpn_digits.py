_base_ = [
    './_base_/models/retinanet_r50_fpn.py',
    './_base_/datasets/digits_det.py',
    './_base_/schedules/digits_det.py',
    './_base_/det_runtime.py',
]
model = dict(
    # Batches of 8 small pictures: nothing is frozen, norms learn on.
    backbone=dict(
        depth=18, frozen_stages=-1, norm_eval=False, init_cfg=dict(checkpoint='checkpoints/r18_digits.pth')),
    # Neck and head start from nothing: without norms, some hundred iterations find the digits but do not tell them
    # apart. The head is shared by the levels, the norms are not, or their statistics would fit none of them. Digits
    # are 20 to 56 pixels high: three levels, and anchors from 24 pixels.
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, num_outs=3, norm_cfg=dict(type='BN')),
    bbox_head=dict(
        type='RetinaSepBNHead',
        num_ins=3,
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        norm_cfg=dict(type='BN'),
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32])))
default_hooks = dict(logger=dict(interval=25))
randomness = dict(seed=0)
