# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = './retinanet_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        deep_stem=True,
        avg_down=True,
        init_cfg=dict(
            checkpoint='https://mmassets.onedl.ai/mmclassification/v0/resnet/resnetv1d50_b32x8_imagenet_20210531-db14775a.pth',
        ),
    )
)
