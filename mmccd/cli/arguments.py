"""Command lines of the tools: their common options, and how a tool ends."""

from __future__ import annotations

import argparse
import os.path as osp
import sys
from collections.abc import Callable, Sequence

import torch
from mmengine.config import Config, DictAction

from mmccd.checkpoints.read import forbid_unpickling
from mmccd.configs import config_name
from mmccd.env import check_requirements, is_first_on_machine, set_ranks
from mmccd.errors import UserError

from .logs import missing_package
from .outputs import check_folder
from .runner import end_process, uses_fsdp

INTERRUPTED = 130  # 128 + SIGINT


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool's ``main``, and end the process.

    A :class:`UserError`, and a package that is not installed, is one message and exit code 2; Ctrl-C is one line, with
    the text of the exception if it has one, and exit code 130, as a shell has it.
    """
    forbid_unpickling()
    try:
        main()
    except UserError as e:
        if is_first_on_machine() or not e.everywhere:
            print(f'error: {e}', file=sys.stderr)
        sys.exit(2)
    except Exception as e:
        line = missing_package(e)
        if line is None:
            raise
        if is_first_on_machine():
            print(f'error: {line}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as e:
        if is_first_on_machine():
            print(f'\ninterrupted{f"; {e}" if str(e) else ""}', file=sys.stderr)
        if _in_group():
            end_process(INTERRUPTED)
        sys.exit(INTERRUPTED)
    if _in_group():
        torch.distributed.barrier()  # the process that ends first closes the others' connections
        end_process(0)


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class OptionsAction(DictAction):
    """mmengine's, with a message for what it cannot parse."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, RecursionError):
            parser.error(
                f'argument {option_string}: must be key.sub=value pairs, lists as key="[a,b]" (dicts need a '
                f'config file), got {" ".join(values)}'
            )


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """``--cfg-options``, as in MMDetection and MMPretrain."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        help='override entries of the config: key.sub=value pairs; lists as key="[a,b]" or key=a,b',
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that training and testing share, named as in MMDetection and MMPretrain."""
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and metrics; default: work_dirs/<config name>')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (needs a GPU)')
    add_cfg_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch.distributed.launch passes --local-rank; torchrun sets the environment.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def parse_common_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse; from then on, of the processes of the launcher one a machine prints an error that all have."""
    args = parser.parse_args()
    set_ranks(args.launcher, args.local_rank)
    return args


def apply_common_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Put launcher and work folder into the config; check that the packages for its task are there."""
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', config_name(args.config))
    if '://' not in cfg.work_dir:
        check_folder(cfg.work_dir, '--work-dir')
    require_task(cfg)


def require_entries(cfg: Config, config: str, *names: str) -> None:
    """UserError unless the config has these entries: what was named is no config then, or one for something else."""
    missing = [name for name in names if cfg.get(name) is None]
    if not missing:
        return
    if len(missing) == len(names):
        has = f'it has {", ".join(sorted(map(str, cfg))[:6])}' if len(cfg) else 'it is empty'
        raise UserError(f'{config} is no config for this: it has no {", ".join(missing)} ({has})')
    raise UserError(f'config {config} has no {", ".join(missing)}')


def require_task(cfg: Config) -> None:
    """UserError if the packages for the config's task are not installed."""
    if cfg.get('default_scope') == 'mmpretrain':
        try:
            check_requirements('mmpretrain')
        except ImportError as e:
            raise UserError(str(e)) from e


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of training alone, beside the common ones."""
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by (batch of all processes) / auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='continue from this checkpoint; without a path, from the newest loadable one in the work folder',
    )
    parser.add_argument(
        '--sync-bn',
        action='store_true',
        help='BatchNorm over the batches of all processes (several GPUs); no effect on norms in evaluation mode',
    )


def apply_training_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Put mixed precision, the scaled learning rate and synchronised norms into the config."""
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise UserError(f'--auto-scale-lr needs auto_scale_lr.base_batch_size, and {args.config} has none')
        cfg.auto_scale_lr.enable = True
    if args.sync_bn:
        cfg.sync_bn = 'torch'


def use_amp(cfg: Config) -> None:
    """Turn the ordinary optimizer wrapper into one with mixed precision; any other is refused, as in MMDetection."""
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    name = kind if isinstance(kind, str) else kind.__name__
    if name.rpartition('.')[2] not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(
            "--amp replaces optim_wrapper.type='OptimWrapper' by 'AmpOptimWrapper', and the config has "
            f'{name!r}: leave --amp out, and set mixed precision there'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if uses_fsdp(cfg):
        cfg.optim_wrapper.use_fsdp = True


def add_shape_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """``--shape H W``, to be checked by :func:`checked_shape`; ``default`` is for the help."""
    text = f'image size in pixels; default: {default}'
    parser.add_argument('--shape', nargs=2, type=int, metavar=('H', 'W'), help=text)


def checked_shape(shape: Sequence[int] | None, minimum: int) -> tuple[int, int] | None:
    """Height and width of ``--shape``; UserError if one of them is below ``minimum``."""
    if shape is not None and min(shape) < minimum:
        raise UserError(f'--shape must be at least {minimum} {minimum}, got {shape[0]} {shape[1]}')
    return None if shape is None else tuple(shape)
