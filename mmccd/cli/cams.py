"""What the options of ``vis_cam.py`` mean for a model."""

from __future__ import annotations

import argparse
from typing import NamedTuple

from torch import nn

from mmccd.analysis.cam import check_layers, class_index, is_detector, num_classes
from mmccd.errors import UserError

THRESHOLD = 0.3
TOPK = 8


class CamOptions(NamedTuple):
    """Options of :func:`mmccd.analysis.cam.explain` beside method and layers, and the names of the classes.

    Attributes:
        classes (tuple[str, ...]): Names, or numbers where the checkpoint has none that fit the model.
        categories (list[int] | None): Classes to explain; None for the predicted one, or of a detector for all.
        topk (int | None): Maximum number of detections; None for a classifier.
        threshold (float): Minimum score of a detection.
    """

    classes: tuple[str, ...]
    categories: list[int] | None
    topk: int | None
    threshold: float


def cam_options(model: nn.Module, args: argparse.Namespace) -> CamOptions:
    """Check the options against a model of :func:`mmccd.init_model`.

    Raises:
        UserError: If an option is for detections and the model is a classifier, or for more maps than the method
            gives.
        ValueError: If a layer or a class is not there.
    """
    detector = is_detector(model)
    for option in ('topk', 'score_thr', 'zoom'):
        if not detector and getattr(args, option) is not None:
            raise UserError(f'--{option.replace("_", "-")} is for detections, and this config is of a classifier')
    if args.method == 'eigencam' and (args.zoom or (args.target_category and not detector)):
        raise UserError(
            f'--{"zoom" if args.zoom else "target-category"} asks for one map of each, and eigencam '
            'has only one for the whole image'
        )
    check_layers(model, args.target_layers or ())
    classes = model.dataset_meta.get('classes') or ()
    if len(classes) != num_classes(model):
        classes = tuple(map(str, range(num_classes(model))))
    categories = args.target_category and list(dict.fromkeys(class_index(c, classes) for c in args.target_category))
    topk = args.topk or (TOPK if detector else None)
    return CamOptions(classes, categories, topk, THRESHOLD if args.score_thr is None else args.score_thr)
