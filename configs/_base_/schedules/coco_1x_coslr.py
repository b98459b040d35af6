# Cosine to 0 over the twelve epochs, after the warm-up.
_base_ = './coco_1x.py'
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=0, end=12, T_max=12, convert_to_iter_based=True),
]
