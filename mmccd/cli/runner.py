"""The runner of a training or a test, on GPUs or on the CPU, and the end of its processes."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys

import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmccd.checkpoints.read import allow_mmengine_checkpoints, use_own_downloads
from mmccd.data.stock import use_own_readers
from mmccd.env import keep_freed_memory, set_ranks
from mmccd.errors import UserError


def end_process(code: int) -> None:
    """End this process of a group, after what is registered with ``atexit``, without finalizing Python.

    gloo's threads release the tensors of the last collective some time after it, and abort the process, with exit code
    -6, if Python is being finalized at that moment (pytorch/pytorch#179291). Destroying the group does not help: an
    object that refers to it, such as DistributedDataParallel, keeps its threads.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def uses_fsdp(cfg: Config) -> bool:
    """Whether the config shards parameters over the processes (mmengine's FlexibleRunner with FSDPStrategy)."""
    strategy = (cfg.get('strategy') or {}).get('type')
    return cfg.get('runner_type') == 'FlexibleRunner' and strategy in ('mmccd.FSDPStrategy', 'FSDPStrategy')


def init_cpu_distributed(cfg: Config) -> None:
    """Initialise gloo where there is no GPU: mmengine itself calls ``torch.cuda.set_device``."""
    if cfg.launcher == 'none' or get_device() != 'cpu':
        return
    if cfg.launcher == 'mpi':
        raise UserError('--launcher mpi needs GPUs; on the CPU use pytorch (tools/dist_train.sh) or slurm')
    if cfg.launcher == 'slurm':
        if 'MASTER_ADDR' not in os.environ:
            os.environ['MASTER_ADDR'] = subprocess.check_output(
                ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']], text=True
            ).split()[0]
        os.environ.setdefault('MASTER_PORT', '29500')
        set_ranks('slurm')
        os.environ['WORLD_SIZE'] = os.environ['SLURM_NTASKS']
    if 'RANK' not in os.environ:
        raise UserError(
            '--launcher pytorch needs the environment that torchrun sets: start with tools/dist_train.sh '
            'or tools/dist_test.sh'
        )
    torch.distributed.init_process_group('gloo')
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
    if uses_fsdp(cfg):
        cfg.strategy.setdefault('model_wrapper', {}).setdefault('device_id', 'cpu')
        return
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )


def build_runner(cfg: Config) -> Runner:
    """Build the runner, ours on the CPU included. ``runner_type`` in the config chooses another class."""
    use_own_readers(cfg)
    if uses_fsdp(cfg) and cfg.launcher == 'none':
        raise UserError(
            'FSDPStrategy shards over several processes: train with tools/dist_train.sh, and test its '
            'checkpoints with the config that this one is made from'
        )
    if uses_fsdp(cfg) and cfg.get('default_hooks', {}).get('checkpoint', {}).get('save_best'):
        raise UserError(
            "FSDPStrategy's runner counts an epoch too many in a checkpoint that it saves again for "
            'save_best, and would skip one on resuming: set default_hooks.checkpoint.save_best=None'
        )
    init_cpu_distributed(cfg)
    if get_device() == 'cpu':
        keep_freed_memory()
    allow_mmengine_checkpoints()  # what the runner reads itself: initial weights, checkpoints that it publishes
    use_own_downloads()
    return Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)


def check_iterations(runner: Runner) -> None:
    """A training without an iteration is an error: ``drop_last`` with a batch above the images of a process."""
    loop = getattr(runner, 'train_loop', None)  # built here, as the first thing that training does; FSDP's has none
    if not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return
    loader = loop.dataloader
    sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
    if isinstance(sampler, InfiniteSampler) or (len(loader) and not _is_mixed(loader)):
        return
    alike = ' of one aspect ratio' if len(loader) else ''
    raise UserError(
        f'train_dataloader has no iteration: the {len(sampler):,} images of a process are less than a '
        f'batch{alike}, which drop_last leaves out: set train_dataloader.batch_size, '
        f'{loader.batch_sampler.batch_size}, to fewer, or drop_last=False'
    )


def _is_mixed(loader: DataLoader) -> bool:
    """Whether a loader's only batch would hold images of both aspect ratios: MMDetection's sampler gives none then."""
    batches = loader.batch_sampler
    if type(batches).__name__ != 'AspectRatioBatchSampler' or not isinstance(batches.sampler, DefaultSampler):
        return False
    if not batches.drop_last or len(batches.sampler) != batches.batch_size:
        return False
    infos = map(loader.dataset.get_data_info, batches.sampler)
    return len({info['width'] < info['height'] for info in infos}) > 1


def log_scaling(runner: Runner) -> None:
    """Log processes, global batch and learning rate before training, with a warning where rate and batch do not fit.

    Linear scaling: the rate grows with the number of images of an optimizer step, from the batch that the config's
    rate was chosen for (``auto_scale_lr.base_batch_size``). What ``paramwise_cfg`` makes of it scales along.
    """
    cfg, processes = runner.cfg, runner.world_size
    loader, wrapper, scaling = (cfg.get(k) or {} for k in ('train_dataloader', 'optim_wrapper', 'auto_scale_lr'))
    batch = (loader.get('batch_sampler') or {}).get('batch_size', loader.get('batch_size', 1))
    accumulated = wrapper.get('accumulative_counts', 1)
    total = processes * batch * accumulated
    text = f'{processes} process{"es" if processes > 1 else ""} x {batch} images'
    text += f' x {accumulated} accumulated' if accumulated > 1 else ''
    text += f' = global batch {total}'
    lr, base = (wrapper.get('optimizer') or {}).get('lr'), scaling.get('base_batch_size')
    if lr is None:
        runner.logger.info(f'{text}; the config has no single learning rate')
        return
    if not base:
        runner.logger.info(f'{text}; learning rate {lr:.6g} (no auto_scale_lr.base_batch_size to scale it from)')
        return
    linear = lr * total / base
    used = lr * processes * batch / base if scaling.get('enable') else lr  # mmengine's scaling ignores accumulation
    runner.logger.info(
        f'{text}; learning rate {used:.6g}, by linear scaling from {lr:.6g} at batch {base}: {linear:.6g}'
    )
    if abs(used - linear) <= 1e-6 * linear:
        return
    if accumulated > 1:
        advice = f'set optim_wrapper.optimizer.lr={linear:.6g} without --auto-scale-lr, which ignores accumulation'
    else:
        advice = f'add --auto-scale-lr for {linear:.6g}'
    runner.logger.warning(
        f'the learning rate {used:.6g} does not follow the global batch of {total}: {advice}, or '
        'leave it if this is intended'
    )
