"""Count parameters, operations and activations of configs, beside plain ResNet. Needs no data and no weights."""

import argparse
import copy

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet

# isort: split
from mmengine.config import Config

from mmccd.analysis.complexity import CONVENTIONS, build_on_meta, measure
from mmccd.checkpoints.files import valid_json
from mmccd.cli.arguments import add_cfg_options, add_shape_argument, checked_shape, require_entries, run_tool
from mmccd.cli.parser import tool_parser
from mmccd.configs import config_name, load_config

EXAMPLES = """examples:
  python tools/analysis_tools/get_flops.py configs/*_r50_8xb32_in1k.py
  python tools/analysis_tools/get_flops.py configs/retinanet_ccd_r50_fpn_1x_coco.py --shape 800 1344 --convention mac
conventions:
  published  as in the paper's Table 1: modules only, so that CCD, which is a function, counts nothing
  mac        multiply-accumulates of convolutions and linear layers, and all arithmetic of the attention layers
  mmengine   mmengine.analysis
"""


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument('configs', nargs='+', help='config files')
    add_shape_argument(parser, '224 224 for classifiers, 800 1333 for detectors')
    parser.add_argument('--convention', choices=CONVENTIONS, default='published', help='what counts as a FLOP')
    add_cfg_options(parser)
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    return parser.parse_args()


def without_attention(cfg: Config) -> Config:
    """The same network as plain ResNet."""
    plain = copy.deepcopy(cfg)
    (plain.model.get('backbone') or {}).pop('attention', None)
    return plain


def main() -> None:
    args = parse_args()
    given = checked_shape(args.shape, 32)
    rows = []
    for path in args.configs:
        cfg = load_config(path, args.cfg_options)
        require_entries(cfg, path, 'model')
        shape = given or ((800, 1333) if cfg.get('default_scope') == 'mmdet' else (224, 224))
        ours, plain = (measure(build_on_meta(c), shape, args.convention) for c in (cfg, without_attention(cfg)))
        rows.append(
            {
                'config': config_name(path),
                'shape': shape,
                'convention': args.convention,
                **ours.to_dict(),
                'params_over_plain': ours.params - plain.params,
                'flops_over_plain': ours.flops - plain.flops,
            }
        )
    if args.json:
        print(valid_json(rows, indent=2))
        return
    print(f'One image; FLOPs: {args.convention}. Differences to the same network with plain ResNet.\n')
    print('| config | size | params | + | GFLOPs | FLOPs | + | activations | attention operations |')
    print('|---|---|---:|---:|---:|---:|---:|---:|---:|')
    for r in rows:
        print(
            f'| {r["config"]} | {r["shape"][0]} x {r["shape"][1]} | {r["params"]:,} | {r["params_over_plain"]:,} | '
            f'{r["flops"] / 1e9:.3f} | {r["flops"]:,} | {r["flops_over_plain"]:,} | {r["activations"]:,} | '
            f'{r["attention_ops"]:,} |'
        )


if __name__ == '__main__':
    run_tool(main)
