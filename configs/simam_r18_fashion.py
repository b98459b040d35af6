# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = ['./r18_fashion.py', './_base_/attention/simam.py']
model = dict(backbone=dict(attention=_base_.attention))
