"""Export to ONNX, checked against PyTorch."""

from .build import KINDS, build_network
from .export import check_packages, export_onnx, resize_steps
from .networks import Network
from .parity import SHAPES, Deviation, compare, markdown_table, parity_images
from .runtimes import RUNTIMES, onnxruntime_run, openvino_run, quantize

__all__ = [
    'KINDS',
    'RUNTIMES',
    'SHAPES',
    'Deviation',
    'Network',
    'build_network',
    'check_packages',
    'compare',
    'export_onnx',
    'markdown_table',
    'onnxruntime_run',
    'openvino_run',
    'parity_images',
    'quantize',
    'resize_steps',
]
