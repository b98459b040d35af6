# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = './r50_8xb32_in1k.py'
model = dict(backbone=dict(deep_stem=True, avg_down=True))
