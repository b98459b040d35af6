# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = ['./x50-32x4d_8xb32_in1k.py', './_base_/attention/ccd.py']
model = dict(backbone=dict(attention=_base_.attention))
