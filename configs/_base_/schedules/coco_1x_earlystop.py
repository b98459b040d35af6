# The plateau's, ended by six validations in a row that raise the AP by less than 0.1 points. A schedule by epochs
# stands still before each of its steps, which is no reason to end.
_base_ = './coco_1x_plateau.py'
custom_hooks = [
    dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP', rule='greater', min_delta=0.001, patience=6),
]
