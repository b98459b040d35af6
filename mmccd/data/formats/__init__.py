"""Labels in other formats than COCO: YOLO, Pascal VOC, LabelMe, CVAT and Label Studio, read exactly to the pixel.

A file reads a format; what the readers share is in ``labelled``, ``images`` and ``shapes``. They are our own, since no
library that was looked at reads all five exactly and lightly: supervision 0.31 reads three, in float32, without splits
and ``difficult``, and needs PyAV; globox 2.9 takes VOC's pixels for corners, sizes of YOLO images without their EXIF
orientation, and skips shapes without a word; pylabel has had no release since 2023; datumaro and FiftyOne are heavy.
"""

from .coco import NAMES, CocoSplit, check_splits, divide, pick_split, read_labels, to_coco
from .labelled import WHOLE, Findings, Label, Labelled, LabelledImage, same_classes
from .recognise import recognise

__all__ = [
    'NAMES',
    'WHOLE',
    'CocoSplit',
    'Findings',
    'Label',
    'Labelled',
    'LabelledImage',
    'check_splits',
    'divide',
    'pick_split',
    'read_labels',
    'recognise',
    'same_classes',
    'to_coco',
]
