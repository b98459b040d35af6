# Procedure A3 of "ResNet strikes back" (https://arxiv.org/abs/2110.00476), as MMPretrain's resnet50_8xb256-rsb-a3-100e.
# As in timm, nothing of one dimension is decayed: norms, biases, and the scales of gates.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='Lamb', lr=0.008, weight_decay=0.02),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.0001, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=5, end=100, T_max=95),
]

train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()

# 8 GPUs x 256; takes effect with --auto-scale-lr.
auto_scale_lr = dict(enable=False, base_batch_size=2048)
