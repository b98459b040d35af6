"""Moved to tools/checks/check_dataset.py; CHANGELOG.md says how long this name works."""

import runpy
import sys
from pathlib import Path

print('tools/misc/check_dataset.py is tools/checks/check_dataset.py now', file=sys.stderr)
runpy.run_path(str(Path(__file__).resolve().parents[1] / 'checks/check_dataset.py'), run_name='__main__')
