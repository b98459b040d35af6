# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = [
    './_base_/models/cascade_rcnn_r50_fpn.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/coco_1x.py',
    './_base_/det_runtime.py',
]
