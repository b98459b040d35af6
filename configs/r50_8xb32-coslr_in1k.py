# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = [
    './_base_/models/resnet50_cls.py',
    './_base_/datasets/imagenet_bs32.py',
    './_base_/schedules/in1k_100e_coslr.py',
    './_base_/cls_runtime.py',
]
