_base_ = [
    './_base_/models/resnet50_cls.py',
    './_base_/datasets/fashion_cls.py',
    './_base_/schedules/digits_5e.py',
    './_base_/cls_runtime.py',
]
model = dict(
    data_preprocessor=dict(num_classes=10),
    backbone=dict(depth=18),
    head=dict(num_classes=10, in_channels=512, topk=(1,)),
)
default_hooks = dict(logger=dict(interval=20))
randomness = dict(seed=0)
