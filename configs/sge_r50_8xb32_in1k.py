# Written by `make configs` (mmccd/cli/config_table.py).
# Spatial Group-wise Enhance (arXiv:1905.09646) is CCD with the global context alone.
_base_ = './ccd_r50_8xb32_in1k.py'
model = dict(backbone=dict(attention=dict(scales=(1,))))
