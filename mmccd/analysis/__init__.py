"""Looking into a network: what its attention layers do to an image, and where its evidence lies."""

from mmccd.analysis.attention_maps.gates import Gate, SeenImage, attention_layers, choose_layers, record_gates
from mmccd.analysis.attention_maps.sheet import draw_sheet
from mmccd.analysis.cam.cam import (
    METHODS,
    Cam,
    Explanation,
    Finding,
    check_layers,
    class_index,
    explain,
    is_detector,
    load_cam_class,
    num_classes,
)
from mmccd.analysis.cam.sheet import draw_cam_sheet

from .inputs import list_images, load_model, output_names, prepare_image

__all__ = [
    'METHODS',
    'Cam',
    'Explanation',
    'Finding',
    'Gate',
    'SeenImage',
    'attention_layers',
    'check_layers',
    'choose_layers',
    'class_index',
    'draw_cam_sheet',
    'draw_sheet',
    'explain',
    'is_detector',
    'list_images',
    'load_cam_class',
    'load_model',
    'num_classes',
    'output_names',
    'prepare_image',
    'record_gates',
]
