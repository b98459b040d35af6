_base_ = './coco_detection.py'
# MMDetection 0.6's boxes include their last pixel: it counts when they are measured, too.
val_evaluator = dict(type='mmccd.InclusiveCocoMetric')
test_evaluator = val_evaluator
