"""Test a detector or a classifier: metrics, predictions, images."""

import argparse
import os.path as osp

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet

# isort: split
from mmengine.evaluator import DumpResults

from mmccd.analysis.fonts import use_font_for
from mmccd.checkpoints.handover import OpenedCheckpoint
from mmccd.checkpoints.read import check_checkpoint_file
from mmccd.cli.arguments import (
    add_common_arguments,
    apply_common_arguments,
    parse_common_arguments,
    require_entries,
    run_tool,
)
from mmccd.cli.checks import check_amp, check_data, check_loaders
from mmccd.cli.logs import prepare_logs
from mmccd.cli.metric_names import classes_of
from mmccd.cli.outputs import check_file, check_folder
from mmccd.cli.parser import tool_parser
from mmccd.cli.runner import build_runner
from mmccd.cli.testing import show_predictions, use_tta, write_metrics
from mmccd.configs import load_config
from mmccd.errors import UserError
from mmccd.models.build import build_model

EXAMPLES = """examples:
  python tools/test.py configs/retinanet_ccd_r18_fpn_digits.py work_dirs/retinanet_ccd_r18_fpn_digits/epoch_5.pth
  python tools/test.py CONFIG CKPT --show-dir shown --out predictions.pkl
  python tools/test.py CONFIG CKPT --out metrics.json --out-item metrics
several GPUs: tools/dist_test.sh CONFIG CKPT GPUS [the same options]
"""


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--out', help='write the predictions (.pkl) or, with --out-item metrics, the metrics (.json)')
    parser.add_argument('--out-item', choices=['pred', 'metrics'], default='pred', help='what --out writes')
    parser.add_argument('--show', action='store_true', help='show every prediction in a window')
    parser.add_argument('--show-dir', help='write an image of every prediction into WORK_DIR/<time>/SHOW_DIR')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds for which --show shows one')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation: the mean over horizontal flips')
    add_common_arguments(parser)
    return parse_common_arguments(parser)


def main() -> None:
    args = parse_args()
    suffixes = ('.pkl', '.pickle') if args.out_item == 'pred' else ('.json',)
    if args.out and not args.out.endswith(suffixes):
        raise UserError(f'--out must end with {" or ".join(suffixes)} for --out-item {args.out_item}, got {args.out!r}')
    cfg = load_config(args.config, args.cfg_options)
    require_entries(cfg, args.config, 'model', 'test_dataloader', 'test_cfg', 'test_evaluator')
    apply_common_arguments(cfg, args)
    if args.out:
        check_file(args.out, '--out')
    if args.show_dir:
        check_folder(osp.join(cfg.work_dir, args.show_dir), '--show-dir')
    prepare_logs(cfg)
    check_checkpoint_file(args.checkpoint, 'checkpoint')
    check_loaders(cfg, ('test',))
    check_data(cfg, ('test',))
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.amp:
        check_amp(cfg, args.amp)
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        texts = use_font_for(classes_of(cfg, 'test_dataloader'))
        show_predictions(cfg, args.show, args.show_dir, args.wait_time, texts)
    if args.tta:
        use_tta(cfg)

    model = build_model(cfg)
    checkpoint = OpenedCheckpoint.read(args.checkpoint, 'checkpoint')
    checkpoint.check_fits(model.module if args.tta else model)
    checkpoint.hand_over()
    runner = build_runner(cfg)
    if args.out and args.out_item == 'pred':
        if cfg.default_scope == 'mmdet':
            from mmdet.evaluation import DumpDetResults as DumpResults_
        else:
            DumpResults_ = DumpResults
        runner.test_evaluator.metrics.append(DumpResults_(out_file_path=args.out))
    metrics = runner.test()
    if args.out and args.out_item == 'metrics' and runner.rank == 0:
        write_metrics(metrics, args.out)


if __name__ == '__main__':
    run_tool(main)
