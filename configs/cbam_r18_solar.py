# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = ['./r18_solar.py', './_base_/attention/cbam.py']
model = dict(backbone=dict(attention=_base_.attention))
