"""The versions that mmcv's environment report prints."""

from __future__ import annotations

from .operators import OPERATORS


def get_compiler_version() -> str:
    """What mmcv's environment report prints in the place of a compiler's version."""
    import torchvision

    return f'none (mmccd replacement over torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """What it prints in the place of CUDA's version."""
    return get_compiler_version()


OPERATORS.update(get_compiler_version=get_compiler_version, get_compiling_cuda_version=get_compiling_cuda_version)
