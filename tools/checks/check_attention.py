"""Judge an attention: is it what its paper says, and is it fit for use?

For any module of PyTorch from (N, C, H, W) to the same, from any package; OpenMMLab is not needed. Each line is a check
with pass, fail, note (a cost, or something to know) or skipped, the figure, and what to do. Ends with 0 if no check
failed, with 1 if one did, with 2 if the command is wrong.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

try:
    import mmccd.cli
except ImportError:  # where OpenMMLab is missing: the package without its __init__.py, which asks for it
    root = Path(__file__).resolve().parents[2]
    package = ModuleType('mmccd')
    package.__path__ = [str(root.parent if root.name == '.mim' else root / 'mmccd')]
    sys.modules['mmccd'] = package
    import mmccd.cli  # noqa: F401
from mmccd.analysis.judge.command import jobs_of, judge_all, write
from mmccd.analysis.judge.subject import parse_options
from mmccd.cli.parser import tool_parser
from mmccd.errors import UserError

EXAMPLES = """examples:
  python tools/checks/check_attention.py mmccd.models:CBAM --like CBAM
  python tools/checks/check_attention.py my.attention:Gate --channels 64 --options groups=8 --out gate.html
  python tools/checks/check_attention.py --all timm.layers --out timm.md timm.json timm.html
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument('module', nargs='*', help='package.module:Class, one or more')
    parser.add_argument('--like', help='definition to compare with, e.g. CBAM')
    parser.add_argument('--channels', type=int, default=256, help='channels of the features; default: 256')
    parser.add_argument('--size', nargs=2, type=int, default=(14, 14), metavar=('H', 'W'), help='default: 14 14')
    parser.add_argument('--options', nargs='+', default=[], metavar='K=V', help='arguments of the class')
    parser.add_argument('--like-options', nargs='+', default=[], metavar='K=V', help='options of the definition')
    parser.add_argument('--checks', nargs='+', metavar='NAME', help='these checks alone')
    parser.add_argument('--all', nargs='+', default=[], metavar='PACKAGE', help='all modules of a package that fit')
    parser.add_argument('--list', metavar='FILE.json', help='modules with their like, options and channels')
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.add_argument('--out', nargs='+', default=[], metavar='FILE', help='write .md, .json or .html')
    parser.add_argument('--time-limit', type=float, default=30, help='seconds for one check; default: 30')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        common = dict(
            like=args.like,
            channels=args.channels,
            size=tuple(args.size),
            options=parse_options(args.options),
            like_options=parse_options(args.like_options),
            checks=args.checks,
        )
        jobs, table = jobs_of(args.module, args.all, args.list, common, args.out)
        words = sys.argv[1:] if argv is None else argv
        command = shlex.join(['python', 'tools/checks/check_attention.py', *words])
        judge_all(jobs, table, args.time_limit, bool(args.all), lambda t: write(t, args.out, command))
        print(json.dumps(table.as_dict(), indent=1) if args.json else table.text())
        write(table, args.out, command)
    except UserError as e:
        print(f'error: {e}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\ninterrupted', file=sys.stderr)
        return 130
    return 1 if table.failed else 0


if __name__ == '__main__':
    sys.exit(main())
