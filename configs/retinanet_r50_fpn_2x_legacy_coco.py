# Written by `make configs` (mmccd/cli/config_table.py).
# For weights of MMDetection 0.6, converted by tools/model_converters/original_to_mmccd.py.
_base_ = [
    './_base_/models/retinanet_r50_fpn_legacy.py',
    './_base_/datasets/coco_detection_legacy.py',
    './_base_/schedules/coco_2x.py',
    './_base_/det_runtime.py',
]
optim_wrapper = dict(optimizer=dict(lr=0.01))
