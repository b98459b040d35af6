# Divided by ten after three validations in a row that raise the AP by less than 0.1 points, in at most 24 epochs.
_base_ = './coco_1x.py'
param_scheduler = [
    _base_.param_scheduler[0],
    dict(
        type='ReduceOnPlateauLR',
        monitor='coco/bbox_mAP',
        rule='greater',
        factor=0.1,
        patience=2,
        threshold=0.001,
        threshold_rule='abs',
        min_value=1e-5,
    ),
]
train_cfg = dict(max_epochs=24)
