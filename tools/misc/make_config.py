"""Moved to tools/make_config.py; CHANGELOG.md says how long this name works."""

import runpy
import sys
from pathlib import Path

print('tools/misc/make_config.py is tools/make_config.py now', file=sys.stderr)
runpy.run_path(str(Path(__file__).resolve().parents[1] / 'make_config.py'), run_name='__main__')
