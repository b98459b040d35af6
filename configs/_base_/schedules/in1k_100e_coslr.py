# Cosine from 0.1 to 0, after five epochs of linear warm-up.
_base_ = './in1k_100e.py'
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=5, end=100, T_max=95, convert_to_iter_based=True),
]
