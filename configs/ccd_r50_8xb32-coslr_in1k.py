# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = ['./r50_8xb32-coslr_in1k.py', './_base_/attention/ccd.py']
model = dict(backbone=dict(attention=_base_.attention))
