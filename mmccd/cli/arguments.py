"""Command lines of the tools: their common options, and how a tool ends."""

from __future__ import annotations

import argparse
import os
import os.path as osp
import sys
from collections.abc import Callable

import torch
from mmengine.config import Config, DictAction

from mmccd.checkpoints.read import forbid_unpickling
from mmccd.env import check_requirements
from mmccd.errors import UserError

from .runner import end_process


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
            parser.error(
                f'argument {option_string}: must be key.sub=value pairs, lists as key="[a,b]" (dicts need a '
                f'config file), got {" ".join(values)}'
            )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that training and testing share, named as in MMDetection and MMPretrain."""
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and metrics; default: work_dirs/<config name>')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (needs a GPU)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        help='override entries of the config: key.sub=value pairs; lists as key="[a,b]" or key=a,b',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch.distributed.launch passes --local-rank; torchrun sets the environment.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


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
