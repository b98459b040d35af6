# For weights of MMDetection 0.6, converted by tools/model_converters/original_to_mmccd.py.
_base_ = [
    './_base_/models/retinanet_r50_fpn_legacy.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/coco_2x.py',
    './_base_/det_runtime.py',
]
# The boxes' last pixel counts when they are measured, too.
val_evaluator = dict(type='mmccd.InclusiveCocoMetric')
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=0.01))
