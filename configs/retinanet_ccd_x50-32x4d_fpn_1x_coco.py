# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = ['./retinanet_x50-32x4d_fpn_1x_coco.py', './_base_/attention/ccd.py']
model = dict(backbone=dict(attention=_base_.attention, init_cfg=dict(checkpoint='checkpoints/ccd_x50-32x4d_in1k.pth')))
