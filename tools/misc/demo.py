"""Moved to tools/demo/demo.py; CHANGELOG.md says how long this name works."""

import runpy
import sys
from pathlib import Path

print('tools/misc/demo.py is tools/demo/demo.py now', file=sys.stderr)
runpy.run_path(str(Path(__file__).resolve().parents[1] / 'demo/demo.py'), run_name='__main__')
