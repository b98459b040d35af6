# What both tasks share.
# `import mmccd` registers its classes and puts mmcv's missing operators in place, in stock tools too.
custom_imports = dict(imports=['mmccd'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmccd.CheckpointHook', interval=1),
    # SIGTERM and SIGUSR1: save, end with code 85, continue with --resume.
    interrupt=dict(type='mmccd.InterruptHook'),
    finite=dict(type='mmccd.CheckFiniteHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    skipped_images=dict(type='mmccd.SkippedImagesHook'),
)
env_cfg = dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=None, deterministic=False)
