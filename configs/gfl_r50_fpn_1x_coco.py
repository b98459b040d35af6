# Written by `make configs` (mmccd/cli/config_table.py).
_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py', './_base_/stock_detector.py']
default_hooks = _base_.stock_hooks
train_dataloader = dict(dataset=_base_.stock_train)
val_dataloader = dict(dataset=_base_.stock_test)
test_dataloader = dict(dataset=_base_.stock_test)
model = dict(backbone=_base_.stock_backbone)
