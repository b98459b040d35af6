"""MMDetection's own tools, for configs and checkpoints of mmccd: ``python -m mmccd.tools NAME [its arguments]``.

mmdet installs them, and they fail there where mmcv has no compiled operators, on names that its registries do not know,
and on checkpoints that PyTorch refuses. Here they find what ``import mmccd`` sets up; nothing in them is changed.
``test_robustness`` gets the transform that mmdet's maintained line no longer has.
"""

from __future__ import annotations

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet

# isort: split
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from mmccd.checkpoints.read import allow_mmengine_checkpoints
from mmccd.cli.arguments import run_tool
from mmccd.cli.parser import tool_parser
from mmccd.compat.mmdet_tools import register_corrupt
from mmccd.errors import UserError, suggest

EXAMPLES = """examples:
  python -m mmccd.tools --list
  python -m mmccd.tools confusion_matrix --help
  python -m mmccd.tools browse_dataset configs/retinanet_ccd_r18_fpn_digits.py --not-show --output-dir shown
  python -m mmccd.tools confusion_matrix configs/retinanet_ccd_r18_fpn_digits.py predictions.pkl shown
"""


def find_tools() -> dict[str, Path]:
    """MMDetection's tools: name -> file.

    Raises:
        UserError: If mmdet is not installed, or without its tools.

    Example:
        >>> find_tools()['confusion_matrix'].name
        'confusion_matrix.py'
    """
    spec = importlib.util.find_spec('mmdet')
    if spec is None or not spec.submodule_search_locations:
        raise UserError("mmdet is not installed, so its tools are not: see 'Installation' in README.md")
    package = Path(spec.submodule_search_locations[0])
    folders = [package / '.mim' / 'tools', package.parent / 'tools']  # installed; a checkout
    folder = next((f for f in folders if (f / 'analysis_tools').is_dir()), None)
    if folder is None:
        raise UserError(f'mmdet was installed without its tools: neither {folders[0]} nor {folders[1]} has them')
    files = [path for path in folder.rglob('*.py') if "'__main__'" in path.read_text(encoding='utf-8')]
    tools: dict[str, Path] = {}
    for path in sorted(files, key=lambda p: (len(p.parts), p)):  # of two with one name, the deeper one keeps its folder
        name = path.relative_to(folder).with_suffix('').as_posix()
        tools[name if path.stem in tools else path.stem] = path
    return tools


def describe(tools: dict[str, Path]) -> str:
    """The names, a folder after the other."""
    lines: list[str] = []
    for folder in dict.fromkeys(path.parent for path in tools.values()):
        lines += [f'{folder.name}:', *(f'  {name}' for name, path in tools.items() if path.parent == folder)]
    return '\n'.join(lines)


def find_tool(name: str, tools: dict[str, Path]) -> Path:
    """The file of a tool by its name, with or without its folder and ``.py``.

    Raises:
        UserError: If there is no such tool; the message has the nearest names.
    """
    wanted = name.replace('\\', '/').removesuffix('.py')
    for known, path in tools.items():
        if wanted in (known, f'{path.parent.name}/{path.stem}'):
            return path
    raise UserError(f'MMDetection has no tool {name!r}{suggest(wanted, tools, n=3)} (--list shows all)')


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of MMDetection's tools in this process, as its own ``__main__``."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = tool_parser(__doc__, EXAMPLES)
    parser.usage = 'python -m mmccd.tools NAME [ARGUMENT ...] | --list'
    parser.add_argument('--list', action='store_true', help='list the tools')
    parser.add_argument('name', nargs='?', metavar='NAME', help='tool; what follows are its own arguments')
    args = parser.parse_args(argv[:1])
    tools = find_tools()
    if args.list:
        print(describe(tools))
        return
    if args.name is None:
        parser.error('the name of a tool is missing; --list shows them')
    path = find_tool(args.name, tools)
    allow_mmengine_checkpoints()
    if path.stem == 'test_robustness':
        register_corrupt()
    # One of them imports another as `tools.analysis_tools`.
    sys.path.insert(0, str(next(parent for parent in path.parents if parent.name == 'tools').parent))
    sys.argv = [str(path), *argv[1:]]
    runpy.run_path(str(path), run_name='__main__')


if __name__ == '__main__':
    run_tool(main)
