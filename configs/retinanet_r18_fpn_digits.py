_base_ = [
    './_base_/models/retinanet_r50_fpn.py',
    './_base_/datasets/digits_det.py',
    './_base_/schedules/digits.py',
    './_base_/det_runtime.py',
]
model = dict(
    # Batches of 16 small pictures: nothing is frozen, norms learn on.
    backbone=dict(
        depth=18, frozen_stages=-1, norm_eval=False, init_cfg=dict(checkpoint='checkpoints/r18_digits.pth')),
    # Neck and head start from nothing: without norms, 500 iterations find the digits but do not tell them apart.
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, norm_cfg=dict(type='BN')),
    bbox_head=dict(num_classes=10, in_channels=64, feat_channels=64, norm_cfg=dict(type='BN')))
default_hooks = dict(logger=dict(interval=10))
randomness = dict(seed=0)
