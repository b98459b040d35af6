# Beside the weights that are trained, their exponential moving average: it is validated, and it is what a checkpoint's
# state_dict holds.
_base_ = './coco_1x.py'
custom_hooks = [dict(type='EMAHook', momentum=2e-4, update_buffers=True, priority='ABOVE_NORMAL')]
