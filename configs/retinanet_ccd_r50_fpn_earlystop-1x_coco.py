# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = ['./retinanet_r50_fpn_earlystop-1x_coco.py', './_base_/attention/ccd.py']
model = dict(backbone=dict(attention=_base_.attention, init_cfg=dict(checkpoint='checkpoints/ccd_r50_in1k.pth')))
