"""Tensor operators: torch only, no OpenMMLab import, nothing done at import time."""

from .functional import ccd, ccd_add_relu
from .options import check_ccd_options
from .reference import ccd_gate, ccd_reference

__all__ = ['ccd', 'ccd_add_relu', 'ccd_gate', 'ccd_reference', 'check_ccd_options']
