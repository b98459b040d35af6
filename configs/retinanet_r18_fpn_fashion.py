_base_ = [
    './_base_/models/retinanet_r18_fpn.py',
    './_base_/datasets/fashion_det.py',
    './_base_/schedules/digits_5e.py',
    './_base_/det_runtime.py',
]
model = dict(
    backbone=dict(init_cfg=dict(checkpoint='checkpoints/r18_fashion.pth')),
    bbox_head=dict(num_classes=10, anchor_generator=dict(ratios=[0.5, 1.0, 2.0])),
)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
default_hooks = dict(logger=dict(interval=25))
randomness = dict(seed=0)
