# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', './_base_/stock_detector.py']
default_hooks = _base_.stock_hooks
train_dataloader = dict(dataset=_base_.stock_train)
val_dataloader = dict(dataset=_base_.stock_test)
test_dataloader = dict(dataset=_base_.stock_test)
# MMDetection's has weights of Caffe: BGR images, not divided by their deviation, and the stride in another place.
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        _base_.stock_backbone,
        style='pytorch',
        init_cfg=dict(type='mmccd.PretrainedBackbone', checkpoint='torchvision://resnet50'),
    ),
)
