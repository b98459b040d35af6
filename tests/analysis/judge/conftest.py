"""The faulty modules, importable by name, as a user's own are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope='session')
def faulty():
    """tests/analysis/judge/faulty.py."""
    sys.path.insert(0, str(HERE))  # for the processes that the judge starts, too
    import faulty

    yield faulty
    sys.path.remove(str(HERE))
