"""Export to ONNX, checked against PyTorch."""

from .export import check_packages, export_onnx, resize_steps
from .networks import KINDS, Network, build_network
from .parity import SHAPES, Deviation, compare, markdown_table, parity_images

__all__ = [
    'KINDS',
    'SHAPES',
    'Deviation',
    'Network',
    'build_network',
    'check_packages',
    'compare',
    'export_onnx',
    'markdown_table',
    'parity_images',
    'resize_steps',
]
