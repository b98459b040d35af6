"""Class activation maps of classifiers and detectors: computed by pytorch-grad-cam, and drawn."""

from .explain import explain
from .figure import draw_cams
from .methods import METHODS, load_cam_class
from .models import class_index, is_detector, num_classes
from .network import check_layers, default_layers
from .results import Cam, Explanation, Finding

__all__ = [
    'METHODS',
    'Cam',
    'Explanation',
    'Finding',
    'check_layers',
    'class_index',
    'default_layers',
    'draw_cams',
    'explain',
    'is_detector',
    'load_cam_class',
    'num_classes',
]
