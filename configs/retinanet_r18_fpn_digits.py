_base_ = [
    './_base_/models/retinanet_r18_fpn.py',
    './_base_/datasets/digits_det.py',
    './_base_/schedules/digits_5e.py',
    './_base_/det_runtime.py',
]
# Anchors are as tall as digits.
model = dict(bbox_head=dict(num_classes=10, anchor_generator=dict(ratios=[1.0, 1.6, 2.8])))
optim_wrapper = dict(optimizer=dict(lr=2e-3))  # with the classifier's 1e-3: mAP 0.01 lower
default_hooks = dict(logger=dict(interval=25))
randomness = dict(seed=0)
