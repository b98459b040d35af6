_base_ = './runtime.py'
default_scope = 'mmdet'
default_hooks = dict(
    logger=dict(interval=50),
    visualization=dict(type='DetVisualizationHook'),
    # Does something only with backbone.ignore_padding=True.
    padding=dict(type='mmccd.IgnorePaddingHook'),
)
env_cfg = dict(cudnn_benchmark=False)
visualizer = dict(type='DetLocalVisualizer', vis_backends=_base_.vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
