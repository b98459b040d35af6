# Half as wide, for weights that are small enough for zoo/. One process and one thread: the same bits each time.
_base_ = './r18_fashion.py'
model = dict(backbone=dict(base_channels=32, stem_channels=32), head=dict(in_channels=256))
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=1, T_max=1)]
train_cfg = dict(max_epochs=1)
env_cfg = dict(cudnn_benchmark=False)
randomness = dict(deterministic=True)
