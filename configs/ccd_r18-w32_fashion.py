# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = ['./r18-w32_fashion.py', './_base_/attention/ccd.py']
model = dict(backbone=dict(attention=dict(_base_.attention, groups=32)))
