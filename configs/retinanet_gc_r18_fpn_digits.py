_base_ = ['./retinanet_r18_fpn_digits.py', './_base_/attention/gc.py']
model = dict(backbone=dict(attention=_base_.attention, init_cfg=dict(checkpoint='checkpoints/gc_r18_digits.pth')))
