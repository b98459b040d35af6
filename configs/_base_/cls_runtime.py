_base_ = './runtime.py'
default_scope = 'mmpretrain'
default_hooks = dict(
    logger=dict(interval=100),
    checkpoint=dict(max_keep_ckpts=3, save_best='auto'),
    visualization=dict(type='VisualizationHook', enable=False),
)
env_cfg = dict(cudnn_benchmark=True)  # one image size
visualizer = dict(type='UniversalVisualizer', vis_backends=_base_.vis_backends)
