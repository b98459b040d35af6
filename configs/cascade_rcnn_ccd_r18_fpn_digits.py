_base_ = [
    './_base_/models/cascade_rcnn_r50_fpn.py',
    './_base_/attention/ccd.py',
    './_base_/datasets/digits_det.py',
    './_base_/schedules/digits_5e.py',
    './_base_/det_runtime.py',
]
head = dict(in_channels=64, fc_out_channels=256, num_classes=10)
model = dict(
    # As retinanet_r18_fpn_digits.
    backbone=dict(
        depth=18,
        attention=_base_.attention,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=dict(checkpoint='checkpoints/ccd_r18_digits.pth'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, norm_cfg=dict(type='BN')),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64), bbox_head=[dict(h, **head) for h in _base_.model.roi_head.bbox_head]
    ),
)
default_hooks = dict(logger=dict(interval=25))
randomness = dict(seed=0)
