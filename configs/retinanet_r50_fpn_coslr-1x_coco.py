# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = [
    './_base_/models/retinanet_r50_fpn.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/coco_1x_coslr.py',
    './_base_/det_runtime.py',
]
optim_wrapper = dict(optimizer=dict(lr=0.01))
