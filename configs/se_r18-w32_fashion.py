# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = ['./r18-w32_fashion.py', './_base_/attention/se.py']
model = dict(backbone=dict(attention=_base_.attention))
