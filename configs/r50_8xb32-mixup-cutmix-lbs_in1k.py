# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = [
    './_base_/models/resnet50_cls.py',
    './_base_/datasets/imagenet_bs32.py',
    './_base_/schedules/in1k_100e_coslr.py',
    './_base_/cls_runtime.py',
]
model = dict(
    head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=1000)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.2), dict(type='CutMix', alpha=1.0)]),
)
