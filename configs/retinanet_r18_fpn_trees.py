_base_ = [
    './_base_/models/retinanet_r18_fpn.py',
    './_base_/datasets/trees_det.py',
    './_base_/schedules/digits_5e.py',
    './_base_/det_runtime.py',
]
# The initial weights are the digits': there are none of CCD-ResNet-18 from a larger set yet.
model = dict(
    # Crowns are as wide as tall, 24 to 112 pixels (5th to 95th percentile, enlarged): anchors of 24 to 152.
    bbox_head=dict(num_classes=1, anchor_generator=dict(ratios=[1.0])),
    train_cfg=dict(assigner=dict(ignore_iof_thr=0.5)),  # crowd boxes: trees cut to less than half
)
default_hooks = dict(logger=dict(interval=25))
randomness = dict(seed=0)
