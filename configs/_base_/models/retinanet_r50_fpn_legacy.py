# MMDetection 0.6's RetinaNet, for the weights trained with it. Its boxes include their last pixel.
_base_ = './retinanet_r50_fpn.py'
model = dict(
    bbox_head=dict(
        # Centred at (stride - 1) / 2, with corners rounded to whole pixels.
        anchor_generator=dict(type='LegacyAnchorGenerator', center_offset=0.5),
        # Width x2 - x1 + 1 in both directions; mmdet's legacy coder decodes half a pixel beyond it.
        bbox_coder=dict(type='mmccd.InclusiveBBoxCoder'),
        # 0.6's loss.
        loss_bbox=dict(type='SmoothL1Loss', beta=0.11),
    ),
    # 0.6 kept boxes of one pixel, whose x2 - x1 is 0.
    test_cfg=dict(min_bbox_size=-1),
)
