"""Every detector of MMDetection with an attention in its backbone: builds, trains a step, predicts.

Each config is tried in a process of its own (:mod:`.run`), on a made batch that has what its own pipelines load
(:mod:`.batch`). One that fails is tried without the attention, too: what fails alike there is not ours.
"""

from .configs import CONFIGS, LEFT_OUT, SEGMENTORS, matching
from .run import read_results, run_matrix
from .table import OUTCOMES, counts, markdown
from .trial import Result, Trial, try_config

__all__ = [
    'CONFIGS',
    'LEFT_OUT',
    'OUTCOMES',
    'SEGMENTORS',
    'Result',
    'Trial',
    'counts',
    'markdown',
    'matching',
    'read_results',
    'run_matrix',
    'try_config',
]
