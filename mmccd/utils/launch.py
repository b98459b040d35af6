"""What ``tools/train.py`` and ``tools/test.py`` share: reading the config, checks before any work, the runner.

What a user can get wrong is checked here, before a file is written, and raises :class:`UserError` with one message;
only a start that does not fit the backbone shows later, when the runner gives the model its weights.
"""
from __future__ import annotations

import argparse
import atexit
import copy
import difflib
import inspect
import os
import os.path as osp
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner.checkpoint import get_torchvision_models
from torch import nn

from mmccd.compat import mmcv_ops
from mmccd.models.pretrained import PretrainedBackbone, is_local, missing_checkpoint_message

from .checkpoint import forbid_unpickling, load_local_checkpoint, load_remote_checkpoint, mmengine_globals
from .classes import (
    category_problems,
    class_folders,
    class_names,
    dataset_class,
    folder_problems,
    head_classes,
    is_a,
    read_categories,
)
from .memory import keep_freed_memory
from .requirements import check_requirements

# Top-level keys that mmengine's runners and tools/test.py read beside the arguments of Runner.
_OTHER_KEYS = {
    'sync_bn', 'find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'strategy', 'compile', 'tta_model',
    'tta_pipeline'
}


class UserError(ValueError):
    """Something in the command or the config that its author has to change; the message is all he needs.

    Attributes:
        everywhere (bool): Whether all processes of a run raise it alike, so that one message a machine will do.
    """

    everywhere = True


def end_process(code: int) -> None:
    """End this process of a group, after what is registered with ``atexit``, without finalizing Python.

    gloo's threads let go of the last collective's tensors some time after it, and abort the process, with exit code
    -6, if Python is being finalized just then (pytorch/pytorch#179291). Destroying the group is no remedy: whatever
    refers to it, DistributedDataParallel say, keeps its threads.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool's ``main``; a :class:`UserError` ends it with one message and exit code 2."""
    forbid_unpickling()
    try:
        main()
    except UserError as e:
        first = os.environ.get('LOCAL_RANK', os.environ.get('SLURM_LOCALID', '0')) == '0'
        if first or not e.everywhere:
            print(f'error: {e}', file=sys.stderr)
        sys.exit(2)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()  # whoever ends first closes the others' connections
        end_process(0)


class OptionsAction(DictAction):
    """mmengine's, with a message for what it cannot parse."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, RecursionError):
            parser.error(f'argument {option_string}: must be key.sub=value pairs, lists as key="[a,b]" (dicts need a '
                         f'config file), got {" ".join(values)}')


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that training and testing share, named as in MMDetection and MMPretrain."""
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and metrics; default: work_dirs/<config name>')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (needs a GPU)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        help='override entries of the config: key.sub=value pairs; lists as key="[a,b]" or key=a,b')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch.distributed.launch passes --local-rank; torchrun sets the environment.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(path: str, options: dict | None = None) -> Config:
    """Read a config file and merge ``--cfg-options`` into it."""
    if not osp.isfile(path):
        folder = osp.dirname(path) or '.'
        names = [n for n in os.listdir(folder) if n.endswith('.py')] if osp.isdir(folder) else []
        close = difflib.get_close_matches(osp.basename(path), names, n=3, cutoff=0.5)
        hint = f' Did you mean {" or ".join(osp.join(folder, n) for n in close)}?' if close else ''
        raise UserError(f'config {path!r} does not exist.{hint}')
    try:
        cfg = Config.fromfile(path)
    except (SyntaxError, FileNotFoundError) as e:  # the latter: a base
        raise UserError(f'config {path!r} cannot be read: {e}') from e
    _check_option_keys(cfg, options or {})
    try:
        cfg.merge_from_dict(options or {})
    except (TypeError, KeyError, ValueError, IndexError) as e:
        raise UserError(f'--cfg-options does not fit {path}: {e.args[0]}') from e
    return cfg


def keys_read() -> set[str]:
    """Top-level keys of a config that something reads; all others are variables of the config files."""
    return set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'} | _OTHER_KEYS


def _check_option_keys(cfg: Config, options: dict) -> None:
    """Refuse options that nothing would read: mmengine accepts any top-level key without a word."""
    read = keys_read()
    for option in options:
        key = option.split('.')[0]
        if key in read:
            continue
        if key not in cfg:
            close = difflib.get_close_matches(key, sorted(read | set(cfg)), n=1)
            raise UserError(f'--cfg-options {option}: the config has no key {key!r}, and nothing would read it' +
                            (f'; did you mean {close[0]!r}?' if close else ''))
        if os.environ.get('LOCAL_RANK', os.environ.get('SLURM_LOCALID', '0')) == '0':
            print(f'warning: --cfg-options {option}: {key!r} is a variable of the config files, used when they were '
                  'read; changing it changes nothing that was made from it (set the entries themselves, e.g. '
                  'train_dataloader.dataset.data_root)', file=sys.stderr)


def apply_common_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Put launcher and work folder into the config; check that the packages for its task are there."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    if cfg.get('default_scope') == 'mmpretrain':
        try:
            check_requirements('mmpretrain')
        except ImportError as e:
            raise UserError(str(e)) from e


def check_amp(cfg: Config, asked: bool) -> None:
    """Mixed precision, by the option or by the config, needs an accelerator."""
    if (asked or 'Amp' in str(cfg.optim_wrapper.get('type', ''))) and get_device() == 'cpu':
        raise UserError('--amp (AmpOptimWrapper) needs a GPU, and PyTorch sees none: leave --amp out for '
                        'float32 on the CPU, or check the driver and CUDA_VISIBLE_DEVICES '
                        f'({os.environ.get("CUDA_VISIBLE_DEVICES", "not set")})')


def check_sync_bn(cfg: Config, model: nn.Module) -> None:
    """Norms that processes share need GPUs; with one process, mmengine turns them into ordinary ones."""
    kind = cfg.get('sync_bn')
    if kind not in (None, 'torch', 'mmcv'):
        raise UserError(f"sync_bn must be 'torch', 'mmcv' or None, got {kind!r}")
    if cfg.launcher == 'none' or not (kind or any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())):
        return
    if cfg.get('runner_type') == 'FlexibleRunner':
        raise UserError('--sync-bn (sync_bn) is read by the ordinary runner; FlexibleRunner takes strategy.sync_bn, '
                        'and FSDPStrategy has none')
    if get_device() == 'cpu':
        raise UserError("synchronised BatchNorm (--sync-bn, sync_bn, or norm_cfg.type='SyncBN') needs GPUs, and "
                        'PyTorch sees none: leave it out, or take larger batches a process')
    if kind == 'mmcv' and mmcv_ops.in_use() != 'compiled':
        raise UserError("sync_bn='mmcv' needs mmcv's compiled operators, which are not installed: use sync_bn='torch' "
                        '(--sync-bn)')


def datasets_of(cfg: ConfigDict, key: str) -> Iterator[tuple[str, ConfigDict]]:
    """(key, config) of every dataset below ``cfg``, wrappers unpacked."""
    for inner in ('dataset', 'datasets'):
        below = cfg.get(inner)
        if isinstance(below, dict):
            yield from datasets_of(below, f'{key}.{inner}')
        elif isinstance(below, (list, tuple)):
            for i, item in enumerate(below):
                yield from datasets_of(item, f'{key}.{inner}.{i}')
    if 'dataset' not in cfg and 'datasets' not in cfg:
        yield key, cfg


def _missing_paths(key: str, dataset: ConfigDict) -> Iterator[str]:
    root = dataset.get('data_root') or ''
    if dataset.get('backend_args') or not is_local(root):
        return  # not on this machine's disk: the loader will tell
    paths = {}
    if dataset.get('ann_file'):
        paths['ann_file'] = dataset['ann_file']
    prefix = dataset.get('data_prefix') or dataset.get('split')
    for name, value in (prefix.items() if isinstance(prefix, dict) else [('', prefix)]):
        if isinstance(value, str) and value:
            paths[f'data_prefix.{name}' if name else 'data_prefix'] = value
    for name, path in paths.items():
        path = osp.join(root, path)
        if is_local(path) and not osp.exists(path):
            yield f'{path} ({key}.{name})'


def check_data(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Annotation files and picture folders of the loaders and their evaluators have to be there, with our classes."""
    missing = []
    for loader in loaders:
        if cfg.get(f'{loader}_dataloader') is not None:
            for key, dataset in datasets_of(cfg[f'{loader}_dataloader'], f'{loader}_dataloader'):
                missing += _missing_paths(key, dataset)
        evaluators = cfg.get(f'{loader}_evaluator') or []
        for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
            path = evaluator.get('ann_file')
            if path and not evaluator.get('backend_args') and is_local(path) and not osp.exists(path):
                missing.append(f'{path} ({loader}_evaluator.ann_file)')
    if missing:
        made = next((n for n in ('digits', 'trees') if all(m.startswith(f'data/{n}') for m in missing)), None)
        hint = f'\nMake the {made} with: python tools/dataset_converters/make_{made}.py' if made else (
            '\nPut or link the data set there (README, "Data"), or name your own with --cfg-options, '
            f'e.g. {missing[0].rsplit("(", 1)[1][:-1]}=PATH')
        raise UserError(f'data not found from the folder {os.getcwd()}:\n  ' + '\n  '.join(missing) + hint)
    problems = class_problems(cfg, loaders)
    if problems:
        raise UserError('the classes do not fit, and nothing would say so later:\n  ' + '\n  '.join(problems))


def class_problems(cfg: Config, loaders: Sequence[str]) -> list[str]:
    """Where the classes of config, annotations and model differ, a line each. Takes no time with large sets either."""
    problems, folders_of = [], {}
    for loader in loaders:
        for key, dataset in datasets_of(cfg.get(f'{loader}_dataloader') or ConfigDict(), f'{loader}_dataloader'):
            cls = dataset_class(dataset, cfg.get('default_scope'))
            if cls is None:
                continue  # the runner says it
            try:
                classes = class_names(dataset, cls)
            except ValueError as e:
                problems.append(f'{key}.metainfo.{e}')
                continue
            root, ann_file = dataset.get('data_root') or '', dataset.get('ann_file')
            if is_a(cls, 'CocoDataset') and ann_file and classes and osp.isfile(osp.join(root, ann_file)):
                ann_file = osp.join(root, ann_file)
                try:
                    found = category_problems(classes, read_categories(ann_file), ann_file)
                except ValueError as e:
                    raise UserError(f'annotation file {ann_file} ({key}.ann_file) cannot be used: {e}') from e
                problems += [f'{key}.metainfo.classes: {p}' for p in found]
            elif is_a(cls, 'CustomDataset'):
                folders = class_folders(dataset)
                if folders is not None:
                    problems += [f'{key}.metainfo.classes: {p}' for p in folder_problems(classes, folders, root)]
                    folders_of[key] = folders
                    classes = classes or folders
            if classes:
                problems += [f'{head} is {n}, {key} has {len(classes)} classes'
                             for head, n in head_classes(cfg.get('model')) if n != len(classes)]
    first = next(iter(folders_of), None)
    for key, folders in folders_of.items():
        if folders != folders_of[first]:
            other = sorted(set(folders) ^ set(folders_of[first]))
            problems.append(f'{key} has other class folders than {first}: {", ".join(other[:10])}')
    return problems


def check_model(cfg: Config, device: str = 'meta') -> nn.Module:
    """Build the model, without memory for its weights: what mmccd finds wrong with it becomes a :class:`UserError`.

    The runner builds its own, after it has set the seed; this one has the names and shapes of the tensors. On
    another ``device`` it has weights, too.
    """
    try:
        with torch.device(device):
            return MODELS.build(dict(copy.deepcopy(cfg.model), _scope_=cfg.get('default_scope')))
    except (TypeError, ValueError, KeyError) as e:
        own = _raised_in_mmccd(e)
        if own is None and isinstance(e, TypeError) and 'unexpected keyword argument' in str(e):
            own = e  # whichever class it is, the config misspells an option
        if own is None:
            raise
        raise UserError(f'the model of the config cannot be built: {own.args[0]}') from e


def _raised_in_mmccd(error: BaseException | None) -> BaseException | None:
    """The exception behind ``error`` that came out of mmccd's own code; None for all others."""
    while error is not None:
        end = error.__traceback__
        while end.tb_next is not None:
            end = end.tb_next
        if end.tb_frame.f_globals.get('__name__', '').startswith('mmccd.'):
            return error
        error = error.__context__  # some versions of mmengine's registries raise their own in place of it
    return None


def check_init_checkpoint(cfg: Config, model: nn.Module) -> None:
    """The local checkpoint that the backbone starts from has to be there, and to fit, before anything else is done."""
    for item in _starts(cfg):
        checkpoint = item.get('checkpoint')
        if not checkpoint or not is_local(checkpoint):
            continue
        if not osp.isfile(checkpoint):
            raise UserError(missing_checkpoint_message(checkpoint))
        if item.get('type') == 'mmccd.PretrainedBackbone':
            try:
                _pretrained(item).check(model.backbone)
            except ValueError as e:
                raise UserError(str(e)) from e


def check_init_download(cfg: Config, model: nn.Module) -> None:
    """A checkpoint that a URL names has to be had, and to fit: the first process of a machine downloads it now."""
    if os.environ.get('LOCAL_RANK', '0') != '0':
        return
    for item in _starts(cfg):
        checkpoint = item.get('checkpoint')
        if not checkpoint or is_local(checkpoint):
            continue
        try:
            if item.get('type') == 'mmccd.PretrainedBackbone':
                _pretrained(item).check(model.backbone)
            else:
                CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
        except ValueError as e:
            raise UserError(str(e)) from e
        except (OSError, RuntimeError, KeyError) as e:  # URLError, a wrong hash, a name that torchvision has not
            raise UserError(f'init_cfg.checkpoint {checkpoint!r} cannot be had: {e}.{_by_hand(checkpoint)}') from e


def _starts(cfg: Config) -> list[ConfigDict]:
    init_cfg = cfg.model.get('backbone', {}).get('init_cfg') or []
    return list(init_cfg) if isinstance(init_cfg, (list, tuple)) else [init_cfg]


def _pretrained(item: ConfigDict) -> PretrainedBackbone:
    return PretrainedBackbone(**{k: v for k, v in item.items() if k != 'type'})


def _by_hand(checkpoint: str) -> str:
    """How to bring a file that cannot be downloaded."""
    scheme, name = checkpoint.split('://', 1)
    url = get_torchvision_models().get(name) if scheme == 'torchvision' else checkpoint
    if url is None or not url.startswith('http'):
        return ''
    return (f'\nWithout a network, fetch {url}\nelsewhere, and put it into '
            f'{osp.join(torch.hub.get_dir(), "checkpoints")}')


def check_checkpoint_file(path: str, argument: str) -> None:
    """A checkpoint named on the command line has to be a file or a URL."""
    if is_local(path) and not osp.isfile(path):
        raise UserError(f'{argument} {path!r} does not exist (looked for {osp.abspath(path)})')


def _whole_state(path: str, loaded: Any, model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors in a checkpoint that was read from ``path``; others or fewer are an error."""
    state = loaded.get('state_dict', loaded) if isinstance(loaded, dict) else {}
    state = {re.sub(r'^module\.', '', k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    target = model.state_dict()
    problems = []
    for text, keys in (
        ('are missing in it', [k for k in target if k not in state]),
        ('have no place in the model', [k for k in state if k not in target]),
        ('have another shape', [k for k in target if k in state and state[k].shape != target[k].shape]),
    ):
        if keys:
            problems.append(f'{len(keys)} tensors {text}: {", ".join(keys[:6])}{" ..." if len(keys) > 6 else ""}')
    if problems:
        raise UserError(f'checkpoint {path} does not fit the config, nothing was done:\n  ' + '\n  '.join(problems))
    return state


def check_checkpoint_fits(path: str, model: nn.Module) -> None:
    """A local checkpoint has to hold exactly the model's tensors: a half-loaded model tests without a complaint."""
    if not is_local(path):
        return
    try:
        loaded = load_local_checkpoint(path)
    except ValueError as e:
        raise UserError(str(e)) from e
    _whole_state(path, loaded, model)


def load_whole_checkpoint(path: str, model: nn.Module) -> dict:
    """Load a checkpoint, a file or a URL, that holds exactly the model's tensors; returns all that it holds."""
    check_checkpoint_file(path, 'checkpoint')
    try:
        loaded = load_local_checkpoint(path) if is_local(path) else load_remote_checkpoint(path)
    except ValueError as e:
        raise UserError(str(e)) from e
    model.load_state_dict(_whole_state(path, loaded, model))
    return loaded


def uses_fsdp(cfg: Config) -> bool:
    """Whether the config shards parameters over the processes (mmengine's FlexibleRunner with FSDPStrategy)."""
    strategy = (cfg.get('strategy') or {}).get('type')
    return cfg.get('runner_type') == 'FlexibleRunner' and strategy in ('mmccd.FSDPStrategy', 'FSDPStrategy')


def init_cpu_distributed(cfg: Config) -> None:
    """Start gloo where there is no GPU: mmengine's own start calls ``torch.cuda.set_device``."""
    if cfg.launcher == 'none' or get_device() != 'cpu':
        return
    if cfg.launcher == 'mpi':
        raise UserError('--launcher mpi needs GPUs; on the CPU use pytorch (tools/dist_train.sh) or slurm')
    if cfg.launcher == 'slurm':
        if 'MASTER_ADDR' not in os.environ:
            os.environ['MASTER_ADDR'] = subprocess.check_output(
                ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']], text=True).split()[0]
        os.environ.setdefault('MASTER_PORT', '29500')
        for ours, theirs in (('RANK', 'SLURM_PROCID'), ('WORLD_SIZE', 'SLURM_NTASKS'), ('LOCAL_RANK', 'SLURM_LOCALID')):
            os.environ[ours] = os.environ[theirs]
    if 'RANK' not in os.environ:
        raise UserError('--launcher pytorch needs the environment that torchrun sets: start with tools/dist_train.sh '
                        'or tools/dist_test.sh')
    torch.distributed.init_process_group('gloo')
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
    if uses_fsdp(cfg):
        cfg.strategy.setdefault('model_wrapper', {}).setdefault('device_id', 'cpu')
        return
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))


def build_runner(cfg: Config) -> Runner:
    """Build the runner, ours on the CPU included. ``runner_type`` in the config chooses another class."""
    if uses_fsdp(cfg) and cfg.launcher == 'none':
        raise UserError('FSDPStrategy shards over several processes: train with tools/dist_train.sh, and test its '
                        'checkpoints with the config that this one is made from')
    if uses_fsdp(cfg) and cfg.get('default_hooks', {}).get('checkpoint', {}).get('save_best'):
        raise UserError("FSDPStrategy's runner counts an epoch too many in a checkpoint that it saves again for "
                        'save_best, and would skip one on resuming: set default_hooks.checkpoint.save_best=None')
    init_cpu_distributed(cfg)
    if get_device() == 'cpu':
        keep_freed_memory()
    # mmengine 0.10.7 loads with PyTorch's default, weights_only=True, and then refuses its own checkpoints.
    torch.serialization.add_safe_globals(mmengine_globals())
    return Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)


def log_scaling(runner: Runner) -> None:
    """Log processes, global batch and learning rate before training, with a warning where rate and batch do not fit.

    Linear scaling: the rate grows with the number of pictures of an optimizer step, from the batch that the config's
    rate was chosen for (``auto_scale_lr.base_batch_size``). What ``paramwise_cfg`` makes of it scales along.
    """
    cfg, processes = runner.cfg, runner.world_size
    loader, wrapper, scaling = (cfg.get(k) or {} for k in ('train_dataloader', 'optim_wrapper', 'auto_scale_lr'))
    batch = (loader.get('batch_sampler') or {}).get('batch_size', loader.get('batch_size', 1))
    accumulated = wrapper.get('accumulative_counts', 1)
    total = processes * batch * accumulated
    text = f'{processes} process{"es" if processes > 1 else ""} x {batch} pictures'
    text += f' x {accumulated} accumulated' if accumulated > 1 else ''
    text += f' = global batch {total}'
    lr, base = (wrapper.get('optimizer') or {}).get('lr'), scaling.get('base_batch_size')
    if lr is None:
        runner.logger.info(f'{text}; the config gives no single learning rate')
        return
    if not base:
        runner.logger.info(f'{text}; learning rate {lr:.6g} (no auto_scale_lr.base_batch_size to scale it from)')
        return
    linear = lr * total / base
    used = lr * processes * batch / base if scaling.get('enable') else lr  # mmengine's scaling knows no accumulation
    runner.logger.info(f'{text}; learning rate {used:.6g}, by linear scaling from {lr:.6g} at batch {base}: '
                       f'{linear:.6g}')
    if abs(used - linear) <= 1e-6 * linear:
        return
    if accumulated > 1:
        advice = f'set optim_wrapper.optimizer.lr={linear:.6g} without --auto-scale-lr, which ignores accumulation'
    else:
        advice = f'add --auto-scale-lr for {linear:.6g}'
    runner.logger.warning(f'the learning rate {used:.6g} does not follow the global batch of {total}: {advice}, or '
                          'leave it if it is meant')
