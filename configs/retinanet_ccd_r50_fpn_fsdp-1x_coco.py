# Experimental: sharded over the processes, see docs/distributed.md.
_base_ = ['./retinanet_ccd_r50_fpn_1x_coco.py', './_base_/fsdp.py']
optim_wrapper = dict(clip_grad=None)  # each process would clip by the norm of its own shard
