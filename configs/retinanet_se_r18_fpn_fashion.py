# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = ['./retinanet_r18_fpn_fashion.py', './_base_/attention/se.py']
model = dict(backbone=dict(attention=_base_.attention, init_cfg=dict(checkpoint='checkpoints/se_r18_fashion.pth')))
