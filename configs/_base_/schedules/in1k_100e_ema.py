# Beside the weights that are trained, their exponential moving average: it is validated, and it is what a checkpoint's
# state_dict holds. Norms' statistics are averaged as well. Two epochs of 8 GPUs x 32 make the average anew.
_base_ = './in1k_100e.py'
custom_hooks = [dict(type='EMAHook', momentum=1e-4, update_buffers=True, priority='ABOVE_NORMAL')]
