"""Report what is installed and in use, known problems, and the command that fixes each.

The exit code is 1 if something is broken. The same as `python -m mmccd.analysis.doctor.collect_env`, but this works
where `import mmccd` does not.
"""

import argparse
import sys
from pathlib import Path
from types import ModuleType


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    # The package without its __init__.py, which refuses to be imported where something is missing.
    package = ModuleType('mmccd')
    root = Path(__file__).resolve().parents[2]
    package.__path__ = [str(root.parent if root.name == '.mim' else root / 'mmccd')]
    sys.modules['mmccd'] = package
    from mmccd.analysis.doctor.collect_env import main as report

    return report()


if __name__ == '__main__':
    sys.exit(main())
