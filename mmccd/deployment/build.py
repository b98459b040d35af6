"""Which network is exported for a model."""

from __future__ import annotations

from mmdet.models import RetinaHead, RetinaSepBNHead, SingleStageDetector, TwoStageDetector
from torch import nn

from mmccd.data.classes import is_a

from .detectors import Retina, TwoStage
from .networks import Classifier, Network, RawRetina, RawRPN

KINDS = ('end2end', 'raw')
SUPPORTED = (
    'ImageClassifier with a LinearClsHead, single-stage detectors with a RetinaHead or RetinaSepBNHead, and '
    'two-stage detectors with an RPN'
)


def build_network(model: nn.Module, kind: str) -> Network:
    """The network that :func:`mmccd.deployment.export_onnx` exports.

    Raises:
        ValueError: If this model or kind is not supported.
    """
    if kind not in KINDS:
        raise ValueError(f'kind must be one of {KINDS}, got {kind!r}')
    end2end = kind == 'end2end'
    if isinstance(model, SingleStageDetector) and isinstance(model.bbox_head, (RetinaHead, RetinaSepBNHead)):
        return Retina(model) if end2end else RawRetina(model)
    if isinstance(model, TwoStageDetector) and model.with_rpn:
        return TwoStage(model) if end2end else RawRPN(model)
    # By names, which spares importing MMPretrain for detectors.
    if is_a(type(model), 'ImageClassifier') and is_a(type(model.head), 'LinearClsHead'):
        return Classifier(model, end2end)
    head = getattr(model, 'bbox_head', None) or getattr(model, 'head', None)
    with_head = f' with {type(head).__name__}' if head is not None else ''
    raise ValueError(f'{type(model).__name__}{with_head} cannot be exported; supported are {SUPPORTED}')
