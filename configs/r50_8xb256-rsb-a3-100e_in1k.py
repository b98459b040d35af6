# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = [
    './_base_/models/resnet50_cls.py',
    './_base_/datasets/imagenet_bs256_rsb_a3.py',
    './_base_/schedules/in1k_rsb_a3_100e.py',
    './_base_/cls_runtime.py',
]
model = dict(
    head=dict(loss=dict(use_sigmoid=True)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.1), dict(type='CutMix', alpha=1.0)]),
)
