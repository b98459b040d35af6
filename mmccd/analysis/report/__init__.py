"""Reports: a page that compares the runs of work folders, as ``tools/analysis_tools/report.py`` writes it."""

from .context import Options
from .page import Report
from .record import record
from .run import Run, read_run, read_runs

__all__ = ['Options', 'Report', 'Run', 'read_run', 'read_runs', 'record']
