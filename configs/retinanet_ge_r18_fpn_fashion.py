# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = ['./retinanet_r18_fpn_fashion.py', './_base_/attention/ge.py']
model = dict(backbone=dict(attention=_base_.attention, init_cfg=dict(checkpoint='checkpoints/ge_r18_fashion.pth')))
