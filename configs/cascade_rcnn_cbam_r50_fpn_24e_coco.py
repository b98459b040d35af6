# Written by `make configs` (mmccd/cli/config_table.py).
# The old name of cascade_rcnn_cbam_r50_fpn_2x_coco.
_base_ = './cascade_rcnn_cbam_r50_fpn_2x_coco.py'
