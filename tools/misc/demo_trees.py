"""Moved to tools/demo/demo_trees.py; CHANGELOG.md says how long this name works."""

import runpy
import sys
from pathlib import Path

print('tools/misc/demo_trees.py is tools/demo/demo_trees.py now', file=sys.stderr)
runpy.run_path(str(Path(__file__).resolve().parents[1] / 'demo/demo_trees.py'), run_name='__main__')
