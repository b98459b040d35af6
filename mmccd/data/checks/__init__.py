"""What is wrong with the data of a config: annotations, images, classes, evaluators.

Everything read here is written by others, and anything may stand in it: it becomes findings of a report.
"""

from .check import SPLITS, check_config, write_clean
from .images import MAX_PIXELS
from .report import Report

__all__ = ['MAX_PIXELS', 'SPLITS', 'Report', 'check_config', 'write_clean']
