"""See runs: a page that compares what work folders hold. Behind ``tools/analysis_tools/report.py``."""

from .page import Options, Report
from .record import record
from .run import Run, read_run, read_runs

__all__ = ['Options', 'Report', 'Run', 'read_run', 'read_runs', 'record']
