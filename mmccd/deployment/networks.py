"""The exported networks: from an RGB image, float32 from 0 to 255, to named outputs.

They consist of the model's modules, but for what PyTorch's exporter cannot trace in MMDetection and MMPretrain: the
data preprocessor, which takes lists, and the choice of boxes, which needs the metadata of an image.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.models import RetinaHead, RetinaSepBNHead, SingleStageDetector, TwoStageDetector
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox
from mmdet.structures import DetDataSample
from torch import Tensor, nn
from torchvision.ops import nms

from mmccd.compat.mmdet_v06 import InclusiveBBoxCoder
from mmccd.data.classes import is_a

KINDS = ('end2end', 'raw')
SUPPORTED = (
    'ImageClassifier with a LinearClsHead, single-stage detectors with a RetinaHead or RetinaSepBNHead, and, '
    'with --kind raw, two-stage detectors with an RPN'
)


class Preparation(nn.Module):
    """The data preprocessor of a model: from RGB images (N, 3, H, W) to the input of its backbone.

    Args:
        preprocessor (nn.Module): mmengine's ``ImgDataPreprocessor`` or one made from it, or MMPretrain's
            ``ClsDataPreprocessor``; they get BGR images, as the pipelines load them.
    """

    def __init__(self, preprocessor: nn.Module) -> None:
        super().__init__()
        self.takes_rgb = bool(getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'to_rgb', False)))
        self.normalizes = preprocessor._enable_normalize
        if self.normalizes:
            self.register_buffer('mean', preprocessor.mean)
            self.register_buffer('std', preprocessor.std)
        self.divisor = preprocessor.pad_size_divisor
        self.pad_value = preprocessor.pad_value

    def fill(self) -> list[float]:
        """RGB value that pads an image as the preprocessor pads behind the normalisation."""
        if not self.normalizes:
            return [float(self.pad_value)] * 3
        value = (self.pad_value * self.std + self.mean).flatten().expand(3).tolist()
        return value if self.takes_rgb else value[::-1]

    def forward(self, image: Tensor) -> Tensor:
        x = image if self.takes_rgb else image[:, [2, 1, 0]]
        if self.normalizes:
            x = (x - self.mean) / self.std
        if self.divisor > 1:
            height, width = x.shape[-2:]
            x = F.pad(x, (0, -width % self.divisor, 0, -height % self.divisor), value=self.pad_value)
        return x


class Network(nn.Module):
    """A model behind its :class:`Preparation`.

    Attributes:
        outputs (dict[str, dict[int, str]]): Names of the outputs: their axes that are not fixed, with a name each.
        batched (bool): Whether it takes several images at once.
    """

    outputs: dict[str, dict[int, str]]
    batched = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.prepare = Preparation(model.data_preprocessor)
        self.model = model

    @torch.no_grad()
    def expected(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for an RGB image (H, W, 3), uint8, computed by the libraries, preprocessor included."""
        bgr = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
        size = image.shape[:2]
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
        data = self.model.data_preprocessor(dict(inputs=[bgr], data_samples=self._samples(sample)), False)
        return {name: v.cpu().numpy() for name, v in zip(self.outputs, self._expected(**data))}

    def _samples(self, sample: DetDataSample) -> list[DetDataSample] | None:
        return [sample]

    def _expected(self, inputs: Tensor, data_samples: list[DetDataSample] | None) -> tuple[Tensor, ...]:
        """The outputs for what the preprocessor gives."""
        raise NotImplementedError


class Classifier(Network):
    """Logits (N, classes), and their softmax if ``scores``."""

    def __init__(self, model: nn.Module, scores: bool) -> None:
        super().__init__(model)
        self.scores = scores
        self.outputs = {name: {0: 'n'} for name in ('logits', 'scores')[: 1 + scores]}

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        logits = self.model(self.prepare(image), mode='tensor')
        return (logits, logits.softmax(1)) if self.scores else (logits,)

    def _samples(self, sample: DetDataSample) -> None:
        return None

    def _expected(self, inputs: Tensor, data_samples: None) -> tuple[Tensor, ...]:
        logits = self.model(inputs, mode='tensor')
        return (logits, self.model(inputs, mode='predict')[0].pred_score[None]) if self.scores else (logits,)


def _levels(**counts: int) -> dict[str, dict[int, str]]:
    return {f'{name}_{i}': {0: 'n', 2: f'h_{i}', 3: f'w_{i}'} for name, n in counts.items() for i in range(n)}


class RawRetina(Network):
    """Class logits ``cls_i`` (N, anchors * classes, h, w) and box deltas ``box_i`` (N, anchors * 4, h, w) by level."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        levels = model.bbox_head.prior_generator.num_levels
        self.outputs = _levels(cls=levels, box=levels)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self._expected(self.prepare(image), None)

    def _expected(self, inputs: Tensor, data_samples: list[DetDataSample] | None) -> tuple[Tensor, ...]:
        scores, deltas = self.model(inputs, mode='tensor')
        return (*scores, *deltas)


class RawRPN(Network):
    """Outputs of the first of two stages: ``feature_i`` (N, C, h, w), ``rpn_cls_i`` and ``rpn_box_i`` by level."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        levels = model.rpn_head.prior_generator.num_levels
        self.outputs = _levels(feature=levels, rpn_cls=levels, rpn_box=levels)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self._expected(self.prepare(image), None)

    def _expected(self, inputs: Tensor, data_samples: list[DetDataSample] | None) -> tuple[Tensor, ...]:
        features = self.model.extract_feat(inputs)
        scores, deltas = self.model.rpn_head(features)
        return (*features, *scores, *deltas)


class Retina(Network):
    """Boxes (n, 4), x1, y1, x2, y2 in pixels of the image, scores (n,) falling, labels (n,) from 0; one image.

    The choice of boxes is that of MMDetection's ``BaseDenseHead.predict_by_feat``, in an order that needs no size
    beforehand: the best ``nms_pre`` of each level first, then those above ``score_thr``.
    """

    batched = False
    outputs = dict(boxes={0: 'boxes'}, scores={0: 'boxes'}, labels={0: 'boxes'})

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head = model.bbox_head
        self.coder = self.head.bbox_coder
        cfg = dict(self.head.test_cfg)
        nms_cfg = dict(cfg.pop('nms', None) or {})
        self.score_thr = cfg.pop('score_thr', 0)
        self.nms_pre = cfg.pop('nms_pre', -1)
        self.min_size = cfg.pop('min_bbox_size', -1)
        self.max_per_img = cfg.pop('max_per_img', None)
        problems = [f'test_cfg.{k}={v!r}' for k, v in cfg.items()]
        if nms_cfg.pop('type', None) != 'nms':
            problems.append(f'test_cfg.nms={self.head.test_cfg.get("nms")} (only type "nms")')
        self.class_agnostic = nms_cfg.pop('class_agnostic', False)
        self.iou_threshold = nms_cfg.pop('iou_threshold', None)
        nms_cfg.pop('split_thr', None)  # it does not change the result
        problems += [f'test_cfg.nms.{k}={v!r}' for k, v in nms_cfg.items()]
        if self.iou_threshold is None:
            problems.append('test_cfg.nms without iou_threshold')
        if type(self.coder) not in (DeltaXYWHBBoxCoder, InclusiveBBoxCoder):
            problems.append(f'bbox_coder={type(self.coder).__name__}')
        if not self.head.use_sigmoid_cls or getattr(self.head.loss_cls, 'custom_cls_channels', False):
            problems.append('class scores that are not sigmoids')
        if problems:
            raise ValueError(f'--kind end2end cannot export {", ".join(problems)}; --kind raw can')

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, deltas = self.model(self.prepare(image), mode='tensor')
        priors = self.head.prior_generator.grid_priors([x.shape[-2:] for x in logits], logits[0].dtype, image.device)
        found = [self._best(*level) for level in zip(logits, deltas, priors)]
        scores, labels, deltas, priors = (torch.cat(parts) for parts in zip(*found))
        boxes = self._decode(priors, deltas, *image.shape[-2:])

        keep = scores > self.score_thr
        if self.min_size >= 0:
            keep = keep & (boxes[:, 2:] - boxes[:, :2] > self.min_size).all(1)
        # One NMS for all classes: as in mmcv, an offset separates the boxes of different classes.
        moved = boxes
        if not self.class_agnostic:
            widest = boxes.masked_fill(~keep[:, None], 0).max()
            moved = boxes + (labels * (widest + 1))[:, None]
        kept = keep.nonzero().squeeze(1)
        kept = kept[nms(moved[kept], scores[kept], self.iou_threshold)[: self.max_per_img]]
        return boxes[kept], scores[kept], labels[kept]

    def _expected(self, inputs: Tensor, data_samples: list[DetDataSample]) -> tuple[Tensor, ...]:
        found = self.model(inputs, data_samples, mode='predict')[0].pred_instances
        return found.bboxes, found.scores, found.labels

    def _best(self, logit: Tensor, delta: Tensor, priors: Tensor) -> tuple[Tensor, ...]:
        """Scores, labels, deltas and priors of the best ``nms_pre`` pairs of prior and class, best first."""
        classes = self.head.cls_out_channels
        scores = logit[0].permute(1, 2, 0).reshape(-1).sigmoid()
        count = scores.shape[0]
        if self.nms_pre > 0:
            count = torch.minimum(torch.as_tensor(count), torch.tensor(self.nms_pre))
        scores, index = scores.topk(count)
        prior = torch.div(index, classes, rounding_mode='trunc')
        return scores, index - prior * classes, delta[0].permute(1, 2, 0).reshape(-1, 4)[prior], priors[prior]

    def _decode(self, priors: Tensor, deltas: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
        """Boxes (n, 4), cut off at the border of the image."""
        coder, inclusive = self.coder, isinstance(self.coder, InclusiveBBoxCoder)
        if inclusive:
            boxes = coder.decode(priors, deltas)
        else:  # its decode has a branch for ONNX that calls a removed function
            boxes = delta2bbox(
                priors, deltas, coder.means, coder.stds, add_ctr_clamp=coder.add_ctr_clamp, ctr_clamp=coder.ctr_clamp
            )
            if not coder.clip_border:
                return boxes
        ends = torch.stack([torch.as_tensor(v) - int(inclusive) for v in (width, height, width, height)])
        return boxes.clamp_min(0).minimum(ends.to(boxes.dtype))


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
        if end2end:
            raise ValueError(
                f'{type(model).__name__} cannot be exported with --kind end2end; --kind raw exports '
                'backbone, neck and RPN'
            )
        return RawRPN(model)
    # By names, which spares importing MMPretrain for detectors.
    if is_a(type(model), 'ImageClassifier') and is_a(type(model.head), 'LinearClsHead'):
        return Classifier(model, end2end)
    head = getattr(model, 'bbox_head', None) or getattr(model, 'head', None)
    with_head = f' with {type(head).__name__}' if head is not None else ''
    raise ValueError(f'{type(model).__name__}{with_head} cannot be exported; supported are {SUPPORTED}')
