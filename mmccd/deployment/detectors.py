"""Exported detectors: boxes after the NMS of the config's ``test_cfg``, of one image at a time."""

from __future__ import annotations

import torch
from mmdet.models import TwoStageDetector
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from .boxes import (
    best_of_level,
    candidates,
    coder_problems,
    decode,
    extractor_problems,
    read_choice,
    roi_features,
    suppress,
)
from .networks import Network

# What decides on boxes in testing: a subclass that changes one of these computes something else.
_RPN_METHODS = (
    'forward',
    'forward_single',
    'predict',
    'predict_by_feat',
    '_predict_by_feat_single',
    '_bbox_post_process',
)
_ROI_METHODS = ('predict', 'predict_bbox', '_bbox_forward', '_refine_roi')
_BBOX_METHODS = ('predict_by_feat', '_predict_by_feat_single', 'regress_by_class')


class Detector(Network):
    """Boxes (n, 4), x1, y1, x2, y2 in pixels of the image, scores (n,) falling, labels (n,) from 0; one image.

    Attributes:
        score_thr (float): All scores are above it.
        max_per_img (int | None): Maximum number of boxes; None for all.
    """

    batched = False
    outputs = dict(boxes={0: 'boxes'}, scores={0: 'boxes'}, labels={0: 'boxes'})
    score_thr: float
    max_per_img: int | None

    def _expected(self, inputs: Tensor, data_samples: list[DetDataSample]) -> tuple[Tensor, ...]:
        found = self.model(inputs, data_samples, mode='predict')[0].pred_instances
        return found.bboxes, found.scores, found.labels


class Retina(Detector):
    """A single-stage detector with a ``RetinaHead`` or ``RetinaSepBNHead``.

    The choice of boxes is that of MMDetection's ``BaseDenseHead.predict_by_feat``, in an order that needs no size
    beforehand: the best ``nms_pre`` of each level first, then those above ``score_thr``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head = model.bbox_head
        self.choice, problems = read_choice(self.head.test_cfg, 'test_cfg')
        self.score_thr, self.max_per_img = self.choice.score_thr, self.choice.maximum
        problems += coder_problems(self.head.bbox_coder)
        if not self.head.use_sigmoid_cls or getattr(self.head.loss_cls, 'custom_cls_channels', False):
            problems.append('class scores that are not sigmoids')
        _refuse(problems)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, deltas = self.model(self.prepare(image), mode='tensor')
        priors = self.head.prior_generator.grid_priors([x.shape[-2:] for x in logits], logits[0].dtype, image.device)
        found = [
            best_of_level(
                logit[0].permute(1, 2, 0).reshape(-1, self.head.cls_out_channels).sigmoid(),
                delta[0].permute(1, 2, 0).reshape(-1, 4),
                prior,
                self.choice.nms_pre,
            )
            for logit, delta, prior in zip(logits, deltas, priors)
        ]
        scores, labels, deltas, priors = (torch.cat(parts) for parts in zip(*found))
        boxes = decode(self.head.bbox_coder, priors, deltas, *image.shape[-2:])
        kept = candidates(boxes, scores, self.choice)
        kept = kept[suppress(boxes[kept], scores[kept], labels[kept], self.choice)]
        return boxes[kept], scores[kept], labels[kept]


class TwoStage(Detector):
    """Faster R-CNN, Mask R-CNN (its boxes), Cascade R-CNN and those that differ from them in training alone.

    An RPN, RoIAlign on the level of each proposal's size, and one or several box heads.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.rpn, self.roi = model.rpn_head, model.roi_head
        # MMDetection reads no more than this of either.
        proposals, problems = read_choice(self.rpn.test_cfg, 'test_cfg.rpn', ('score_thr',))
        choice, found = read_choice(self.roi.test_cfg, 'test_cfg.rcnn', ('mask_thr_binary', 'nms_pre', 'min_bbox_size'))
        self.proposals = proposals._replace(score_thr=-1)
        self.choice = choice._replace(maximum=choice.maximum if (choice.maximum or 0) > 0 else None)
        self.score_thr, self.max_per_img = self.choice.score_thr, self.choice.maximum
        problems += found + _changed(self.rpn, (RPNHead,), _RPN_METHODS)
        problems += _changed(self.roi, (StandardRoIHead, CascadeRoIHead), _ROI_METHODS)
        problems += _changed(model, (TwoStageDetector,), ('predict',))
        _refuse(problems)  # before what follows asks for parts of them

        self.cascade = isinstance(self.roi, CascadeRoIHead)
        self.heads = list(self.roi.bbox_head) if self.cascade else [self.roi.bbox_head]
        self.extractors = list(self.roi.bbox_roi_extractor) if self.cascade else [self.roi.bbox_roi_extractor]
        problems = coder_problems(self.rpn.bbox_coder)
        for head, extractor in zip(self.heads, self.extractors):
            problems += _changed(head, (BBoxHead,), _BBOX_METHODS) or _head_problems(head)
            problems += extractor_problems(extractor)
        _refuse(list(dict.fromkeys(problems)))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = image.shape[-2:]
        features = self.model.extract_feat(self.prepare(image))
        boxes = self._propose(features, *size)
        logits: list[Tensor] = []
        for i, (head, extractor) in enumerate(zip(self.heads, self.extractors)):
            found = roi_features(extractor, features[: extractor.num_inputs], boxes)
            logit, deltas = head(self.roi.shared_head(found) if self.roi.with_shared_head else found)
            logits.append(logit)
            if i + 1 < len(self.heads):  # the next stage gets each box as its best class moves it
                label = logit[:, :-1].argmax(1)
                boxes = decode(head.bbox_coder, boxes, _deltas_of(head, deltas, label), *size)
        scores = (sum(logits) / float(len(logits))).softmax(-1)[:, :-1]
        return self._choose(head, scores, boxes, deltas, *size)

    def _propose(self, features: tuple[Tensor, ...], height: int | Tensor, width: int | Tensor) -> Tensor:
        """The RPN's boxes (n, 4), best first."""
        rpn = self.rpn
        logits, deltas = rpn(features)
        priors = rpn.prior_generator.grid_priors([x.shape[-2:] for x in logits], logits[0].dtype, logits[0].device)
        found = []
        for logit, delta, prior in zip(logits, deltas, priors):
            logit = logit[0].permute(1, 2, 0).reshape(-1, rpn.cls_out_channels)
            scores = logit.sigmoid() if rpn.use_sigmoid_cls else logit.softmax(-1)[:, :-1]
            delta = delta[0].permute(1, 2, 0).reshape(-1, 4)
            found.append(best_of_level(scores, delta, prior, self.proposals.nms_pre))
        scores, _, delta, prior = (torch.cat(parts) for parts in zip(*found))
        level = torch.cat([label * 0 + i for i, (_, label, _, _) in enumerate(found)])
        boxes = decode(rpn.bbox_coder, prior, delta, height, width)
        kept = candidates(boxes, scores, self.proposals)
        return boxes[kept[suppress(boxes[kept], scores[kept], level[kept], self.proposals)]]

    def _choose(
        self, head: nn.Module, scores: Tensor, boxes: Tensor, deltas: Tensor, height: int | Tensor, width: int | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """MMDetection's ``multiclass_nms`` of scores (n, classes), boxes (n, 4) and deltas (n, 4 or 4 * classes)."""
        classes = scores.shape[1]
        kept = (scores.reshape(-1) > self.choice.score_thr).nonzero().squeeze(1)
        row = torch.div(kept, classes, rounding_mode='trunc')
        label = kept - row * classes
        boxes = decode(head.bbox_coder, boxes[row], _deltas_of(head, deltas[row], label), height, width)
        scores = scores.reshape(-1)[kept]
        best = suppress(boxes, scores, label, self.choice)
        return boxes[best], scores[best], label[best]


def _deltas_of(head: nn.Module, deltas: Tensor, label: Tensor) -> Tensor:
    """Deltas (n, 4) of the class ``label`` (n,), of heads that have some for every class."""
    if head.reg_class_agnostic:
        return deltas
    index = label[:, None] * 4 + torch.arange(4, device=label.device)
    return deltas.gather(1, index)


def _head_problems(head: nn.Module) -> list[str]:
    problems = coder_problems(head.bbox_coder)
    if not (head.with_cls and head.with_reg):
        problems.append('a box head without classes or without deltas')
    if head.custom_cls_channels or head.custom_activation:
        problems.append(f'loss_cls={type(head.loss_cls).__name__}')
    return problems


def _changed(module: nn.Module, known: tuple[type, ...], methods: tuple[str, ...]) -> list[str]:
    """A problem if a module is none of ``known``, or changes one of their methods."""
    for kind in known:
        if isinstance(module, kind) and all(getattr(type(module), m, None) is getattr(kind, m, None) for m in methods):
            return []
    return [f'{type(module).__name__}']


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError(f'--kind end2end cannot export {", ".join(problems)}; --kind raw can')


__all__ = ['Detector', 'Retina', 'TwoStage']
