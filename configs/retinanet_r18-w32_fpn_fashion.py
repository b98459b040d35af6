# With the backbone of r18-w32_fashion, and its weights of zoo/. One process and one thread: the same bits each time.
_base_ = './retinanet_r18_fpn_fashion.py'
model = dict(
    backbone=dict(base_channels=32, stem_channels=32, init_cfg=dict(checkpoint='zoo://r18-w32_fashion')),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=2, T_max=2)]
train_cfg = dict(max_epochs=2)
randomness = dict(deterministic=True)
