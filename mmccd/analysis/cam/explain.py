"""Class activation maps: which regions of an image are evidence for a class, or for one detection.

The maps are pytorch-grad-cam's (https://github.com/jacobgil/pytorch-grad-cam): Grad-CAM (ICCV 2017,
https://arxiv.org/abs/1610.02391), Grad-CAM++ (WACV 2018, https://arxiv.org/abs/1710.11063), HiResCAM
(https://arxiv.org/abs/2011.08891) and Eigen-CAM (IJCNN 2020, https://arxiv.org/abs/2008.00299).

Grad-CAM and Grad-CAM++ weight whole channels: for a detection, they show all places that look like its evidence, other
objects as well. HiResCAM multiplies the gradient with the map place by place, and shows only those that contribute to
this score; it is the default for detectors. Before a global average pooling, as in a ResNet, Grad-CAM and
HiResCAM of the last stage are the same. Eigen-CAM knows neither classes nor detections: one map an image.

What is explained is a raw class score, before sigmoid or softmax; for a detection, the score at the place that it came
from (:mod:`.targets`). Thresholds, NMS and proposals do not enter the map.

Several layers: each map is scaled to the image and to 0..1, then they are averaged, and the mean is scaled again. A
level of an FPN that a detection does not depend on adds nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from mmccd.analysis.inputs import rgb_pixels

from .methods import load_cam_class
from .models import is_detector
from .network import Network, check_layers, compute_maps, default_layers, gradients_of_activations_only
from .results import Cam, Explanation
from .targets import class_targets, detection_targets
from .view import View


def explain(
    model: nn.Module,
    batch: dict[str, Any],
    method: str | None = None,
    layers: Sequence[str] | None = None,
    categories: Collection[int] | None = None,
    topk: int | None = None,
    score_thr: float = 0.3,
) -> Explanation:
    """Compute the class activation maps of an image.

    Args:
        model (nn.Module): A classifier of MMPretrain or a detector of MMDetection, in evaluation mode. Detectors: a
            dense head with one output per place and class (RetinaNet and its like), or a two-stage one (Faster and
            Cascade R-CNN).
        batch (dict): One image, what ``model.data_preprocessor`` takes
            (:func:`mmccd.analysis.inputs.prepare_image`).
        method (str | None): One of :data:`.METHODS`. Default: None, 'gradcam' for a classifier, 'hirescam' for a
            detector.
        layers (Sequence[str] | None): Names of modules whose output is a map (1, C, H, W). A module that runs once per
            level counts as one layer for each. Default: None, the outputs of the neck of a detector, the last output
            of the backbone of a classifier.
        categories (Collection[int] | None): A classifier: classes to explain. A detector: classes whose detections
            are explained. Default: None, the predicted class, or all.
        topk (int | None): Maximum number of findings, the highest scores first. Default: None, one for a classifier
            without ``categories``, else all.
        score_thr (float): Minimum score of a detection. Default: 0.3.

    Raises:
        UserError: If pytorch-grad-cam is not installed.
        ValueError: If a layer does not exist or gives no map, or the detections of this model cannot be followed back.
    """
    method = method or ('hirescam' if is_detector(model) else 'gradcam')
    cam_class = load_cam_class(method)
    sample = batch['data_samples'][0]
    pixels = rgb_pixels(batch['inputs'][0])
    model.eval()
    with gradients_of_activations_only(model):
        data = model.data_preprocessor(batch, False)
        inputs = data['inputs']
        view = View(sample.metainfo, pixels)
        if is_detector(model):
            findings, best, run = detection_targets(model, inputs, data['data_samples'], categories, topk, score_thr)
            findings = [view.place(f) for f in findings]
        else:
            findings, best, run = class_targets(model, inputs, data['data_samples'], categories, topk)
        names = list(dict.fromkeys(layers or default_layers(model, inputs)))
        check_layers(model, names)
        network = Network(model, run, names, view.visible)
        groups = [findings] if method == 'eigencam' and findings else [[f] for f in findings]
        maps = compute_maps(cam_class, network, inputs, [group[0] for group in groups])
        cams = [Cam(view.show(values), group) for values, group in zip(maps, groups)]
    return Explanation(view.pixels, method, names, cams, best)
