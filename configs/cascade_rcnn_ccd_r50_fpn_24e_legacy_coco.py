# Written by `make configs` (mmccd/cli/config_table.py).
# The old name of cascade_rcnn_ccd_r50_fpn_2x_legacy_coco.
_base_ = './cascade_rcnn_ccd_r50_fpn_2x_legacy_coco.py'
