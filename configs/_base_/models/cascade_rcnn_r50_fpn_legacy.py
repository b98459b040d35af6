# MMDetection 0.6's Cascade R-CNN, for the weights trained with it. Its boxes include their last pixel.
_base_ = './cascade_rcnn_r50_fpn.py'
model = dict(
    rpn_head=dict(
        # Centred at (stride - 1) / 2, with corners rounded to whole pixels.
        anchor_generator=dict(type='LegacyAnchorGenerator', center_offset=0.5),
        # Width x2 - x1 + 1 in both directions; mmdet's legacy coder decodes half a pixel beyond it.
        bbox_coder=dict(type='mmccd.InclusiveBBoxCoder'),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            type='mmccd.InclusiveRoIExtractor',
            # No half-pixel shift, and 2 x 2 samples a cell.
            roi_layer=dict(aligned=False, sampling_ratio=2),
        ),
        bbox_head=[
            dict(h, bbox_coder=dict(h.bbox_coder, type='mmccd.InclusiveBBoxCoder'))
            for h in _base_.model.roi_head.bbox_head
        ],
    ),
    # 0.6 kept boxes of one pixel, whose x2 - x1 is 0.
    train_cfg=dict(rpn_proposal=dict(min_bbox_size=-1)),
    test_cfg=dict(rpn=dict(min_bbox_size=-1)),
)
