"""Show what a detector or classifier would load from its pretrained checkpoint, stage by stage. Trains nothing.

Ends with 0 if all tensors of the backbone would be loaded, except those that allow_missing and allow_unexpected name;
else with 1.
"""

import argparse
import re
import sys
from collections import Counter

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet
from mmccd.analysis.complexity import build_on_meta
from mmccd.cli.arguments import require_entries, run_tool
from mmccd.cli.initial_weights import named_checkpoints
from mmccd.cli.parser import tool_parser
from mmccd.configs import load_config
from mmccd.errors import UserError
from mmccd.models.pretrained import PretrainedBackbone

# Of init_cfg; the last two are former names.
OPTIONS = ('checkpoint', 'allow_missing', 'allow_unexpected', 'allow_new', 'allow_unused')

EXAMPLES = """examples:
  python tools/checks/check_pretrained.py configs/retinanet_ccd_r50_fpn_1x_coco.py
  python tools/checks/check_pretrained.py configs/retinanet_ccd_r50_fpn_1x_coco.py my_ccd_r50.pth
"""


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', nargs='?', help="default: the one of the config's model.backbone.init_cfg")
    return parser.parse_args()


def stage(key: str) -> str:
    """layer1 .. layer4, stem, or the first component of a key."""
    if re.match(r'layer\d', key):
        return key.split('.')[0]
    return 'stem' if re.match(r'(conv1|bn1|stem)\.', key) else key.split('.')[0]


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config)
    require_entries(cfg, args.config, 'model')
    if not isinstance(cfg.model.get('backbone'), dict):
        raise UserError(f'{args.config} has no model.backbone')
    given = next(iter(named_checkpoints(cfg.model.backbone)), {})
    options = {k: given[k] for k in OPTIONS if k in given}
    if args.checkpoint:
        options['checkpoint'] = args.checkpoint
    if 'checkpoint' not in options:
        raise UserError(f'{args.config} names no checkpoint in model.backbone.init_cfg: give one')
    try:
        initializer = PretrainedBackbone(**options)
        found = initializer.compare(build_on_meta(cfg).backbone)
    except (OSError, ValueError, TypeError) as e:
        raise UserError(str(e)) from e

    columns = {
        'loaded': list(found.tensors),
        'missing': found.missing,
        'unexpected': found.unexpected,
        'size mismatch': list(found.mismatched),
    }
    counts = {name: Counter(stage(k) for k in keys) for name, keys in columns.items()}
    stages = sorted({s for c in counts.values() for s in c}, key=lambda s: (s != 'stem', not s.startswith('layer'), s))
    print(f'{initializer.checkpoint} -> {args.config}\n')
    print(f'{"stage":12}' + ''.join(f'{name:>15}' for name in columns))
    for s in [*stages, 'all']:
        print(f'{s:12}' + ''.join(f'{sum(c.values()) if s == "all" else c[s]:>15}' for c in counts.values()))
    allowed = len(found.missing) - len(found.without(initializer.allow_missing).missing)
    if allowed:
        print(f'\n{allowed} of the missing ones are allowed by allow_missing={initializer.allow_missing}')
    problems = initializer.problems(found)
    lines = [*(f'PROBLEM: {p}' for p in problems), *initializer.hints(found)]
    print('\n' + ('\n'.join(lines) or 'The backbone would load whole.'))
    sys.exit(1 if problems else 0)


if __name__ == '__main__':
    run_tool(main)
