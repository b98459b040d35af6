"""Seeds and paths that every test shares. mmccd comes first: it has to be there before mmdet.models."""
from pathlib import Path

import pytest
import torch

import mmccd  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope='session')
def golden() -> Path:
    """Folder of the original implementation's numbers."""
    return ROOT / 'tests' / 'data' / 'golden'
