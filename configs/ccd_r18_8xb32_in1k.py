# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = './ccd_r50_8xb32_in1k.py'
model = dict(backbone=dict(depth=18), head=dict(in_channels=512))
