# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = './retinanet_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        groups=32,
        base_width=4,
        init_cfg=dict(
            checkpoint='torchvision://resnext50_32x4d',
        ),
    )
)
