# Experimental: parameters, gradients and optimizer states sharded over the processes (docs/distributed.md).
runner_type = 'FlexibleRunner'
strategy = dict(
    type='mmccd.FSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel', auto_wrap_policy='mmccd.engine.strategies.wrap_residual_blocks'
    ),
    # Whole checkpoints, with the names and shapes of unsharded training. mmengine's short form, 'full', offloads to
    # the CPU, which crashes PyTorch where parameters are on it already.
    state_dict_cfg=dict(
        state_dict_type='FULL_STATE_DICT',
        state_dict_config=dict(type='FullStateDictConfig'),
        optim_state_dict_config=dict(type='FullOptimStateDictConfig'),
    ),
)
