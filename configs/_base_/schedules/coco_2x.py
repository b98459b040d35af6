_base_ = './coco_1x.py'
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=24, milestones=[16, 22])]
train_cfg = dict(max_epochs=24)
