# Divided by ten after five validations in a row that raise the top-1 by less than 0.1 points, as far as to 1e-4.
_base_ = './in1k_100e.py'
param_scheduler = dict(
    _delete_=True,
    type='ReduceOnPlateauLR',
    monitor='accuracy/top1',
    rule='greater',
    factor=0.1,
    patience=4,
    threshold=0.1,
    threshold_rule='abs',
    min_value=1e-4,
)
