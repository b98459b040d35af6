"""Train a detector or a classifier."""

import argparse
import os
import sys

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet
from mmccd.checkpoints.resume import how_to_continue, set_resume
from mmccd.cli.arguments import (
    add_common_arguments,
    add_training_arguments,
    apply_common_arguments,
    apply_training_arguments,
    parse_common_arguments,
    require_entries,
    run_tool,
)
from mmccd.cli.checks import check_amp, check_data, check_loaders, check_numbers, check_sync_bn, optimizer_of
from mmccd.cli.initial_weights import check_init_checkpoint, check_init_download, check_load_from
from mmccd.cli.logs import prepare_logs
from mmccd.cli.metric_names import check_monitors
from mmccd.cli.parser import tool_parser
from mmccd.cli.resuming import check_resumed
from mmccd.cli.runner import build_runner, check_iterations, log_scaling
from mmccd.configs import load_config
from mmccd.engine.hooks.interrupt import Interrupted
from mmccd.models.build import build_model

EXAMPLES = """examples:
  python tools/train.py configs/retinanet_ccd_r18_fpn_digits.py
  python tools/train.py configs/ccd_r50_8xb32_in1k.py --amp --auto-scale-lr
  python tools/train.py configs/retinanet_ccd_r50_fpn_1x_coco.py --resume
  python tools/train.py configs/retinanet_ccd_r50_fpn_1x_coco.py --cfg-options train_dataloader.batch_size=4
several GPUs: tools/dist_train.sh CONFIG GPUS [the same options]
"""


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument('config', help='config file')
    add_training_arguments(parser)
    add_common_arguments(parser)
    return parse_common_arguments(parser)


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    require_entries(cfg, args.config, 'model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
    apply_common_arguments(cfg, args)
    apply_training_arguments(cfg, args)
    asked = args.resume
    if asked is None and cfg.get('resume'):  # in the config
        asked = cfg.get('load_from') or 'auto'
    resumed = set_resume(cfg, asked) if asked is not None else None
    prepare_logs(cfg)
    check_amp(cfg, args.amp)
    model = build_model(cfg)
    check_sync_bn(cfg, model)
    check_init_checkpoint(cfg, model)
    check_numbers(cfg)
    if cfg.get('runner_type') != 'FlexibleRunner':  # whose strategies build it
        optimizer_of(cfg, model)
    check_loaders(cfg, ('train', 'val'))
    check_data(cfg, ('train', 'val'))
    check_monitors(cfg)
    loaded = check_load_from(cfg, model)
    check_init_download(cfg, model)
    if resumed is not None:
        check_resumed(cfg, model, resumed)
        resumed.hand_over()
    elif loaded is not None:
        loaded.checkpoint.hand_over()
    try:
        runner = build_runner(cfg)
        if loaded is not None:
            runner.logger.info(loaded.summary)
        log_scaling(runner)
        check_iterations(runner)
        runner.train()
    except Interrupted as e:
        # At once: the launcher kills the processes that are left when the first ends, and reports their exit code.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(e.code)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(how_to_continue(cfg)) from None


if __name__ == '__main__':
    run_tool(main)
