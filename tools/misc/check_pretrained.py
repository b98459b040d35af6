"""Moved to tools/checks/check_pretrained.py; CHANGELOG.md says how long this name works."""

import runpy
import sys
from pathlib import Path

print('tools/misc/check_pretrained.py is tools/checks/check_pretrained.py now', file=sys.stderr)
runpy.run_path(str(Path(__file__).resolve().parents[1] / 'checks/check_pretrained.py'), run_name='__main__')
